from collections import Counter

import pytest

from csat.errors import DatasetError
from csat.labels.datasets.registry import load_sample, read_dataset
from tests.csat.labels.datasets.files import break_image, check_misfit, check_one_unreadable, check_set, only, picture, write

CLASSES = ("lung_aca", "lung_n", "lung_scc")


@pytest.fixture
def lung(tmp_path):
    write(tmp_path / "lung_aca" / "lungaca335.jpeg", picture(1))
    write(tmp_path / "lung_aca" / "lungaca3695.jpeg", picture(2))
    write(tmp_path / "lung_scc" / "lungscc1.jpeg", picture(3))
    (tmp_path / "labels.csv").write_text(
        "file,label,source_group\n"
        "lung_aca/lungaca335.jpeg,lung_aca,lung_aca_0\n"
        "lung_aca/lungaca3695.jpeg,lung_aca,lung_aca_0\n"
        "lung_scc/lungscc1.jpeg,lung_scc,lung_scc_4\n"
    )
    return tmp_path


def test_labels_and_groups_of_the_table(lung):
    found = read_dataset("lc25000_lung", str(lung))
    check_set(found, name="lc25000_lung", classes=CLASSES, licence="not stated", mpp=None)
    assert [(sample.key, sample.label, sample.group, sample.split) for sample in found.samples] == [
        ("lung_aca/lungaca335.jpeg", 0, "lung_aca_0", None),
        ("lung_aca/lungaca3695.jpeg", 0, "lung_aca_0", None),
        ("lung_scc/lungscc1.jpeg", 2, "lung_scc_4", None),
    ]
    assert found.info.group == "source image"
    assert load_sample(only(found, "lungscc1.jpeg")).image.shape == (20, 24, 3)


def test_what_is_wrong_with_the_table(lung):
    (lung / "labels.csv").write_text("file,label,source_group\nlung_aca/lungaca335.jpeg,adenocarcinoma,1\n")
    with pytest.raises(DatasetError, match="labels.csv, line 2: the label of .* is 'adenocarcinoma'; classes are: lung_aca"):
        read_dataset("lc25000_lung", str(lung))
    (lung / "labels.csv").write_text("file,label\nlung_aca/lungaca335.jpeg,lung_aca\n")
    with pytest.raises(DatasetError, match="there is no column 'source_group'; its columns are: 'file', 'label'"):
        read_dataset("lc25000_lung", str(lung))


def test_a_folder_that_does_not_fit(lung):
    (lung / "labels.csv").unlink()
    check_misfit("lc25000_lung", lung, "labels.csv (file, label, source_group)", "found lung_aca, lung_scc", "layout lc25000")


def test_a_corrupt_image_among_good_ones(lung):
    break_image(lung / "lung_scc" / "lungscc1.jpeg")
    check_one_unreadable(read_dataset("lc25000_lung", str(lung)), lung / "lung_scc" / "lungscc1.jpeg")


def test_the_real_set(shared_data):
    found = read_dataset("lc25000_lung", str(shared_data("lc25000_lung")))
    check_set(found, name="lc25000_lung", classes=CLASSES, licence="not stated", mpp=None)
    groups = Counter(sample.group for sample in found.samples)
    assert len(found.samples) == 1480 and set(groups.values()) == {2}  # two tiles per source image
    labels = {}
    for sample in found.samples:  # a group has one class
        assert labels.setdefault(sample.group, sample.label) == sample.label
    assert load_sample(found.samples[0]).image.shape == (224, 224, 3)
