"""Real tiles: of a run's own manifest, of its labelled images, or of what a user names."""

import numpy as np
import pytest
import yaml
from PIL import Image

from csat.errors import ConfigError
from csat.export.real_tiles import LEAST, tiles_of_run, tiles_of_slides
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory):
    """A run folder with the manifest of two slides, a part of it held out."""
    folder = tmp_path_factory.mktemp("run")
    make_slides(folder / "slides", num_slides=2, size_px=768, seed=5)
    rows, tiling = list_slides([str(folder / "slides")]), TilingConfig(mpp=0.5, tile_px=64)
    config = ManifestConfig(chunk_tiles=16, holdout_fraction=0.2, holdout_by="tile", holdout_block_tiles=2)
    writer = ManifestWriter(str(folder / "manifest"), config, "f" * 64, tiling, rows)
    for row in rows:
        writer.add(row, tile_slide(row, tiling))
    writer.close()
    (folder / "config.yaml").write_text(yaml.safe_dump({"slides": [str(folder / "slides")]}))
    return folder


def test_of_a_pretraining_they_are_the_held_out_ones(pretraining):
    tiles, where = tiles_of_run(str(pretraining), tile_px=64, number=12)
    assert tiles.shape == (12, 64, 64, 3) and tiles.dtype == np.uint8 and "held out of its training" in where
    assert len({tile.tobytes() for tile in tiles}) == 12 and tiles.std() > 5
    with pytest.raises(ConfigError, match="its manifest has tiles of 64 px, and the model sees 128.*name others"):
        tiles_of_run(str(pretraining), tile_px=128, number=12)


def test_where_the_slides_are_gone_it_is_said(pretraining):
    away = (pretraining / "slides").rename(pretraining / "away")
    try:
        with pytest.raises(ConfigError, match="own tiles cannot be read.*name others to try the files with"):
            tiles_of_run(str(pretraining), tile_px=64, number=12)
    finally:
        away.rename(pretraining / "slides")


def test_of_a_fine_tuning_they_are_its_images(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("pink", "violet"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(tmp_path / "set" / name / f"{name}{number}.png")
    split = {"val_fraction": 0.25, "test_fraction": 0.25}
    data = {"sets": {"folder": str(tmp_path / "set")}, "split": split, "tile_px": 32, "fit": "resize"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    tiles, where = tiles_of_run(str(tmp_path), tile_px=32, number=10)
    assert tiles.shape == (10, 32, 32, 3) and "own images" in where


def test_of_what_a_user_names(pretraining, tmp_path):
    tiles, where = tiles_of_slides([str(pretraining / "slides")], tile_px=64, mpp=0.5, number=20)
    assert tiles.shape == (20, 64, 64, 3) and where == "of slides"
    Image.fromarray(np.full((70, 70, 3), 200, np.uint8)).save(tmp_path / "one.png")
    with pytest.raises(ConfigError, match=f"holds 1 tiles, and {LEAST} are needed"):
        tiles_of_slides([str(tmp_path / "one.png")], tile_px=64, mpp=0.5, number=20)


def test_a_folder_that_is_no_run_has_none(tmp_path):
    with pytest.raises(ConfigError, match="is no run folder, so there are no tiles"):
        tiles_of_run(str(tmp_path), tile_px=64, number=8)
