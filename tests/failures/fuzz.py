"""Damaged slides and images through the reader of a run: each is read, quarantined with a reason, or has found a bug.

    python -m tests.failures.fuzz --mutations 100 ../shared/data/slides/CMU-1-Small-Region.svs

The damage follows from the seed. Each file is read in a process apart, so that a C library that crashes is counted too.
"""

import argparse
import multiprocessing
import tempfile
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from csat.columns import OK, REASON, STATUS
from csat.errors import SlideError
from csat.slides.reader import open_slide
from csat.tiles.reader import TileReader

TILE_PX = 64
TIME_LIMIT_S = 60.0  # of one file; a reader that takes longer hangs
HEADER_BYTES = 512
SLIDES = (".svs", ".tif", ".tiff")


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with one kind of damage: flipped bits, an edited header, an end cut off, a hole, bytes too many or too few."""
    kind, out = rng.integers(6), np.frombuffer(data, np.uint8).copy()
    if kind == 0:
        where = rng.integers(len(out), size=rng.integers(1, 64))
        out[where] ^= (1 << rng.integers(8, size=len(where))).astype(np.uint8)
    elif kind == 1:  # also at the end, where tif files keep their directories
        where = rng.integers(min(HEADER_BYTES, len(out)), size=rng.integers(1, 16)) * rng.choice([1, -1])
        out[where] = rng.integers(256, size=len(where), dtype=np.uint8)
    elif kind == 2:
        out = out[: rng.integers(len(out))]
    elif kind == 3:
        start = rng.integers(len(out))
        out[start : start + rng.integers(1, 4096)] = 0
    elif kind == 4:
        out = np.insert(out, rng.integers(len(out)), rng.integers(256, size=rng.integers(1, 64), dtype=np.uint8))
    else:
        start = rng.integers(len(out))
        out = np.delete(out, slice(start, start + rng.integers(1, 64)))
    return out.tobytes()


def fuzz(source: Path, count: int, seed: int, folder: Path) -> Counter:
    """What came of `count` mutations: "read", "partly quarantined", "quarantined", "crashed …", "hung", "raised …"."""
    outcomes, index = Counter(), 0
    while index < count:
        ours, theirs = multiprocessing.get_context("fork").Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_read_all, args=(source, range(index, count), seed, folder, theirs)
        )
        process.start()
        theirs.close()
        while index < count:
            if not ours.poll(TIME_LIMIT_S):
                process.kill()
                outcomes[f"hung: seed {seed}, mutation {index}"] += 1
                index += 1
                break
            try:
                outcomes[ours.recv()] += 1
            except EOFError:
                process.join()
                outcomes[f"crashed with {process.exitcode}: seed {seed}, mutation {index}"] += 1
                index += 1
                break
            index += 1
        process.join()
        ours.close()
    return outcomes


def failures(outcomes: Counter) -> list[str]:
    """Those outcomes that a run would not survive by itself."""
    return [what for what in outcomes if what.startswith(("crashed", "hung", "raised"))]


def _read_all(source: Path, indices: range, seed: int, folder: Path, results: Connection) -> None:
    data = source.read_bytes()
    for index in indices:
        path = folder / f"damaged{source.suffix}"
        path.write_bytes(mutate(data, np.random.default_rng((seed, index))))
        try:
            results.send(_read(path))
        except Exception as error:  # whatever it is, a reader of the run would have died of it
            results.send(f"raised {type(error).__name__}: {error}, seed {seed}, mutation {index}")


def _read(path: Path) -> str:
    kind = "wsi" if path.suffix in SLIDES else "image"
    try:  # as tiling does
        reader = open_slide(str(path), kind)
        reader.thumbnail(128)
        reader.close()
    except SlideError:
        pass
    places = np.array([0, 64, 150, 10_000])
    columns = dict(slide=np.array([str(path)] * 4), kind=np.array([kind] * 4), x_px=places, y_px=places)
    columns |= dict(level=np.zeros(4, int), read_px=np.full(4, TILE_PX), row=np.zeros(4, int), aspect=np.ones(4))
    tiles = TileReader(tile_px=TILE_PX)
    answer = tiles(columns)
    tiles.close()
    is_ok = answer[STATUS] == OK
    assert all(reason.startswith(("unreadable: ", "missing: ")) for reason in answer[REASON][~is_ok]), answer[REASON]
    return "read" if is_ok.all() else "partly quarantined" if is_ok.any() else "quarantined"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--mutations", type=int, default=100, help="of each file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for source in options.files:
            print(source.name, dict(fuzz(source, options.mutations, options.seed, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
