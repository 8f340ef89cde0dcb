"""Which part of a slide is tissue, from its thumbnail: stained tissue has colour, glass has none.

The chroma (max - min of R, G, B) is thresholded by Otsu's method (1979). Otsu always finds two classes, also in a picture
of tissue alone or of glass alone, so its threshold is kept between what glass never reaches and what stain always does:
a tile without any background is all tissue, an empty slide is none. A picture without any colour (grey images) is judged by
its darkness in the same way.
"""

import cv2
import numpy as np
from skimage.filters import threshold_otsu
from skimage.morphology import remove_small_holes, remove_small_objects

GLASS_CHROMA = 15.0  # of 255: JPEG noise and tinted glass stay below this
STAIN_CHROMA = 30.0  # of 255: even pale eosin is above this
GLASS_DARKNESS = 25.0  # of 255, for grey images
STAIN_DARKNESS = 60.0
GREY_CHROMA = 5.0  # of 255: a picture that never exceeds this (but for 1 pixel in 1,000) has no colour
BLACK = 20  # of 255: darker is a missing part of the scan or the edge of the slide holder, not tissue
SPECK_SHARE = 2e-5  # of the thumbnail's area: smaller objects are dust, smaller holes are filled


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Tissue of a thumbnail.

    Args:
        thumbnail: uint8 `[H, W, 3]`, RGB.

    Returns:
        bool `[H, W]`, True where there is tissue.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"expected a thumbnail uint8 [H, W, 3], got {thumbnail.dtype} {list(thumbnail.shape)}")
    brightest, darkest = thumbnail.max(axis=2), thumbnail.min(axis=2)
    signal, low, high = brightest - darkest, GLASS_CHROMA, STAIN_CHROMA
    if np.percentile(signal, 99.9) < GREY_CHROMA:
        signal, low, high = 255 - brightest, GLASS_DARKNESS, STAIN_DARKNESS
    signal = cv2.medianBlur(np.ascontiguousarray(signal), 3)  # single pixels of JPEG noise
    mask = (signal > _bounded_otsu(signal, low, high)) & (brightest >= BLACK)
    speck_px = int(SPECK_SHARE * mask.size)
    if speck_px >= 1:
        mask = remove_small_objects(mask, max_size=speck_px)
        mask = remove_small_holes(mask, max_size=speck_px)
    return mask


def _bounded_otsu(signal: np.ndarray, low: float, high: float) -> float:
    if signal.min() == signal.max():  # Otsu needs two values
        return low
    return float(np.clip(threshold_otsu(signal), low, high))
