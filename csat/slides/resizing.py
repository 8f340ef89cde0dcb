"""Pictures made smaller or larger. Most tiles are read at their final size, and readers of those never load OpenCV (16 MB)."""

import numpy as np


def shrunk(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By area: each pixel is the mean over those that it covers.

    Args:
        pixels: uint8 `[H, W, C]`.
        size: (width, height), neither larger than it is; the same gives `pixels` back.

    Returns:
        uint8 `[height, width, C]`.
    """
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    import cv2

    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def enlarged(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bicubic. Otherwise as `shrunk`."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    import cv2

    return cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
