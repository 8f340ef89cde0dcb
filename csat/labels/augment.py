"""Random changes of an image and its labels together, and the same without chance: how a labelled sample becomes a tile.

Image and labels are moved by one map of coordinates, images linearly, labels by the nearest pixel. The work is OpenCV's; the
chance is not that of a library's random transforms, which draw from a generator that the whole process shares, while another
thread of it trains. All that is random about a sample follows from its seed, so a resumed run sees what it would have seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
from skimage.measure import label as connected_pieces

from csat.errors import ConfigError
from csat.labels.datasets.contract import Decoded

LABELS = ("mask", "instances", "types")
BLUR_SIZE_PX = 7  # of the kernel
BLUR_SIGMA_PX = (0.1, 1.5)
DETAIL_SIGMA_PX = (0.5, 3.0)
FADE_REACH_PX = 6.0  # standard deviation: from how far the colour around a nucleus comes
RIM_PX = (1.0, 3.0)  # of a nucleus that fades inside alone, and how far the fading takes to its whole strength
CLUMP_PX = 1.5  # standard deviation: how large clumps of chromatin are
ELASTIC_SMOOTHING_PX = 8.0  # standard deviation: how far apart tile pixels are that move independently


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """How far training samples may be changed. All zero: what evaluation sees."""

    scale: float = 0.25  # edge of what is seen: 1 - 2 x this to 1 image (resize), 1 / (1 + this) to 1 + this tile (crop)
    aspect: float = 0.1  # relative change of its width to height
    shift: bool = True  # the part lies anywhere in the image; false: in its middle
    rotate_degrees: float = 0.0  # any angle up to this, beside the multiples of 90
    flips_and_rotations: bool = True  # one of the eight symmetries of the square
    elastic_px: float = 0.0  # of elastic deformation: hardly any pixel of the tile moves further (3 standard deviations)
    elastic_prob: float = 0.2  # share of samples that are deformed, where elastic_px is above 0
    brightness: float = 0.15  # relative change
    contrast: float = 0.15  # relative change
    saturation: float = 0.15  # relative change
    hue: float = 0.03  # turn of the colour circle, 0.5 is half
    fade: float = 0.0  # nuclei, or the inside of them, take up to this share of the colour around them; needs instances
    sharpness: float = 0.0  # relative change of what is finer than 0.5 to 3 px; a detail that falls below 0 is gone
    blur_prob: float = 0.1  # share of samples that are blurred, sigma 0.1 to 1.5 px
    noise: float = 0.0  # standard deviation of added noise, share of the intensity range

    def __post_init__(self):
        bounds = {"hue": 0.5, "rotate_degrees": 180.0, "elastic_px": 64.0, "scale": 0.45, "sharpness": 4.0}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, bool):
                continue
            most = bounds.get(item.name, 1.0)
            if not 0 <= value <= most:
                raise ConfigError(f"augment.{item.name} must be in [0, {most:g}], not {value}")

    @classmethod
    def off(cls) -> "JointConfig":
        """No change at all."""
        return cls(**{item.name: False if isinstance(item.default, bool) else 0.0 for item in fields(cls)})


class JointAugment:
    """Makes training tiles. See `JointConfig`."""

    def __init__(self, config: JointConfig):
        self.config = config

    def __call__(self, decoded: Decoded, *, tile_px: int, fit: str, seed: int) -> Decoded:
        """One tile.

        Args:
            decoded: The sample.
            tile_px: Edge of the tile.
            fit: "resize": a large part of the image becomes the tile; "crop": a window of about the tile's size.
            seed: All that is random follows from it.

        Returns:
            The tile, all arrays `[tile_px, tile_px]`. Where a window or a rotation looks beyond the image, it sees the image
            mirrored, and the labels too. An instance that is cut keeps its id on what is left of it; its mirror image has an
            id of its own, unless the two touch.
        """
        rng = np.random.default_rng(seed)
        tile = fit_tile(self._part(decoded, tile_px, fit, rng), tile_px=tile_px, fit="resize")
        turns, mirrors = int(rng.integers(4)), bool(rng.integers(2))
        if self.config.flips_and_rotations:
            tile = _map(tile, lambda array: np.rot90(array[:, ::-1] if mirrors else array, turns))
        tile = self._bend(tile, rng)
        if self.config.fade and tile.instances is not None:
            tile = replace(tile, image=self._fade(tile.image, tile.instances, rng))
        return _with_labels(tile, self._recolour(tile.image, rng), np.ascontiguousarray)

    def _part(self, decoded: Decoded, tile_px: int, fit: str, rng: np.random.Generator) -> Decoded:
        height, width = decoded.image.shape[:2]
        stretch = np.sqrt(1 + self.config.aspect * rng.uniform(-1, 1))
        draw = rng.uniform()
        if fit == "resize":
            size = 1 - 2 * self.config.scale * draw
            wanted = min(height, height * size * stretch), min(width, width * size / stretch)
        else:
            size = tile_px * (1 + self.config.scale) ** (2 * draw - 1)
            wanted = size * stretch, size / stretch
        rows, columns = (max(1, round(edge)) for edge in wanted)
        # Where it is larger than the image, that lies anywhere in it.
        top, left = (
            int(rng.integers(min(0, room), max(0, room) + 1)) if self.config.shift else room // 2
            for room in (height - rows, width - columns)
        )
        return window(decoded, top, left, rows, columns)

    def _bend(self, tile: Decoded, rng: np.random.Generator) -> Decoded:
        """Rotation about the middle and elastic deformation, in one step."""
        angle = np.deg2rad(self.config.rotate_degrees * rng.uniform(-1, 1))
        is_deformed = rng.uniform() < self.config.elastic_prob and self.config.elastic_px > 0
        if not angle and not is_deformed:
            return tile
        edge = tile.image.shape[0]
        middle = (edge - 1) / 2
        y, x = np.mgrid[:edge, :edge] - middle
        x, y = np.cos(angle) * x + np.sin(angle) * y + middle, np.cos(angle) * y - np.sin(angle) * x + middle
        if is_deformed:
            x, y = (place + self._waves(edge, rng) for place in (x, y))
        return _resample(tile, x.astype(np.float32), y.astype(np.float32))

    def _waves(self, edge: int, rng: np.random.Generator) -> np.ndarray:
        """A smooth random field with a standard deviation of a third of `elastic_px` (Simard et al. 2003)."""
        noise = cv2.GaussianBlur(rng.standard_normal((edge, edge)), (0, 0), ELASTIC_SMOOTHING_PX)
        noise_scale = 2 * np.sqrt(np.pi) * ELASTIC_SMOOTHING_PX  # what smoothing has divided the deviation by
        return noise * noise_scale * self.config.elastic_px / 3

    def _fade(self, image: np.ndarray, instances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Nuclei that are pale, or pale inside and clumped (vesicular): half of them, each by a share of its own.

        Where a set has none, a net learns that a nucleus is dark throughout, and leaves the pale ones of other sets out.
        """
        ids, place = np.unique(instances, return_inverse=True)
        share = self.config.fade * np.maximum(0, rng.uniform(-1, 1, len(ids)))
        rim_px = np.where(rng.uniform(size=len(ids)) < 0.5, 0, rng.uniform(*RIM_PX, len(ids)))
        towards_white, ramp_px = 0.5 * rng.uniform(), rng.uniform(*RIM_PX)
        clumps = cv2.GaussianBlur(rng.standard_normal(instances.shape), (0, 0), CLUMP_PX)
        clumps = np.clip(0.75 + 0.25 * clumps / clumps.std(), 0, 1)

        outside = (instances == 0).astype(np.float32)
        nearby = cv2.GaussianBlur(outside, (0, 0), FADE_REACH_PX)[..., None]
        around = cv2.GaussianBlur(image * outside[..., None], (0, 0), FADE_REACH_PX) / np.maximum(nearby, 1e-3)
        around += towards_white * (image.max(axis=(0, 1)) - around)
        depth_px = cv2.distanceTransform((instances != 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        share, rim_px = (each[place.reshape(instances.shape)] for each in (share, rim_px))
        share = (share * clumps * np.clip((depth_px - rim_px) / ramp_px, 0, 1))[..., None] * (nearby > 0.02)
        return (image + share * (around - image)).round().clip(0, 255).astype(np.uint8)

    def _recolour(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Brightness, contrast, saturation and hue in this order, then sharpness, blur and noise."""
        config = self.config
        brightness, contrast, saturation = 1 + rng.uniform(-1, 1, 3) * (config.brightness, config.contrast, config.saturation)
        hue = config.hue * rng.uniform(-1, 1)
        is_blurred, sigma = rng.uniform() < config.blur_prob, rng.uniform(*BLUR_SIGMA_PX)
        image = np.ascontiguousarray(image)
        if config.brightness:
            image = cv2.addWeighted(image, brightness, image, 0, 0)  # all of these round, and end at 0 and 255
        if config.contrast:
            image = cv2.addWeighted(image, contrast, image, 0, (1 - contrast) * cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
        if config.saturation:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
        if config.hue:
            circle = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)  # hue in 256ths of the circle
            circle[..., 0] += np.uint8(round(256 * hue) % 256)
            image = cv2.cvtColor(circle, cv2.COLOR_HSV2RGB_FULL)
        if config.sharpness:
            image = _sharpen(image, max(0.0, 1 + config.sharpness * rng.uniform(-1, 1)), rng.uniform(*DETAIL_SIGMA_PX))
        if is_blurred:
            image = cv2.GaussianBlur(image, (BLUR_SIZE_PX, BLUR_SIZE_PX), sigma)
        if config.noise:
            noise = rng.standard_normal(image.shape, np.float32) * (255 * config.noise)
            image = (image + noise).round().clip(0, 255).astype(np.uint8)
        return image


def _sharpen(image: np.ndarray, amount: float, sigma_px: float) -> np.ndarray:
    """What is finer than that, times `amount`: 0 blurs, 1 leaves the image as it is, more is an unsharp mask."""
    return cv2.addWeighted(image, amount, cv2.GaussianBlur(image, (0, 0), sigma_px), 1 - amount, 0)


def fit_tile(decoded: Decoded, *, tile_px: int, fit: str) -> Decoded:
    """A tile without chance.

    Args:
        decoded: The sample.
        tile_px: Edge of the tile.
        fit: "resize": the whole image, stretched to the square; "crop": its middle, mirrored at the edges where it is smaller.
    """
    if fit == "resize":
        return resize(decoded, tile_px, tile_px)
    height, width = decoded.image.shape[:2]
    return _map(window(decoded, (height - tile_px) // 2, (width - tile_px) // 2, tile_px, tile_px), np.ascontiguousarray)


def resize(decoded: Decoded, height_px: int, width_px: int) -> Decoded:
    """All arrays at another size: images by area where they shrink, linearly where they grow, labels by the nearest pixel."""
    height, width = decoded.image.shape[:2]
    if (height, width) == (height_px, width_px):
        return _map(decoded, np.ascontiguousarray)
    shrinks = height_px <= height and width_px <= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    image = cv2.resize(np.ascontiguousarray(decoded.image), (width_px, height_px), interpolation=how)
    return _with_labels(decoded, image, lambda labels: resize_labels(labels, height_px, width_px))


def resize_labels(labels: np.ndarray, height_px: int, width_px: int) -> np.ndarray:
    """`[H, W]` at another size, by the nearest pixel."""
    if labels.shape == (height_px, width_px):
        return labels
    rows, columns = (_centres(old, new) for old, new in zip(labels.shape, (height_px, width_px), strict=True))
    return labels[rows[:, None], columns]


def window(decoded: Decoded, top: int, left: int, height_px: int, width_px: int) -> Decoded:
    """A rectangle of a sample; beyond the image it is mirrored. See `JointAugment` on mirrored instances."""
    height, width = decoded.image.shape[:2]
    if 0 <= top <= height - height_px and 0 <= left <= width - width_px:
        return _map(decoded, lambda array: array[top : top + height_px, left : left + width_px])
    y, x = np.arange(top, top + height_px)[:, None], np.arange(left, left + width_px)
    rows, columns = _mirrored(y, height), _mirrored(x, width)
    seen = _with_labels(decoded, decoded.image[rows, columns], lambda labels: labels[rows, columns])
    return _separate_mirrored(seen, (rows == y) & (columns == x))


def _resample(tile: Decoded, x: np.ndarray, y: np.ndarray) -> Decoded:
    """What lies at other places: float32 `[H, W]`, in pixels; beyond the tile it is mirrored."""
    image = cv2.remap(np.ascontiguousarray(tile.image), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    nearest_x, nearest_y = (np.rint(place).astype(np.int64) for place in (x, y))
    height, width = tile.image.shape[:2]
    rows, columns = _mirrored(nearest_y, height), _mirrored(nearest_x, width)
    seen = _with_labels(tile, image, lambda labels: labels[rows, columns])
    return _separate_mirrored(seen, (rows == nearest_y) & (columns == nearest_x))


def _separate_mirrored(seen: Decoded, is_inside: np.ndarray) -> Decoded:
    """Give pieces of instances that lie in the mirror alone ids of their own: two nuclei of one id would have one centre."""
    if seen.instances is None or is_inside.all():
        return seen
    pieces = connected_pieces(seen.instances, background=0, connectivity=2)
    keeps_id = np.zeros(pieces.max() + 1, bool)
    keeps_id[pieces[is_inside]] = keeps_id[0] = True
    instances = np.where(keeps_id[pieces], seen.instances, seen.instances.max() + pieces)
    return Decoded(image=seen.image, mask=seen.mask, instances=instances.astype(np.int32), types=seen.types)


def _mirrored(index: np.ndarray, size: int) -> np.ndarray:
    """Where an index beyond `0 … size - 1` falls in an image that is mirrored at its edges (the edge pixel is repeated)."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def _centres(old: int, new: int) -> np.ndarray:
    """The old pixel at the centre of each new one."""
    return ((np.arange(new) + 0.5) * old / new).astype(np.int64)


def _map(decoded: Decoded, change: Callable[[np.ndarray], np.ndarray]) -> Decoded:
    return _with_labels(decoded, change(decoded.image), change)


def _with_labels(decoded: Decoded, image: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> Decoded:
    """That image with the sample's labels, changed."""
    arrays = {name: getattr(decoded, name) for name in LABELS}
    return Decoded(image=image, **{name: None if array is None else change(array) for name, array in arrays.items()})
