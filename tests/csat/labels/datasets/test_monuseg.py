import numpy as np
import pytest

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

TRAIN, TEST = "TCGA-18-5592-01Z-00-DX1", "TCGA-2Z-A9J9-01A-01-TS1"
SQUARE = [(2, 3), (6, 3), (6, 9), (2, 9)]  # corners x, y: pixels 2 to 5 across and 3 to 8 down
OVER_IT = [(4.0, 7.0), (10.0, 7.0), (10.0, 12.0), (4.0, 12.0)]
BEYOND = [(20, 15), (40, 15), (40, 30), (20, 30)]  # out of the image
CLICK = [(12, 1)]


def annotation(*outlines):
    regions = "".join(
        f'<Region Id="{number}" Type="0" Zoom="1" Area="24.0" NegativeROA="0"><Attributes/><Vertices>'
        + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in outline)
        + "</Vertices></Region>"
        for number, outline in enumerate(outlines, 1)
    )
    return (
        '<Annotations MicronsPerPixel="0.252000"><Annotation Id="1" Name="" Type="4"><Attributes/><Regions>'
        f"<RegionAttributeHeaders/>{regions}</Regions><Plots/></Annotation></Annotations>"
    )


@pytest.fixture
def monuseg(tmp_path):
    train, test = tmp_path / "MoNuSeg 2018 Training Data" / "MoNuSeg 2018 Training Data", tmp_path / "MoNuSegTestData"
    write(train / "Tissue Images" / f"{TRAIN}.tif", picture(1))
    (train / "Annotations").mkdir()
    (train / "Annotations" / f"{TRAIN}.xml").write_text(annotation(SQUARE, CLICK, OVER_IT, BEYOND))
    for seed, name in ((2, TEST), (3, TEST.replace("A9J9", "A9J8"))):
        write(test / f"{name}.tif", picture(seed))
        (test / f"{name}.xml").write_text(annotation(SQUARE))
    return tmp_path


def test_patients_and_official_parts(monuseg):
    found = read_dataset("monuseg", str(monuseg))
    check_set(found, name="monuseg", classes=(), licence="CC BY-NC-SA 4.0", mpp=0.25)
    assert [(sample.key.rpartition("/")[2], sample.group, sample.split) for sample in found.samples] == [
        (f"{TRAIN}.tif", "TCGA-18-5592", "train"),
        ("TCGA-2Z-A9J8-01A-01-TS1.tif", "TCGA-2Z-A9J8", "test"),
        (f"{TEST}.tif", "TCGA-2Z-A9J9", "test"),
    ]
    assert found.info.group == "patient"
    assert read_dataset("monuseg", str(monuseg / "MoNuSegTestData")).samples[0].split is None  # the folder's name is above


def test_outlines_become_instances(monuseg):
    decoded = load_sample(only(read_dataset("monuseg", str(monuseg)), f"{TRAIN}.tif"))
    expected = np.zeros((HEIGHT, WIDTH), np.int32)
    expected[15:, 20:] = 3
    expected[7:12, 4:10] = 2
    expected[3:9, 2:6] = 1  # the first one has the overlap
    assert (decoded.image == picture(1)).all() and decoded.types is None
    assert decoded.instances.dtype == np.int32 and (decoded.instances == expected).all()
    assert (expected == 1).sum() == 24  # as much as the outline encloses


def test_what_is_wrong_with_an_annotation(monuseg):
    file = monuseg / "MoNuSegTestData" / f"{TEST}.xml"
    for content, message in (
        ("<Annotations><Annotation>", "no ImageScope annotation: ParseError"),
        ("<annotation/>", "its root is <annotation>"),
        (annotation([("a", 1)] * 3), "ValueError: could not convert string to float"),
        (annotation(SQUARE).replace('X="2"', 'U="2"'), "KeyError: 'X'"),
    ):
        file.write_text(content)
        with pytest.raises(SlideError, match=message) as caught:
            load_sample(only(read_dataset("monuseg", str(monuseg)), f"{TEST}.tif"))
        assert caught.value.reason == "unreadable" and file.name in str(caught.value)
    file.write_text(annotation())
    assert not load_sample(only(read_dataset("monuseg", str(monuseg)), f"{TEST}.tif")).instances.any()
    file.unlink()
    with pytest.raises(DatasetError, match=f"3 tif and 2 xml files, of which 1 have no partner: {TEST}"):
        read_dataset("monuseg", str(monuseg))


def test_names_that_say_nothing_or_too_much(monuseg):
    for suffix in ("tif", "xml"):
        (monuseg / "MoNuSegTestData" / f"{TEST}.{suffix}").rename(monuseg / "MoNuSegTestData" / f"case 1.{suffix}")
    with pytest.raises(DatasetError, match="case 1.tif does not begin with a patient's barcode"):
        read_dataset("monuseg", str(monuseg))
    write(monuseg / "MoNuSegTestData" / f"{TRAIN}.tif", picture(1))
    with pytest.raises(DatasetError, match=f"{TRAIN}.tif and .*{TRAIN}.tif have one name"):
        read_dataset("monuseg", str(monuseg))


def test_a_folder_that_does_not_fit(tmp_path):
    write(tmp_path / "images" / f"{TRAIN}.png", picture(1))
    check_misfit("monuseg", tmp_path, "Tissue Images/*.tif with Annotations/*.xml", "found images")


def test_a_corrupt_image_among_good_ones(monuseg):
    broken = monuseg / "MoNuSegTestData" / f"{TEST}.tif"
    break_image(broken)
    check_one_unreadable(read_dataset("monuseg", str(monuseg)), broken)
