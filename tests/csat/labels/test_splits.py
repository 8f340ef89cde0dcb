"""Splits of labelled sets: official ones are kept, missing ones drawn of whole groups, and what is wrong is named."""

from collections import Counter
from dataclasses import replace

import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.contract import LabelledSet
from csat.labels.datasets.registry import read_dataset
from csat.labels.splits import (
    SPLITS,
    SplitConfig,
    check_classes,
    check_groups,
    check_images,
    class_counts,
    keep_fraction,
    renamed,
    split_set,
)
from csat.tasks import Task
from tests.support.labelled_toy import make_info, make_samples


def make_set(groups, **fields) -> LabelledSet:
    return LabelledSet(make_info(), tuple(make_samples(groups, **fields)))


def groups_of(samples) -> set[str]:
    return {sample.group for sample in samples}


MANY = {f"patient {index}": [index % 2] * 2 for index in range(40)}


def test_parts_are_whole_groups_of_the_sizes_asked_for():
    splits = split_set(make_set(MANY), SplitConfig(test_fraction=0.2, val_fraction=0.25))
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 48, "val": 16, "test": 16}
    assert sum(len(groups_of(samples)) for samples in splits.values()) == 40
    for split in SPLITS:
        counts = Counter(sample.label for sample in splits[split])
        assert counts[0] == counts[1]
        assert splits[split] == sorted(splits[split], key=lambda sample: sample.key)


def test_a_set_that_moved_is_divided_alike():
    here = make_set(MANY)
    there = LabelledSet(here.info, tuple(replace(sample, image=f"s3://elsewhere/{sample.image}") for sample in here.samples))
    keys = [
        {split: [sample.key for sample in samples] for split, samples in split_set(found, SplitConfig()).items()}
        for found in (here, there)
    ]
    assert keys[0] == keys[1]


def test_official_parts_are_kept_and_only_what_is_missing_is_drawn():
    train = make_set(MANY, split="train").samples
    test = tuple(make_samples({f"other {index}": [index % 2] for index in range(10)}, split="test"))
    splits = split_set(LabelledSet(make_info(), train + test), SplitConfig(val_fraction=0.25))
    assert set(splits["test"]) == set(test)
    assert len(splits["val"]) == 20
    assert groups_of(splits["val"]) | groups_of(splits["train"]) == set(MANY)


def test_official_parts_are_ignored_where_asked():
    found = LabelledSet(make_info(), tuple(replace(sample, split="test") for sample in make_set(MANY).samples))
    assert split_set(found, SplitConfig())["train"] == []
    splits = split_set(found, SplitConfig(official=False))
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 54, "val": 10, "test": 16}


def test_no_part_is_drawn_for_a_fraction_of_zero():
    splits = split_set(make_set(MANY), SplitConfig(test_fraction=0, val_fraction=0))
    assert {split: len(samples) for split, samples in splits.items()} == {"train": 80, "val": 0, "test": 0}


def test_an_official_part_that_cuts_groups_is_refused_with_the_overlap():
    samples = [replace(sample, split="train" if sample.key.endswith("0") else "test") for sample in make_set(MANY).samples]
    with pytest.raises(DatasetError, match=r"40 groups \(patient\) are in both train and test: patient 0, .* and 32 more"):
        split_set(LabelledSet(make_info(), tuple(samples)), SplitConfig())
    splits = split_set(LabelledSet(make_info(), tuple(samples)), SplitConfig(official=False))
    assert not groups_of(splits["train"]) & groups_of(splits["test"])


def test_an_unknown_part_is_refused():
    with pytest.raises(DatasetError, match="sample a-0 is in a part called 'holdout'; parts are: train, val, test"):
        split_set(make_set({"a": [0]}, split="holdout"), SplitConfig())


def test_groups_in_val_and_test_are_refused_too():
    val, test = make_samples({"a": [0], "b": [0]}), make_samples({"b": [0]})
    with pytest.raises(DatasetError, match="mine: 1 groups .* both val and test: b"):
        check_groups({"train": [], "val": val, "test": test}, "mine", "slide")


def test_an_image_in_two_parts_is_refused_whatever_its_set_calls_it():
    one = renamed(make_samples({"a": [0], "b": [1]}), "one")
    two = renamed(make_samples({"b": [1]}), "two")
    with pytest.raises(DatasetError, match=r"1 images are in two parts: b-0.png \(train and test\)"):
        check_images({"train": one, "val": [], "test": two})
    check_images({"train": one, "val": [], "test": [replace(two[0], index=3)]})  # another split of one file


def test_a_class_that_a_part_lacks_is_named_with_all_counts():
    splits = {
        "train": make_samples({"a": [0, 1], "b": [1]}),
        "val": make_samples({"c": [0]}),
        "test": make_samples({"d": [1]}),
    }
    expected = (
        r"no sample of class dark in val, pale in test \(pale: 1 train, 1 val, 0 test, of 2 groups in all; dark: 2 train"
    )
    with pytest.raises(DatasetError, match=expected):
        check_classes(splits, Task.CLASSIFICATION, ("pale", "dark"))
    check_classes(splits | {"val": splits["train"], "test": []}, Task.CLASSIFICATION, ("pale", "dark"))


@pytest.mark.parametrize("empty", ["train", "val"])
def test_an_empty_part_of_masks_is_refused(empty):
    splits = {split: make_samples({split: [None]}) for split in SPLITS} | {empty: []}
    with pytest.raises(DatasetError, match=f"the {empty} part is empty"):
        check_classes(splits, Task.SEGMENTATION, ("background", "gland"))


def test_fewer_labels_keep_every_class_and_whole_groups():
    samples = make_samples(MANY | {"rare": [2]})
    for seed in range(3):
        kept = [keep_fraction(samples, fraction, seed) for fraction in (0.1, 0.5, 1.0)]
        assert [len(some) for some in kept] == pytest.approx([8, 40, 81], abs=2)
        assert groups_of(kept[0]) < groups_of(kept[1]) < groups_of(kept[2])
        assert {sample.label for sample in kept[0]} == {0, 1, 2}
        for some in kept:
            assert some == [sample for sample in samples if sample.group in groups_of(some)], "whole groups"
    assert keep_fraction([], 0.5, 0) == []


def test_several_sets_never_meet():
    one, two = (renamed(make_samples({"1": [0]}), name)[0] for name in ("glas", "crag"))
    assert (one.key, one.group) == ("glas/1-0", "glas/1")
    assert one.group != two.group
    assert one.image == two.image == "1-0.png"


def test_class_counts_have_every_class():
    assert class_counts(make_samples({"a": [0, 2, 2]}), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 1.0}, r"val_fraction must lie in \[0, 1\), not 1.0"),
        ({"test_fraction": -0.1}, "test_fraction"),
        ({"test_fraction": float("nan")}, "test_fraction"),
        ({"label_fraction": 0.0}, r"label_fraction must lie in \(0, 1\]"),
        ({"label_fraction": 1.5}, "label_fraction"),
    ],
)
def test_impossible_fractions_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**settings)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.SEGMENTATION])
def test_glas_has_usable_parts(shared_data, task, seed):
    """Of 16 patients with 1 to 23 images each: a split has both grades, at least 2 patients, and about the size asked for."""
    found = read_dataset("glas", str(shared_data("glas")), task=task)
    splits = split_set(found, SplitConfig(seed=seed))
    assert sum(map(len, splits.values())) == len(found.samples)
    shares = {split: len(samples) / len(found.samples) for split, samples in splits.items()}
    assert 0.15 < shares["test"] < 0.25, "20%"
    assert 0.08 < shares["val"] < 0.16, "15% of the rest"
    assert all(len(groups_of(samples)) >= 2 for samples in splits.values())
    if task == Task.CLASSIFICATION:
        check_classes(splits, task, found.info.classes)
        for split, share in (("test", 0.2), ("val", 0.12)):
            for label in range(2):
                of_class = [sample.label == label for sample in found.samples]
                assert sum(sample.label == label for sample in splits[split]) / sum(of_class) == pytest.approx(share, abs=0.06)


def test_glas_official_parts_are_refused(shared_data):
    found = read_dataset("glas", str(shared_data("glas")), options={"official_parts": True})
    with pytest.raises(DatasetError, match=r"glas: \d+ groups \(patient\) are in both train and test: patient"):
        split_set(found, SplitConfig())


def test_lung_tiles_of_one_source_image_stay_together(shared_data):
    found = read_dataset("lc25000_lung", str(shared_data("lc25000_lung")))
    for seed in range(2):
        splits = split_set(found, SplitConfig(seed=seed))
        check_groups(splits, "lung", "source image")
        sizes = {split: [sum(sample.label == label for sample in splits[split]) for label in range(3)] for split in SPLITS}
        assert sizes["test"] == pytest.approx([98, 100, 98], abs=4)
        assert sizes["val"] == pytest.approx([59, 60, 59], abs=4)


def test_consep_keeps_its_official_test(shared_data):
    found = read_dataset("consep", str(shared_data("consep")))
    official = {sample.key for sample in found.samples if sample.split == "test"}
    splits = split_set(found, SplitConfig(seed=3))
    assert {sample.key for sample in splits["test"]} == official
    assert {sample.split for sample in (*splits["train"], *splits["val"])} == {"train"}
    assert len(groups_of(splits["val"])) == 4, "15% of 27 images"


# --------------------------------------------------------------------------------------------------------- cross-validation


FEW = {f"patient {index}": [0] * (1 + index % 7) for index in range(16)}


@pytest.mark.parametrize("groups", [MANY, FEW], ids=["even", "uneven"])
def test_every_sample_is_tested_in_one_fold(groups):
    found, tested = make_set(groups), []
    for fold in range(4):
        splits = split_set(found, SplitConfig(folds=4, fold=fold, val_fraction=0.25))
        check_groups(splits, "toy", "patient")
        assert sum(map(len, splits.values())) == len(found.samples) and all(splits.values())
        assert len(splits["test"]) == pytest.approx(len(found.samples) / 4, rel=0.35)
        tested += [sample.key for sample in splits["test"]]
    assert sorted(tested) == sorted(sample.key for sample in found.samples)


def test_folds_are_those_of_a_seed():
    tests = [groups_of(split_set(make_set(MANY), SplitConfig(folds=4, seed=seed))["test"]) for seed in (0, 0, 1)]
    assert tests[0] == tests[1] != tests[2]


def test_a_set_of_which_nothing_is_tested_has_no_folds():
    assert split_set(make_set(MANY), SplitConfig(folds=4, test_fraction=0))["test"] == []


def test_folds_that_cannot_be_drawn():
    official = LabelledSet(make_info(), make_set(MANY).samples + tuple(make_samples({"other": [0]}, split="test")))
    with pytest.raises(DatasetError, match=r"has an official test part, so it has no folds: say data\.split\.official false"):
        split_set(official, SplitConfig(folds=4))
    assert len(split_set(official, SplitConfig(folds=4, official=False))["test"]) == pytest.approx(20, abs=2)
    with pytest.raises(DatasetError, match=r"has 4 groups \(patient\) to draw from: too few for 4 folds"):
        split_set(make_set({f"patient {index}": [0, 1] for index in range(4)}), SplitConfig(folds=4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"folds": 1}, "folds must be 2 or more, or 0 for no cross-validation, not 1"),
        ({"folds": 4, "fold": 4}, "there is no fold 4: they go from 0 to 3"),
        ({"fold": 1}, "there is no fold 1: folds, which says how many there are, is 0"),
    ],
)
def test_folds_that_do_not_exist(settings, words):
    with pytest.raises(ConfigError, match=words):
        SplitConfig(**settings)
