"""Train, validation and test parts of labelled sets that never cut a group, and checks that say what is wrong with them.

Official parts are kept. What is missing is drawn from whole groups: a patient, a slide or a source image lies in one part
only. The draw follows from (seed, group's name) alone, so it is the same on every machine and does not change when a set's
folder moves.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from csat.data.counter_hash import hash_text
from csat.data.datasets.contract import LabelledSet, Sample, Task
from csat.errors import ConfigError, DatasetError

PARTS = ("train", "val", "test")
MOST_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How samples are divided where the sets do not say."""

    val_fraction: float = 0.15  # of what is not test, in samples; drawn where a set has no official validation part
    test_fraction: float = 0.2  # of a set, in samples; drawn where it has no official test part; 0: no test from that set
    official: bool = True  # keep the sets' official parts; false: draw all of them anew
    seed: int = 0  # of the draw; not of the training
    label_fraction: float = 1.0  # share of the training samples that is used, whole groups, every class kept

    def __post_init__(self):
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction must lie in (0, 1], not {self.label_fraction}")


Parts = dict[str, list[Sample]]  # part → samples, sorted by key


def split_set(found: LabelledSet, config: SplitConfig) -> Parts:
    """The parts of one set.

    Raises:
        DatasetError: an official part cuts a group (the groups are listed), or has an unknown name.
    """
    parts: Parts = {part: [] for part in PARTS}
    for sample in found.samples:
        part = sample.split if config.official and sample.split is not None else "train"
        if part not in PARTS:
            raise DatasetError(
                f"{found.info.name}: sample {sample.key} is in a part called {part!r}; parts are: {', '.join(PARTS)}"
            )
        parts[part].append(sample)
    for part, fraction in (("test", config.test_fraction), ("val", config.val_fraction)):
        if not parts[part] and fraction:
            parts[part], parts["train"] = _draw(parts["train"], fraction, config.seed, part)
    parts = {part: sorted(samples, key=lambda sample: sample.key) for part, samples in parts.items()}
    check_groups(parts, found.info.name, found.info.group)
    return parts


def check_groups(parts: Parts, name: str, group: str) -> None:
    """Refuse parts that share a group. Raises DatasetError listing the overlap."""
    groups = {part: {sample.group for sample in samples} for part, samples in parts.items()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if shared := sorted(groups[one] & groups[other]):
            more = f" and {len(shared) - MOST_LISTED} more" if len(shared) > MOST_LISTED else ""
            listed = ", ".join(shared[:MOST_LISTED]) + more
            raise DatasetError(
                f"{name}: {len(shared)} groups ({group}) are in both {one} and {other}: {listed}. A model would be judged on "
                "what it has seen. Correct the split column, or say --data.split.official false to draw parts of whole groups"
            )


def check_classes(parts: Parts, task: Task, classes: Sequence[str]) -> None:
    """Refuse a part in which a class of a classification has no sample. Raises DatasetError with the counts."""
    if task != Task.CLASSIFICATION:
        for part in ("train", "val"):
            if not parts[part]:
                raise DatasetError(f"the {part} part is empty: raise --data.split.{part}_fraction, or give more images")
        return
    counts = {part: Counter(sample.label for sample in samples) for part, samples in parts.items()}
    empty = [
        f"{classes[index]} in {part}"
        for part in PARTS
        if parts[part] or part != "test"
        for index in range(len(classes))
        if not counts[part][index]
    ]
    if empty:
        table = "; ".join(
            f"{part}: " + ", ".join(f"{name} {counts[part][index]}" for index, name in enumerate(classes)) for part in PARTS
        )
        raise DatasetError(
            f"no sample of class {', '.join(empty)} (samples by class: {table}). Give more groups of it, change "
            "--data.split.val_fraction, test_fraction or seed, or raise label_fraction"
        )


def keep_fraction(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """That share of the samples as whole groups, at least one group of every class: a study with fewer labelled patients."""
    return _draw(samples, fraction, seed, "labels")[0] if fraction < 1 else list(samples)


def renamed(samples: Sequence[Sample], prefix: str) -> list[Sample]:
    """Samples whose keys and groups carry their set's name, so that those of several sets never meet."""
    return [replace(sample, key=f"{prefix}/{sample.key}", group=f"{prefix}/{sample.group}") for sample in samples]


def _draw(samples: Sequence[Sample], fraction: float, seed: int, what: str) -> tuple[list[Sample], list[Sample]]:
    """Whole groups of about `fraction` of the samples, class by class; and the rest.

    A group counts for the class that most of its samples have. Groups come in the order of their names' hash, and the rarest
    class first. At least one group of each class is drawn, and one is left.
    """
    by_group: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_group[sample.group].append(sample)
    by_class: dict[int | None, list[str]] = defaultdict(list)
    for group, members in by_group.items():
        by_class[Counter(sample.label for sample in members).most_common(1)[0][0]].append(group)
    drawn: set[str] = set()
    for label in sorted(by_class, key=lambda label: (len(by_class[label]), str(label))):
        groups = sorted(by_class[label], key=lambda group: hash_text(f"{what}/{group}", seed=seed))
        wanted = fraction * sum(len(by_group[group]) for group in groups)
        taken = 0
        for group in groups[: max(1, len(groups) - 1)]:
            size = len(by_group[group])
            if taken and abs(taken + size - wanted) > abs(taken - wanted):
                break
            drawn.add(group)
            taken += size
        if len(groups) == 1:
            drawn.discard(groups[0])
    chosen = [sample for sample in samples if sample.group in drawn]
    return chosen, [sample for sample in samples if sample.group not in drawn]


def class_counts(samples: Sequence[Sample], num_classes: int) -> np.ndarray:
    """int64 `[num_classes]`: samples by class."""
    return np.bincount([sample.label for sample in samples], minlength=num_classes)
