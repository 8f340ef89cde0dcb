"""The settings of evaluate.py, and which runs they name."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csat.errors import ConfigError
from csat.labels.sets import LabelledConfig
from csat.labels.splits import SPLITS
from csat.settings import Free, ModelPlace, Often, Place, SettingsOf, read_settings
from csat.slides.mpp import check_mpp
from csat.storage import files
from csat.storage.uris import has_magic
from workflows.shell.config import RayConfig


@dataclass(frozen=True, kw_only=True)
class AnswererConfig:
    """Whatever answers and is no finished run: a teacher, or a model that needs to be told how it sees."""

    teacher: str | None = None  # stain, hovernet, timm, ara_cnn, torchscript
    model: ModelPlace | None = None  # in its place: run folder, exported folder or ONNX file, local or s3://, or its name
    weights: Place | None = None  # of a teacher that needs them
    options: dict[str, Any] = field(default_factory=dict)  # of a teacher, such as mode: fast
    tile_px: int | None = None  # edge of its windows; None: as it was trained, or about 256 px
    mpp: float | None = None  # um/px of its windows; None: as it was trained

    def __post_init__(self):
        if (self.teacher is None) == (self.model is None):
            raise ConfigError("give a teacher (stain, hovernet, …) or a model (a folder or an ONNX file), and not both")
        check_mpp(self.mpp, "mpp")

    @property
    def name(self) -> str:
        """What tables call it."""
        options = json.dumps(self.options, sort_keys=True) if self.options else None
        return " ".join(filter(None, (self.teacher or self.model, self.weights, options)))


Judged = str | AnswererConfig  # the place of a run or a model, or what says more
Runs = list[ModelPlace] | dict[str, ModelPlace | list[ModelPlace] | SettingsOf[AnswererConfig] | Any]

EVERY_SPLIT = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of evaluate.py."""

    runs: Runs  # name → run folders (seeds; globs), a model's folder or ONNX file, or {teacher: stain}; or folders alone
    run_folder: Free[Place]  # where the comparison goes, local path or s3://…
    split: Often[str] = "test"  # split that is compared: test, val, train or, of other data, all
    metric: Often[str | None] = None  # that the table leads with; None: the one that chose the weights of the first run
    data: LabelledConfig | None = None  # labelled images that all are judged on; None: what the runs were judged on
    accept_leakage: bool = False  # judge on other images although a run was trained on some of them
    num_bootstraps: int = 10_000  # resamples of the groups behind each interval
    seed: int = 0  # of the resamples
    report_samples: Free[int] = 12  # worst samples shown in the report; 0: none, and no image is read
    device: Often[str] = "cpu"  # where models run, where they have to: cpu or cuda
    ray: Free[RayConfig] = field(default_factory=RayConfig)  # the cluster that decodes other data
    overwrite: Often[Free[bool]] = False  # delete a comparison of another configuration in run_folder

    def __post_init__(self):
        splits = (*SPLITS, EVERY_SPLIT) if self.data else SPLITS
        if self.split not in splits:
            raise ConfigError(f"split is one of {', '.join(splits)}, not {self.split!r}")
        if self.num_bootstraps < 1:
            raise ConfigError(f"num_bootstraps must be at least 1, not {self.num_bootstraps}")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is cpu or cuda, not {self.device!r}")


def name_runs(runs: Sequence[str] | Mapping[str, Any]) -> dict[str, list[Judged]]:
    """Name → what is judged under it; folders without a name are each a group of their own, called as they are.

    Raises:
        ConfigError: no runs, a pattern that matches nothing, settings that there are not, two folders of the same name.
    """
    if isinstance(runs, Mapping):
        found = {str(name): _members(str(name), given) for name, given in runs.items()}
    else:
        uris = [uri for pattern in runs for uri in _matches(pattern)]
        found = {files.base_name(uri): [uri] for uri in uris}
        if len(found) < len(uris):
            raise ConfigError(
                "two run folders have the same name: say what they are, as in runs='{rckd: [a/0, a/1], scratch: [b/0, b/1]}'"
            )
    if not found:
        raise ConfigError("no runs were given: runs=… takes run folders of finetune.py, or NAME: FOLDERS pairs")
    return found


def _members(name: str, given: Any) -> list[Judged]:
    if isinstance(given, Mapping):
        return [read_settings(AnswererConfig, given, what=f"runs.{name}")]
    uris = [given] if isinstance(given, str) else given
    if not isinstance(uris, Sequence) or not uris or not all(isinstance(uri, str) for uri in uris):
        raise ConfigError(
            f"runs.{name} is a run folder or a list of them, or settings such as {{teacher: stain}}, not {uris!r}"
        )
    return [uri for pattern in uris for uri in _matches(pattern)]


def _matches(pattern: str) -> list[str]:
    if not has_magic(pattern):
        return [pattern]
    if not (found := [uri for uri in files.glob(pattern) if files.is_dir(uri)]):
        raise ConfigError(f"no folder matches {pattern}")
    return found
