"""Which resolution holds, and what states one."""

import pytest

from csat.errors import ConfigError
from csat.slides.mpp import Mpp, check_mpp, choose_mpp, guess_mpp, mpp_of_tags, stated_mpp


def test_given_before_stated_before_the_typed_default_before_a_guess():
    have = dict(given=0.1, stated=stated_mpp(0.2), source_mpp=0.3, guessed=guess_mpp(20))
    for name, mpp, source in (
        ("given", 0.1, "given"),
        ("stated", 0.2, "stated"),
        ("source_mpp", 0.3, "source_mpp"),
        ("guessed", 0.5, "guessed"),
    ):
        assert choose_mpp(**have) == Mpp(mpp, mpp, source)
        del have[name]
    assert choose_mpp() is None


@pytest.mark.parametrize("dpi", [72, 96, 150, 300, 360, 600, 1200, 2400, 3200, 4800, 5760, 7200, 9600])
def test_a_printers_a_screens_and_an_office_scanners_resolution_state_nothing(dpi):
    assert mpp_of_tags(dpi, dpi, "inch") is None and mpp_of_tags(dpi / 2.54, dpi / 2.54, 3) is None
    assert mpp_of_tags(dpi, 100_000, 2) is None, "one axis is enough"


@pytest.mark.parametrize("mpp", [0.1, 0.2325, 0.25, 0.254, 0.263, 0.5, 0.508, 1.0, 2.0, 2.54, 4.0, 5.0, 8.0])
def test_a_microscopes_resolution_is_believed_in_inches_and_centimetres(mpp):
    assert mpp_of_tags(25_400 / mpp, None, "inch") == pytest.approx((mpp, mpp, "stated"))
    assert mpp_of_tags(10_000 / mpp, 20_000 / mpp, 3) == pytest.approx((mpp, mpp / 2, "stated"))


@pytest.mark.parametrize("tags", [(0, 0, 2), (None, None, 2), (20_000, 20_000, 1), (20_000, 20_000, "none"), ((1, 2), 3, 2)])
def test_tags_that_say_nothing(tags):
    assert mpp_of_tags(*tags) is None


def test_what_a_slides_own_format_says_is_believed_as_far_as_any_microscope_goes():
    assert stated_mpp(28.969, 28.968) == (28.969, 28.968, "stated")  # DICOM, a whole slide in 2,000 px
    assert stated_mpp(None, 0.25) == (0.25, 0.25, "stated")
    assert stated_mpp(352.8) is None and stated_mpp(None) is None and stated_mpp(float("nan")) is None
    assert guess_mpp(None) is None and guess_mpp(0) is None and guess_mpp(40).x == 0.25


@pytest.mark.parametrize("wrong", [0.0, -1.0, 352.8, float("nan"), float("inf")])
def test_a_typed_number_that_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"data.source_mpp is .*: expected micrometres per pixel, between 0.02 and 50"):
        check_mpp(wrong, "data.source_mpp")
    check_mpp(None, "data.source_mpp")
