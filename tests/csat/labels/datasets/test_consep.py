from collections import Counter

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import (
    HEIGHT,
    WIDTH,
    break_image,
    check_misfit,
    check_one_unreadable,
    check_set,
    only,
    picture,
    write,
)

TYPES = ("other", "inflammatory", "epithelial", "spindle")
INSTANCES = np.zeros((HEIGHT, WIDTH))
for number in range(1, 8):
    INSTANCES[2 * number : 2 * number + 2, 3:9] = number * 100  # numbers have gaps, and need 16 bits


def write_downloaded(root, part, name, seed, types=INSTANCES / 100):
    write(root / part / "Images" / f"{name}.png", picture(seed))
    (root / part / "Labels").mkdir(exist_ok=True)
    arrays = {"inst_map": INSTANCES, "type_map": types, "inst_type": np.arange(7)[:, None], "inst_centroid": np.zeros((7, 2))}
    savemat(root / part / "Labels" / f"{name}.mat", arrays)


@pytest.fixture
def consep(tmp_path):
    write_downloaded(tmp_path / "CoNSeP", "Train", "train_1", 1)
    write_downloaded(tmp_path / "CoNSeP", "Train", "train_12", 2)
    write_downloaded(tmp_path / "CoNSeP", "Test", "test_1", 3)
    return tmp_path


def test_as_downloaded(consep):
    found = read_dataset("consep", str(consep))
    check_set(found, name="consep", classes=TYPES, licence=found.info.licence, mpp=0.25)
    assert "verify at the source" in found.info.licence
    assert [(sample.key, sample.group, sample.split) for sample in found.samples] == [
        ("CoNSeP/Test/Images/test_1.png", "test_1", "test"),
        ("CoNSeP/Train/Images/train_1.png", "train_1", "train"),
        ("CoNSeP/Train/Images/train_12.png", "train_12", "train"),
    ]
    assert found.info.group == "image" and "16 patients" in found.info.note
    assert len(read_dataset("consep", str(consep / "CoNSeP")).samples) == 3


def test_seven_types_become_four(consep):
    decoded = load_sample(only(read_dataset("consep", str(consep)), "train_1.png"))
    assert (decoded.image == picture(1)).all()
    assert decoded.instances.dtype == np.int32 and (decoded.instances == INSTANCES).all()
    # other; inflammatory; healthy and malignant epithelium; fibroblast, muscle and endothelium
    merged = dict(zip(range(1, 8), (1, 2, 3, 3, 4, 4, 4), strict=True))
    assert decoded.types.dtype == np.uint8
    for number, value in merged.items():
        assert set(decoded.types[2 * number, 3:9]) == {value}
    assert not decoded.types[INSTANCES == 0].any()


def test_types_as_a_segmentation(consep):
    found = read_dataset("consep", str(consep), task="segmentation")
    assert found.info.classes == ("background", *TYPES)
    decoded = load_sample(only(found, "train_1.png"))
    assert (decoded.mask == load_sample(only(read_dataset("consep", str(consep)), "train_1.png")).types).all()
    assert decoded.instances is None and decoded.types is None
    assert found.samples[0].index is None


def write_patch(root, name, seed, types):
    part = name.split("_")[0]
    write(root / part / "images" / f"{name}.jpg", picture(seed))
    write(root / part / "inst" / f"{name}.png", INSTANCES.astype(np.uint16))
    write(root / part / "type" / f"{name}.png", types.astype(np.uint8))


def test_patches(tmp_path):
    types = (INSTANCES / 100).clip(0, 4)
    for seed, name in enumerate(("train_1_000", "train_1_015", "train_10_000", "test_14_003")):
        write_patch(tmp_path, name, seed, types)
    found = read_dataset("consep", str(tmp_path))
    assert [(sample.key, sample.group, sample.split) for sample in found.samples] == [
        ("test/images/test_14_003.jpg", "test_14", "test"),
        ("train/images/train_10_000.jpg", "train_10", "train"),
        ("train/images/train_1_000.jpg", "train_1", "train"),
        ("train/images/train_1_015.jpg", "train_1", "train"),
    ]
    decoded = load_sample(only(found, "train_1_015.jpg"))
    assert (decoded.instances == INSTANCES).all() and (decoded.types == types).all()
    write_patch(tmp_path, "test_14_003", 3, INSTANCES / 100)
    with pytest.raises(DatasetError, match=r"its labels hold 5, 6, 7 \(.*type/test_14_003.png\), .* classes are 0 to 4"):
        load_sample(only(read_dataset("consep", str(tmp_path)), "test_14_003.jpg"))


def test_what_is_wrong_with_a_mat_file(consep):
    labels = consep / "CoNSeP" / "Train" / "Labels"
    for content, message in (
        ({"inst_map": INSTANCES}, "no mat file with inst_map and type_map: KeyError"),
        ({"inst_map": INSTANCES, "type_map": INSTANCES}, "types are 0 to 7, found 0 to 700"),
    ):
        savemat(labels / "train_1.mat", content)
        with pytest.raises(SlideError, match=f"train_1.mat: {message}"):
            load_sample(only(read_dataset("consep", str(consep)), "train_1.png"))
    (labels / "train_1.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 9)
    with pytest.raises(SlideError, match="train_1.mat: no mat file"):
        load_sample(only(read_dataset("consep", str(consep)), "train_1.png"))
    savemat(labels / "train_1.mat", {"inst_map": INSTANCES[1:], "type_map": INSTANCES[1:] / 100})
    with pytest.raises(DatasetError, match="the image is 24 x 20 px and its mask 24 x 19 px"):
        load_sample(only(read_dataset("consep", str(consep)), "train_1.png"))
    (labels / "train_1.mat").unlink()
    with pytest.raises(SlideError, match="train_1.mat") as caught:
        load_sample(only(read_dataset("consep", str(consep)), "train_1.png"))
    assert caught.value.reason == "missing"


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "tiles" / "train_1.png", picture(1))
    check_misfit("consep", tmp_path, "Train/Images/train_1.png", "found tiles", "holds Train and Test")


def test_a_corrupt_image_among_good_ones(consep):
    broken = consep / "CoNSeP" / "Train" / "Images" / "train_12.png"
    break_image(broken)
    check_one_unreadable(read_dataset("consep", str(consep)), broken)


def test_the_real_patches(shared_data):
    root = shared_data("consep")
    found = read_dataset("consep", str(root))
    check_set(found, name="consep", classes=TYPES, licence=found.info.licence, mpp=0.25)
    assert Counter(sample.split for sample in found.samples) == {"train": 27 * 16, "test": 14 * 16}
    groups = Counter(sample.group for sample in found.samples)
    assert len(groups) == 41 and set(groups.values()) == {16}
    decoded = load_sample(only(found, "test_13_008.jpg"))  # a lymph follicle
    assert decoded.image.shape == (256, 256, 3)
    assert (decoded.instances == np.asarray(Image.open(root / "test" / "inst" / "test_13_008.png"))).all()
    assert Counter(decoded.types[decoded.instances > 0].tolist()).most_common(1)[0][0] == 1 + TYPES.index("inflammatory")
    assert ((decoded.types > 0) == (decoded.instances > 0)).all()
