"""What the metadata of a very large run costs: manifest, order, cursor. Slides and tiles are simulated, the code is not.

Called by benchmark.py (`--stages '["plan", "manifest"]'`). Nothing here needs Ray, a GPU or pixels.
"""

import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from csat.runs.checkpoints import Cursor
from csat.runs.plan import Intervals, Plan
from csat.storage import files
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.manifest import ManifestConfig, read_manifest
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.sources import SlideRow
from workflows.rates.config import BenchmarkConfig
from workflows.shell import output
from workflows.shell.interruption import scratch_folder

EPOCHS = 10  # of the simulated run
TEACHER_BATCH_TILES = 32  # tiles of one teacher call: they come and go together
IN_FLIGHT_TILES = (0, 2_000, 100_000)  # tiles on their way when a run stops: a machine of 0.5 GB, a cluster of 25 GB
FILTERED_SLOTS = 20_000  # slots that are filtered to measure the time of one


def measure_plan(config: BenchmarkConfig) -> dict[str, float]:
    """Order, search and cursor of a run over `num_tiles` tiles and ten epochs, in the middle of the run."""
    num_tiles, manifest = config.num_tiles, ManifestConfig()
    num_chunks = -(-num_tiles // manifest.chunk_tiles)
    chunk_rows = np.full(num_chunks, manifest.chunk_tiles)
    chunk_rows[-1] = num_tiles - manifest.chunk_tiles * (num_chunks - 1)
    chunks_per_window = max(1, manifest.max_window_tiles // manifest.chunk_tiles)
    before = resident_bytes()
    plan = Plan(chunk_rows, np.arange(num_chunks) // chunks_per_window, num_epochs=EPOCHS, seed=0)
    figures = {"order_of_an_epoch_s": _seconds(lambda: plan.slot(0))}
    plan.slot(num_chunks)  # the second epoch's order is kept beside the first's where they meet
    figures |= {"memory_bytes": resident_bytes() - before, "pickled_bytes": len(pickle.dumps(plan))}
    middle = plan.num_positions // 2
    figures["find_slot_s"] = _seconds(lambda: plan.first_slot(Intervals([(0, middle)])))
    for tiles in IN_FLIGHT_TILES:
        if tiles < num_tiles // 4:
            figures |= _measure_cursor(plan, middle, tiles)
    figures["filter_an_epoch_s"] = _measure_filter(plan, middle) * plan.num_chunks
    _print(f"plan of {num_tiles:,} tiles, {num_chunks:,} chunks, {EPOCHS} epochs", figures)
    return figures


def measure_manifest(config: BenchmarkConfig) -> dict[str, float]:
    """A manifest of simulated slides, written and opened: seconds, memory while it grows, bytes on disk."""
    num_slides, num_tiles = config.num_slides, config.num_tiles
    slides = [SlideRow(slide=f"s3://bucket/slides/case-{i // 4:05d}/slide-{i:06d}.svs", kind="wsi") for i in range(num_slides)]
    ends = np.linspace(0, num_tiles, num_slides + 1).astype(np.int64)
    figures: dict[str, float] = {"memory_before_bytes": resident_bytes()}
    with scratch_folder("csat-bench-") as folder:
        uri = str(Path(folder, "manifest"))
        writer = ManifestWriter(uri, ManifestConfig(holdout_fraction=0.1), "simulated", TilingConfig(), slides)
        writing_s = 0.0
        for index, slide in enumerate(slides):
            table = _simulated_tiles(slide, int(ends[index + 1] - ends[index]), seed=index)
            writing_s += _seconds(lambda slide=slide, table=table: writer.add(slide, table))
            if (index + 1) % max(1, num_slides // 4) == 0:
                figures[f"memory_after_{100 * (index + 1) // num_slides}_percent_bytes"] = resident_bytes()
        writing_s += _seconds(writer.close)
        figures |= {"write_s": writing_s, "open_s": _seconds(lambda: read_manifest(uri))}
        manifest = read_manifest(uri)
        figures["read_a_chunk_s"] = _seconds(lambda: manifest.read_chunk(*manifest.locate(len(manifest.chunks) // 2)))
        figures["disk_bytes"] = sum(found.size_bytes for found in files.list_info(uri).values())
        figures["index_bytes"] = files.size(files.join(uri, "index.json"))
        figures["tiles"] = manifest.num_tiles
        figures["chunk_table_bytes"] = manifest.chunks.nbytes
    _print(f"manifest of {num_slides:,} slides, {num_tiles:,} tiles", figures)
    return figures


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def _measure_cursor(plan: Plan, middle: int, tiles: int) -> dict[str, float]:
    """The cursor that a stop leaves with `tiles` on their way: every other teacher batch of the last stretch is done."""
    starts = middle + np.arange(0, 2 * tiles, 2 * TEACHER_BATCH_TILES)
    done = Intervals([(0, middle), *zip(starts + TEACHER_BATCH_TILES, starts + 2 * TEACHER_BATCH_TILES, strict=True)])
    counts = {epoch: [plan.num_tiles, 0, 0] for epoch in range(EPOCHS)}
    text = Cursor(step=10**7, done=done, counts=counts, meters={}).to_json()
    figures = {"intervals": len(done.starts), "cursor_bytes": len(text), "read_s": _seconds(lambda: Cursor.from_json(text))}
    return {f"{tiles}_tiles_on_their_way.{name}": value for name, value in figures.items()}


def _measure_filter(plan: Plan, middle: int) -> float:
    """Seconds to find out what of one slot is left, with a cursor of many intervals."""
    starts = middle + np.arange(0, 2 * IN_FLIGHT_TILES[-1], 2 * TEACHER_BATCH_TILES)
    done = Intervals([(0, middle), *zip(starts, starts + TEACHER_BATCH_TILES, strict=True)])
    first = plan.first_slot(done)
    slots = range(first, min(first + FILTERED_SLOTS, plan.num_slots))

    def run() -> None:
        for index in slots:
            slot = plan.slot(index)
            done.contains(slot.first_position + np.arange(slot.num_rows)).all()

    return _seconds(run) / len(slots)


def _simulated_tiles(slide: SlideRow, num_tiles: int, *, seed: int) -> pa.Table:
    """A square grid of tiles, as `tile_slide` would give it."""
    edge = max(1, int(np.ceil(np.sqrt(num_tiles))))
    place = np.arange(num_tiles)
    columns = {
        "slide": pa.repeat(slide.slide, num_tiles),
        "kind": pa.repeat(slide.kind, num_tiles),
        "patient": pa.nulls(num_tiles, pa.string()),
        "x_px": place % edge * 512,
        "y_px": place // edge * 512,
        "level": np.zeros(num_tiles),
        "read_px": np.full(num_tiles, 512),
        "footprint_px": np.full(num_tiles, 512),
        "mpp": np.full(num_tiles, 0.5),
        "tissue": np.random.default_rng(seed).random(num_tiles, dtype=np.float32),
        "row": np.zeros(num_tiles),
        "width_px": np.full(num_tiles, 256),
        "height_px": np.full(num_tiles, 256),
        "aspect": np.ones(num_tiles),
        "mpp_source": pa.repeat("stated", num_tiles),
    }
    arrays = [columns[field.name] for field in TILE_SCHEMA]
    return pa.table(
        [
            array if isinstance(array, pa.Array) else pa.array(array).cast(field.type)
            for array, field in zip(arrays, TILE_SCHEMA, strict=True)
        ],
        schema=TILE_SCHEMA,
    )


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _print(title: str, figures: dict[str, float]) -> None:
    lines = [f"\n{title}"]
    for name, value in figures.items():
        if name.endswith("_bytes"):
            shown = f"{value / 1e6:,.3f} MB"
        else:
            shown = f"{value:.4f} s" if name.endswith("_s") else f"{value:,}"
        lines.append(f"  {name:40} {shown}")
    output.result("\n".join(lines), title=title, figures=figures)
