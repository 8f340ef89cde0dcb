import cv2
import numpy as np
import pytest

from csat.errors import ConfigError
from workflows.rates.config import BenchmarkConfig
from workflows.rates.images import gather_images, steady


def test_the_start_and_the_end_of_a_run_do_not_count():
    """Ten steps of 32: the first two are slow, the last one is quick. The middle is steps 2 to 8."""
    steps = [(32, 10.0), (32, 10.0), *[(32, 2.0)] * 7, (32, 0.1)]
    assert steady(steps) == pytest.approx(16.0)
    with pytest.raises(ConfigError, match="more images"):
        steady([(32, 1.0), (32, 1.0)])


def test_images_are_taken_from_all_over_a_folder(tmp_path):
    for index in range(300):
        folder = tmp_path / "given" / ("a" if index < 150 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index:03d}.png"), np.full((8, 8, 3), index % 256, np.uint8))
    (tmp_path / "out").mkdir()
    assert gather_images(BenchmarkConfig(images=str(tmp_path / "given"), num_images=150), tmp_path / "out") == 150
    taken = sorted((tmp_path / "out" / "images").iterdir())
    assert sum("/a/" in str(path.resolve()) for path in taken) == 75


def test_too_few_images_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 images were found in .*nothing, and 128 are needed"):
        gather_images(BenchmarkConfig(images=str(tmp_path / "nothing")), tmp_path)
