"""Which part of a slide is tissue, from its thumbnail: stained tissue has colour, glass has none, and ink has another one.

Colours are judged against the glass, whose colour is measured where there is any: a yellowish or bluish tint is no stain.
The chroma (max - min of R, G, B) is then thresholded by Otsu's method (1979). Otsu always finds two classes, also in a picture
of tissue alone or of glass alone, so its threshold is kept between what glass never reaches and what stain always does:
a tile without any background is all tissue, an empty slide is none. A picture without any colour (grey images) is judged by
its darkness in the same way.

Ink is told from stain by its optical density (Beer-Lambert, base 10). Haematoxylin, eosin and blood absorb green the most.
Green and blue ink absorb red more than green, black ink absorbs all three alike, and red ink absorbs hardly any red where it
is dense, which eosin and blood do. Pale and mixed edges of ink look like stain: they are ink where they touch it.
"""

import math

import cv2
import numpy as np

GLASS_CHROMA = 15.0  # of 255: JPEG noise stays below this, and no glass is more magenta
STAIN_CHROMA = 30.0  # of 255: even pale eosin is above this
GLASS_DARKNESS = 25.0  # of 255, for grey images
STAIN_DARKNESS = 60.0
GREY_CHROMA = 5.0  # of 255: a picture that never exceeds this (but for 1 pixel in 1,000) has no colour
BLACK = 20  # of 255: darker is a missing part of the scan or the edge of the slide holder, not tissue
SPECK_SHARE = 2e-5  # of the thumbnail's area: smaller objects are dust, smaller holes are filled

GLASS_PX = 512  # longer edge of the picture in which the glass is looked for
GLASS_GREEN = 180  # of 255: glass lets through at least so much green
GLASS_RANGE = 4  # of 255: most that glass varies within 5 px of that picture, smoothed; tissue has texture
GLASS_SHARE = 0.01  # of the picture: less is no glass
WHITE = 250  # of 255, in all three: outside of what was scanned, or glass without a tint

INK_PX = 1024  # longer edge of the picture in which ink is looked for
INK_SHARE = 2e-4  # of the thumbnail's area: a smaller stroke is no stroke
INK_HALO = 0.02  # of the thumbnail's longer edge: so far from ink colours may be mixed with it


def tissue_mask(thumbnail: np.ndarray) -> np.ndarray:
    """Tissue of a thumbnail.

    Args:
        thumbnail: uint8 `[H, W, 3]`, RGB.

    Returns:
        bool `[H, W]`, True where there is tissue.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"expected a thumbnail uint8 [H, W, 3], got {thumbnail.dtype} {list(thumbnail.shape)}")
    glass = glass_colour(thumbnail)
    is_tinted = glass is not None and np.ptp(glass) > GLASS_CHROMA
    brightest, darkest = _extremes(_against(thumbnail, glass) if is_tinted else thumbnail)
    signal, low, high = brightest - darkest, GLASS_CHROMA, STAIN_CHROMA
    has_colour = np.percentile(signal, 99.9) >= GREY_CHROMA
    if not has_colour:
        signal, low, high = 255 - brightest, GLASS_DARKNESS, STAIN_DARKNESS
    signal = cv2.medianBlur(np.ascontiguousarray(signal), 3)  # single pixels of JPEG noise
    is_seen = brightest >= BLACK
    is_counted = is_seen
    if has_colour and (ink := ink_mask(thumbnail, glass)).any():
        is_seen = is_seen & ~ink
        around = np.ones([2 * math.ceil(INK_HALO * max(ink.shape)) + 1] * 2, np.uint8)
        is_counted = is_seen & (cv2.dilate(ink.astype(np.uint8), around) == 0)  # a halo of ink is no class of its own
    mask = (signal > _bounded_otsu(signal[is_counted], low, high)) & is_seen
    speck_px = int(SPECK_SHARE * mask.size)
    if speck_px >= 1:
        mask = ~_larger(~_larger(mask, speck_px), speck_px)
    return mask


def glass_colour(thumbnail: np.ndarray) -> np.ndarray | None:
    """The colour of the glass: the lightest colour that is common, smooth and not that of stain.

    Args:
        thumbnail: uint8 `[H, W, 3]`, RGB.

    Returns:
        uint8 `[3]`, or None where no glass is to be seen.
    """
    shrink = max(1.0, max(thumbnail.shape[:2]) / GLASS_PX)
    size = [max(1, round(edge / shrink)) for edge in thumbnail.shape[1::-1]]
    small = cv2.GaussianBlur(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), (0, 0), 1.5)
    window = np.ones((5, 5), np.uint8)
    is_smooth = _extremes(cv2.dilate(small, window) - cv2.erode(small, window))[0] <= GLASS_RANGE
    red, green, blue = cv2.split(small)
    is_light = (green >= GLASS_GREEN) & (cv2.subtract(cv2.min(red, blue), green) <= GLASS_CHROMA)  # which ends at 0
    found = small[is_smooth & is_light & (_extremes(small)[1] < WHITE)]
    greens, counts = np.unique(found[:, 1] // 8, return_counts=True)
    common = greens[counts >= GLASS_SHARE * is_smooth.size]
    return np.median(found[found[:, 1] // 8 == common[-1]], axis=0).astype(np.uint8) if len(common) else None


def ink_mask(thumbnail: np.ndarray, glass: np.ndarray | None) -> np.ndarray:
    """Ink of pens and of margins.

    Args:
        thumbnail: uint8 `[H, W, 3]`, RGB.
        glass: uint8 `[3]`, its colour; None: not known. Pale ink is then left as tissue, as no ratio of densities is sure.

    Returns:
        bool `[H, W]`, True where there is ink.
    """
    height, width = thumbnail.shape[:2]
    shrink = max(1.0, max(height, width) / INK_PX)
    size = [max(1, round(edge / shrink)) for edge in (width, height)]
    small = cv2.blur(cv2.resize(thumbnail, size, interpolation=cv2.INTER_AREA), (3, 3))
    white = np.full(3, 255) if glass is None else glass
    table = -np.log10(np.clip(np.arange(256)[:, None], 1, white) / white)
    density = cv2.LUT(small, table[None].astype(np.float32))
    red, green, blue = cv2.split(density)
    densest, least = _extremes(density)
    kinds = (  # surely ink, perhaps ink
        (
            ((red > 1.4 * green) & (red > 0.2)) | ((red > 0.97 * green) & (blue < 0.45 * green) & (red > 0.5)),
            (red > 1.1 * green) & (red > 0.03),
        ),  # green and blue
        (
            (red < np.where(green > 0.9, 0.2, 0.14) * green) & (blue > 0.6 * green) & (green > 0.62),
            (blue > 0.73 * green) & (green > 0.05),
        ),  # red
        ((least > 0.7 * densest) & (densest > 0.7), (least > 0.6 * densest) & (densest > 0.5)),  # black
    )
    ink = np.zeros(small.shape[:2], dtype=bool)
    for surely, perhaps in kinds:
        if surely.any():
            surely = _larger(surely, INK_SHARE * surely.size)
            ink |= surely if glass is None else _touching(surely | perhaps, surely)
    return cv2.resize(ink.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def _larger(mask: np.ndarray, max_px: float) -> np.ndarray:
    """The mask without its pieces of at most `max_px` pixels."""
    _, label, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    is_kept = stats[:, cv2.CC_STAT_AREA] > max_px
    is_kept[0] = False  # what is not in the mask
    return is_kept[label]


def _touching(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The pieces of the mask that hold a seed."""
    count, label = cv2.connectedComponents(mask.astype(np.uint8))
    return mask & (np.bincount(label[seeds], minlength=count) > 0)[label]


def _bounded_otsu(signal: np.ndarray, low: float, high: float) -> float:
    """Of uint8. OpenCV finds the same as scikit-image, which takes each tiling process half a second to load."""
    if not signal.size or signal.min() == signal.max():  # Otsu needs two values
        return low
    threshold, _ = cv2.threshold(signal.reshape(1, -1), 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return float(np.clip(threshold, low, high))


def _extremes(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the smallest of R, G, B; several times faster than numpy's."""
    red, green, blue = cv2.split(picture)
    return cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)


def _against(thumbnail: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """The thumbnail with glass as white: uint8 `[H, W, 3]`."""
    table = np.clip(np.arange(256)[:, None] * (255.0 / glass), 0, 255).round().astype(np.uint8)
    return cv2.LUT(thumbnail, table[None])
