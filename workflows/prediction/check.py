"""What is known of a prediction before a tile is read: is it the same model, can the cluster hold it, and what it will do."""

import logging

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from csat.tiles.resolutions import resolution_summary
from workflows.prediction.config import CHUNK_TILES
from workflows.prediction.description import Description
from workflows.prediction.job import PredictJob
from workflows.shell import resources

logger = logging.getLogger("predict")

BLOCK_BYTES = 128 * 2**20  # what Ray Data puts together at most
BLOCKS_IN_FLIGHT = 4  # batches on their way at least: one read, one queued, one at the model, one at the outlines
MODEL = "model.json"


def check_same_model(folder: RunFolder, model: Description) -> None:
    """A prediction resumes with the model that it began with; model.json says which. Raises ConfigError."""
    now = {**model.about, "mpp": model.mpp, "tile_px": model.tile_px, "classes": list(model.classes)}
    earlier = folder.read_json(MODEL)
    if earlier is not None and folder.has_begun() and earlier["sha256"] != now["sha256"]:
        raise ConfigError(
            f"{folder.uri} was begun with other weights of {earlier['name']}: {earlier['sha256'][:12]}, and they are now "
            f"{now['sha256'][:12]}. Choose another output, or say overwrite=true to delete what is there"
        )
    folder.write_json(MODEL, now)


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
