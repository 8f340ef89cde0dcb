import tracemalloc

import numpy as np
import pytest

from csat.errors import ConfigError, DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import check_misfit, check_set, load_all, only

TYPES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
TISSUES = ("Breast", "Colon", "Bile-duct")
HEIGHT, WIDTH = 16, 20


def images(fold):
    return np.random.default_rng(fold).integers(0, 256, (3, HEIGHT, WIDTH, 3)).astype(np.float64)


def masks():
    """Three images; in the second one numbers repeat between types, and two nuclei overlap."""
    layers = np.zeros((3, HEIGHT, WIDTH, 6))
    layers[1, 1:4, 1:6, 0] = 3
    layers[1, 1:4, 8:10, 0] = 4
    layers[1, 3:7, 4:8, 1] = 3  # over the first one's corner
    layers[1, 10:12, 2:4, 4] = 11
    layers[..., 5] = (layers[..., :5] == 0).all(-1)
    return layers


def write_fold(root, fold):
    for part, arrays in (("images", {"images": images(fold), "types": np.array(TISSUES)}), ("masks", {"masks": masks()})):
        folder = root / f"Fold {fold}" / part / f"fold{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)


@pytest.fixture
def pannuke(tmp_path):
    for fold in (1, 2, 3):
        write_fold(tmp_path, fold)
    return tmp_path


def test_three_folds_are_three_parts(pannuke):
    found = read_dataset("pannuke", str(pannuke))
    check_set(found, name="pannuke", classes=TYPES, licence="CC BY-NC-SA 4.0", mpp=0.25)
    assert [(sample.key, sample.split, sample.index) for sample in found.samples] == [
        (f"Fold {fold}/images/fold{fold}/images.npy#{index}", part, index)
        for fold, part in ((1, "train"), (2, "val"), (3, "test"))
        for index in range(3)
    ]
    assert all(sample.group == sample.key for sample in found.samples)
    assert found.info.group == "image (no grouping known)" and "in several folds" in found.info.note


def test_pixels_instances_and_types(pannuke):
    found = read_dataset("pannuke", str(pannuke))
    decoded = load_sample(only(found, "fold2/images.npy#1"))
    assert decoded.image.dtype == np.uint8 and (decoded.image == images(2)[1]).all()
    types = np.zeros((HEIGHT, WIDTH), np.uint8)
    types[1:4, 1:6] = types[1:4, 8:10] = 1
    types[3:7, 4:8], types[10:12, 2:4] = 2, 5
    assert decoded.types.dtype == np.uint8 and (decoded.types == types).all()
    instances = decoded.instances
    assert instances.dtype == np.int32 and set(np.unique(instances)) == {0, 1, 2, 3, 4}
    assert ((instances > 0) == (types > 0)).all()
    places = (instances[1, 1], instances[1, 8], instances[5, 5], instances[10, 2])
    assert len(set(places)) == 4  # number 3 is two nuclei, of two types
    assert instances[3, 4] == instances[5, 5] and instances[3, 3] == instances[1, 1]  # the later type has the overlap
    empty = load_sample(only(found, "fold1/images.npy#0"))
    assert not empty.instances.any() and not empty.types.any()


def test_types_as_a_segmentation(pannuke):
    found = read_dataset("pannuke", str(pannuke), task="segmentation")
    assert found.info.classes == ("background", *TYPES)
    nuclei = load_sample(only(read_dataset("pannuke", str(pannuke)), "fold2/images.npy#1"))
    decoded = load_sample(only(found, "fold2/images.npy#1"))
    assert (decoded.mask == nuclei.types).all() and decoded.instances is None and decoded.types is None


def test_which_fold_is_which_part(pannuke):
    found = read_dataset("pannuke", str(pannuke), options={"train": [3, 2], "val": [], "test": [1]})
    assert {(sample.key[:6], sample.split) for sample in found.samples} == {
        ("Fold 1", "test"),
        ("Fold 2", "train"),
        ("Fold 3", "train"),
    }
    for options in ({"train": [1, 2]}, {"train": []}):
        with pytest.raises(ConfigError, match="train, val and test name different folds, and train at least one; got train"):
            read_dataset("pannuke", str(pannuke), options=options)
    with pytest.raises(DatasetError, match="incomplete: Fold 4"):
        read_dataset("pannuke", str(pannuke), options={"train": [4]})


def test_some_tissues(pannuke):
    found = read_dataset("pannuke", str(pannuke), options={"tissues": ["Colon"]})
    assert [sample.index for sample in found.samples] == [1, 1, 1]
    with pytest.raises(DatasetError, match="there is no tissue Kidney; it has: Bile-duct, Breast, Colon"):
        read_dataset("pannuke", str(pannuke), options={"tissues": ["Kidney", "Colon"]})


def test_folders_as_mirrors_name_them(pannuke):
    (pannuke / "Fold 1").rename(pannuke / "Part 1")
    (pannuke / "Part 1" / "images" / "fold1" / "images.npy").rename(pannuke / "Part 1" / "images.npy")
    (pannuke / "Fold 2").rename(pannuke / "fold_2")
    found = read_dataset("pannuke", str(pannuke))
    assert {sample.key.split("/")[0]: sample.split for sample in found.samples} == {
        "Part 1": "train",
        "fold_2": "val",
        "Fold 3": "test",
    }
    (pannuke / "Fold 3" / "copy").mkdir()
    np.save(pannuke / "Fold 3" / "copy" / "types.npy", np.array(TISSUES))
    with pytest.raises(DatasetError, match="fold 3 has .*types.npy and .*types.npy; move one of them away"):
        read_dataset("pannuke", str(pannuke))


def test_arrays_that_do_not_fit(pannuke):
    folder = pannuke / "Fold 2"
    np.save(folder / "masks" / "fold2" / "masks.npy", masks()[:2])
    with pytest.raises(DatasetError, match=r"masks.npy: expected an array \[3, H, W, 6\], .* found \[2, 16, 20, 6\]"):
        read_dataset("pannuke", str(pannuke))
    np.save(folder / "masks" / "fold2" / "masks.npy", masks()[:, 1:])
    with pytest.raises(DatasetError, match=r"masks of their images' size; found \[3, 15, 20, 6\]"):
        read_dataset("pannuke", str(pannuke))
    np.save(folder / "images" / "fold2" / "types.npy", np.array(TISSUES, object), allow_pickle=True)
    with pytest.raises(DatasetError, match="types.npy: cannot be read as an npy of text: .*allow_pickle=False"):
        read_dataset("pannuke", str(pannuke))
    np.save(folder / "images" / "fold2" / "types.npy", np.arange(3))
    with pytest.raises(DatasetError, match=r"expected the tissues' names, one per image; found int64 \[3\]"):
        read_dataset("pannuke", str(pannuke))
    (folder / "images" / "fold2" / "images.npy").write_bytes(b"PK\x03\x04")
    np.save(folder / "images" / "fold2" / "types.npy", np.array(TISSUES))
    with pytest.raises(DatasetError, match="images.npy: cannot be read as npy"):
        read_dataset("pannuke", str(pannuke))


def test_a_truncated_file_among_good_ones(pannuke):
    file = pannuke / "Fold 2" / "images" / "fold2" / "images.npy"
    file.write_bytes(file.read_bytes()[:-100])
    decoded, failed = load_all(read_dataset("pannuke", str(pannuke)))
    assert len(decoded) == 6 and {key[:6] for key in failed} == {"Fold 2"}
    assert {error.reason for error in failed.values()} == {"unreadable"}


def test_pixels_beyond_8_bits(pannuke):
    np.save(pannuke / "Fold 1" / "images" / "fold1" / "images.npy", images(1) * 257)
    with pytest.raises(SlideError, match="pixels are 0 to 255, found"):
        load_sample(only(read_dataset("pannuke", str(pannuke)), "fold1/images.npy#0"))


def test_arrays_are_read_row_by_row(tmp_path):
    for fold in (1, 2, 3):
        write_fold(tmp_path, fold)
    num_images = 400
    folder = tmp_path / "Fold 1"
    np.save(folder / "images" / "fold1" / "images.npy", np.zeros((num_images, HEIGHT, WIDTH, 3)))
    np.save(folder / "masks" / "fold1" / "masks.npy", np.zeros((num_images, HEIGHT, WIDTH, 6)))
    np.save(folder / "images" / "fold1" / "types.npy", np.array(["Colon"] * num_images))
    whole = (folder / "masks" / "fold1" / "masks.npy").stat().st_size
    tracemalloc.start()
    try:
        load_sample(read_dataset("pannuke", str(tmp_path)).samples[7])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < whole / 5


def test_a_folder_that_does_not_fit(pannuke):
    (pannuke / "Fold 3" / "masks" / "fold3" / "masks.npy").unlink()
    check_misfit(
        "pannuke", pannuke, "images.npy, masks.npy, types.npy below folders Fold 1, Fold 2, Fold 3", "incomplete: Fold 3"
    )
