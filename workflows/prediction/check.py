"""What is known of a prediction before a tile is read: is it the same model, can the cluster hold it, and what it will do."""

import logging
from dataclasses import replace

from csat.errors import ConfigError
from csat.precision import BEST, BFLOAT16, FLOAT32
from csat.runs.folder import RunFolder
from csat.tiles.resolutions import resolution_summary
from workflows.prediction.config import CHUNK_TILES
from workflows.prediction.description import Description
from workflows.prediction.job import PredictJob
from workflows.shell import cluster, resources

logger = logging.getLogger("predict")

BLOCK_BYTES = 128 * 2**20  # what Ray Data puts together at most
BLOCKS_IN_FLIGHT = 4  # batches on their way at least: one read, one queued, one at the model, one at the outlines
MODEL, PRECISION = "model.json", "precision"  # which model, and what in it says how it computes


def check_same_model(folder: RunFolder, model: Description) -> None:
    """A prediction resumes with the model that it began with; model.json says which. Raises ConfigError."""
    earlier = folder.read_json(MODEL)
    now = {**model.about, "mpp": model.mpp, "tile_px": model.tile_px, "classes": list(model.classes)}
    now[PRECISION] = (earlier or {}).get(PRECISION)
    if earlier is not None and folder.has_begun() and earlier["sha256"] != now["sha256"]:
        raise ConfigError(
            f"{folder.uri} was begun with other weights of {earlier['name']}: {earlier['sha256'][:12]}, and they are now "
            f"{now['sha256'][:12]}. Choose another output, or say overwrite=true to delete what is there"
        )
    folder.write_json(MODEL, now)


def with_precision(job: PredictJob, folder: RunFolder) -> PredictJob:
    """The job with float32 or bfloat16 in the place of `best`: as it began, else what suits all nodes. Noted in model.json."""
    model, about = job.config.model, folder.read_json(MODEL)
    used = model.precision
    if used == BEST:
        device = "cuda" if job.config.network.gpus_per_actor else "cpu"
        used = about[PRECISION] or (FLOAT32 if cluster.without_bfloat16(device) else BFLOAT16)
        logger.info("%s computes in %s", model.name, used)
    folder.write_json(MODEL, {**about, PRECISION: used})
    return replace(job, config=replace(job.config, model=replace(model, precision=used)))


def check_resources(job: PredictJob) -> None:
    """Whether the cluster can hold this job. Raises ConfigError with the sums, and what to change."""
    config = job.config
    read_bytes = max(job.tile_bytes, min(BLOCK_BYTES, CHUNK_TILES * job.tile_bytes))
    resources.check_stages(
        {"readers": config.readers, "network": config.network, "outlines": config.outlines},
        beside={"assembly.max_slides": (config.assembly.max_slides, config.assembly.cpus_per_slide)},
        ray_config=config.ray,
        needed_bytes=BLOCKS_IN_FLIGHT * max(read_bytes, config.network.batch_size * job.bytes_per_answer()),
    )


def tell_plan(job: PredictJob) -> None:
    """Which model, how much there is to do, what will be written."""
    manifest, model, tiling = job.manifest, job.model, job.tiling
    if said := resolution_summary(manifest.index.get("resolutions")):
        logger.info("%s", said)
    where = "as they are" if tiling.mpp is None else f"at {tiling.mpp:g} um/px"
    logger.info(
        f"{model.name} ({model.about['sha256'][:12]}): {len(job.slides):,} slides → {manifest.num_tiles:,} tiles of "
        f"{model.tile_px} px {where}, {tiling.overlap_px} px of them shared with the next; writes {', '.join(job.files)}"
    )
