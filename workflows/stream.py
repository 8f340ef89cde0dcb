"""The stream: plan → pixels → teacher responses → workers, as one Ray Data pipeline whose actors live through all epochs."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, DataContext, ExecutionOptions, ExecutionResources
from ray.train import DataConfig

from csat.data.augment import ColourConfig
from csat.data.crashes import CrashLog
from csat.data.plan import Intervals, Plan
from csat.data.planned_reader import SLOT, PlannedReader
from csat.data.read import TileReader
from csat.data.slide_cache import SlideCache
from csat.responses import ResponseSpec
from csat.training.checkpoints import Checkpoints
from teachers.pool import TeacherStage
from workflows.config import PoolConfig, RayConfig, ReaderConfig, TeacherConfig

MAX_BLOCKS = 4096  # of the plan; beyond that a block holds several slots
BLOCK_BYTES = 128 * 2**20  # what Ray Data puts together into one block of rows that a stage gives out one after the other
TRAIN = "train"  # name of the data set that the workers ask for


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


def slide_cache(readers: ReaderConfig) -> SlideCache:
    """The node-local cache of slides that live in a bucket."""
    return SlideCache(readers.cache_folder, int(readers.cache_gb * 1e9))


def make_stream(config: StreamConfig, done: Intervals) -> ray.data.Dataset:
    """The lazy pipeline over everything in the plan that is not done."""
    reader = TileReader(
        tile_px=config.tile_px,
        cache=slide_cache(config.readers),
        max_open_slides=config.readers.max_open_slides,
        max_background=config.readers.max_background,
        crashes=CrashLog(config.manifest_uri),
        whole=config.largest_px is not None,
        student_factor=config.student_factor,
    )
    rows_at_once = {} if config.largest_px is None else {"rows_at_once": max(1, BLOCK_BYTES // 4 // config.bytes_per_tile())}
    slots = np.arange(config.plan.first_slot(done), config.plan.num_slots)
    blocks = [pa.table({SLOT: block}) for block in np.array_split(slots, min(len(slots), MAX_BLOCKS) or 1)]
    return (
        ray.data.from_arrow(blocks)
        .map_batches(
            PlannedReader,
            fn_constructor_args=(config.manifest_uri, config.plan, done, reader),
            fn_constructor_kwargs=rows_at_once,
            batch_size=None,
            num_cpus=config.readers.cpus_per_actor,
            compute=ActorPoolStrategy(min_size=config.readers.min_actors, max_size=config.readers.max_actors),
        )
        .map_batches(
            TeacherStage,
            fn_constructor_kwargs=dict(
                name=config.teacher.name,
                weights=config.teacher.weights,
                options=config.teacher.options,
                wanted=[spec.name for spec in config.responses],
                device="cuda" if config.pool.gpus_per_actor else "cpu",
                expected_sha256=config.teacher_sha256,
                view_seed=config.view_seed,
                colour=config.colour,
                colour_seed=config.colour_seed,
            ),
            batch_size=config.pool.batch_size,
            num_cpus=config.pool.cpus_per_actor,
            num_gpus=config.pool.gpus_per_actor or None,
            compute=ActorPoolStrategy(min_size=config.pool.min_actors, max_size=config.pool.max_actors),
        )
    )


@dataclass(frozen=True, kw_only=True)
class ResumingStream:
    """Called by Ray Train whenever a worker group starts: a stream over what the *committed* checkpoint has not done."""

    config: StreamConfig
    checkpoints_uri: str
    settings: RayConfig

    def __call__(self) -> ray.data.Dataset:
        configure_data(self.settings)
        return make_stream(self.config, Checkpoints(self.checkpoints_uri).latest_cursor().done)


class WholeSplit(DataConfig):
    """Splits the stream so that every row reaches exactly one worker.

    Ray's own split makes equal shares and drops what does not divide; the training loop copes with unequal ones.
    """

    def configure(self, datasets: dict[str, Any], world_size: int, worker_handles, worker_node_ids, **kwargs):
        shards: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset.context.execution_options = self._resolve_execution_options(name)
            splits = dataset.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for shard, split in zip(shards, splits, strict=True):
                shard[name] = split
        return shards


def execution_options(settings: RayConfig) -> ExecutionOptions:
    """Bounds on what the stream keeps in the object store."""
    limits = ExecutionResources.for_limits(object_store_memory=settings.stream_gb * 1e9)
    return ExecutionOptions(resource_limits=limits)


def configure_data(settings: RayConfig) -> None:
    """This process's Ray Data settings: bounded memory, no bars of its own, and an error in place of a silent stall."""
    context = DataContext.get_current()
    context.execution_options = execution_options(settings)
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = settings.stall_timeout_s
