"""The stream: plan → pixels → teacher responses → workers, as one Ray Data pipeline whose actors live through all epochs.

With a response cache there are two pipelines, one after the other: the first ends with the first epoch that is not done and
has the teacher pools, the second covers the later epochs and reads what was kept. Ray starts a pipeline's actors when its
first row is asked for and ends them after its last: those teachers' GPUs are free from the second epoch on. A teacher whose
responses cannot be kept, of several, stands behind the others and answers in both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from csat.panel import split_name
from csat.responses import ResponseSpec, needs_view_in_pool
from csat.runs.checkpoints import Checkpoints
from csat.runs.plan import Intervals, Plan
from csat.slides.crashes import CrashLog
from csat.tiles.planned_reader import SLOT, PlannedReader
from csat.tiles.reader import TileReader
from csat.views.colour_config import ColourConfig
from teachers.cached_stage import CachedTeacherStage
from teachers.response_cache import ResponseCache
from teachers.stage import TeacherStage
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig, TeacherConfig
from workflows.shell.data import CACHED, TRAIN, configure_data

MAX_BLOCKS = 4096  # of the plan; beyond that a block holds several slots
# Readers and teachers take the cores that the trainer leaves. It waits for a few rows only, and what it computes with several
# threads goes at half its speed where another process holds one of their cores.
NICENESS = 10
BLOCK_BYTES = 128 * 2**20  # what Ray Data puts together into one block of rows that a stage gives out one after the other


@dataclass(frozen=True, kw_only=True)
class StreamTeacher:
    """One teacher of a stream, its actors, and what it is asked."""

    name: str | None  # what the run calls it; None: it is the only one
    teacher: TeacherConfig
    sha256: str  # every actor checks that it loaded this teacher
    responses: tuple[ResponseSpec, ...]  # as methods know them: on the tile's pixels, of several under the teacher's name
    pool: PoolConfig
    shrink: int = 1  # it sees the tile averaged over squares of so many pixels
    cache: ResponseCache | None = None  # of its responses; None: it answers in every epoch

    @property
    def own_names(self) -> list[str]:
        """What the teacher itself calls what it is asked."""
        return [spec.name if self.name is None else split_name(spec.name)[1] for spec in self.responses]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """All that a stream needs, small enough to travel to the process that starts it (and starts it again after a fault)."""

    manifest_uri: str
    plan: Plan
    tile_px: int  # edge of the tiles; of whole images, what their edges are made multiples of
    readers: ReaderConfig
    teachers: tuple[StreamTeacher, ...]  # at least one; several answer in this order, each in actors of its own
    view_seed: int | None = None  # put tiles into their view before the teacher, by this seed; None: the trainer carries it
    colour: ColourConfig | None = None  # change the colours of tiles before the teacher by this; None: as they were scanned
    colour_seed: int = 0  # of those colours
    largest_px: tuple[tuple[int, int], ...] | None = None  # whole images, and the largest (Manifest); None: square tiles
    student_factor: int | None = None  # read the student's pixels by themselves, at 1 / student_factor; None: from the tile

    @property
    def responses(self) -> tuple[ResponseSpec, ...]:
        """Of all teachers."""
        return tuple(spec for each in self.teachers for spec in each.responses)

    @property
    def keepable(self) -> tuple[StreamTeacher, ...]:
        """Teachers whose responses to a tile are the same in every epoch.

        Not those to tiles in other colours, and, where tiles are put in their view, not those that cannot be turned with them.
        """
        if self.colour is not None:
            return ()
        if self.view_seed is None:
            return self.teachers
        if self.largest_px is not None:
            return ()  # a whole image that is transposed is of another size
        return tuple(each for each in self.teachers if not needs_view_in_pool(each.responses))

    @property
    def is_cached(self) -> bool:
        """Whether responses are kept, at least of one teacher."""
        return any(each.cache is not None for each in self.teachers)

    def with_caches(self, caches: Mapping[str | None, ResponseCache]) -> "StreamConfig":
        """The same, in which responses of these teachers are kept. They come first: they are of the tile as it was scanned."""
        teachers = (replace(each, cache=caches.get(each.name)) for each in self.teachers)
        return replace(self, teachers=tuple(sorted(teachers, key=lambda each: each.cache is None)))

    def without_cache(self) -> "StreamConfig":
        """The same, in which all teachers answer."""
        return replace(self, teachers=tuple(replace(each, cache=None) for each in self.teachers))

    def largest_size(self) -> tuple[int, int]:
        """Height and width of the largest row as it travels, with its padding."""
        sizes = self.largest_px or ((self.tile_px, self.tile_px),)
        padded = [(height + -height % self.tile_px, width + -width % self.tile_px) for width, height in sizes]
        return max(padded, key=math.prod)

    def bytes_per_tile(self, num_teachers: int | None = None) -> int:
        """Of one row on its way, the largest: pixels and responses.

        Args:
            num_teachers: That have answered; None: all.
        """
        height, width = self.largest_size()
        student_bytes = 0 if self.student_factor is None else 3 * height * width // self.student_factor**2
        answered = [spec for each in self.teachers[:num_teachers] for spec in each.responses]
        return 3 * height * width + student_bytes + sum(spec.num_bytes((height, width)) for spec in answered)

    def bytes_per_block(self, chunk_tiles: int) -> int:
        """Of what leaves a stage together: the tiles of a chunk; of whole images no more than Ray Data puts into a block."""
        of_chunk = chunk_tiles * self.bytes_per_tile()
        return of_chunk if self.largest_px is None else max(self.bytes_per_tile(), min(of_chunk, BLOCK_BYTES))

    def rows_per_block(self) -> int:
        """At most, of what leaves the reader together: the tiles of the largest chunk; of large images fewer."""
        return max(1, min(int(self.plan.chunk_rows.max()), BLOCK_BYTES // self.bytes_per_tile()))

    def bytes_per_answer(self) -> int:
        """A little less than what a batch of a teacher holds when it is answered: a block is complete when it has more.

        Ray Data knows one such size for all stages: of several teachers that of the smallest batch, so that none waits with
        what it has answered. What is larger leaves a stage in several blocks. What is kept comes by whole chunks, and does not
        count.
        """
        numbered = [(number, each) for number, each in enumerate(self.teachers, start=1) if each.cache is None]
        sizes = [each.pool.batch_size * self.bytes_per_tile(number) for number, each in numbered]
        return max(1, min(BLOCK_BYTES, int(0.9 * min(sizes))))


def make_reader(config: StreamConfig) -> TileReader:
    """What reads the stream's pixels."""
    return TileReader(
        tile_px=config.tile_px,
        cache=config.readers.slide_cache(),
        max_open_slides=config.readers.max_open_slides,
        max_background=config.readers.max_background,
        crashes=CrashLog(config.manifest_uri),
        whole=config.largest_px is not None,
        student_factor=config.student_factor,
    )


def teacher_arguments(config: StreamConfig, number: int = 0, *, has_gpus: bool = True) -> dict[str, Any]:
    """Of the `TeacherStage` of one of the stream's teachers, on the GPUs that its pool has.

    The first one whose responses are not kept puts the tiles in their view and colours, with what was said of them by those
    before it; the others get them so. The last one knows who was asked.
    """
    asked, before = config.teachers[number], config.teachers[:number]
    is_first = asked.cache is None and all(each.cache is not None for each in before)
    is_last = number == len(config.teachers) - 1 > 0
    return dict(
        name=asked.teacher.name,
        weights=asked.teacher.weights,
        options=asked.teacher.options,
        wanted=asked.own_names,
        device="cuda" if has_gpus and asked.pool.gpus_per_actor else "cpu",
        threads=asked.pool.threads,
        expected_sha256=asked.sha256,
        view_seed=config.view_seed if is_first else None,
        turned=[spec for each in before for spec in each.responses] if is_first else [],
        colour=config.colour if is_first else None,
        colour_seed=config.colour_seed,
        label=asked.name,
        shrink=asked.shrink,
        closes=[each.name for each in config.teachers] if is_last else [],
        niceness=NICENESS,
    )


def make_stream(
    config: StreamConfig, done: Intervals, *, epochs: tuple[int, int] | None = None, has_pool: bool = True
) -> ray.data.Dataset:
    """The lazy pipeline over everything in the plan that is not done.

    Args:
        epochs: The first of them, and the first that is left out; None: all.
        has_pool: Teachers whose cache is not complete have the actors, and GPUs, of their pools; else only their CPUs, for
            what a cache lacks. Those that have none answer in every epoch, and have theirs.
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
        fn_constructor_kwargs={"niceness": NICENESS, **rows_at_once},
        batch_size=None,
        num_cpus=config.readers.cpus_per_actor,
        compute=ActorPoolStrategy(min_size=config.readers.min_actors, max_size=config.readers.most_actors),
    )
    return _with_responses(pixels, config, has_pool=has_pool)


def _with_responses(pixels: ray.data.Dataset, config: StreamConfig, *, has_pool: bool) -> ray.data.Dataset:
    """The teacher stages behind the reader; with a cache, they take whole chunks, as they are kept.

    Each stage has actors of its own, and a batch goes to the next one as soon as it is answered: all teachers work at the same
    time, on different batches.
    """
    rows = pixels
    for number, asked in enumerate(config.teachers):
        has_gpus = asked.cache is None or (has_pool and not asked.cache.is_complete())
        arguments = teacher_arguments(config, number, has_gpus=has_gpus)
        num_gpus = (asked.pool.gpus_per_actor if has_gpus else 0.0) or None
        pool = dict(
            num_cpus=asked.pool.cpus_per_actor,
            num_gpus=num_gpus,
            compute=ActorPoolStrategy(min_size=asked.pool.min_actors, max_size=asked.pool.most_actors),
        )
        if asked.cache is None:
            stage = named_stage(TeacherStage, asked.name)
            rows = rows.map_batches(stage, fn_constructor_kwargs=arguments, batch_size=asked.pool.batch_size, **pool)
            continue
        more = {"batch_size": asked.pool.batch_size, "has_pool": has_gpus}
        rows = rows.map_batches(
            named_stage(CachedTeacherStage, asked.name),
            fn_constructor_args=(asked.cache, config.plan),
            fn_constructor_kwargs={**more, **arguments},
            batch_size=None if num_gpus is None else config.rows_per_block(),  # with GPUs, Ray Data wants a number
            **pool,
        )
    if any(each.cache is None for each in config.teachers):
        # A batch leaves a stage when it is answered. Ray Data would put the whole chunk together first.
        rows.context.target_max_block_size = config.bytes_per_answer()
    return rows


def named_stage(stage: type, name: str | None) -> type:
    """The stage's class under the teacher's name, by which Ray Data calls the stage where it speaks of it."""
    return stage if name is None else type(f"{stage.__name__}_{name}", (stage,), {"__module__": stage.__module__})


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
        if not self.config.is_cached:
            return make_stream(self.config, done)
        plan = self.config.plan
        later = min(done.first_gap(), plan.num_positions - 1) // plan.num_tiles + 1  # the first epoch of the second pipeline
        if self.part == CACHED:
            return make_stream(self.config, done, epochs=(later, plan.num_epochs), has_pool=False)
        return make_stream(self.config, done, epochs=(0, later))
