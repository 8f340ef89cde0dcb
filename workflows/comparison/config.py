"""The settings of evaluate.py, and which runs they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csat.errors import ConfigError
from csat.labels.sets import LabelledConfig
from csat.labels.splits import SPLITS
from csat.settings import Free, Often, Place
from csat.storage import files
from csat.storage.uris import has_magic
from workflows.shell.config import RayConfig

Runs = list[Place] | dict[str, Place | list[Place] | Any]

EVERY_SPLIT = "all"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of evaluate.py."""

    runs: Runs  # name → run folders of finetune.py or distilled classifiers (seeds), or folders; globs
    run_folder: Free[Place]  # where the comparison goes, local path or s3://…
    split: Often[str] = "test"  # split that is compared: test, val, train or, of other data, all
    metric: Often[str | None] = None  # that the table leads with; None: the one that chose the weights of the first run
    data: LabelledConfig | None = None  # other labelled images to judge the exported models on; None: those of the runs
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


def name_runs(runs: Sequence[str] | Mapping[str, Any]) -> dict[str, list[str]]:
    """Name → run folders; folders without a name are each a group of their own, called as they are.

    Raises:
        ConfigError: no runs, a pattern that matches nothing, or two folders of the same name.
    """
    if isinstance(runs, Mapping):
        named = {str(name): [uris] if isinstance(uris, str) else uris for name, uris in runs.items()}
        for name, uris in named.items():
            if not isinstance(uris, Sequence) or not uris or not all(isinstance(uri, str) for uri in uris):
                raise ConfigError(f"runs.{name} is a run folder or a list of them, not {uris!r}")
        found = {name: [uri for pattern in uris for uri in _matches(pattern)] for name, uris in named.items()}
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


def _matches(pattern: str) -> list[str]:
    if not has_magic(pattern):
        return [pattern]
    if not (found := [uri for uri in files.glob(pattern) if files.is_dir(uri)]):
        raise ConfigError(f"no folder matches {pattern}")
    return found
