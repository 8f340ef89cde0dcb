"""Pixels for test slides."""

import numpy as np


def textured(height_px: int, width_px: int, seed: int = 0) -> np.ndarray:
    """uint8 `[H, W, 3]` without repetition, so that a tile read from the wrong place is noticed."""
    y, x = np.mgrid[:height_px, :width_px]
    noise = np.random.default_rng(seed).integers(0, 40, (height_px, width_px))
    return np.stack([x * 7 % 199 + noise, y * 5 % 211, (x + 2 * y) % 239], axis=-1).astype(np.uint8)
