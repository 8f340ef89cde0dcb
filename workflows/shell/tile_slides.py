"""The manifest, made on the cluster: slides are tiled by tasks, a bounded number at once, and written in a fixed order."""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from workflows.shell.progress import progress_over

logger = logging.getLogger(__name__)

Outcome = Cut | tuple[str, str]  # a slide's tiles, or the reason and message of its quarantine
Start = Callable[[list[SlideRow]], ray.ObjectRef]  # a task that gives the outcomes of these slides

# Tiling tasks in flight for each CPU of the cluster: their tables are what the memory may hold. Far more than run at once, as
# Ray ends a worker that is idle for a second and then starts another: 252 small images took 152 s with 4, and 20 s with 16.
TASKS_PER_CPU = 16
MAX_IMAGES = 16  # of one task: to start a task takes as long as to tile an image of 224 px
TASK_CPUS = 0.5
FEW_SLIDES_PER_CPU = 8  # up to here a task has a CPU for itself: to start another process takes longer than a slide
TASK_TIMEOUT_S = 3600.0  # for one task, downloads included, once those before it are done; then the run ends with an error
TASK_RETRIES = 2  # of a task that died with its node or of memory; then its slide is quarantined


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
    task = ray.remote(num_cpus=task_cpus, max_retries=TASK_RETRIES)(_tile_some)
    shared = ray.put((tiling, cache))
    in_flight = max(4, int(TASKS_PER_CPU * cpus))
    in_order = _shuffled(slides, config.seed) if config.shuffle else slides
    groups = _grouped(in_order, max_images=min(MAX_IMAGES, max(1, len(slides) // in_flight)))
    outcomes = _in_order(lambda group: task.remote(group, shared), groups, in_flight)
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


def _tile_some(slides: Sequence[SlideRow], shared: tuple[TilingConfig, SlideCache]) -> list[Outcome]:
    """What came of each slide."""
    tiling, cache = shared
    outcomes: list[Outcome] = []
    for slide in slides:
        try:
            outcomes.append(cut_slide(slide, tiling, cache))
        except SlideError as error:
            outcomes.append((error.reason, str(error)))
    return outcomes


def _shuffled(slides: Sequence[SlideRow], seed: int) -> list[SlideRow]:
    """In an order that follows from the seed: a shard holds neighbours, which in a list by tissue would all be alike."""
    return [slides[index] for index in np.random.default_rng(seed).permutation(len(slides))]


def _grouped(slides: Iterable[SlideRow], *, max_images: int) -> Iterator[list[SlideRow]]:
    """What one task tiles, in the order of `slides`: an image and those that follow it, or anything else by itself."""
    group: list[SlideRow] = []
    for slide in slides:
        if group and (slide.kind != "image" or group[0].kind != "image" or len(group) == max_images):
            yield group
            group = []
        group.append(slide)
    if group:
        yield group


def _in_order(start: Start, groups: Iterable[list[SlideRow]], in_flight: int) -> Iterator[tuple[SlideRow, Outcome]]:
    """(slide, outcome) in the order of `groups`, with at most `in_flight` tasks started and not yet taken."""
    waiting: deque[tuple[list[SlideRow], ray.ObjectRef]] = deque()
    for group in groups:
        waiting.append((group, start(group)))
        if len(waiting) >= in_flight:
            yield from _take(*waiting.popleft(), start)
    while waiting:
        yield from _take(*waiting.popleft(), start)


def _take(group: list[SlideRow], result: ray.ObjectRef, start: Start) -> Iterator[tuple[SlideRow, Outcome]]:
    """(slide, outcome). A slide that takes its worker down, or fails in an unforeseen way, is quarantined, it alone."""
    try:
        outcomes = ray.get(result, timeout=TASK_TIMEOUT_S)
    except GetTimeoutError as error:
        ray.cancel(result, force=True)
        one_of = f", or one of the {len(group) - 1} after it," if len(group) > 1 else ""
        raise ConfigError(
            f"{group[0].slide}: tiling it{one_of} has not ended within {TASK_TIMEOUT_S:.0f} s: leave this slide out, or check "
            "that the cluster has free CPUs and that the slide can be read"
        ) from error
    except RayError as error:
        if len(group) == 1:
            yield group[0], ("unreadable", f"{group[0].slide}: tiling failed: {last_line(error)}")
            return
        for slide in group:  # which of them it was is not known
            yield from _take([slide], start([slide]), start)
        return
    yield from zip(group, outcomes, strict=True)
