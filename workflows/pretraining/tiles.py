"""From the slides that a pretraining is given to its tiles, and which of them are held out."""

import logging
from dataclasses import replace

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from csat.slides.synthetic import make_slides
from csat.storage import files
from csat.tiles.manifest import Manifest
from csat.tiles.manifest_writer import as_begun
from csat.tiles.sources import SlideRow, list_slides
from workflows.pretraining import precision
from workflows.pretraining.config import DEMO, PretrainConfig
from workflows.shell.tile_slides import build_manifest

logger = logging.getLogger("pretrain")


def as_recorded(config: PretrainConfig, folder: RunFolder) -> PretrainConfig:
    """The settings with what an earlier attempt held out and how it computed, where they leave that open."""
    config = precision.as_begun(config, folder)
    recorded = (folder.config() or {}).get("manifest", {})
    return replace(config, manifest=as_begun(config.manifest, recorded, whole=bool(config.data.whole)))


def find_slides(config: PretrainConfig, folder: RunFolder) -> list[SlideRow]:
    """The slides that the settings name; synthetic ones are made first."""
    return list_slides(_with_demo(config, folder), source_mpp=config.data.source_mpp)


def cut_tiles(config: PretrainConfig, folder: RunFolder, slides: list[SlideRow]) -> tuple[Manifest, PretrainConfig]:
    """The manifest of their tiles, and the settings with what was held out, which they may have left open."""
    cache = config.readers.slide_cache()
    manifest, done = build_manifest(folder.path("manifest"), slides, config.data, config.manifest, cache)
    return manifest, replace(config, manifest=done)


def _with_demo(config: PretrainConfig, folder: RunFolder) -> list[str]:
    if DEMO not in config.slides:
        return config.slides
    if config.data.mpp is None or not files.is_local(folder.uri):
        raise ConfigError("slides=demo needs a local run_folder and a data.mpp: it writes slides of known resolution")
    target = files.local_path(folder.path("demo_slides"))
    logger.info("making %d synthetic slides in %s", config.demo.num_slides, target)
    made = make_slides(target, num_slides=config.demo.num_slides, size_px=config.demo.size_px, seed=config.demo.seed)
    return [slide for slide in config.slides if slide != DEMO] + [str(path) for path in made]
