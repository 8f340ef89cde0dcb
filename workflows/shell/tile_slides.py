"""The manifest, made on the cluster: each slide is tiled by a task, a bounded number at once, and written in a fixed order."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from csat.errors import ConfigError, SlideError
from csat.storage import files
from csat.storage.node_cache import SlideCache
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import INDEX, Manifest, ManifestConfig, fingerprint, read_manifest
from csat.tiles.manifest_writer import ManifestWriter, holdout_choices, write_as_held_out
from csat.tiles.parquet_rows import Cut
from csat.tiles.sources import SlideRow
from csat.tiles.tiling import cut_slide
from csat.words import last_line
from workflows.shell.config import ReaderConfig
from workflows.shell.progress import progress_over

logger = logging.getLogger(__name__)

# Tiling tasks in flight for each CPU of the cluster: their tables are what the memory may hold. Far more than run at once, as
# Ray ends a worker that is idle for a second and then starts another: 252 small images took 152 s with 4, and 20 s with 16.
SLIDES_PER_CPU = 16
TASK_CPUS = 0.5
FEW_SLIDES_PER_CPU = 8  # up to here a task has a CPU for itself: to start another process takes longer than a slide
TASK_TIMEOUT_S = 3600.0  # for one slide, its download included, once those before it are done; then the run ends with an error
TASK_RETRIES = 2  # of a slide whose task died with its node or of memory; then the slide is quarantined


def slide_cache(readers: ReaderConfig) -> SlideCache:
    """The node-local cache of slides that live in a bucket."""
    return SlideCache(readers.cache_folder, int(readers.cache_gb * 1e9))


def build_manifest(
    uri: str, slides: Sequence[SlideRow], tiling: TilingConfig, config: ManifestConfig, cache: SlideCache
) -> tuple[Manifest, ManifestConfig]:
    """The tile manifest of these slides; the one that is already there if it was made from the same.

    Returns:
        The manifest, and the settings that it was made with: where `holdout_by` was left open, with what was done.

    Raises:
        HoldoutError: what was asked for by name would leave nothing to train on.
        ConfigError: no slide gave a tile (with the reasons), the manifest that is there was made from other slides, or a slide
            takes longer than `TASK_TIMEOUT_S`.
    """
    whole = tiling.whole is not None
    if files.exists(files.join(uri, INDEX)):
        made = {fingerprint(slides, tiling, choice): choice for choice in holdout_choices(config, whole=whole)}
        found = read_manifest(uri).fingerprint
        manifest = read_manifest(uri, found if found in made else next(iter(made)))
        logger.info("the manifest is there: %d tiles", manifest.num_tiles)
        return manifest, made[found]
    return write_as_held_out(lambda choice: _build(uri, slides, tiling, choice, cache), config, whole=whole)


def _build(uri: str, slides: Sequence[SlideRow], tiling: TilingConfig, config: ManifestConfig, cache: SlideCache) -> Manifest:
    writer = ManifestWriter(uri, config, fingerprint(slides, tiling, config), slides=slides, tiling=tiling)
    cpus = ray.cluster_resources().get("CPU", 1)
    are_few = len(slides) <= FEW_SLIDES_PER_CPU * cpus and ray.available_resources().get("CPU", 0) >= 1
    task_cpus = 1 if are_few else TASK_CPUS
    task = ray.remote(num_cpus=task_cpus, max_retries=TASK_RETRIES)(_tile_one)
    shared = ray.put((tiling, cache))
    in_flight = max(4, int(SLIDES_PER_CPU * cpus))
    in_order = _shuffled(slides, config.seed) if config.shuffle else slides
    outcomes = _in_order(lambda slide: task.remote(slide, shared), in_order, in_flight)
    for slide, outcome in progress_over(outcomes, "tiling", total=len(slides), unit="slide"):
        if isinstance(outcome, Cut):
            if num_refused := outcome.refused.num_rows:
                first = outcome.refused["message"][0].as_py()
                logger.warning("%d rows of a parquet quarantined; the first: %s", num_refused, first)
            writer.add(slide, outcome.tiles, outcome.refused)
        else:
            reason, message = outcome
            logger.warning("slide quarantined (%s): %s", reason, message)
            writer.quarantine(slide, reason, message)
    return writer.close()


def _tile_one(slide: SlideRow, shared: tuple[TilingConfig, SlideCache]) -> Cut | tuple[str, str]:
    """The slide's tiles, or (reason, message)."""
    tiling, cache = shared
    try:
        return cut_slide(slide, tiling, cache)
    except SlideError as error:
        return error.reason, str(error)


def _shuffled(slides: Sequence[SlideRow], seed: int) -> list[SlideRow]:
    """In an order that follows from the seed: a shard holds neighbours, which in a list by tissue would all be alike."""
    return [slides[index] for index in np.random.default_rng(seed).permutation(len(slides))]


def _in_order(
    start: Callable[[SlideRow], ray.ObjectRef], slides: Iterable[SlideRow], in_flight: int
) -> Iterator[tuple[SlideRow, Any]]:
    """(slide, result) in the order of `slides`, with at most `in_flight` tasks started and not yet taken."""
    waiting: deque[tuple[SlideRow, ray.ObjectRef]] = deque()
    for slide in slides:
        waiting.append((slide, start(slide)))
        if len(waiting) >= in_flight:
            yield _take(*waiting.popleft())
    while waiting:
        yield _take(*waiting.popleft())


def _take(slide: SlideRow, result: ray.ObjectRef) -> tuple[SlideRow, Any]:
    try:
        return slide, ray.get(result, timeout=TASK_TIMEOUT_S)
    except GetTimeoutError as error:
        ray.cancel(result, force=True)
        raise ConfigError(
            f"{slide.slide}: tiling it has not ended within {TASK_TIMEOUT_S:.0f} s: leave this slide out, or check that the "
            "cluster has free CPUs and that the slide can be read"
        ) from error
    except RayError as error:
        # A slide that takes its worker down with it, or fails in an unforeseen way, must not end a run of ten thousand.
        return slide, ("unreadable", f"{slide.slide}: tiling failed: {last_line(error)}")
