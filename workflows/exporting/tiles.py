"""The real tiles that an export tries its files with."""

import tempfile
from pathlib import Path

import numpy as np
import torch

from csat.export.real_tiles import tiles_of_run, tiles_of_slides
from csat.prediction.answers import ModelAnswers
from csat.storage.node_cache import SlideCache
from workflows.exporting.config import ExportConfig

CACHE_BYTES = 64 * 2**30  # of slides from buckets


def find_tiles(config: ExportConfig, answers: ModelAnswers) -> tuple[np.ndarray, str]:
    """Those that the user names, else the run's own: uint8 `[N, tile_px, tile_px, 3]`, and where they are from, in words.

    Raises:
        ConfigError, StorageError: there are none, or too few.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    number = max(config.num_tiles, config.calibration_tiles if config.int8 else 0)
    cache = SlideCache(Path(tempfile.gettempdir()) / "csat-slides", CACHE_BYTES)
    if config.tiles:
        return tiles_of_slides(config.tiles, tile_px=answers.tile_px, mpp=answers.mpp, number=number, cache=cache)
    return tiles_of_run(config.model, tile_px=answers.tile_px, number=number, cache=cache)
