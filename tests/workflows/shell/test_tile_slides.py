"""The order in which slides come into the manifest."""

import numpy as np
import pytest
from PIL import Image

from csat.storage.node_cache import SlideCache
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.sources import SlideRow, list_slides
from workflows.shell.tile_slides import _shuffled, build_manifest


def image(name: str) -> SlideRow:
    return SlideRow(slide=name, kind="image")


def test_a_shard_of_a_sorted_list_is_mixed():
    """A folder a class, as labelled images come: a shard of neighbours would be 64 tiles of one class, four batches of 16."""
    tissues = ("aca", "normal", "scc")
    slides = [image(f"/data/{tissue}/{number:04d}.png") for tissue in tissues for number in range(320)]
    order = _shuffled(slides, seed=0)
    assert sorted(order, key=lambda row: row.slide) == slides
    size = ManifestConfig().slides_per_window
    for start in range(0, len(order), size):
        shard = [row.slide.split("/")[2] for row in order[start : start + size]]
        assert min(map(shard.count, tissues)) > size / 10


def test_the_order_follows_from_the_seed():
    slides = [image(f"/data/{number}.png") for number in range(50)]
    assert _shuffled(slides, seed=3) == _shuffled(slides, seed=3) != _shuffled(slides, seed=4)


@pytest.mark.ray
def test_a_folder_a_class_gives_mixed_shards(ray_cluster, tmp_path):
    for tissue in ("normal", "tumour"):
        (tmp_path / "images" / tissue).mkdir(parents=True)
        for number in range(32):
            Image.fromarray(np.full((32, 32, 3), 40 + number, np.uint8)).save(
                tmp_path / "images" / tissue / f"{number:02d}.png"
            )
    slides = list_slides([str(tmp_path / "images")])
    tiling = TilingConfig(mpp=None, tile_px=32, min_tissue=0)
    config = ManifestConfig(slides_per_window=16, chunk_tiles=16)
    cache = SlideCache(tmp_path / "cache", 1 << 30)
    manifest, _ = build_manifest(str(tmp_path / "manifest"), slides, tiling, config, cache)
    assert (manifest.num_tiles, len(manifest.shards)) == (64, 4)
    for shard in range(4):
        names = manifest.read_chunk(shard, 0)["slide"].to_pylist()
        assert 2 <= sum("tumour" in name for name in names) <= 14
