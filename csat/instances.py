"""Instances ↔ horizontal/vertical maps: HoVer-Net's targets, its post-processing, and the splitting of touching nuclei.

Source: Graham et al., "HoVer-Net", Medical Image Analysis 58 (2019), sections 3.1 (targets) and 3.2 (post-processing), and the
authors' public code (MIT), which fixes the numbers that the paper leaves open. Used by the stain teacher, by evaluation, and
to make targets from labelled nuclei.
"""

import cv2
import numpy as np
from skimage.segmentation import watershed

POST_MPP = 0.25  # um/px that the lengths of HoVer-Net's post-processing were chosen for, which are
MIN_AREA_PX, SOBEL_PX, OPENING_PX, BLUR_PX = 10, 21, 5, 3
SAME_MPP = 1.1  # ratio up to which a resolution counts as POST_MPP
SMALLEST_SOBEL_PX, LARGEST_SOBEL_PX = 3, 31  # OpenCV's
EIGHT_NEIGHBOURS, FOUR_NEIGHBOURS = 8, 4  # connectivity of a nucleus, and of the background between nuclei


def hv_targets(instances: np.ndarray) -> np.ndarray:
    """Horizontal and vertical maps of an instance map: where in its nucleus a pixel lies (paper, section 3.1).

    Within each nucleus the signed distance to its centre of mass along x (channel 0) and y (channel 1), the negative and the
    positive side each scaled so that the outermost pixel has -1 or 1; 0 outside nuclei.

    Differs from the authors' code, which rounds the centre to a pixel and so favours one direction: ours is not rounded, so
    that the maps of a flipped tile are exactly the flipped maps with the channel's sign changed.

    Args:
        instances: int `[H, W]`, 0 is background; ids need not be consecutive, nor a nucleus in one piece.

    Returns:
        float32 `[2, H, W]` in [-1, 1].
    """
    hv = np.zeros((2, *instances.shape), np.float32)
    rows, columns = np.nonzero(instances)
    if not len(rows):
        return hv
    _, nucleus = np.unique(instances[rows, columns], return_inverse=True)
    for channel, position in enumerate((columns, rows)):
        hv[channel, rows, columns] = _centred(position, nucleus)
    return hv


def instances_from_hv(
    probability: np.ndarray,
    hv: np.ndarray,
    *,
    mpp: float = POST_MPP,
    threshold: float = 0.5,
    edge_threshold: float = 0.4,
    frame_px: int = 0,
) -> np.ndarray:
    """HoVer-Net's post-processing: nuclei from the nucleus probability and the HV maps (paper, section 3.2).

    The maps jump between touching nuclei, so their gradient marks the border; what lies away from borders is one marker per
    nucleus, and a watershed on the gradient's energy gives each pixel to a marker.

    All lengths follow the resolution, the opening of the markers too: the authors' 5 px, chosen for 0.25 um/px, would open
    away most nuclei at 0.5 (given the true maps, PQ of CoNSeP at 0.5 um/px is 0.36 with 5 px and 0.90 with what it is here).

    Args:
        probability: float `[H, W]` in [0, 1].
        hv: float `[2, H, W]`, horizontal then vertical.
        mpp: um/px of the maps.
        threshold: Probability from which a pixel is nucleus.
        edge_threshold: Of the normalised gradient, from which a pixel is a border.
        frame_px: Pixels on each side whose gradients do not set the scale. A nucleus that the edge of a tile cuts to a sliver
            has maps steeper than all others', and these are lost: one of 35, given the true maps of tiles of 128 px at 0.5
            um/px, and one of 900 with a frame of 8 px.

    Returns:
        int32 `[H, W]`, 0 background, nuclei 1 … N.
    """
    scale = _scale(mpp)
    min_area_px = max(1, round(MIN_AREA_PX * scale**2))
    sobel_px = min(LARGEST_SOBEL_PX, max(SMALLEST_SOBEL_PX, _kernel_px(SOBEL_PX, scale)))
    opening_px, blur_px = _kernel_px(OPENING_PX, scale), _kernel_px(BLUR_PX, scale)
    mask = _components((probability >= threshold).astype(np.uint8), min_area_px) > 0
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    horizontal, vertical = (_to_unit(channel.astype(np.float32)) for channel in hv)
    gradient_x = 1 - _to_unit(cv2.Sobel(horizontal, cv2.CV_64F, 1, 0, ksize=sobel_px), frame_px)
    gradient_y = 1 - _to_unit(cv2.Sobel(vertical, cv2.CV_64F, 0, 1, ksize=sobel_px), frame_px)
    # Inside a nucleus the maps rise, between nuclei they fall: after 1 - x, borders are near 1.
    border = np.maximum(gradient_x, gradient_y) - (1 - mask)
    energy = (1 - np.maximum(border, 0)) * mask
    energy = -cv2.GaussianBlur(energy, (blur_px, blur_px), 0)
    ellipse = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (opening_px, opening_px))
    markers = cv2.morphologyEx(_filled(mask & (border < edge_threshold)), cv2.MORPH_OPEN, ellipse)
    markers = _components(markers, min_area_px)
    return relabel(watershed(energy, markers, mask=mask))


def split_touching(mask: np.ndarray, *, smoothing_px: float, neck: float) -> np.ndarray:
    """Split a mask into nuclei where it has a neck: watershed on the distance to the background.

    Every peak of the (smoothed) distance starts a basin; two basins are joined again where the neck between them is wider
    than `neck` times the narrower of the two. The rule has no length in it, so small and large nuclei are treated alike.

    Args:
        mask: bool `[H, W]`.
        smoothing_px: Standard deviation of the smoothing of the distance; suppresses peaks from a ragged outline.
        neck: In (0, 1): 1 splits at every constriction, 0 never.

    Returns:
        int32 `[H, W]`, 0 background, nuclei 1 … N. Of a transformed mask: the same nuclei but for pixels that two basins
        reach alike, which go to the first in scan order.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    height = np.where(mask, cv2.GaussianBlur(distance, (0, 0), smoothing_px), 0)
    height = np.round(height * 256).astype(np.float32)  # rounding noise must not decide between equal peaks
    peaks = (height >= cv2.dilate(height, np.ones((3, 3), np.uint8))) & mask
    num_labels, markers = cv2.connectedComponents(peaks.astype(np.uint8), connectivity=EIGHT_NEIGHBOURS)
    basins = watershed(-height, markers, mask=mask, connectivity=2)
    if num_labels <= 2:
        return basins.astype(np.int32)
    return relabel(_join_wide_necks(basins, height, num_labels, neck))


def relabel(instances: np.ndarray) -> np.ndarray:
    """The same instances numbered 1 … N in order of their ids, int32."""
    present = np.bincount(instances.ravel()) > 0
    present[0] = False
    return np.where(present, np.cumsum(present), 0).astype(np.int32)[instances]


def _centred(position: np.ndarray, nucleus: np.ndarray) -> np.ndarray:
    """Signed position within its nucleus, each side scaled to 1. `position`, `nucleus`: int `[pixels]`."""
    count = np.bincount(nucleus)
    # Twice count times the offset from the centre: integers, so that mirrored nuclei give mirrored values to the last bit.
    offset = position * count[nucleus] - np.bincount(nucleus, weights=position).astype(np.int64)[nucleus]
    lowest, highest = np.zeros(len(count), np.int64), np.zeros(len(count), np.int64)
    np.minimum.at(lowest, nucleus, offset)
    np.maximum.at(highest, nucleus, offset)
    side = np.where(offset < 0, -lowest[nucleus], highest[nucleus])
    return (offset / np.maximum(side, 1)).astype(np.float32)


def _join_wide_necks(basins: np.ndarray, height: np.ndarray, num_labels: int, neck: float) -> np.ndarray:
    """Join neighbouring basins, the widest neck first, while the neck is wider than `neck` times the narrower basin."""
    saddles = _saddles(basins, height, num_labels)
    peak = np.zeros(num_labels, np.float32)
    np.maximum.at(peak, basins.ravel(), height.ravel())
    parent = list(range(num_labels))

    def root(label: int) -> int:
        while parent[label] != label:
            parent[label] = label = parent[parent[label]]
        return label

    for saddle, first, second in saddles:
        first, second = root(first), root(second)
        if first != second and saddle > neck * min(peak[first], peak[second]):
            parent[second] = first
            peak[first] = max(peak[first], peak[second])
    return np.array([root(label) for label in range(num_labels)], np.int32)[basins]


def _saddles(basins: np.ndarray, height: np.ndarray, num_labels: int) -> list[tuple[float, int, int]]:
    """`(height, basin, basin)` of the highest crossing between each two neighbouring basins, highest first."""
    keys, heights = [], []
    for one, other in (
        ((slice(1, None), slice(None)), (slice(-1), slice(None))),
        ((slice(None), slice(1, None)), (slice(None), slice(-1))),
    ):
        a, b = basins[one], basins[other]
        where = np.nonzero((a != b) & (a > 0) & (b > 0))
        a, b = a[where].astype(np.int64), b[where].astype(np.int64)
        keys.append(np.minimum(a, b) * num_labels + np.maximum(a, b))
        heights.append(np.minimum(height[one][where], height[other][where]))
    pairs, pair = np.unique(np.concatenate(keys), return_inverse=True)
    highest = np.zeros(len(pairs), np.float32)
    np.maximum.at(highest, pair, np.concatenate(heights))
    order = np.argsort(-highest, kind="stable")
    return [(float(highest[i]), int(pairs[i] // num_labels), int(pairs[i] % num_labels)) for i in order]


def _scale(mpp: float) -> float:
    """What lengths at `POST_MPP` are multiplied with; scanners differ a little, so up to a tenth counts as the same."""
    scale = POST_MPP / mpp
    return 1.0 if SAME_MPP > scale > 1 / SAME_MPP else scale


def _kernel_px(size_px: int, scale: float) -> int:
    """Odd size of a kernel, no larger than the scaled one: one too large would open nuclei away."""
    return max(1, 2 * int((size_px * scale - 1) / 2) + 1)


def _filled(mask: np.ndarray) -> np.ndarray:
    """uint8 mask without holes: as `scipy.ndimage.binary_fill_holes`, ten times faster."""
    _, labels = cv2.connectedComponents((~mask).astype(np.uint8), connectivity=FOUR_NEIGHBOURS)
    is_open = np.zeros(labels.max() + 1, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        is_open[edge] = True
    is_open[0] = False  # the mask itself
    return (~is_open[labels]).astype(np.uint8)


def _components(mask: np.ndarray, min_area_px: int) -> np.ndarray:
    """int32: the components of a uint8 mask that have `min_area_px` pixels or more, numbered 1 … N; 0 elsewhere."""
    _, labels = cv2.connectedComponents(mask, connectivity=EIGHT_NEIGHBOURS)
    is_large = np.bincount(labels.ravel()) >= min_area_px
    is_large[0] = False
    return np.where(is_large, np.cumsum(is_large), 0).astype(np.int32)[labels]


def _to_unit(values: np.ndarray, frame_px: int = 0) -> np.ndarray:
    """Shift and scale to [0, 1] by the range within the frame; beyond it values are clipped. A constant map becomes zeros."""
    inner = values[frame_px : values.shape[0] - frame_px, frame_px : values.shape[1] - frame_px]
    lowest, highest = inner.min(), inner.max()
    scaled = (values - lowest) / max(highest - lowest, 1e-12)
    return scaled.clip(0, 1) if frame_px else scaled
