import h5py
import numpy as np
import pytest

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import check_misfit, check_set, load_all, only

TILES = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)


def write_split(root, split, labels, *, slides=None, tiles=TILES):
    stem = root / f"camelyonpatch_level_2_split_{split}"
    with h5py.File(f"{stem}_x.h5", "w") as file:
        file.create_dataset("x", data=tiles[: len(labels)], chunks=(1, 96, 96, 3), compression="gzip")
    with h5py.File(f"{stem}_y.h5", "w") as file:
        file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
    if slides:
        lines = [f"{row},1,2,False,False,{slide}" for row, slide in enumerate(slides)]
        (root / f"{stem.name}_meta.csv").write_text("\n".join([",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi", *lines]))


@pytest.fixture
def pcam(tmp_path):
    write_split(tmp_path, "train", [0, 1, 1])
    write_split(tmp_path, "valid", [1, 0])
    write_split(tmp_path, "test", [0])
    return tmp_path


def test_tiles_labels_and_parts(pcam):
    found = read_dataset("pcam", str(pcam))
    check_set(found, name="pcam", classes=("normal", "tumor"), licence="CC0 1.0", mpp=0.972)
    parts = [(sample.key, sample.split, sample.label, sample.index) for sample in found.samples]
    assert parts == [
        ("camelyonpatch_level_2_split_test_x.h5#0", "test", 0, 0),
        ("camelyonpatch_level_2_split_train_x.h5#0", "train", 0, 0),
        ("camelyonpatch_level_2_split_train_x.h5#1", "train", 1, 1),
        ("camelyonpatch_level_2_split_train_x.h5#2", "train", 1, 2),
        ("camelyonpatch_level_2_split_valid_x.h5#0", "val", 1, 0),
        ("camelyonpatch_level_2_split_valid_x.h5#1", "val", 0, 1),
    ]
    assert found.info.group == "image (no grouping known)" and "*_meta.csv" in found.info.note
    image = load_sample(only(found, "train_x.h5#2")).image
    assert image.dtype == np.uint8 and (image == TILES[2]).all()


def test_slides_are_groups_where_they_are_known(pcam):
    write_split(pcam, "train", [0, 1, 1], slides=["camelyon16_train_tumor_009"] * 2 + ["camelyon16_train_normal_1"])
    found = read_dataset("pcam", str(pcam))
    assert only(found, "train_x.h5#1").group == "camelyon16_train_tumor_009"
    assert found.info.group == "image (no grouping known)"  # those of valid and test are not
    write_split(pcam, "valid", [1, 0], slides=["a", "b"])
    write_split(pcam, "test", [0], slides=["c"])
    found = read_dataset("pcam", str(pcam))
    assert found.info.group == "slide" and "meta" not in found.info.note
    (pcam / "camelyonpatch_level_2_split_test_meta.csv").write_text("wsi\nc\nd\n")
    with pytest.raises(DatasetError, match="test_meta.csv: 2 rows for 1 tiles"):
        read_dataset("pcam", str(pcam))


def test_one_part_is_enough_and_half_a_part_is_not(tmp_path):
    write_split(tmp_path, "valid", [1, 0])
    assert {sample.split for sample in read_dataset("pcam", str(tmp_path)).samples} == {"val"}
    (tmp_path / "camelyonpatch_level_2_split_valid_y.h5").unlink()
    with pytest.raises(DatasetError, match="holds .*valid_x.h5 without .*valid_y.h5"):
        read_dataset("pcam", str(tmp_path))


def test_labels_that_are_none(pcam):
    write_split(pcam, "test", [3])
    with pytest.raises(DatasetError, match=r"test_y.h5: labels are 0 or 1, and there are \[3\]"):
        read_dataset("pcam", str(pcam))
    (pcam / "camelyonpatch_level_2_split_test_y.h5").write_bytes(b"\x1f\x8b still gzipped")
    with pytest.raises(DatasetError, match="test_y.h5: cannot be read as h5 .* still gzipped"):
        read_dataset("pcam", str(pcam))
    with h5py.File(pcam / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file["labels"] = [0]
    with pytest.raises(DatasetError, match="there is no dataset 'y'; it holds: labels"):
        read_dataset("pcam", str(pcam))


def test_damaged_tiles_are_found_when_they_are_decoded(pcam):
    (pcam / "camelyonpatch_level_2_split_test_x.h5").write_bytes(b"no h5")
    write_split(pcam, "valid", [1, 0], tiles=TILES[:1])  # one tile for two labels
    found = read_dataset("pcam", str(pcam))
    decoded, failed = load_all(found)
    assert len(decoded) == 4
    assert {key.rpartition("_split_")[2] for key in failed} == {"test_x.h5#0", "valid_x.h5#1"}
    assert {error.reason for error in failed.values()} == {"unreadable"}


def test_tiles_of_another_type(pcam):
    write_split(pcam, "test", [0], tiles=TILES / 255)
    with pytest.raises(SlideError, match=r"a tile is uint8 \[96, 96, 3\], not float64"):
        load_sample(only(read_dataset("pcam", str(pcam)), "test_x.h5#0"))


def test_a_folder_that_does_not_fit(tmp_path):
    (tmp_path / "camelyonpatch_level_2_split_train_x.h5.gz").write_bytes(b"")
    check_misfit("pcam", tmp_path, "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5", "train_x.h5.gz", "gunzip")
