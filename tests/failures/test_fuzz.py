"""Damaged slides and images: 240 mutations of files of each kind, none of which a run may die of."""

import os
import signal
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import tifffile

from csat.slides.synthetic import make_slides, paint
from tests.failures import fuzz

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
    outcomes = fuzz.fuzz(sources[kind], MUTATIONS, 11, tmp_path)
    assert not fuzz.failures(outcomes), outcomes
    assert sum(outcomes.values()) == MUTATIONS and outcomes["read"] < MUTATIONS, outcomes


def test_a_real_slide_that_is_damaged(shared_data, tmp_path):
    outcomes = fuzz.fuzz(shared_data("slides") / "CMU-1-Small-Region.svs", 10, 11, tmp_path)
    assert not fuzz.failures(outcomes), outcomes


def test_a_crash_and_a_hang_would_be_noticed(sources, tmp_path, monkeypatch):
    """The fuzzing itself: what it must find is found, and it continues with the next file."""

    def spoiled(path):
        size = path.stat().st_size
        if size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60 if size == 2 else 0)
        return "read"

    monkeypatch.setattr(fuzz, "_read", spoiled)
    monkeypatch.setattr(fuzz, "TIME_LIMIT_S", 2.0)
    monkeypatch.setattr(fuzz, "mutate", lambda data, rng: b"x" * int(rng.integers(4)))
    expected = Counter({0: "read", 1: "crashed", 2: "hung:", 3: "read"}[size] for size in sizes(8))
    assert {"read", "crashed", "hung:"} == set(expected)
    outcomes = fuzz.fuzz(sources["png"], 8, 0, tmp_path)
    assert sum(outcomes.values()) == 8 and sum(outcomes[what] for what in fuzz.failures(outcomes)) == 8 - expected["read"]


def sizes(count: int) -> list[int]:
    return [int(np.random.default_rng((0, index)).integers(4)) for index in range(count)]
