"""Sets in a bucket, from a real server: a folder of images, and a container that is downloaded once."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from csat.storage import files
from tests.csat.labels.datasets.files import load_all, only, picture, write
from tests.csat.labels.datasets.test_pannuke import write_fold
from tests.csat.labels.datasets.test_pcam import TILES, write_split


@pytest.fixture(autouse=True)
def containers(tmp_path, monkeypatch):
    """Downloads go to a folder of the test's own."""
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr("csat.storage.files.RETRY_PAUSES_S", (0.0,))
    return tmp_path / "tmp" / "csat-containers"


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            files.write_bytes(f"{uri}/{path.relative_to(folder)}", path.read_bytes())


def test_a_folder_of_classes(s3, tmp_path):
    write(tmp_path / "set" / "train" / "tumor" / "p1_a.png", picture(1))
    write(tmp_path / "set" / "train" / "benign" / "p2_b.png", picture(2))
    write(tmp_path / "set" / "test" / "tumor" / "p3_c.png", picture(3))
    upload(tmp_path / "set", f"{s3}/data/crc")
    files.write_bytes(f"{s3}/data/crc/test/benign/p4_d.png", b"no image")
    found = read_dataset("folder", f"{s3}/data/crc/", options={"group_pattern": r"(p\d)_"})
    assert [(sample.key, sample.group, sample.split, sample.label) for sample in found.samples] == [
        ("test/benign/p4_d.png", "p4", "test", 0),
        ("test/tumor/p3_c.png", "p3", "test", 1),
        ("train/benign/p2_b.png", "p2", "train", 0),
        ("train/tumor/p1_a.png", "p1", "train", 1),
    ]
    decoded, failed = load_all(found)
    assert (decoded["train/tumor/p1_a.png"].image == picture(1)).all() and list(failed) == ["test/benign/p4_d.png"]
    files.delete(f"{s3}/data/crc/train/tumor/p1_a.png")
    with pytest.raises(SlideError) as caught:
        load_sample(only(found, "p1_a.png"))
    assert caught.value.reason == "missing"


def test_an_h5_set_is_downloaded_once(s3, tmp_path, containers):
    (tmp_path / "pcam").mkdir()
    write_split(tmp_path / "pcam", "train", [0, 1, 1])
    write_split(tmp_path / "pcam", "test", [0, 1], slides=["a", "b"])
    upload(tmp_path / "pcam", f"{s3}/pcam")
    found = read_dataset("pcam", f"{s3}/pcam")
    assert [(sample.key, sample.label, sample.split) for sample in found.samples][1:3] == [
        ("camelyonpatch_level_2_split_test_x.h5#1", 1, "test"),
        ("camelyonpatch_level_2_split_train_x.h5#0", 0, "train"),
    ]
    assert (load_sample(only(found, "train_x.h5#2")).image == TILES[2]).all()
    (copy,) = containers.rglob("*train_x.h5")
    written = copy.stat().st_mtime_ns
    assert (load_sample(only(found, "train_x.h5#0")).image == TILES[0]).all()
    assert copy.stat().st_mtime_ns == written


def test_npy_folds(s3, tmp_path):
    for fold in (1, 2, 3):
        write_fold(tmp_path / "pannuke", fold)
    upload(tmp_path / "pannuke", f"{s3}/pannuke")
    remote, local = read_dataset("pannuke", f"{s3}/pannuke"), read_dataset("pannuke", str(tmp_path / "pannuke"))
    assert [sample.key for sample in remote.samples] == [sample.key for sample in local.samples]
    one, other = load_sample(remote.samples[1]), load_sample(local.samples[1])
    for name in ("image", "instances", "types"):
        assert np.array_equal(getattr(one, name), getattr(other, name))


def test_a_prefix_that_holds_nothing(s3):
    with pytest.raises(DatasetError, match=f"{s3}/nowhere does not fit: .*; there is no such folder"):
        read_dataset("glas", f"{s3}/nowhere")
