"""Does the stream keep many teachers busy: teachers that only sleep, from one actor to sixteen.

Called by benchmark.py (`--stages actors`). The stream is a run's own, see `workflows/rates/sleeping.py`, in a process with a
Ray of its own. The teacher waits a fixed time for each tile, as for a GPU that works, and takes no core. n actors could
answer n times as many tiles as one; the share of that which arrives is the efficiency. Start and end of a stream do not count.
"""

import json
import logging
from typing import Any

from csat.slides.synthetic import make_slides
from workflows.rates.commands import run
from workflows.rates.config import BenchmarkConfig
from workflows.rates.sleeping import Asked
from workflows.rates.spread import cell, ratio, summary
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

ACTORS, QUICK_ACTORS = (1, 4, 16), (1, 2)
TILE_S = 0.05  # that the teacher takes for a tile: twenty a second for each actor
SECONDS, QUICK_SECONDS = 25.0, 10.0  # of the stream
SLIDE_PX = 2048


def measure_actors(config: BenchmarkConfig) -> dict[str, Any]:
    """Number of actors → tiles/s of every round, and the share of what so many sleepers could answer.

    Raises:
        ConfigError: a stream failed.
    """
    numbers = QUICK_ACTORS if config.quick else ACTORS
    rates: dict[int, list[float]] = {number: [] for number in numbers}
    with scratch_folder("csat-bench-") as scratch:
        made = make_slides(scratch / "slides", num_slides=2, size_px=SLIDE_PX)
        for index in range(config.rounds):
            for number in numbers:
                seconds = QUICK_SECONDS if config.quick else SECONDS
                asked = Asked(slides=[str(path) for path in made], actors=number, tile_s=TILE_S, seconds=seconds)
                place = scratch / f"{number}-{index}.json"
                run(["-m", "workflows.rates.sleeping", asked.as_json(), str(place)])
                rates[number].append(json.loads(place.read_text())["tiles_per_s"])
                logger.info("%d actors: %.1f tiles/s", number, rates[number][-1])
    could = {number: [number / TILE_S] * config.rounds for number in numbers}
    efficiency = {number: ratio(rates[number], could[number]) for number in numbers}
    lines = [f"\nactors: a teacher that takes {TILE_S * 1000:.0f} ms for a tile, {config.rounds} rounds"]
    lines.append(f"  {'actors':10}{'could, tiles/s':18}{'did':28}efficiency")
    for number in numbers:
        shown = f"{number:<10}{could[number][0]:<18.0f}{cell(rates[number]):28}{cell(efficiency[number]['rounds'])}"
        lines.append(f"  {shown}")
    figures = {str(number): {"tiles_per_s": summary(rates[number]), "efficiency": efficiency[number]} for number in numbers}
    output.result("\n".join(lines), figures=figures)
    return figures
