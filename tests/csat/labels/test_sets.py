"""Sets are read, checked against each other and divided, before anything is decoded; what does not fit is named."""

import csv

import numpy as np
import pytest
from PIL import Image

from csat.errors import ConfigError, DatasetError
from csat.labels.sets import LabelledConfig, assemble, assemble_to_judge
from csat.labels.splits import SPLITS, SplitConfig
from csat.tasks import Task

CLASSES = ("pale", "dark")
HALVES = SplitConfig(test_fraction=0.25, val_fraction=0.25)


@pytest.fixture
def folder(tmp_path):
    """`folder(name, classes=…)`: a folder per class, 12 patients of 2 images in each; no image can be decoded."""

    def make(name="set", classes=CLASSES, num_groups=12):
        for label in classes:
            (tmp_path / name / label).mkdir(parents=True)
            for group in range(num_groups):
                for index in range(2):
                    (tmp_path / name / label / f"{label}{group:02d}_{index}.png").touch()
        return {"path": str(tmp_path / name), "layout": "folder", "options": {"group_pattern": "(.*)_"}}

    return make


@pytest.fixture
def table(tmp_path):
    """`table(rows, name)`: a manifest with those rows, and its settings."""

    def make(rows, name="table.csv", **options):
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        return {"path": str(tmp_path / name), "layout": "manifest", "options": options}

    return make


def rows_of(num_groups=12, **fixed):
    return [
        {"path": f"{label}{group}.png", "label": label, "group": f"patient {group}", **fixed}
        for group in range(num_groups)
        for label in CLASSES
    ]


def sizes(data) -> dict[str, int]:
    return {split: len(samples) for split, samples in data.splits.items()}


def test_one_set_is_divided_and_nothing_is_decoded(folder):
    data = assemble(LabelledConfig(sets={"mine": folder()}, split=HALVES))
    assert data.info.classes == ("dark", "pale")
    assert sizes(data) == {"train": 28, "val": 8, "test": 12}, "25% of 48, then of 36, in pairs"
    assert [sample.key for sample in data.samples] == [sample.key for split in SPLITS for sample in data.splits[split]]
    assert data.unlabelled == ()


def test_a_name_is_a_layout_and_a_string_is_a_folder(folder):
    settings = folder()
    data = assemble(LabelledConfig(sets={"folder": settings["path"]}, split=HALVES))
    assert data.info.name == "folder"
    with pytest.raises(ConfigError, match=r"data.sets.mine: there is no layout 'mine'; say `layout:` with one of: folder, "):
        assemble(LabelledConfig(sets={"mine": settings["path"]}))


def test_fewer_labels_are_nested_and_the_rest_is_kept_aside(folder):
    settings, split = folder(), {"test_fraction": 0.25, "val_fraction": 0.25}
    data = {
        fraction: assemble(LabelledConfig(sets={"mine": settings}, split=SplitConfig(label_fraction=fraction, **split)))
        for fraction in (0.2, 0.5, 1.0)
    }
    kept = {fraction: {sample.key for sample in one.splits["train"]} for fraction, one in data.items()}
    assert kept[0.2] < kept[0.5] < kept[1.0]
    for one in data.values():
        assert {sample.label for sample in one.splits["train"]} == {0, 1}
        assert {sample.key for sample in (*one.splits["train"], *one.unlabelled)} == kept[1.0]
        assert one.splits["test"] == data[1.0].splits["test"]
        assert one.splits["val"] == data[1.0].splits["val"]


def test_several_sets_of_one_task_are_one(folder):
    sets = {"here": folder("a"), "there": folder("b") | {"val_fraction": 0.5, "test_fraction": 0.0}}
    data = assemble(LabelledConfig(sets=sets, split=HALVES))
    assert data.info.name == "folder+folder"
    assert len(data.sets) == 2
    assert len({sample.key for sample in data.samples}) == 96
    by_set = {split: {sample.key.split("/")[0] for sample in samples} for split, samples in data.splits.items()}
    assert by_set == {"train": {"here", "there"}, "val": {"here", "there"}, "test": {"here"}}
    there = [sample for sample in data.splits["val"] if sample.key.startswith("there/")]
    assert len(there) == 24
    assert all(sample.group.startswith("there/") for sample in there)


def test_the_parts_of_a_set_do_not_depend_on_the_sets_beside_it(folder):
    alone = assemble(LabelledConfig(sets={"here": folder("a")}, split=HALVES))
    beside = assemble(
        LabelledConfig(
            sets={
                "here": {"path": alone.info.source, "layout": "folder", "options": {"group_pattern": "(.*)_"}},
                "there": folder("b"),
            },
            split=HALVES,
        )
    )
    for split in SPLITS:
        assert {f"here/{sample.key}" for sample in alone.splits[split]} <= {sample.key for sample in beside.splits[split]}


def test_sets_of_different_classes_are_refused(folder):
    sets = {"a": folder("a"), "b": folder("b", classes=("pale", "grey"))}
    with pytest.raises(ConfigError, match="different classes .*: train on them one by one"):
        assemble(LabelledConfig(sets=sets))


def mask_pairs(folder, num=8):
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(num):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "masks" / f"{index}.png")
    return {"path": str(folder), "layout": "pairs"}


def test_sets_of_different_tasks_are_refused(folder, tmp_path):
    sets = {"a": folder("a"), "b": mask_pairs(tmp_path / "b")}
    with pytest.raises(ConfigError, match="different tasks .*classification.*segmentation.*data.task"):
        assemble(LabelledConfig(sets=sets))
    with pytest.raises(ConfigError, match="data set 'pairs' serves segmentation, nuclei, not classification"):
        assemble(LabelledConfig(sets=sets, task="classification"))
    with pytest.raises(ConfigError, match="there is no task 'guessing'"):
        assemble(LabelledConfig(sets=sets, task="guessing"))


def test_nuclei_of_sets_with_different_types_become_nuclei_without(tmp_path, table):
    plain = mask_pairs(tmp_path / "plain")
    rows = [{"path": f"images/{i}.png", "mask": f"masks/{i}.png", "types": f"types/{i}.png", "group": i} for i in range(8)]
    typed = table(rows, classes=["round", "long"], image_root=str(tmp_path / "typed"))
    mask_pairs(tmp_path / "typed")
    alone = assemble(LabelledConfig(sets={"typed": typed}, task="nuclei"))
    assert alone.info.classes == ("round", "long")
    both = assemble(LabelledConfig(sets={"typed": typed, "plain": plain}, task="nuclei"))
    assert both.info.classes == ()
    assert both.info.task == Task.NUCLEI


def test_types_spelt_in_two_ways_are_the_same_types(tmp_path, table):
    rows = [{"path": f"images/{i}.png", "mask": f"masks/{i}.png", "types": f"types/{i}.png", "group": i} for i in range(8)]
    sets = {}
    for name, classes in (("ours", ["other", "spindle"]), ("theirs", ["Miscellaneous", "Spindle-shaped"])):
        mask_pairs(tmp_path / name)
        sets[name] = table(rows, classes=classes, image_root=str(tmp_path / name))
    assert assemble(LabelledConfig(sets=sets, task="nuclei")).info.classes == ("other", "spindle")


def test_a_set_that_only_has_a_test_part_can_be_judged_on(table):
    sets = {"mine": table(rows_of(num_groups=3, split="test"))}
    with pytest.raises(DatasetError, match="no sample of class"):
        assemble(LabelledConfig(sets=sets))
    for split in ("test", None):
        assert sizes(assemble_to_judge(LabelledConfig(sets=sets), split)) == {"train": 0, "val": 0, "test": 6}
    with pytest.raises(DatasetError, match="no sample of class"):
        assemble_to_judge(LabelledConfig(sets=sets), "val")


def test_parts_to_judge_on_are_the_official_ones_else_those_that_a_run_would_draw(folder, table):
    rows = [row | {"split": "train" if number < 16 else "test"} for number, row in enumerate(rows_of())]
    official = LabelledConfig(sets={"mine": table(rows)}, split=HALVES)
    assert {sample.group for sample in assemble_to_judge(official, "test").samples} == {f"patient {n}" for n in range(8, 12)}
    drawn = LabelledConfig(sets={"a": folder("a"), "b": folder("b")}, split=HALVES)
    for split in SPLITS:
        assert {sample.key for sample in assemble_to_judge(drawn, split).samples} == {
            sample.key for sample in assemble(drawn).splits[split]
        }
    assert {sample.key for sample in assemble_to_judge(drawn, None).samples} == {
        sample.key for sample in assemble(drawn).samples
    }


def test_an_image_of_two_sets_in_two_parts_is_refused(folder):
    settings = folder()
    sets = {"train": settings | {"test_fraction": 0.0, "val_fraction": 0.2}, "judge": settings}
    with pytest.raises(DatasetError, match=r"images are in two parts: .*set.*\.png \(train and (test|val)\).* and \d+ more"):
        assemble(LabelledConfig(sets=sets, split=HALVES))


def test_a_group_in_two_official_parts_is_refused(table):
    rows = [row | {"split": "train" if index % 2 else "test"} for index, row in enumerate(rows_of())]
    with pytest.raises(DatasetError, match=r"12 groups \(group\) are in both train and test: patient 0, .* and 4 more"):
        assemble(LabelledConfig(sets={"mine": table(rows)}))
    data = assemble(LabelledConfig(sets={"mine": table(rows)}, split=SplitConfig(official=False)))
    assert all(data.splits[split] for split in SPLITS)


def test_a_part_without_a_class_is_refused(table):
    rows = [
        row | {"split": "test" if row["label"] == "pale" and row["group"] == "patient 0" else "train"} for row in rows_of()
    ]
    rows = [row for row in rows if row["group"] != "patient 0" or row["label"] == "pale"]
    with pytest.raises(DatasetError, match="no sample of class dark in test .*dark: .* 0 test"):
        assemble(LabelledConfig(sets={"mine": table(rows)}))


def test_a_class_with_too_few_groups_is_refused(table):
    rows = [row for row in rows_of() if row["label"] == "pale" or row["group"] in ("patient 0", "patient 1")]
    with pytest.raises(DatasetError, match="no sample of class dark in (test|val) .*of 2 groups in all"):
        assemble(LabelledConfig(sets={"mine": table(rows)}, split=HALVES))


def test_an_unknown_class_or_column_is_refused(table):
    rows = rows_of()
    rows[3]["label"] = "greyish"
    with pytest.raises(DatasetError, match=r"line 5: unknown class 'greyish' in column 'label'; classes are: pale, dark"):
        assemble(LabelledConfig(sets={"mine": table(rows, classes=["pale", "dark"])}))
    with pytest.raises(DatasetError, match=r"there is no column 'grade'; its columns are: 'path', 'label', 'group'"):
        assemble(LabelledConfig(sets={"mine": table(rows_of(), label="grade")}))


# -------------------------------------------------------------------------------------------------------------- resolution


def test_enlarging_is_refused(table):
    sets = {"mine": table(rows_of(mpp=0.5))}
    with pytest.raises(ConfigError, match=r"data.mpp 0.25 .* of set mine has 0.5 um/px: enlarging it 2 times .* data.mpp 0.5"):
        assemble(LabelledConfig(sets=sets, mpp=0.25))
    assert assemble(LabelledConfig(sets=sets, mpp=0.35, split=HALVES)).samples[0].mpp == 0.5, "a little is allowed"
    assert assemble(LabelledConfig(sets=sets, mpp=1.0, split=HALVES))


def test_a_resolution_needs_images_that_state_theirs(table):
    settings = table(rows_of())
    with pytest.raises(
        ConfigError,
        match="set mine does not state its resolution: say it beside the path, data.sets.mine '{path: …, mpp: …}'",
    ):
        assemble(LabelledConfig(sets={"mine": settings}, mpp=0.5))
    data = assemble(LabelledConfig(sets={"mine": settings | {"mpp": 0.4}}, mpp=0.5, split=HALVES))
    assert {sample.mpp for sample in data.samples} == {0.4}
    assert data.info.mpp == 0.4
    assert assemble(LabelledConfig(sets={"mine": settings}, split=HALVES)).info.mpp is None


def test_a_rows_own_resolution_beats_that_of_the_set(table):
    rows = rows_of(mpp=0.5)
    for row in rows[::2]:
        row["mpp"] = ""
    data = assemble(LabelledConfig(sets={"mine": table(rows) | {"mpp": 0.25}}, mpp=0.5, split=HALVES))
    named = {row["path"]: float(row["mpp"] or 0.25) for row in rows}
    assert {sample.key: sample.mpp for sample in data.samples} == named and set(named.values()) == {0.25, 0.5}
    assert data.info.mpp is None


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("inf")])
def test_an_impossible_resolution_is_refused(table, mpp):
    with pytest.raises(ConfigError, match="mpp.* expected micrometres per pixel, between 0.02 and 50"):
        assemble(LabelledConfig(sets={"mine": table(rows_of()) | {"mpp": mpp}}))
    with pytest.raises(ConfigError, match="mpp.* expected micrometres per pixel, between 0.02 and 50"):
        LabelledConfig(sets={"mine": "x"}, mpp=mpp)


# ---------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sets": {}}, "data.sets is empty: give NAME: FOLDER pairs"),
        ({"fit": "squeeze"}, "data.fit is one of resize, crop, not 'squeeze'"),
        ({"sampling": "fair"}, "data.sampling is one of natural, balanced, oversampled, not 'fair'"),
        ({"tile_px": 8}, "data.tile_px must be at least 16 px"),
        ({"memory_gb": -1.0}, "data.memory_gb must be 0 or more"),
        ({"max_unreadable": 1.5}, r"data.max_unreadable is a share, in \[0, 1\]"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LabelledConfig(**{"sets": {"folder": "x"}} | settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layout": "folder"}, "a folder, or a mapping with at least `path`"),
        (3, "a folder, or a mapping"),
        ({"path": "x", "layout": "folder", "parth": 1}, "there is no setting 'parth'. Did you mean path"),
        ({"path": "x", "layout": "folder", "val_fraction": 1.5}, "val_fraction must lie in"),
    ],
)
def test_impossible_settings_of_a_set_are_refused(given, message, folder):
    if isinstance(given, dict) and "path" in given:
        given = {**given, "path": folder()["path"]}
    with pytest.raises(ConfigError, match=message):
        assemble(LabelledConfig(sets={"mine": given}))


def test_balanced_sampling_needs_classes(tmp_path):
    with pytest.raises(ConfigError, match="data.sampling balanced goes by the images' class, .* segmentation have none"):
        assemble(LabelledConfig(sets={"mine": mask_pairs(tmp_path / "b")}, sampling="balanced"))
