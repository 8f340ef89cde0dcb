"""What holds for every layout, and what `load_sample` checks for all of them."""

from dataclasses import replace

import numpy as np
import pytest

from csat.data.datasets import pairs
from csat.data.datasets.contract import IGNORE, Decoded, Task
from csat.data.datasets.registry import DATASETS, load_sample, read_dataset
from csat.errors import ConfigError, DatasetError
from tests.csat.data.datasets.files import picture, write


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
