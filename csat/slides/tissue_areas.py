"""What a mask of tissue says of areas: how much of a rectangle is tissue, and where separate pieces lie."""

import cv2
import numpy as np

SPECK_SHARE = 0.01  # of the largest piece's tissue: a smaller piece is no piece of its own
GAP_SHARE = 0.01  # of the thumbnail's longer edge: pieces of tissue that are nearer to each other count as one


def find_pieces(mask: np.ndarray) -> np.ndarray:
    """The separate pieces of tissue of a thumbnail.

    Pieces that nearly touch (GAP_SHARE) count as one; those of less than SPECK_SHARE of the largest's tissue are specks.

    Args:
        mask: bool `[h, w]`, of `tissue_mask`.

    Returns:
        int `[n, 4]`: left, top, right, bottom (beyond the last) in the mask's pixels, from the upper left; n may be 0.
    """
    reach = max(1, round(GAP_SHARE * max(mask.shape) / 2))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    _, label = cv2.connectedComponents(cv2.dilate(mask.astype(np.uint8), kernel))
    label = np.where(mask, label, 0)
    areas = np.bincount(label.ravel())
    areas[0] = 0
    boxes = []
    for piece in np.flatnonzero(areas > max(0, SPECK_SHARE * areas.max())):
        rows, columns = (np.flatnonzero((label == piece).any(axis=axis)) for axis in (1, 0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(sorted(boxes, key=lambda box: (box[1], box[0])), dtype=np.int64).reshape(-1, 4)


def tissue_fraction(mask: np.ndarray, left, top, width: float, height: float) -> np.ndarray:
    """Share of tissue in rectangles of a mask, exact to fractions of the mask's pixels.

    Args:
        mask: bool `[h, w]`.
        left: float `[n]`, as a share of the mask's width; `top` of its height.
        top: float `[n]`.
        width: Of every rectangle, as a share of the mask's width; `height` of its height.
        height: See `width`.

    Returns:
        float64 `[n]`, in 0 to 1.
    """
    mask_height, mask_width = mask.shape
    total = np.zeros((mask_height + 1, mask_width + 1))
    total[1:, 1:] = mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)

    def up_to(y: np.ndarray, x: np.ndarray) -> np.ndarray:  # bilinear in the integral image: exact for a mask of squares
        y, x = np.clip(y * mask_height, 0, mask_height), np.clip(x * mask_width, 0, mask_width)
        j, i = np.minimum(y.astype(np.intp), mask_height - 1), np.minimum(x.astype(np.intp), mask_width - 1)
        v, u = y - j, x - i
        upper = total[j, i] * (1 - u) + total[j, i + 1] * u
        return upper * (1 - v) + (total[j + 1, i] * (1 - u) + total[j + 1, i + 1] * u) * v

    left, top = np.asarray(left, dtype=np.float64), np.asarray(top, dtype=np.float64)
    right, bottom = left + width, top + height
    inside = up_to(bottom, right) - up_to(top, right) - up_to(bottom, left) + up_to(top, left)
    return np.clip(inside / (width * mask_width * height * mask_height), 0.0, 1.0)
