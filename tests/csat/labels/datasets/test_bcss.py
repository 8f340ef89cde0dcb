import numpy as np
import pytest

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.bcss import CLASSES, CODES
from csat.labels.datasets.registry import load_sample, read_dataset
from csat.tasks import IGNORE
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

NAMES = (
    "TCGA-A1-A0SK-DX1_xmin45749_ymin25055_MPP-0.2500.png",
    "TCGA-OL-A66I-DX1_xmin1000_ymin2000_MPP-0.2500.png",
    "TCGA-E2-A14N-DX1_xmin21383_ymin66838_MPP-0.2500.png",
    "TCGA-A2-A04P-DX1_xmin104246_ymin48517_MPP-0.2500.png",
)
# All codes, four pixels each, in rows of a picture.
CODE_OF = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 4 % 22
# Codes as gtruth_codes.tsv of the release numbers them, and the classes of the authors' baseline.
TUMOR, STROMA, INFLAMMATORY, NECROSIS = (1, 19, 20), (2,), (3, 10, 11), (4,)


@pytest.fixture
def bcss(tmp_path):
    for seed, name in enumerate(NAMES):
        write(tmp_path / "images" / name, picture(seed))
        write(tmp_path / "masks" / name, CODE_OF.astype(np.uint8))
    (tmp_path / "meta").mkdir()
    table = "\n".join(["label\tGT_code", *(f"{label}\t{code}" for code, label in enumerate(CODES))])
    (tmp_path / "meta" / "gtruth_codes.tsv").write_text(table)
    return tmp_path


def test_patients_institutes_and_resolution(bcss):
    found = read_dataset("bcss", str(bcss))
    check_set(found, name="bcss", classes=CLASSES, licence="CC0 1.0", mpp=0.25)
    assert CLASSES == ("tumor", "stroma", "inflammatory", "necrosis", "other")
    assert [(sample.key[:19], sample.group, sample.split) for sample in found.samples] == [
        ("images/TCGA-A1-A0SK", "TCGA-A1-A0SK", "train"),
        ("images/TCGA-A2-A04P", "TCGA-A2-A04P", "train"),
        ("images/TCGA-E2-A14N", "TCGA-E2-A14N", "test"),
        ("images/TCGA-OL-A66I", "TCGA-OL-A66I", "test"),
    ]
    assert found.info.group == "patient"


def test_codes_are_merged_and_outside_does_not_count(bcss):
    decoded = load_sample(only(read_dataset("bcss", str(bcss)), NAMES[0]))
    assert (decoded.image == picture(0)).all() and decoded.mask.dtype == np.uint8
    assert (decoded.mask[CODE_OF == 0] == IGNORE).all()
    for value, codes in enumerate((TUMOR, STROMA, INFLAMMATORY, NECROSIS)):
        assert (decoded.mask[np.isin(CODE_OF, codes)] == value).all()
    others = ~np.isin(CODE_OF, [0, *TUMOR, *STROMA, *INFLAMMATORY, *NECROSIS])
    assert (decoded.mask[others] == 4).all() and others.sum() > 200


def test_the_single_download(bcss):
    (bcss / "images").rename(bcss / "rgbs_colorNormalized")
    release = bcss / "0_Public-data-Amgad2019_0.25MPP"
    release.mkdir()
    for name in ("rgbs_colorNormalized", "masks", "meta"):
        (bcss / name).rename(release / name)
    found = read_dataset("bcss", str(bcss))
    assert len(found.samples) == 4 and found.samples[0].key.startswith("0_Public-data-Amgad2019_0.25MPP/rgbs_colorNormalized/")
    assert load_sample(found.samples[0]).mask.shape == (HEIGHT, WIDTH)
    assert len(read_dataset("bcss", str(release)).samples) == 4


def test_another_table_of_codes(bcss):
    table = bcss / "meta" / "gtruth_codes.tsv"
    table.write_text(table.read_text().replace("fat\t9", "fat\t10").replace("blood\t6\n", ""))
    with pytest.raises(
        DatasetError, match="gtruth_codes.tsv: .* not those of BCSS .blood: missing instead of 6, fat: 10 instead"
    ):
        read_dataset("bcss", str(bcss))


def test_a_code_that_is_none(bcss):
    write(bcss / "masks" / NAMES[0], np.full((HEIGHT, WIDTH), 22, np.uint8))
    with pytest.raises(DatasetError, match="codes are 0 to 21, found 22; is it of BCSS?"):
        load_sample(only(read_dataset("bcss", str(bcss)), NAMES[0]))


def test_names_without_resolution_or_barcode(bcss):
    name = "TCGA-A1-A0SK-01Z-00-DX1_xmin1_ymin2_.png"  # at the slide's own magnification
    for folder in ("images", "masks"):
        (bcss / folder / NAMES[0]).rename(bcss / folder / name)
    found = read_dataset("bcss", str(bcss))
    assert only(found, name).mpp is None and only(found, NAMES[1]).mpp == 0.25 and found.info.mpp is None
    write(bcss / "images" / "region 7.png", picture(1))
    with pytest.raises(
        DatasetError, match="region 7.png does not begin with a patient's barcode; expected a name such as TCGA"
    ):
        read_dataset("bcss", str(bcss))


def test_a_mask_of_another_size_and_a_missing_one(bcss):
    write(bcss / "masks" / NAMES[0], CODE_OF.astype(np.uint8).T)
    (bcss / "masks" / NAMES[1]).unlink()
    found = read_dataset("bcss", str(bcss))
    with pytest.raises(DatasetError, match="the image is 24 x 20 px and its mask 20 x 24 px"):
        load_sample(only(found, NAMES[0]))
    with pytest.raises(SlideError, match=f"masks/{NAMES[1]}") as caught:
        load_sample(only(found, NAMES[1]))
    assert caught.value.reason == "missing"


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "images" / NAMES[0], picture(1))
    check_misfit("bcss", tmp_path, "masks/ with TCGA-", "found images", "PathologyDataScience/BCSS")


def test_a_corrupt_image_among_good_ones(bcss):
    break_image(bcss / "images" / NAMES[2])
    check_one_unreadable(read_dataset("bcss", str(bcss)), bcss / "images" / NAMES[2])
