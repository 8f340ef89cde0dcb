"""What holds for every layout, and what `load_sample` checks for all of them."""

from dataclasses import replace

import numpy as np
import pytest

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets import pairs
from csat.labels.datasets.contract import Decoded
from csat.labels.datasets.registry import DATASETS, load_sample, read_dataset
from csat.tasks import IGNORE, Task
from tests.csat.labels.datasets.files import picture, write


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_does_not_fit(name, tmp_path):
    with pytest.raises(DatasetError, match=f"data set '{name}': {tmp_path} does not fit: looked for .*; the folder is empty"):
        read_dataset(name, str(tmp_path))


@pytest.mark.parametrize("name", DATASETS)
def test_no_folder_does_not_fit(name, tmp_path):
    with pytest.raises(DatasetError, match="there is no such folder"):
        read_dataset(name, str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", DATASETS)
def test_a_folder_of_something_else_is_listed(name, tmp_path):
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "notes.txt").write_text("beach")
    with pytest.raises(DatasetError, match="holiday"):
        read_dataset(name, str(tmp_path))


@pytest.mark.parametrize("name", DATASETS)
def test_an_unknown_option_lists_the_valid_ones(name, tmp_path):
    with pytest.raises(ConfigError, match=f"data set '{name}': there is no setting 'colour'.*Settings are: "):
        read_dataset(name, str(tmp_path), options={"colour": 1})


def test_unknown_names_list_the_valid_ones(tmp_path):
    with pytest.raises(ConfigError, match="no data set 'camelyon'; there are: folder, manifest, pairs, nct_crc"):
        read_dataset("camelyon", str(tmp_path))
    with pytest.raises(ConfigError, match="no task 'detection'; there are: classification, segmentation, nuclei"):
        read_dataset("glas", str(tmp_path), task="detection")
    with pytest.raises(ConfigError, match="'glas' serves segmentation, classification, not nuclei"):
        read_dataset("glas", str(tmp_path), task="nuclei")


@pytest.fixture
def one_pair(tmp_path):
    """A set of one image with a mask of three classes."""
    mask = np.zeros((20, 24), np.uint8)
    mask[2:6, 3:9], mask[10:12, 4:20] = 2, IGNORE
    write(tmp_path / "images" / "a.png", picture(1))
    write(tmp_path / "masks" / "a.png", mask)
    return tmp_path


def test_samples_carry_task_and_number_of_classes(one_pair):
    found = read_dataset("pairs", str(one_pair), options={"classes": ["background", "gland", "tumor"]})
    assert (found.samples[0].task, found.samples[0].num_classes) == (Task.SEGMENTATION, 3)
    found = read_dataset("pairs", str(one_pair), task="nuclei")
    assert (found.samples[0].task, found.samples[0].num_classes) == (Task.NUCLEI, 0)


def test_a_class_that_the_set_does_not_have(one_pair):
    options = {"classes": ["background", "gland"], "ignore_255": True}
    sample = read_dataset("pairs", str(one_pair), options=options).samples[0]
    with pytest.raises(DatasetError, match=r"sample images/a.png: its labels hold 2 \(.*masks/a.png\).* classes are 0 to 1"):
        load_sample(sample)
    assert load_sample(replace(sample, num_classes=3)).mask.max() == IGNORE  # what does not count is no class


def test_types_and_arrays_of_another_size(one_pair, monkeypatch):
    sample = read_dataset("pairs", str(one_pair), task="nuclei").samples[0]
    instances = np.ones((20, 24), np.int32)
    types = np.full((20, 24), 3, np.uint8)
    monkeypatch.setattr(pairs, "load", lambda sample: Decoded(image=picture(1), instances=instances, types=types))
    assert load_sample(replace(sample, num_classes=3)).types is types  # types count from 1
    with pytest.raises(DatasetError, match="its labels hold 3 .* classes are 0 to 2"):
        load_sample(replace(sample, num_classes=2))
    types = types[:10]
    with pytest.raises(DatasetError, match="the image is 24 x 20 px and its mask 24 x 10 px"):
        load_sample(replace(sample, num_classes=3))


def test_decoded_counts_its_bytes():
    image = picture(1)
    assert Decoded(image=image).num_bytes == 20 * 24 * 3
    assert Decoded(image=image, instances=np.zeros((20, 24), np.int32)).num_bytes == 20 * 24 * 7


# ------------------------------------------------------------------------------------------------ masks of the wrong make


def _nuclei(edge: int = 96) -> np.ndarray:
    """Sixteen nuclei, numbered: int `[edge, edge]`."""
    numbered = np.zeros((edge, edge), np.uint16)
    for number, (top, left) in enumerate(np.ndindex(4, 4), 1):
        numbered[top * 24 + 4 : top * 24 + 18, left * 24 + 4 : left * 24 + 16] = number
    return numbered


def _one_pair(root, mask):
    write(root / "images" / "a.png", picture(0, *mask.shape))
    write(root / "masks" / "a.png", mask)
    return root


def _one_in_a_table(root, mask):
    _one_pair(root, mask)
    (root / "set.csv").write_text("path,mask\nimages/a.png,masks/a.png\n")
    return root / "set.csv"


def _merged_bowl(root, mask):
    write(root / "images" / "a.png", picture(0, *mask.shape))
    write(root / "inst" / "a.png", mask)
    return root


def _organ(root, mask):
    write(root / "liver" / "tissue images" / "a.png", picture(0, *mask.shape))
    write(root / "liver" / "label masks modify" / "a.tif", mask)
    return root


def _patches(root, mask):
    for folder, array in (("images", picture(0, *mask.shape)), ("inst", mask), ("type", (mask > 0).astype(np.uint8))):
        write(root / "train" / folder / "train_1_000.png", array)
    return root


def _fold(root, mask):
    layers = np.zeros((1, *mask.shape, 6))
    layers[0, ..., 2] = mask
    (root / "fold1").mkdir()
    arrays = {"images": picture(0, *mask.shape)[None].astype(np.float64), "masks": layers, "types": np.array(["Colon"])}
    for name, array in arrays.items():
        np.save(root / "fold1" / f"{name}.npy", array)
    return root


NUMBERED = {
    "pairs": _one_pair,
    "manifest": _one_in_a_table,
    "dsb2018": _merged_bowl,
    "nuinsseg": _organ,
    "consep": _patches,
    "pannuke": _fold,
}


def _load_nuclei(name, root, mask):
    options = {"train": [1], "val": [], "test": []} if name == "pannuke" else {}
    return load_sample(read_dataset(name, str(NUMBERED[name](root, mask)), task="nuclei", options=options).samples[0])


@pytest.mark.parametrize("name", NUMBERED)
def test_masks_that_do_not_number_their_nuclei_are_refused_by_every_layout(name, tmp_path):
    numbered = _nuclei()
    for folder, mask in {
        "binary": np.where(numbered > 0, 255, 0),
        "classes": numbered % 3 + (numbered > 0),
        "with loss": np.where(numbered > 0, 250 + np.random.default_rng(0).integers(0, 3, numbered.shape), 0),
    }.items():
        (tmp_path / folder).mkdir()
        with pytest.raises(DatasetError, match="are not numbered: [0-9]+ stands in [0-9]+ separate pieces"):
            _load_nuclei(name, tmp_path / folder, mask.astype(np.uint8))


@pytest.mark.parametrize("name", NUMBERED)
def test_numbered_nuclei_are_taken_in_pieces_and_with_specks(name, tmp_path):
    numbered = _nuclei()
    numbered[10] = 0  # cuts the upper four nuclei in two
    for number, (top, left) in enumerate(np.ndindex(4, 4), 1):
        numbered[top * 24 + 21, left * 24 + np.array([1, 5, 9])] = number  # specks
    found = np.unique(_load_nuclei(name, tmp_path, numbered).instances)
    assert len(found) == 17
    (tmp_path / "one").mkdir()
    assert len(np.unique(_load_nuclei(name, tmp_path / "one", (numbered == 7) * np.uint16(255)).instances)) == 2
    (tmp_path / "none").mkdir()
    assert not _load_nuclei(name, tmp_path / "none", np.zeros_like(numbered)).instances.any()


@pytest.mark.parametrize(("name", "mask_folder"), [("pairs", "masks"), ("nuinsseg", "masks_binary"), ("dsb2018", None)])
def test_masks_of_yes_or_no_hold_nothing_between(name, mask_folder, tmp_path):
    """A picture's noise about the nuclei, saved again without loss, would join what is apart."""
    mask = np.where(_nuclei() > 0, 255, 0).astype(np.uint8)
    mask[0, 0] = 3
    images, masks = ("images", mask_folder) if mask_folder else ("1/images", "1/masks")
    write(tmp_path / images / "1.png", picture(0, *mask.shape))
    write(tmp_path / masks / "1.png", mask)
    found = read_dataset(name, str(tmp_path), task="nuclei", options={"instances": "components"} if name == "pairs" else {})
    with pytest.raises(DatasetError, match="holds 0 and 1, or 0 and 255; found 0, 3, 255"):
        load_sample(found.samples[0])


@pytest.mark.parametrize("name", ["dsb2018", "consep"])
def test_real_nuclei_are_numbered(name, shared_data):
    for sample in read_dataset(name, str(shared_data(name)), task="nuclei").samples[::20]:
        assert load_sample(sample).instances.any()
