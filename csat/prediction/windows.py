"""A model over whole images: the windows through which it sees them, and its answers put together again.

With `fit` "resize" the model sees the image once, stretched to its tile. With "crop" it sees windows at the image's own
resolution: of each window only the inner area is used, and windows are placed so that the inner areas cover the image (the
overlap-tile strategy of Ronneberger et al. 2015, section 2); beyond the image's edge the window sees the mirror image. What
has no place in the image, such as a class, is the mean over its windows.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from csat.errors import ConfigError
from csat.labels.augment import fit_tile
from csat.labels.datasets.contract import Decoded
from csat.prediction.answers import Answers
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.views.symmetries import apply_d4, apply_d4_tiles, invert_d4

MARGIN_SHARE = 1 / 8  # of a window's edge, on each side, that is seen and not used

Maps = dict[str, np.ndarray]  # name → float32 [C, H, W] over the image, or [C]
Key = TypeVar("Key")
Window = tuple[int, int]  # row and column of its first pixel; negative where it begins before the image


@dataclass(frozen=True, kw_only=True)
class View:
    """How a model sees images."""

    fit: str = "resize"  # resize or crop, as `LabelledConfig` has it
    mpp: float | None = None  # crop: um/px that images are brought to before it sees them; None: as they are
    views: int = 1  # symmetries of the square that predictions are averaged over: 1 or 8
    batch_size: int = 32  # tiles at once


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a model said of one whole image.

    Attributes:
        maps: Activated predictions on the pixels of the image as it was shown.
        shown: Height and width of that.
    """

    maps: Maps
    shown: tuple[int, int]


def see(answers: Answers, images: Iterable[tuple[Key, np.ndarray]], view: View) -> Iterator[tuple[Key, Seen]]:
    """What a model says of whole images, in their order. Windows of several images share a batch.

    Args:
        answers: The model.
        images: Whatever tells them apart, and uint8 `[H, W, 3]`. They are asked for when the model is ready for them.
        view: How it sees them.

    Raises:
        ConfigError: several views are asked of answers that nobody knows how to turn.
    """
    specs = maps_of(answers)
    _check_views(specs, view, answers)
    waiting: list[tuple[Key, _Image]] = []
    queue: list[tuple[_Image, Window]] = []
    for key, pixels in images:
        image = _Image(pixels, specs, answers.tile_px, view.fit)
        waiting.append((key, image))
        queue += [(image, window) for window in image.windows]
        while len(queue) >= view.batch_size:
            _show(answers, queue[: view.batch_size], view)
            del queue[: view.batch_size]
            while waiting and waiting[0][1].is_done:
                done, image = waiting.pop(0)
                yield done, image.result()
    if queue:
        _show(answers, queue, view)
    for key, image in waiting:
        yield key, image.result()


def maps_of(answers: Answers) -> list[ResponseSpec]:
    """What a model says of an image: all but embeddings, whose mean over windows is none."""
    return [spec for spec in answers.specs if spec.kind != Kind.FEATURES]


def answer(answers: Answers, tiles: np.ndarray, view: View) -> Maps:
    """What a model says of a batch of tiles, the mean over the view's symmetries.

    Args:
        tiles: uint8 `[B, tile_px, tile_px, 3]`.

    Returns:
        name → float32 `[B, C, n, n]` over the tile less the response's crop, or `[B, C]`.
    """
    said: Maps = {}
    for index in range(view.views):
        turn = np.full(len(tiles), index, np.uint8)
        back = torch.full((len(tiles),), invert_d4(index), dtype=torch.uint8)
        values = answers.answer(apply_d4_tiles(tiles, turn) if index else tiles)
        for spec in maps_of(answers):
            one = values[spec.name]
            if spec.is_dense and index:
                one = apply_d4(torch.from_numpy(one), back, spec.symmetry).numpy()
            said[spec.name] = said.get(spec.name, 0) + one / view.views
    return said


def margin_of(specs: Sequence[ResponseSpec], tile_px: int) -> int:
    """Pixels of a window, on each side, that are seen and not used: at least those that a response leaves out."""
    return max([spec.crop_px for spec in specs] + [int(tile_px * MARGIN_SHARE)])


def starts(size: int, *, tile_px: int, crop_px: int, margin_px: int) -> list[int]:
    """First pixels of the windows along one axis of an image; negative where a window begins before the image.

    Args:
        size: Pixels of the image along the axis.
        crop_px: Pixels of a window, on each side, of which the model says nothing.
        margin_px: See `margin_of`.
    """
    if size <= tile_px - 2 * crop_px:
        return [-((tile_px - size) // 2)]
    inner_px = tile_px - 2 * margin_px
    count = -(-size // inner_px)
    return np.linspace(-margin_px, size + margin_px - tile_px, count).round().astype(int).tolist()


class _Image:
    """One image, the windows through which it is seen, and what was said of them so far."""

    def __init__(self, pixels: np.ndarray, specs: Sequence[ResponseSpec], tile_px: int, fit: str):
        self.specs, self.tile_px = specs, tile_px
        self.margin_px, crop_px = margin_of(specs, tile_px), max(spec.crop_px for spec in specs)
        if fit == "resize":
            pixels = fit_tile(Decoded(image=pixels), tile_px=tile_px, fit="resize").image
        self.shown, (height, width) = pixels, pixels.shape[:2]
        tops, lefts = (starts(size, tile_px=tile_px, crop_px=crop_px, margin_px=self.margin_px) for size in (height, width))
        self.windows = [(top, left) for top in tops for left in lefts]
        self._left = len(self.windows)
        self._maps: Maps = {
            spec.name: np.zeros((spec.channels, *((height, width) if spec.is_dense else ())), np.float32) for spec in specs
        }

    @property
    def is_done(self) -> bool:
        return self._left == 0

    def tile(self, window: Window) -> np.ndarray:
        """uint8 `[tile_px, tile_px, 3]`; what lies beyond the image is its mirror image."""
        rows, columns = (
            _mirrored(start, self.tile_px, size) for start, size in zip(window, self.shown.shape[:2], strict=True)
        )
        return self.shown[rows[:, None], columns[None]]

    def add(self, window: Window, said: Maps) -> None:
        """Take one window's predictions: name → `[C, n, n]` over the tile less the response's crop, or `[C]`."""
        self._left -= 1
        for spec in self.specs:
            if not spec.is_dense:
                self._maps[spec.name] += said[spec.name] / len(self.windows)
                continue
            (top, above), (left, before) = (
                self._used(start, size, spec.crop_px) for start, size in zip(window, self.shown.shape[:2], strict=True)
            )
            values = said[spec.name][:, above[0] : above[1], before[0] : before[1]]
            self._maps[spec.name][:, top : top + values.shape[1], left : left + values.shape[2]] = values

    def _used(self, start: int, size: int, crop_px: int) -> tuple[int, tuple[int, int]]:
        """Along one axis: where in the image the window's inner area begins, and its range in the prediction."""
        inset = self.margin_px if size > self.tile_px - 2 * crop_px else crop_px
        first, last = max(0, start + inset), min(size, start + self.tile_px - inset)
        return first, (first - start - crop_px, last - start - crop_px)

    def result(self) -> Seen:
        assert self.is_done
        return Seen(maps=self._maps, shown=self.shown.shape[:2])


def _show(answers: Answers, queue: Sequence[tuple[_Image, Window]], view: View) -> None:
    """Show a batch of windows to the model and hand its answers to their images."""
    said = answer(answers, np.stack([image.tile(window) for image, window in queue]), view)
    for row, (image, window) in enumerate(queue):
        image.add(window, {name: values[row] for name, values in said.items()})


def _check_views(specs: Sequence[ResponseSpec], view: View, answers: Answers) -> None:
    if not specs:
        raise ConfigError(f"{answers.about.name} answers embeddings alone: there is no map and no class to be put together")
    unknown = [spec.name for spec in specs if spec.is_dense and spec.symmetry == Symmetry.NONE]
    if view.views > 1 and unknown:
        raise ConfigError(
            f"{answers.about.name} does not say how its {', '.join(unknown)} turn with the tile, so {view.views} views cannot "
            "be averaged: ask for 1"
        )


def _mirrored(start: int, length: int, size: int) -> np.ndarray:
    """int64 `[length]`: pixels of an axis from `start` on, mirrored at both ends as often as needed."""
    place = np.arange(start, start + length) % (2 * size)
    return np.where(place < size, place, 2 * size - 1 - place)
