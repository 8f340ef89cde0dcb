"""The stream: plan → pixels → teacher responses → workers, as one Ray Data pipeline whose actors live through all epochs.

With a response cache there are two pipelines, one after the other: the first ends with the first epoch that is not done and
has the teacher pool, the second covers the later epochs and reads what was kept. Ray starts a pipeline's actors when its first
row is asked for and ends them after its last: the teacher's GPUs are free from the second epoch on.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from csat.responses import ResponseSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.plan import Intervals, Plan
from csat.slides.crashes import CrashLog
from csat.tiles.planned_reader import SLOT, PlannedReader
from csat.tiles.reader import TileReader
from csat.views.colour import ColourConfig
from teachers.cached_stage import CachedTeacherStage
from teachers.response_cache import ResponseCache
from teachers.stage import TeacherStage
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, TeacherConfig
from workflows.shell.data import CACHED, TRAIN, configure_data
from workflows.shell.tile_slides import slide_cache

MAX_BLOCKS = 4096  # of the plan; beyond that a block holds several slots
BLOCK_BYTES = 128 * 2**20  # what Ray Data puts together into one block of rows that a stage gives out one after the other


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """All that a stream needs, small enough to travel to the process that starts it (and starts it again after a fault)."""

    manifest_uri: str
    plan: Plan
    tile_px: int  # edge of the tiles; of whole images, what their edges are made multiples of
    readers: ReaderConfig
    pool: PoolConfig
    teacher: TeacherConfig
    teacher_sha256: str  # every actor checks that it loaded this teacher
    responses: tuple[ResponseSpec, ...]
    view_seed: int | None = None  # put tiles into their view before the teacher, by this seed; None: the trainer carries it
    colour: ColourConfig | None = None  # change the colours of tiles before the teacher by this; None: as they were scanned
    colour_seed: int = 0  # of those colours
    largest_px: tuple[tuple[int, int], ...] | None = None  # whole images, and the largest (Manifest); None: square tiles
    student_factor: int | None = None  # read the student's pixels by themselves, at 1 / student_factor; None: from the tile
    cache: ResponseCache | None = None  # of the teacher's responses; None: the teacher answers in every epoch

    def largest_size(self) -> tuple[int, int]:
        """Height and width of the largest row as it travels, with its padding."""
        sizes = self.largest_px or ((self.tile_px, self.tile_px),)
        padded = [(height + -height % self.tile_px, width + -width % self.tile_px) for width, height in sizes]
        return max(padded, key=math.prod)

    def bytes_per_tile(self) -> int:
        """Of one row on its way, the largest: pixels and responses."""
        height, width = self.largest_size()
        student_bytes = 0 if self.student_factor is None else 3 * height * width // self.student_factor**2
        return 3 * height * width + student_bytes + sum(spec.num_bytes((height, width)) for spec in self.responses)

    def bytes_per_block(self, chunk_tiles: int) -> int:
        """Of what leaves a stage together: the tiles of a chunk; of whole images no more than Ray Data puts into a block."""
        of_chunk = chunk_tiles * self.bytes_per_tile()
        return of_chunk if self.largest_px is None else max(self.bytes_per_tile(), min(of_chunk, BLOCK_BYTES))

    def bytes_per_answer(self) -> int:
        """A little less than what a batch of the teacher holds when it is answered: a block is complete when it has more."""
        return max(1, min(BLOCK_BYTES, int(0.9 * self.pool.batch_size * self.bytes_per_tile())))


def make_reader(config: StreamConfig) -> TileReader:
    """What reads the stream's pixels."""
    return TileReader(
        tile_px=config.tile_px,
        cache=slide_cache(config.readers),
        max_open_slides=config.readers.max_open_slides,
        max_background=config.readers.max_background,
        crashes=CrashLog(config.manifest_uri),
        whole=config.largest_px is not None,
        student_factor=config.student_factor,
    )


def teacher_arguments(config: StreamConfig, *, has_gpus: bool = True) -> dict[str, Any]:
    """Of the stream's `TeacherStage`, on the GPUs that the pool has."""
    return dict(
        name=config.teacher.name,
        weights=config.teacher.weights,
        options=config.teacher.options,
        wanted=[spec.name for spec in config.responses],
        device="cuda" if has_gpus and config.pool.gpus_per_actor else "cpu",
        threads=config.pool.threads,
        expected_sha256=config.teacher_sha256,
        view_seed=config.view_seed,
        colour=None if config.colour is None else asdict(config.colour),  # plain: its class needs torch
        colour_seed=config.colour_seed,
    )


def make_stream(
    config: StreamConfig, done: Intervals, *, epochs: tuple[int, int] | None = None, has_pool: bool = True
) -> ray.data.Dataset:
    """The lazy pipeline over everything in the plan that is not done.

    Args:
        epochs: The first of them, and the first that is left out; None: all.
        has_pool: The teacher stage has the actors, and GPUs, of the teacher pool; else only its CPUs, for what a cache lacks.
    """
    reader = make_reader(config)
    rows_at_once = {} if config.largest_px is None else {"rows_at_once": max(1, BLOCK_BYTES // 4 // config.bytes_per_tile())}
    first, stop = (0, config.plan.num_epochs) if epochs is None else epochs
    slots = np.arange(
        max(config.plan.first_slot(done), first * config.plan.num_chunks),
        min(stop, config.plan.num_epochs) * config.plan.num_chunks,
    )
    blocks = [pa.table({SLOT: block}) for block in np.array_split(slots, min(len(slots), MAX_BLOCKS) or 1)]
    pixels = ray.data.from_blocks(blocks).map_batches(
        PlannedReader,
        fn_constructor_args=(config.manifest_uri, config.plan, done, reader),
        fn_constructor_kwargs=rows_at_once,
        batch_size=None,
        num_cpus=config.readers.cpus_per_actor,
        compute=ActorPoolStrategy(min_size=config.readers.min_actors, max_size=config.readers.most_actors),
    )
    return _with_responses(pixels, config, has_pool=has_pool)


def _with_responses(pixels: ray.data.Dataset, config: StreamConfig, *, has_pool: bool) -> ray.data.Dataset:
    """The teacher stage behind the reader; with a cache, it takes whole chunks, as they are kept."""
    gpus = config.pool.gpus_per_actor if has_pool else 0.0
    teacher = teacher_arguments(config, has_gpus=has_pool)
    pool = dict(
        num_cpus=config.pool.cpus_per_actor,
        num_gpus=gpus or None,
        compute=ActorPoolStrategy(min_size=config.pool.min_actors, max_size=config.pool.most_actors),
    )
    if config.cache is None:
        rows = pixels.map_batches(TeacherStage, fn_constructor_kwargs=teacher, batch_size=config.pool.batch_size, **pool)
        # A batch leaves the stage when it is answered. Ray Data would put the whole chunk together first.
        rows.context.target_max_block_size = config.bytes_per_answer()
        return rows
    return pixels.map_batches(
        CachedTeacherStage,
        fn_constructor_args=(config.cache, config.plan),
        fn_constructor_kwargs={"batch_size": config.pool.batch_size, "has_pool": has_pool, **teacher},
        batch_size=None,
        **pool,
    )


@dataclass(frozen=True, kw_only=True)
class ResumingStream:
    """Called by Ray Train whenever a worker group starts: a stream over what the *committed* checkpoint has not done.

    With a response cache, over the first epoch that is not done (TRAIN), or over those after it (CACHED): see the module.
    """

    config: StreamConfig
    checkpoints_uri: str
    settings: RayConfig
    part: str = TRAIN

    def __call__(self) -> ray.data.Dataset:
        configure_data(self.settings)
        done = Checkpoints(self.checkpoints_uri).latest_cursor().done
        if self.config.cache is None:
            return make_stream(self.config, done)
        plan = self.config.plan
        later = min(done.first_gap(), plan.num_positions - 1) // plan.num_tiles + 1  # the first epoch of the second pipeline
        if self.part == CACHED:
            return make_stream(self.config, done, epochs=(later, plan.num_epochs), has_pool=False)
        return make_stream(self.config, done, epochs=(0, later), has_pool=not self.config.cache.is_complete())
