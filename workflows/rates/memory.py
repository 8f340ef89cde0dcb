"""Does memory grow with the data: the same run over some slides, and over ten times as many.

Called by benchmark.py (`--stages memory`). The run is the demonstration's, over synthetic slides; the tenfold are the same
slides under other names. Shown is the most that one process of each role had for itself, how many of them there were at once
(a longer run may have time for another reader or teacher), the most that all of them had together, what each role had of that
at that moment, and the most in the object store.
"""

import json
import logging
from pathlib import Path
from typing import Any

from csat.slides.synthetic import make_slides
from workflows.rates.commands import run
from workflows.rates.config import BenchmarkConfig
from workflows.rates.spread import cell
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

logger = logging.getLogger("benchmark")

TIMES = 10
NUM_SLIDES, SLIDE_PX = 4, 3072
QUICK_SLIDES, QUICK_PX = 2, 1024
STORE, ALL = "object store", "all processes together"
PROCESSES, THEN = "processes", "then"


def measure_memory(config: BenchmarkConfig) -> dict[str, Any]:
    """Role → bytes of one process at once the data and at ten times; the tiles of both; processes by role.

    Raises:
        ConfigError: a command failed.
    """
    number, edge_px = (QUICK_SLIDES, QUICK_PX) if config.quick else (NUM_SLIDES, SLIDE_PX)
    figures: dict[str, Any] = {"tiles": [], PROCESSES: [], THEN: []}
    with scratch_folder("csat-bench-") as scratch:
        once, tenfold = scratch / "once", scratch / "tenfold"
        made = make_slides(once, num_slides=number, size_px=edge_px)
        tenfold.mkdir()
        for index in range(TIMES):
            for path in made:
                (tenfold / f"{index}-{path.name}").symlink_to(path)
        for slides in (once, tenfold):
            for name, value in _measure(slides, scratch / f"run-{slides.name}").items():
                figures.setdefault(name, []).append(value)
            logger.info("%d tiles: %.2f GB in all processes", figures["tiles"][-1], figures[ALL][-1] / 1e9)
    _print(figures)
    return figures


def _measure(slides: Path, folder: Path) -> dict[str, Any]:
    recipe = ["workflows/pretrain.py", "--config=demo", f"--slides={slides}", f"--run_folder={folder}", "--train.epochs=1"]
    watched = run([*recipe, "--manifest.holdout_fraction=0"], watch=True)
    throughput = json.loads((folder / "throughput.json").read_text())
    figures: dict[str, Any] = {"tiles": throughput["tiles"], PROCESSES: watched.processes, THEN: watched.then_bytes}
    figures |= watched.resident_bytes
    return figures | {ALL: watched.all_bytes, STORE: throughput["object_store_peak_bytes"]}


def _print(figures: dict[str, Any]) -> None:
    once, tenfold = figures["tiles"]
    head = f"  {'MB, most (processes at once)':30}{'once':18}{'tenfold':18}tenfold / once"
    lines = [f"\nmemory: {once:,} tiles, and {tenfold:,}", head]
    for name, values in figures.items():
        if name in ("tiles", PROCESSES, THEN) or len(values) < 2:
            continue
        a, b = (value / 1e6 for value in values)
        shown = (
            cell([each]) + (f" ({of[name]})" if name in of else "")
            for each, of in zip((a, b), figures[PROCESSES], strict=True)
        )
        lines.append("  {:30}{:18}{:18}".format(name, *shown) + (f"x{b / a:.2f}" if a else "-"))
        if name == ALL:
            for role in sorted(set().union(*figures[THEN])):
                a, b = (then.get(role, 0) / 1e6 for then in figures[THEN])
                lines.append(f"    of these {role:19}{cell([a]):18}{cell([b]):18}")
    output.result("\n".join(lines), figures=figures)
