"""The tables that a fine-tuning leaves of its images."""

import csv

from csat.labels.datasets.contract import Sample
from csat.labels.sets import LabelledConfig, LabelledData
from csat.runs.folder import RunFolder
from csat.tasks import DatasetInfo, Task
from workflows.finetuning.records import write_samples
from workflows.shell.decode_samples import Prepared

INFO = DatasetInfo(name="own", task=Task.CLASSIFICATION, classes=("a",), mpp=None, licence="", source="", group="image")


def sample(key, **more):
    return Sample(key=key, layout="manifest", image=f"/data/{key.partition('@')[0]}", group="g", label=0, **more)


def test_an_image_of_several_points_is_one_line_of_those_to_pretrain_on(tmp_path):
    points = tuple(sample(f"one.png@{number}", mpp=0.5, window=(0, 0, 8)) for number in range(3))
    splits = {"train": (*points, sample("two.png")), "val": (), "test": (sample("three.png"),)}
    data = LabelledData(INFO, (INFO,), splits, (sample("four.png"), sample("all.h5", index=3)))
    write_samples(RunFolder(str(tmp_path)), Prepared(data, LabelledConfig(sets={"own": "/data"})))
    with open(tmp_path / "pretrain.csv", newline="") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [
            ("/data/one.png", "g", "0.5"),
            ("/data/two.png", "g", ""),
            ("/data/four.png", "g", ""),
        ]
    with open(tmp_path / "samples.csv", newline="") as file:
        assert [row["sample"] for row in csv.DictReader(file) if row["image"] == "/data/one.png"] == [s.key for s in points]
