"""Every kind of report as somebody sees it who opens it in a bucket: in a real browser, wide and narrow, light and dark."""

import io
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.support.browser import browser  # noqa: F401 (fixture)
from tests.support.made_up_reports import EVIL, KINDS, PAGES

WIDTHS_PX, SCHEMES = (1280, 390), ("light", "dark")


@pytest.fixture(scope="module", params=KINDS)
def looks(request, browser):  # noqa: F811
    """A report, and how it looks to each."""
    folder = browser.root / request.param
    KINDS[request.param](folder)
    page = folder / PAGES.get(request.param, "report.html")
    return page, {
        (width, scheme): browser.look(page, width_px=width, scheme=scheme) for width in WIDTHS_PX for scheme in SCHEMES
    }


def test_nothing_is_complained_of_nor_loaded_from_elsewhere(looks):
    page, seen = looks
    for look in seen.values():
        assert look.console == []
        assert [urlsplit(url).path.rsplit("/", 1)[-1] for url in look.asked] == [page.name]


def test_every_picture_loads(looks):
    for look in looks[1].values():
        assert look.num_images >= 1 and look.broken == []


def test_what_files_are_called_is_text(looks):
    for look in looks[1].values():
        assert look.ran is None and look.text.count(EVIL) >= 2


def test_the_page_never_scrolls_sideways(looks):
    for (width, _), look in looks[1].items():
        assert look.window_px == width and look.scroll_px <= width


def test_links_are_relative_and_lead_to_files_of_the_run(looks):
    page, seen = looks
    links = {link for look in seen.values() for link in look.links}
    assert "config.yaml" in links
    for link in links:
        assert not urlsplit(link).scheme and not link.startswith("/")
        assert (page.parent / unquote(link)).exists(), link


def test_light_and_dark(looks):
    """By the pixels of the whole page, pictures of tissue aside: most of it is background, and text stands out from it."""
    for (_, scheme), look in looks[1].items():
        brightness = np.asarray(Image.open(io.BytesIO(look.picture)).convert("L"))
        assert (np.median(brightness) > 240) == (scheme == "light") and (np.median(brightness) < 40) == (scheme == "dark")
        text, back = (sum(map(int, color[4:-1].split(","))) / 3 for color in (look.color, look.background))
        assert abs(text - back) > 120
