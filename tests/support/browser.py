"""A real browser that opens a page as somebody would who finds it in a bucket: headless Chromium, where there is one."""

import base64
import contextlib
import functools
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
OWN_SCHEMES = ("data", "about", "chrome", "chrome-untrusted")  # of what a page holds itself, and of the browser's first tab
FACTS = """
const images = [...document.images];
return {
    scroll_px: document.documentElement.scrollWidth,
    window_px: window.innerWidth,
    broken: images.filter(image => !(image.complete && image.naturalWidth > 0)).map(image => image.alt),
    num_images: images.length,
    links: [...document.querySelectorAll("a[href]")].map(link => link.getAttribute("href")),
    background: getComputedStyle(document.body).backgroundColor,
    color: getComputedStyle(document.body).color,
    title: document.title,
    text: document.body.innerText,
    ran: window.ran === undefined ? null : window.ran,
};
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A page as it looked, see `FACTS`.

    Attributes:
        console: What the browser complained of.
        asked: Addresses that it asked for, the page's own first.
        picture: PNG of the whole page.
    """

    scroll_px: int
    window_px: int
    broken: list[str]
    num_images: int
    links: list[str]
    background: str
    color: str
    title: str
    text: str
    ran: object
    console: list[str]
    asked: list[str]
    picture: bytes = field(repr=False)


class Browser:
    """Opens pages of a folder that is served on this machine alone."""

    def __init__(self, driver, root: Path, address: str):
        self._driver, self.root, self._address = driver, root, address

    def look(self, page: Path, *, width_px: int, scheme: str, height_px: int = 900) -> Look:
        """The page in a window of that width, for somebody who wants it light or dark."""
        self._driver.get_log("browser"), self._driver.get_log("performance")  # of the page before
        size = {"width": width_px, "height": height_px, "deviceScaleFactor": 1, "mobile": False}
        self._do("Emulation.setDeviceMetricsOverride", size)
        self._do("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        self._driver.get(f"{self._address}/{quote(page.relative_to(self.root).as_posix())}")
        facts = self._driver.execute_script(FACTS)
        picture = self._do("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})["data"]
        console = [entry["message"] for entry in self._driver.get_log("browser")]
        return Look(**facts, console=console, asked=self._asked(), picture=base64.b64decode(picture))

    def _asked(self) -> list[str]:
        messages = [json.loads(entry["message"])["message"] for entry in self._driver.get_log("performance")]
        sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if urlsplit(url).scheme not in OWN_SCHEMES]

    def _do(self, command: str, settings: dict) -> dict:
        return self._driver.execute_cdp_cmd(command, settings)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """A browser over a folder of its own, `browser.root`."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("there is no Chromium with its driver here: apt-get install chromium chromium-driver")
    root = tmp_path_factory.mktemp("bucket")
    with _served(root) as address, _chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield Browser(driver, root, address)


@contextlib.contextmanager
def _chromium(profile: Path):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def _served(root: Path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
