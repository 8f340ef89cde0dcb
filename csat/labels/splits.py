"""Train, validation and test splits of labelled sets that never cut a group, and checks that say what is wrong with them.

Official splits are kept. What is missing is drawn from whole groups: a patient, a slide or a source image lies in one split
only. The draw follows from (seed, names of the groups, their samples' classes) alone, so it is the same on every machine and
does not change when a set's folder moves.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.contract import LabelledSet, Sample
from csat.labels.group_draw import GroupDraw
from csat.tasks import DatasetInfo, Task
from csat.words import some

SPLITS = ("train", "val", "test")
MOST_LISTED = 8
LABEL_FRACTIONS = (0.1, 0.25, 0.5)  # that one order of the groups has to serve, so that a smaller share lies in a larger


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How samples are divided where the sets do not say."""

    val_fraction: float = 0.15  # of what is not test, in samples; drawn where a set has no official val split; 0: none
    test_fraction: float = 0.2  # of a set, in samples; drawn where it has no official test split; 0: none
    official: bool = True  # keep the sets' official splits; false: draw all of them again
    folds: int = 0  # cross-validation: groups are drawn into so many parts, and one of them is the test split; 0: none
    fold: int = 0  # which of them, from 0
    seed: int = 0  # of the draw; not of the training
    label_fraction: float = 1.0  # share of the training samples that is used, whole groups, every class kept

    def __post_init__(self):
        if self.folds < 0 or self.folds == 1:
            raise ConfigError(f"folds must be 2 or more, or 0 for no cross-validation, not {self.folds}")
        if not 0 <= self.fold < max(self.folds, 1):
            known = f"they go from 0 to {self.folds - 1}" if self.folds else "folds, which says how many there are, is 0"
            raise ConfigError(f"there is no fold {self.fold}: {known}")
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"label_fraction must lie in (0, 1], not {self.label_fraction}")


Splits = dict[str, list[Sample]]  # split → samples, sorted by key


def split_set(found: LabelledSet, config: SplitConfig) -> Splits:
    """The splits of one set. A sample without an official split trains, or goes into a split that is drawn.

    Raises:
        DatasetError: an official split cuts a group (the groups are listed), or has an unknown name; or folds are asked for
            where there is an official test split, or are more than there are groups.
    """
    splits: Splits = {split: [] for split in SPLITS}
    for sample in found.samples:
        split = sample.split if config.official and sample.split is not None else "train"
        if split not in SPLITS:
            raise DatasetError(
                f"{found.info.name}: sample {sample.key} is in a part called {split!r}; parts are: {', '.join(SPLITS)}"
            )
        splits[split].append(sample)
    check_groups(splits, found.info.name, found.info.group)
    fractions = {"test": config.test_fraction, "val": config.val_fraction}
    if config.folds and config.test_fraction:
        if splits["test"]:
            raise DatasetError(
                f"{found.info.name} has an official test part, so it has no folds: say data.split.official false to draw all "
                "parts again, or data.split.folds 0"
            )
        splits["test"], splits["train"] = _draw_fold(splits["train"], config, found.info)
    wanted = [split for split, fraction in fractions.items() if fraction and not splits[split]]
    for num_later, split in zip(range(len(wanted), 0, -1), wanted, strict=True):  # what is left trains
        if samples := splits["train"]:
            draw = GroupDraw(samples, config.seed, split, fractions=[fractions[split]], num_later=num_later)
            splits[split], splits["train"] = draw.draw(fractions[split])
    return {split: sorted(samples, key=lambda sample: sample.key) for split, samples in splits.items()}


def _draw_fold(samples: Sequence[Sample], config: SplitConfig, info: DatasetInfo) -> tuple[list[Sample], list[Sample]]:
    """The samples of one fold, and the others. Every sample is in one fold of a seed; they are drawn one after the other."""
    if (num_groups := len({sample.group for sample in samples})) <= config.folds:
        raise DatasetError(
            f"{info.name} has {num_groups} groups ({info.group}) to draw from: too few for {config.folds} folds and others to "
            "validate on. Lower data.split.folds"
        )
    drawn, rest = [], list(samples)
    for number in range(config.fold + 1):
        num_left = config.folds - number  # this one and those to come
        draw = GroupDraw(rest, config.seed, f"fold {number}", fractions=[1 / num_left], num_later=num_left - 1)
        drawn, rest = draw.draw(1 / num_left)
    taken = {sample.key for sample in drawn}
    return drawn, [sample for sample in samples if sample.key not in taken]


def check_groups(splits: Splits, name: str, group: str) -> None:
    """Refuse splits that share a group. Raises DatasetError listing the overlap."""
    groups = {split: {sample.group for sample in samples} for split, samples in splits.items()}
    for one, other in (("train", "test"), ("train", "val"), ("val", "test")):
        if shared := sorted(groups[one] & groups[other]):
            raise DatasetError(
                f"{name}: {len(shared)} groups ({group}) are in both {one} and {other}: {some(shared, MOST_LISTED)}. A model "
                "would be judged on what it has seen. Correct the split column, or say data.split.official false to draw "
                "parts of whole groups"
            )


def check_images(splits: Splits) -> None:
    """Refuse an image that is in two splits, as when two sets have files in common. Raises DatasetError listing them."""
    split_of: dict[tuple[str, int | None], str] = {}
    doubled = []
    for split, samples in splits.items():
        for sample in samples:
            if (first := split_of.setdefault((sample.image, sample.index), split)) != split:
                doubled.append(f"{sample.image} ({first} and {split})")
    if doubled:
        raise DatasetError(
            f"{len(doubled)} images are in two parts: {some(doubled, MOST_LISTED)}. A model would be judged on what it has "
            "seen. Do two of data.sets contain the same files? Give each image once"
        )


def check_classes(splits: Splits, task: Task, classes: Sequence[str]) -> None:
    """Refuse an empty split, and for a classification one that lacks a class. The test split may be empty as a whole.

    Raises:
        DatasetError: with the samples and the groups of each class.
    """
    if task != Task.CLASSIFICATION:
        for split in ("train", "val"):
            if not splits[split]:
                raise DatasetError(f"the {split} part is empty: raise data.split.{split}_fraction, or give more images")
        return
    counts = {split: Counter(sample.label for sample in samples) for split, samples in splits.items()}
    empty = [
        f"{classes[index]} in {split}"
        for split in SPLITS
        if splits[split] or split != "test"
        for index in range(len(classes))
        if not counts[split][index]
    ]
    if empty:
        groups = {
            index: len({sample.group for samples in splits.values() for sample in samples if sample.label == index})
            for index in range(len(classes))
        }
        by_split = [", ".join(f"{counts[split][index]} {split}" for split in SPLITS) for index in range(len(classes))]
        table = "; ".join(f"{name}: {by_split[i]}, of {groups[i]} groups in all" for i, name in enumerate(classes))
        raise DatasetError(
            f"no sample of class {', '.join(empty)} ({table}). A class needs a group for each part: give more groups of "
            "it, change data.split.val_fraction, test_fraction or seed, or leave the class out"
        )


def keep_fraction(samples: Sequence[Sample], fraction: float, seed: int) -> list[Sample]:
    """That share of the samples as whole groups, every class kept: a study with fewer labelled patients.

    A smaller share is part of a larger one of the same seed. Every class keeps at least one group: of a few large groups more
    may remain than was asked for.
    """
    if fraction == 1 or not samples:
        return list(samples)
    return GroupDraw(samples, seed, "labels", fractions=LABEL_FRACTIONS).draw(fraction)[0]


def renamed(samples: Sequence[Sample], prefix: str) -> list[Sample]:
    """Samples whose keys and groups carry their set's name, so that those of several sets never meet."""
    return [replace(sample, key=f"{prefix}/{sample.key}", group=f"{prefix}/{sample.group}") for sample in samples]


def class_counts(samples: Sequence[Sample], num_classes: int) -> np.ndarray:
    """int64 `[num_classes]`: samples by class."""
    return np.bincount([sample.label for sample in samples], minlength=num_classes)
