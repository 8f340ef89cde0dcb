"""Damaged slides and images: 240 mutations of files of each kind, none of which a run may die of."""

import cv2
import pytest
import tifffile

from csat.data.synthetic import make_slides, paint
from tests.failures.fuzz import failures, fuzz

MUTATIONS = 40


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    image, _ = paint(256, mpp=0.5, seed=3, index=0)
    files = {"svs": make_slides(folder, num_slides=1, size_px=256, seed=3)[0]}
    for suffix in ("png", "jpg", "bmp"):
        files[suffix] = folder / f"image.{suffix}"
        cv2.imwrite(str(files[suffix]), image[..., ::-1])
    files["tif"] = folder / "deflate.tif"
    tifffile.imwrite(files["tif"], image, photometric="rgb", compression="zlib")
    files["tiff"] = folder / "tiled.tiff"
    tifffile.imwrite(files["tiff"], image, photometric="rgb", tile=(64, 64), compression="jpeg")
    return files


@pytest.mark.parametrize("kind", ["svs", "tif", "tiff", "png", "jpg", "bmp"])
def test_damaged_files_are_read_or_quarantined(sources, kind, tmp_path):
    outcomes = fuzz(sources[kind], MUTATIONS, 11, tmp_path)
    assert not failures(outcomes), outcomes
    assert sum(outcomes.values()) == MUTATIONS and outcomes["read"] < MUTATIONS, outcomes


def test_a_real_slide_that_is_damaged(shared_data, tmp_path):
    outcomes = fuzz(shared_data("slides") / "CMU-1-Small-Region.svs", 10, 11, tmp_path)
    assert not failures(outcomes), outcomes


def test_a_crash_and_a_hang_would_be_noticed(sources, tmp_path, monkeypatch):
    """The fuzzing itself: what it must find is found, and it goes on with the next file."""
    import faulthandler
    import time

    from tests.failures import fuzz as module

    def spoiled(path):
        time.sleep(30) if path.stat().st_size % 2 else faulthandler._sigsegv()

    monkeypatch.setattr(module, "_read", spoiled)
    monkeypatch.setattr(module, "TIME_LIMIT_S", 0.5)
    monkeypatch.setattr(module, "mutate", lambda data, rng: b"x" * next(sizes))
    sizes = iter([1, 2])
    assert {what.split()[0] for what in fuzz(sources["png"], 1, 0, tmp_path)} == {"hung:"}
    sizes = iter([2])
    assert {what.split()[0] for what in fuzz(sources["png"], 1, 0, tmp_path)} == {"crashed"}
