"""A slide of any number of nuclei from found instances to its files: seconds of each step, and memory.

    python -m tests.support.many_nuclei 1000000

Prints JSON. The slide repeats a painted texture, so that nothing of it is in memory.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from csat.instances import relabel
from csat.prediction.geojson import write_nuclei_geojson
from csat.prediction.nuclei import nuclei_of_instances
from csat.prediction.seams import Seams
from csat.prediction.slide_frame import Place, SlideFrame
from csat.prediction.table import nuclei_table
from csat.slides.synthetic import paint

TILE_PX, STEP_PX, REPEATS = 256, 216, 4  # of tiles at 0.5 um/px that overlap by 20 um; steps after which the texture repeats
TEXTURE_PX = STEP_PX * REPEATS
TEXTURE_MPP = 1.0  # painted at half the size: 6,800 nuclei per mm², as in dense lymphoid tissue


def run(num_nuclei: int, folder: str) -> dict:
    """Seconds of CPU time of each step, and the most memory of the process, before and until then."""
    texture = relabel(paint(TEXTURE_PX, mpp=TEXTURE_MPP, seed=3)[1].astype(np.int32))
    side = max(1, round((num_nuclei / texture.max()) ** 0.5))
    texture = np.tile(texture, (2, 2))
    starts = np.arange(REPEATS) * STEP_PX
    tiles = [relabel(texture[y : y + TILE_PX, x : x + TILE_PX]) for y in starts for x in starts]
    probability = np.ones((TILE_PX, TILE_PX), np.float32)
    num = side * REPEATS
    size_px = (num - 1) * STEP_PX + TILE_PX
    frame = SlideFrame(slide="many.svs", width_px=size_px, height_px=size_px, mpp_x=0.5, mpp_y=0.5)
    corners = [(x * STEP_PX, y * STEP_PX) for y in range(num) for x in range(num)]
    places = [Place(x, y, x + TILE_PX, y + TILE_PX) for x, y in corners]
    _forget_peak()
    before, seconds, found = _peak_mib(), dict.fromkeys(("outlines", "seams", "parquet", "geojson"), 0.0), 0
    uri, seams = str(Path(folder) / "nuclei.parquet"), Seams(places, frame)

    def timed(step, action):
        start = time.process_time()
        result = action()
        seconds[step] += time.process_time() - start
        return result

    with nuclei_table(uri, frame, classes=["nucleus"]) as table:
        for index, place in enumerate(places):
            instances = tiles[index // num % REPEATS * REPEATS + index % num % REPEATS]
            nuclei = timed("outlines", lambda i=instances, p=place: nuclei_of_instances(i, probability, p, frame))
            found += len(nuclei)
            kept = timed("seams", lambda i=index, n=nuclei: seams.add(i, n))
            timed("parquet", lambda k=kept: table.write(k))
    seams.finish()
    between = _peak_mib()
    paths = timed("geojson", lambda: write_nuclei_geojson(uri, folder, frame))
    return {
        "nuclei": table.num_rows,
        "found": found,
        "tiles": len(places),
        "files": len(paths),
        "seconds": {step: round(value, 2) for step, value in seconds.items()},
        "us_per_nucleus": {step: round(value / table.num_rows * 1e6, 1) for step, value in seconds.items()},
        "mib": {"before": before, "until_parquet": between, "with_geojson": _peak_mib()},
    }


def _forget_peak() -> None:
    """The peak counts from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(run(int(sys.argv[1]), folder)))
