"""Random changes of an image and its labels together, and the same without chance: how a labelled sample becomes a tile.

Rotation, deformation and colour are torchvision's (transforms.v2 on tv_tensors): one draw moves the image (bilinear) and its
masks (nearest). A sample's changes follow from its seed alone, never from global random state, so a resumed run sees what it
would have seen.
"""

from dataclasses import dataclass, fields

import cv2
import numpy as np
import torch

from csat.data.datasets.contract import IGNORE, Decoded
from csat.data.decoded import nearest
from csat.errors import ConfigError

LABELS = ("mask", "instances", "types")
OUTSIDE = {"mask": IGNORE, "instances": 0, "types": 0}  # labels where a rotation looks beyond the image
WHITE = 255


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """How far training samples may be changed. All zero: what evaluation sees."""

    scale: float = (
        0.25  # size of the part that becomes the tile: times up to 1 ± this (crop), or down to 1 - 2 x this (resize)
    )
    aspect: float = 0.1  # relative change of its width to height
    shift: bool = True  # the part lies anywhere in the image; false: in its middle
    rotate_degrees: float = 0.0  # any angle up to this, beside the multiples of 90
    flips_and_rotations: bool = True  # one of the eight symmetries of the square
    elastic_px: float = 0.0  # displacement of elastic deformation, tile pixels
    elastic_prob: float = 0.2  # share of samples that are deformed, where elastic_px is above 0
    brightness: float = 0.15  # relative change
    contrast: float = 0.15  # relative change
    saturation: float = 0.15  # relative change
    hue: float = 0.03  # turn of the colour circle, 0.5 is half
    blur_prob: float = 0.1  # share of samples that are blurred, sigma 0.1 to 1.5 px
    noise: float = 0.0  # standard deviation of added noise, share of the intensity range

    def __post_init__(self):
        bounds = {"hue": 0.5, "rotate_degrees": 180.0, "elastic_px": 64.0, "scale": 0.45}
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
        return cls(
            **{item.name: False if isinstance(item.default, bool) else 0.0 for item in fields(cls)},
        )


class JointAugment:
    """Makes training tiles. See `JointConfig`."""

    def __init__(self, config: JointConfig):
        from torchvision.transforms import v2  # slow to import, and what decodes samples needs none of it

        self.config = config
        self._colour = _colour(config)
        self._elastic = v2.ElasticTransform(alpha=config.elastic_px * 10, sigma=5.0) if config.elastic_px else None
        self._blur = v2.GaussianBlur(kernel_size=7, sigma=(0.1, 1.5)) if config.blur_prob else None

    def __call__(self, decoded: Decoded, *, tile_px: int, fit: str, seed: int) -> Decoded:
        """One tile.

        Args:
            decoded: The sample.
            tile_px: Edge of the tile.
            fit: "resize": a large part of the image becomes the tile; "crop": a window of about the tile's size.
            seed: All that is random follows from it.

        Returns:
            The tile, all arrays `[tile_px, tile_px]`. An instance that is cut keeps its id on what is left of it.
        """
        rng = np.random.default_rng(seed)
        part = _map(decoded, lambda array: array[self._window(decoded.image.shape, tile_px, fit, rng)])
        tile = fit_tile(part, tile_px=tile_px, fit="resize")
        if self.config.flips_and_rotations:
            turns, mirrors = int(rng.integers(4)), bool(rng.integers(2))
            tile = _map(tile, lambda array: np.rot90(array[:, ::-1] if mirrors else array, turns))
        return self._change(tile, rng)

    def _window(self, shape: tuple[int, ...], tile_px: int, fit: str, rng: np.random.Generator) -> tuple[slice, slice]:
        height, width = shape[:2]
        scale, aspect = self.config.scale, self.config.aspect
        stretch = np.sqrt(1 + aspect * rng.uniform(-1, 1))
        if fit == "resize":
            size = 1 - 2 * scale * rng.uniform()
            wanted = height * size * stretch, width * size / stretch
        else:
            size = tile_px * np.exp(rng.uniform(-1, 1) * np.log1p(scale))
            wanted = size * stretch, size / stretch
        rows, columns = (int(np.clip(round(edge), 1, most)) for edge, most in zip(wanted, (height, width), strict=True))
        free = height - rows, width - columns
        top, left = (int(rng.integers(room + 1)) if self.config.shift else room // 2 for room in free)
        return slice(top, top + rows), slice(left, left + columns)

    def _change(self, tile: Decoded, rng: np.random.Generator) -> Decoded:
        """What torchvision does, under a random state of its own."""
        config = self.config
        angle = rng.uniform(-1, 1) * config.rotate_degrees
        is_deformed = self._elastic is not None and rng.uniform() < config.elastic_prob
        is_blurred = self._blur is not None and rng.uniform() < config.blur_prob
        if not (angle or is_deformed or is_blurred or self._colour or config.noise):
            return _map(tile, np.ascontiguousarray)
        from torchvision import tv_tensors

        image = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(tile.image)).permute(2, 0, 1))
        names = [name for name in LABELS if getattr(tile, name) is not None]
        masks = [
            tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(getattr(tile, name)).astype(np.int32))) for name in names
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            if angle:
                image, masks = _rotate(image, masks, names, angle)
            if is_deformed:
                image, *masks = self._elastic(image, *masks)
            if self._colour:
                image = self._colour(image)
            if is_blurred:
                image = self._blur(image)
            if config.noise:
                noise = torch.randn(image.shape) * (255 * config.noise)
                image = (image.float() + noise).round().clamp(0, 255).to(torch.uint8)
        labels = {name: mask.numpy().astype(getattr(tile, name).dtype) for name, mask in zip(names, masks, strict=True)}
        return Decoded(image=image.permute(1, 2, 0).contiguous().numpy(), **labels)


def fit_tile(decoded: Decoded, *, tile_px: int, fit: str) -> Decoded:
    """A tile without chance.

    Args:
        decoded: The sample.
        tile_px: Edge of the tile.
        fit: "resize": the whole image, stretched to the square; "crop": its middle, mirrored at the edges where it is smaller.
    """
    height, width = decoded.image.shape[:2]
    if fit == "resize":
        if (height, width) == (tile_px, tile_px):
            return _map(decoded, np.ascontiguousarray)
        shrinks = min(height, width) > tile_px
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        image = cv2.resize(np.ascontiguousarray(decoded.image), (tile_px, tile_px), interpolation=how)
        labels = {name: getattr(decoded, name) for name in LABELS}
        return Decoded(
            image=image,
            **{name: None if array is None else nearest(array, tile_px, tile_px) for name, array in labels.items()},
        )
    top, left = (max(0, (edge - tile_px) // 2) for edge in (height, width))
    middle = _map(decoded, lambda array: array[top : top + tile_px, left : left + tile_px])
    below, beside = (max(0, tile_px - edge) for edge in (height, width))
    if not (below or beside):
        return _map(middle, np.ascontiguousarray)
    padding = ((below // 2, below - below // 2), (beside // 2, beside - beside // 2))
    return _map(middle, lambda array: np.pad(array, (*padding, (0, 0))[: array.ndim], mode="symmetric"))


def _map(decoded: Decoded, change) -> Decoded:
    arrays = {name: getattr(decoded, name) for name in ("image", *LABELS)}
    return Decoded(**{name: None if array is None else change(array) for name, array in arrays.items()})


def _colour(config: JointConfig) -> torch.nn.Module | None:
    from torchvision.transforms import v2

    amounts = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation", "hue")}
    return v2.ColorJitter(**amounts) if any(amounts.values()) else None


def _rotate(image, masks, names, angle: float):
    """About the middle; beyond the image it is mirrored, and so are the labels: no white corners to learn from."""
    from torchvision.transforms import v2

    edge = image.shape[-1]
    margin = int(np.ceil(edge * (np.sqrt(2) - 1) / 2)) + 1
    pad = v2.Pad(min(margin, edge - 1), padding_mode="reflect")
    turn = {"angle": angle, "expand": False}
    crop = v2.CenterCrop(edge)
    image = crop(v2.functional.rotate(pad(image), interpolation=v2.InterpolationMode.BILINEAR, fill=WHITE, **turn))
    masks = [
        crop(v2.functional.rotate(pad(mask), fill=OUTSIDE[name], **turn)) for name, mask in zip(names, masks, strict=True)
    ]
    return image, masks
