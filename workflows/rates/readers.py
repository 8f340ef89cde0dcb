"""The reader beside bare OpenSlide, in one process: a slide on disk, and the same slide in a bucket.

Called by benchmark.py (`--stages reader`). On disk both have the slide open, and take turns over the same tiles. In the bucket
both begin with nothing: they download the slide, open it and read its tiles. The bucket is one of a server on the loopback
interface, in a process of its own; it needs the package moto, which is among the requirements of the tests.
"""

import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from csat.columns import OK, STATUS
from csat.errors import ConfigError
from csat.slides.synthetic import make_slides
from csat.storage import files, uris
from csat.storage.node_cache import SlideCache
from csat.tiles.grid import TilingConfig
from csat.tiles.reader import TileReader
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from workflows.rates.config import BenchmarkConfig
from workflows.rates.openslide_loop import open_by_hand, read_by_hand
from workflows.rates.turns import compare
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

BARE, OURS = "bare OpenSlide", "this project's reader"
MOST_TILES, SLIDE_PX, QUICK_PX = 512, 8192, 4096
BUCKET, START_TIMEOUT_S = "slides", 60.0
CACHE_BYTES = 10**10


def measure_readers(config: BenchmarkConfig) -> dict[str, Any]:
    """Place → who → tiles/s.

    Raises:
        ConfigError: a tile could not be read.
    """
    figures = {}
    with scratch_folder("csat-bench-") as scratch:
        edge_px = QUICK_PX if config.quick else SLIDE_PX
        slide = list(config.slides)[:1] or [str(make_slides(scratch / "slide", num_slides=1, size_px=edge_px)[0])]
        rows = rows_of(slide, config.tile_px, MOST_TILES)
        figures["disk"] = _on_disk(config, rows)
        if uris.is_local(rows["slide"][0]) and find_spec("moto"):
            with _bucket(Path(rows["slide"][0])) as uri:
                figures["bucket"] = _in_bucket(config, rows, uri, scratch)
        else:
            logger.warning("reading from a bucket is left out: it needs a slide on disk, and pip install 'moto[server]'")
    return figures


def rows_of(slides: list[str], tile_px: int, most: int) -> dict[str, np.ndarray]:
    """Manifest rows of the first of these slides."""
    table = tile_slide(list_slides(slides)[0], TilingConfig(tile_px=tile_px)).slice(0, most)
    return {name: column.to_numpy() for name, column in zip(table.column_names, table.combine_chunks().columns, strict=True)}


def _on_disk(config: BenchmarkConfig, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    number, reader = len(rows["slide"]), TileReader(tile_px=config.tile_px)
    _check(reader, rows)
    with open_by_hand(files.local_path(rows["slide"][0])) as slide:
        candidates = {BARE: lambda: read_by_hand(slide, rows, config.tile_px), OURS: lambda: reader(rows)}
        title = f"reader: {number} tiles of {config.tile_px} px of a slide on disk, tiles/s"
        return compare(title, candidates, rounds=config.rounds, images=number)


def _in_bucket(config: BenchmarkConfig, rows: dict[str, np.ndarray], uri: str, scratch: Path) -> dict[str, Any]:
    import fsspec

    number, turn = len(rows["slide"]), iter(range(10**6))
    there = {**rows, "slide": np.full(number, uri, object)}

    def by_hand() -> None:
        path = scratch / f"by-hand-{next(turn)}.tiff"
        fsspec.filesystem("s3").get(uri, str(path))
        with open_by_hand(path) as slide:
            read_by_hand(slide, rows, config.tile_px)
        path.unlink()

    def by_reader() -> None:
        reader = TileReader(tile_px=config.tile_px, cache=SlideCache(scratch / f"cache-{next(turn)}", CACHE_BYTES))
        reader(there)
        reader.close()

    _check(TileReader(tile_px=config.tile_px, cache=SlideCache(scratch / "cache", CACHE_BYTES)), there)
    title = f"reader: {number} tiles of {config.tile_px} px of a slide in a bucket, download and opening included, tiles/s"
    return compare(title, {BARE: by_hand, OURS: by_reader}, rounds=config.rounds, images=number)


def _check(reader: TileReader, rows: dict[str, np.ndarray]) -> None:
    read = reader(rows)
    if bad := [reason for reason, status in zip(read["reason"], read[STATUS], strict=True) if status != OK]:
        raise ConfigError(f"{len(bad)} of {len(rows['slide'])} tiles could not be read: {bad[0]}")
    reader.close()


@contextmanager
def _bucket(path: Path) -> Iterator[str]:
    """A slide in a bucket of a server that lives as long as the context. Yields its URI."""
    import fsspec

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    named = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "not-so-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1,localhost",
    }
    before = {name: os.environ.get(name) for name in named}
    os.environ.update(named)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port)
        # Connections are kept by their settings, of which the endpoint in the environment is none.
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        fsspec.filesystem("s3").mkdir(BUCKET)
        uri = f"s3://{BUCKET}/{path.name}"
        files.write_bytes(uri, path.read_bytes())
        yield uri
    finally:
        server.kill()  # what a verb starts inherits that it hears no SIGTERM; nothing is to be kept
        server.wait()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _wait_for(port: int) -> None:
    """Raises ConfigError: no server came."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise ConfigError(f"moto's server did not start within {START_TIMEOUT_S:.0f} s: try python -m moto.server -p {port}")
