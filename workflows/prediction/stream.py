"""The stream of a prediction: plan → pixels → answers → parts, as one Ray Data pipeline over all slides that are not done.

Each stage has actors of its own, and the object store holds what is on its way between them, no more than ray.stream_gb. The
pipeline's rows say which parts were written; what they say of tiles is in the parts.
"""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, ExecutionResources

from csat.runs.plan import Intervals, Plan
from csat.slides.crashes import CrashLog
from csat.tiles.planned_reader import SLOT
from csat.tiles.reader import TileReader
from workflows.prediction.answer_stage import AnswerStage
from workflows.prediction.check import BLOCK_BYTES
from workflows.prediction.config import PredictConfig
from workflows.prediction.framed_reader import FramedReader
from workflows.prediction.job import PredictJob
from workflows.prediction.part_stage import PartStage
from workflows.shell.data import configure_data, execution_options
from workflows.shell.resources import can_have

MAX_BLOCKS = 4096  # of the plan; beyond that a block holds several slots


def make_stream(job: PredictJob, done: Intervals) -> ray.data.Dataset:
    """The lazy pipeline over all tiles but those at the positions `done`. Each row is about a part that was written."""
    config, manifest, model = job.config, job.manifest, job.model
    slots = slots_to_do(job.plan, done)
    blocks = [pa.table({SLOT: block}) for block in np.array_split(slots, min(len(slots), MAX_BLOCKS) or 1)]
    reader = TileReader(
        tile_px=model.tile_px,
        cache=config.readers.slide_cache(),
        max_open_slides=config.readers.max_open_slides,
        max_background=config.readers.max_background,
        crashes=CrashLog(manifest.uri),
    )
    pixels = ray.data.from_arrow(blocks).map_batches(
        FramedReader,
        fn_constructor_args=(manifest.uri, job.plan, done, reader),
        fn_constructor_kwargs={"rows_at_once": rows_at_once(config, job.tile_bytes)},
        batch_size=None,
        num_cpus=config.readers.cpus_per_actor,
        compute=ActorPoolStrategy(min_size=config.readers.min_actors, max_size=config.readers.most_actors),
    )
    network, most = config.network, most_actors(config, can_have())
    answered = pixels.map_batches(
        AnswerStage,
        fn_constructor_args=(config.model, model),
        fn_constructor_kwargs=dict(
            device="cuda" if network.gpus_per_actor else "cpu", kept=(*job.nuclei_maps, *job.vectors), maps=job.maps
        ),
        batch_size=network.batch_size,
        num_cpus=network.cpus_per_actor,
        num_gpus=network.gpus_per_actor or None,
        compute=ActorPoolStrategy(min_size=first_actors(config, ray.cluster_resources()), max_size=most.network),
    )
    # A batch leaves a stage when it is complete. Ray Data would put many of them together first.
    answered.context.target_max_block_size = max(1, min(BLOCK_BYTES, int(0.9 * network.batch_size * job.bytes_per_answer())))
    return answered.map_batches(
        PartStage,
        fn_constructor_args=(job.layout.parts, job.slides),
        fn_constructor_kwargs=dict(
            tile_px=model.tile_px, crop_px=model.crop_px, maps=job.nuclei_maps, types=("background", *model.classes)
        ),
        batch_size=None,
        num_cpus=config.outlines.cpus_per_actor,
        compute=ActorPoolStrategy(min_size=config.outlines.min_actors, max_size=most.outlines),
    )


def rows_at_once(config: PredictConfig, tile_bytes: int) -> int:
    """Tiles that leave a reader together: a batch of the model.

    With more, one actor would have several batches before another has any: two chunks of 128 tiles of 256 px, which wait in
    the queue of one actor, are 20 s of a core for CSAT, and at the end the other core idles as long.
    """
    return max(1, min(config.network.batch_size, BLOCK_BYTES // 4 // tile_bytes))


class MostActors(NamedTuple):
    """Of the stages that compute."""

    network: int
    outlines: int


def most_actors(config: PredictConfig, can_have: Mapping[str, float]) -> MostActors:
    """How many actors there may be, also where that is left open: as many as have a core, or a place on a GPU, for themselves.

    Args:
        can_have: What the cluster has or can grow to, by resource.
    """
    network, outlines, cores = config.network, config.outlines, can_have.get("CPU", 0.0)
    if network.gpus_per_actor:
        places = can_have.get("GPU", 0.0) / network.gpus_per_actor
    else:
        places = cores / max(1.0, network.cpus_per_actor)
    return MostActors(
        network=network.max_actors or max(network.min_actors, int(places + 1e-6)),
        outlines=outlines.max_actors or max(outlines.min_actors, int(cores)),
    )


def first_actors(config: PredictConfig, has: Mapping[str, float]) -> int:
    """How many actors hold the model from the beginning: all that there is room for. Left to itself, Ray Data often stays at
    one (https://github.com/ray-project/ray/issues/59144), and a core idles.

    Args:
        has: What the cluster has, by resource. Not what is free: for a moment that lacks what tiling had. An actor for which
            there is no room after all waits for it, and the others work.
    """
    network, assembly = config.network, config.assembly
    beside = sum(stage.min_actors * stage.cpus_per_actor for stage in (config.readers, config.outlines))
    beside += assembly.max_slides * assembly.cpus_per_slide
    room = {"CPU": has.get("CPU", 0.0) - beside, "GPU": has.get("GPU", 0.0)}
    each = {"CPU": network.cpus_per_actor, "GPU": network.gpus_per_actor}
    fitting = [int(room[name] / amount + 1e-6) for name, amount in each.items() if amount]
    return max(network.min_actors, min([most_actors(config, has).network, *fitting]))


def configure(job: PredictJob) -> None:
    """This process's Ray Data settings. CPUs of the tasks that write files are kept free of the stream's actors."""
    configure_data(job.config.ray)
    assembly = job.config.assembly
    options = execution_options(job.config.ray)
    with warnings.catch_warnings():  # Ray 2.60 deprecates it for labels of nodes, which keep no share of a node free
        warnings.simplefilter("ignore", DeprecationWarning)
        options.exclude_resources = ExecutionResources(cpu=assembly.max_slides * assembly.cpus_per_slide)
    ray.data.DataContext.get_current().execution_options = options


def slots_to_do(plan: Plan, done: Intervals) -> np.ndarray:
    """Slots of a plan in the manifest's order that have something left to do, int64."""
    starts = np.cumsum(plan.chunk_rows) - plan.chunk_rows
    return np.flatnonzero(~done.cover(starts, starts + plan.chunk_rows))
