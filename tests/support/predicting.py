"""A small prediction: its command line, what it leaves, and whether all tiles are accounted for."""

import json
from pathlib import Path

SMALL = {
    "model.name": "stain",
    "data.mpp": 0.5,
    "data.tile_px": 128,
    "network.batch_size": 8,
    "network.cpus_per_actor": 0.25,
    "network.max_actors": 1,
    "readers.max_actors": 1,
    "outlines.max_actors": 1,
    "ray.stream_gb": 0.1,
}


def arguments(slides, output, **settings) -> list[str]:
    """Command line of a small prediction; settings are given with __ for the dots."""
    merged = {**SMALL, "output": output, **{key.replace("__", "."): value for key, value in settings.items()}}
    return [*(f"--{key}={value}" for key, value in merged.items()), f"--slides={json.dumps([str(slide) for slide in slides])}"]


def contents(folder: Path) -> dict[str, bytes]:
    """File → bytes, of all slides' folders."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in (folder / "slides").rglob("*") if path.is_file()}


def check_accounts(read) -> dict:
    """manifest = predicted + quarantined + filtered, over all and of each slide. `read`: a file of the output, decoded."""
    accounts = read("accounting.json")
    tiles = accounts["tiles"]
    assert tiles["manifest"] == read("manifest/index.json")["num_tiles"] > 0
    assert tiles["manifest"] == tiles["predicted"] + tiles["quarantined"] + tiles["filtered"]
    return accounts
