"""Compare fine-tuned models: seeds pooled, intervals by patient, paired differences, costs, and where all of them are wrong.

    python workflows/evaluate.py --runs '{rckd: [runs/rckd-0, runs/rckd-1], scratch: [runs/scratch-0, runs/scratch-1]}' \
        --run_folder runs/comparison

Runs under one name are seeds of one way to train; differences are against the first name. Without `data` the predictions that
the runs left behind are compared. With `data.sets` the exported models are judged on other labelled images.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

import torch

from csat.errors import ConfigError, DatasetError, SlideError, StorageError
from csat.evaluation.comparison import check_groups, compare_runs, to_csv, to_text, worst_samples
from csat.evaluation.judged_run import JudgedRun, read_run
from csat.evaluation.predictions import write_predictions
from csat.evaluation.reports.comparison import write_comparison_report
from csat.evaluation.scores import check_metric
from csat.labels.sets import LabelledConfig
from csat.labels.splits import PARTS
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.storage.uris import has_magic
from csat.tasks import Task
from workflows.finetuning.run_data import EVERY_PART, RunData, judge, look, other_data, own_data
from workflows.shell import cluster, command_line
from workflows.shell.config import RayConfig

logger = logging.getLogger("evaluate")

Groups = dict[str, list[JudgedRun]]
MOST_SHOWN = 3  # groups whose maps stand beside each other in a picture


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of evaluate.py."""

    runs: list[str] | dict[str, Any]  # name → run folders of finetune.py or distilled classifiers (seeds), or folders; globs
    run_folder: str  # where the comparison goes, local path or s3://…
    split: str = "test"  # part that is compared: test, val, train or, of other data, all
    metric: str | None = None  # that the table leads with; None: the one that chose the weights of the first run
    data: LabelledConfig | None = None  # other labelled images to judge the exported models on; None: those of the runs
    accept_leakage: bool = False  # judge on other images although a run was trained on some of them
    num_bootstraps: int = 10_000  # resamples of the groups behind each interval
    seed: int = 0  # of the resamples
    report_samples: int = 12  # worst samples shown in the report; 0: none, and no image is read
    device: str = "cpu"  # where models run, where they have to: cpu or cuda
    ray: RayConfig = field(default_factory=RayConfig)  # the cluster that decodes other data
    overwrite: bool = False  # delete a comparison of another configuration in run_folder

    def __post_init__(self):
        parts = (*PARTS, EVERY_PART) if self.data else PARTS
        if self.split not in parts:
            raise ConfigError(f"split is one of {', '.join(parts)}, not {self.split!r}")
        if self.num_bootstraps < 1:
            raise ConfigError(f"num_bootstraps must be at least 1, not {self.num_bootstraps}")
        if self.device not in ("cpu", "cuda"):
            raise ConfigError(f"device is cpu or cuda, not {self.device!r}")


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`."""
    return command_line.run(evaluate, EvaluateConfig, __doc__, argv)


def evaluate(config: EvaluateConfig, plain: dict[str, Any]) -> int:
    """All of it, top to bottom."""
    folder = RunFolder(config.run_folder)
    device = _device(config.device)
    part = None if config.data else config.split
    groups = {name: [read_run(uri, part) for uri in uris] for name, uris in name_runs(config.runs).items()}
    check_groups(groups)
    first = next(iter(groups.values()))[0]
    metric = check_metric(first.task, first.classes, config.metric or first.evaluation["metric"])
    folder.open(plain, overwrite=config.overwrite, config_class=EvaluateConfig)
    folder.set_status("running")
    groups, seen = _judge_on_other_data(config, folder, groups, device) if config.data else (groups, {})
    result = compare_runs(groups, part=config.split, metric=metric, num_bootstraps=config.num_bootstraps, seed=config.seed)
    result["worst"] = worst_samples(groups, config.report_samples)
    folder.write_json("evaluation.json", result)
    folder.write_text("evaluation.csv", to_csv(result))
    pictures, why_not = _pictures(groups, seen, result["worst"], device)
    write_comparison_report(folder, result, pictures=pictures, why_no_pictures=why_not)
    folder.set_status("finished")
    print(to_text(result))
    print(f"\ntable:  {folder.path('evaluation.csv')}\nreport: {folder.path('report.html')}")
    return 0


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
                "two run folders have the same name: say what they are, as in --runs '{rckd: [a/0, a/1], scratch: [b/0, b/1]}'"
            )
    if not found:
        raise ConfigError("no runs were given: --runs takes run folders of finetune.py, or NAME: FOLDERS pairs")
    return found


def _matches(pattern: str) -> list[str]:
    if not has_magic(pattern):
        return [files.normalise(pattern)]
    if not (found := [uri for uri in files.glob(pattern) if files.is_dir(uri)]):
        raise ConfigError(f"no folder matches {pattern}")
    return found


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda was asked for and torch sees no GPU here: say --device cpu")
    return torch.device(name)


def _judge_on_other_data(
    config: EvaluateConfig, folder: RunFolder, groups: Groups, device: torch.device
) -> tuple[Groups, dict[str, RunData]]:
    """Every run with predictions of the other data, and the data as the first run of each group sees them."""
    cluster.connect(config.ray, kept_gb=2 * config.data.memory_gb)
    seen: dict[str, RunData] = {}
    judged: Groups = {}
    for name, members in groups.items():
        for number, run in enumerate(members):
            data = other_data(run, config.data, config.split, accept_leakage=config.accept_leakage)
            seen.setdefault(name, data)
            predictions = judge(run, data, device=device)
            logger.info("%s: %d images judged", run.uri, len(predictions))
            write_predictions(folder.path("predictions", f"{name}-{number}.parquet"), predictions)
            judged.setdefault(name, []).append(replace(run, predictions=predictions))
    return judged, seen


def _pictures(
    groups: Groups, seen: Mapping[str, RunData], worst: Sequence[Mapping[str, Any]], device: torch.device
) -> tuple[list[dict[str, Any]], str | None]:
    """Of the worst samples, with the maps of the first run of each group; and where the images are not at hand, why."""
    if not worst:
        return [], None
    keys = [sample["key"] for sample in worst]
    by_group, first = {}, next(iter(groups.values()))[0]
    try:
        most = 1 if first.task == Task.CLASSIFICATION else MOST_SHOWN  # there are no maps to set beside each other
        for name, members in list(groups.items())[:most]:
            data = seen.get(name) or own_data(members[0])
            by_group[name] = {each["key"]: each for each in look(members[0], data, keys, device=device)}
    except (ConfigError, DatasetError, SlideError, StorageError) as error:
        logger.warning("the report shows no pictures: %s", error)
        return [], str(error)
    shown = next(iter(by_group.values()))
    pictures = [
        {"key": key, "image": shown[key]["image"], "true": shown[key]["true"]}
        | {"said": {name: found[key]["said"] for name, found in by_group.items()}}
        for key in keys
        if all(key in found for found in by_group.values())
    ]
    return pictures, None


if __name__ == "__main__":
    sys.exit(main())
