import pytest

from csat.errors import ConfigError
from csat.panel import Member, make_panel, member_of, names_of, of_teacher, on_tile, plain_names, split_name
from csat.responses import Kind, ResponseSpec, TeacherSpec

NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=10, stride_px=2)
EMBEDDING = ResponseSpec(name="embedding", kind=Kind.FEATURES, channels=5, stride_px=None)


def spec(name, *responses, mpp=0.5, sizes=None, **more):
    return TeacherSpec(name=name, responses=responses, mpp=mpp, tile_px=sizes, **more)


NUCLEI = Member(name="nuclei", spec=spec("hovernet", NP, weights_sha256="a", licence="CC BY-NC-SA 4.0", source="x"), shrink=2)
TISSUE = Member(
    name="tissue", spec=spec("timm", EMBEDDING, mpp=0.25, sizes=(32, 64, 96), weights_sha256="b", licence="MIT", source="y")
)


def test_each_response_goes_by_its_teacher_and_lies_on_the_tile():
    """64 px of the tile are 32 for a teacher that sees it shrunk twice: 12 of them in 6 cells, whoever counts."""
    panel = make_panel([NUCLEI, TISSUE])
    assert [each.name for each in panel.responses] == ["nuclei.np", "tissue.embedding"]
    dense = panel.response("nuclei.np")
    assert (dense.stride_px, dense.crop_px) == (4, 20)
    assert dense.shape(64) == NP.shape(32) == (1, 6, 6)
    assert panel.response("tissue.embedding").shape(64) == (5,)
    assert on_tile(NP, None) == NP
    assert names_of(panel) == ("nuclei", "tissue") and names_of(NUCLEI.spec) == names_of(None) == ()
    assert of_teacher(panel.responses, "nuclei") == (dense,) and split_name("nuclei.np") == ("nuclei", "np")
    assert member_of(panel, "tissue") is TISSUE


def test_what_is_said_of_all():
    panel = make_panel([NUCLEI, TISSUE])
    assert (panel.name, panel.mpp, panel.tile_px) == ("nuclei + tissue", 0.25, (32, 64, 96))
    assert panel.licence == "CC BY-NC-SA 4.0; MIT" and panel.source == "nuclei: x; tissue: y"
    others = [
        make_panel([TISSUE, NUCLEI]),
        make_panel([NUCLEI]),
        make_panel([Member(name="nuclei", spec=NUCLEI.spec), TISSUE]),
        make_panel([NUCLEI, Member(name="tissue", spec=spec("timm", EMBEDDING, weights_sha256="c"))]),
    ]
    assert len({panel.weights_sha256, *(each.weights_sha256 for each in others)}) == 5


def test_a_view_is_checked_as_the_teacher_sees_it():
    NUCLEI.check_view(tile_px=64, mpp=0.25)
    TISSUE.check_view(tile_px=64, mpp=0.25)
    with pytest.raises(ConfigError, match=r"made for 0.5 um/px and the tiles are read at 1.0 um/px"):
        NUCLEI.check_view(tile_px=64, mpp=0.5)
    with pytest.raises(ConfigError, match="65 px cannot be shrunk 2 times"):
        NUCLEI.check_view(tile_px=65, mpp=0.25)
    with pytest.raises(ConfigError, match="does not take tiles of 48 px"):
        TISSUE.check_view(tile_px=48, mpp=0.25)


def test_plain_names_are_the_first_one_s():
    assert plain_names(["np", "hv"]) == {"np": "np", "hv": "hv"}
    assert plain_names(["a.np", "b.np", "b.hv"]) == {"a.np": "np", "b.np": "b.np", "b.hv": "hv"}
