"""The weight-free teacher: colour deconvolution, a threshold, and a watershed. Needs nothing, and so is the default.

1. Haematoxylin by colour deconvolution of the optical density (Ruifrok & Johnston, Anal Quant Cytol Histol 23 (2001), their
   H, E and DAB vectors), smoothed. What has less of it than the tile's brightest pixels counts as these do: else grey glass
   beside eosin, which lowers the estimate, would look like haematoxylin.
2. One threshold per tile: about Otsu's, but never closer than `min_contrast` to the mean of what lies below it, nor under the
   absolute `min_haematoxylin`. Otsu alone splits any tile in two and so finds nuclei where there are none; an absolute
   threshold alone fails from one slide to the next.
3. Objects of a nucleus' size that stand out against what surrounds them; touching ones are split at their necks.
4. `np`: a sigmoid of the haematoxylin over the threshold, brought into agreement with the objects: at 0.5 it is their mask.
   `hv`: HoVer-Net's horizontal and vertical maps of the objects.

Lengths are in micrometres, and everything is symmetric: the answer to a flipped tile is the flipped answer, to the last bit on
420 of 420 transformed CoNSeP tiles (sums run over integers where rounding could depend on the direction; a pixel midway
between two touching nuclei may still go either way).

It is a colour rule, not a pathologist: it takes ink, pigment, folds and dense haematoxylin without a nucleus (mucin, calcium)
for nuclei, misses pale vesicular ones, and leaves crowded ones together. Nucleus Dice, pooled over the pixels of each set:
CoNSeP test 0.69 (0.25 um/px; precision 0.67, recall 0.70), NuInsSeg 0.70 (0.2), DSB 2018 0.82 (0.3). Its settings were chosen
on CoNSeP train and parts of the other two. 70 to 90 tiles of 256 px per second and core.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from csat.errors import ConfigError, TeacherError
from csat.instances import hv_targets, split_touching
from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from teachers.contract import Teacher, select_responses, sha256_of_settings

ALGORITHM_VERSION = 1  # raise it whenever the same options start to give other responses
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # optical density (R, G, B) of H, E, DAB
SCALE = 2.0**14  # haematoxylin is held in 16-bit steps of 1 / SCALE above LOWEST: sums over it are exact in any order
LOWEST = -1.0
DARKEST = 10  # darker values count as this one: below it, sensor noise is a large change of optical density
BRIGHTEST = 0.05  # part of a tile's pixels that is taken for glass, or for its palest tissue
NUM_BINS = 256  # of the histogram under Otsu's threshold
RESPONSES = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, channel_names=("nucleus",)),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV, channel_names=("horizontal", "vertical")),
)


@dataclass(frozen=True, kw_only=True)
class StainOptions:
    """Settings of the stain teacher. Haematoxylin is in units of its stain vector: a dark nucleus has about 0.5."""

    mpp: float = 0.5  # resolution of the tiles that it is shown, um/px: set it to data.mpp
    smoothing_um: float = 0.4  # standard deviation of the smoothing of the haematoxylin, um
    min_haematoxylin: float = 0.1  # no nucleus below this
    min_contrast: float = 0.04  # of the threshold over the mean of what lies below it
    min_object_contrast: float = 0.04  # of a nucleus over its surroundings
    surroundings_um: float = 6.0  # how far these reach, um
    level: float = 0.45  # of the threshold between the means of Otsu's two classes; 0.5 is Otsu's own, about
    softness: float = 0.04  # haematoxylin over which the probability goes from 0.5 to 0.73
    min_diameter_um: float = 3.0  # smaller objects are dropped, um
    max_hole_um: float = 3.0  # diameter of holes that are filled (pale chromatin), um
    opening_um: float = 0.5  # radius of the opening that cuts fibres and bridges, um
    neck: float = 0.85  # touching nuclei are split where the neck is narrower than this part of the smaller one

    def __post_init__(self):
        for name in ("mpp", "smoothing_um", "surroundings_um", "softness", "min_diameter_um"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"stain teacher: {name} must be above 0 and is {getattr(self, name)}")
        for name in ("max_hole_um", "opening_um"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"stain teacher: {name} must not be negative and is {getattr(self, name)}")
        for name in ("neck", "level"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"stain teacher: {name} must lie between 0 and 1 and is {getattr(self, name)}")


def load(
    options: StainOptions, *, weights: str | None = None, device: str = "cpu", wanted: Sequence[str] | None = None
) -> "StainTeacher":
    """The teacher of these options. It runs on the CPU whatever the device.

    Raises:
        TeacherError: weights were given, or a response is wanted that it does not have.
    """
    if weights:
        raise TeacherError(
            f"the stain teacher has no weights and was given {weights}: drop teacher.weights, or choose another"
        )
    return StainTeacher(options, wanted)


class StainTeacher(Teacher):
    """See the module's docstring."""

    def __init__(self, options: StainOptions, wanted: Sequence[str] | None = None):
        self.options = options
        self.spec = TeacherSpec(
            name="stain",
            responses=select_responses(RESPONSES, wanted, teacher="stain"),
            mpp=options.mpp,
            weights_sha256=sha256_of_settings(options, version=ALGORITHM_VERSION),
            licence="Apache-2.0",
            source=f"colour deconvolution and watershed, version {ALGORITHM_VERSION}",
        )
        self._density = _density_table()

    def respond(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        """See `Teacher.respond`. np `[B, 1, H, W]` in [0, 1], hv `[B, 2, H, W]` in [-1, 1]."""
        names = [spec.name for spec in self.spec.responses]
        answers = [self._respond_to_tile(np.ascontiguousarray(tile), names) for tile in tiles]
        return {name: np.stack([answer[name] for answer in answers]) for name in names}

    def instances(self, tile: np.ndarray) -> np.ndarray:
        """The nuclei of a tile. uint8 `[H, W, 3]` → int32 `[H, W]`, 0 background, nuclei 1 … N."""
        stain = self._haematoxylin(np.ascontiguousarray(tile))
        return self._find_nuclei(stain, self._threshold(stain))

    def _respond_to_tile(self, tile: np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
        stain = self._haematoxylin(tile)
        threshold = self._threshold(stain)
        nuclei = self._find_nuclei(stain, threshold)
        answer = {}
        if "np" in names:
            answer["np"] = self._probability(stain, threshold, nuclei > 0)[None].astype(np.float16)
        if "hv" in names:
            answer["hv"] = hv_targets(nuclei).astype(np.float16)
        return answer

    def _haematoxylin(self, tile: np.ndarray) -> np.ndarray:
        """uint8 `[H, W, 3]` → uint16 `[H, W]`: (haematoxylin - LOWEST) * SCALE, smoothed in exact integer arithmetic."""
        stain = cv2.transform(cv2.LUT(tile, self._density), np.ones((1, 3), np.float32))
        steps = np.clip((stain - LOWEST) * SCALE, 0, 65535).astype(np.uint16)
        steps = np.maximum(steps, int(steps[_brightest(tile)].mean()))
        return cv2.GaussianBlur(steps, (0, 0), self.options.smoothing_um / self.options.mpp)

    def _threshold(self, stain: np.ndarray) -> float:
        """The tile's threshold in steps of `stain`; see the module's docstring, 2."""
        options, width = self.options, 65536 // NUM_BINS
        counts = np.bincount((stain.ravel() // width).astype(np.int64), minlength=NUM_BINS)
        below, above = (width * (mean + 0.5) for mean in _otsu_means(counts))
        floor = (options.min_haematoxylin - LOWEST) * SCALE
        return max(floor, below + options.min_contrast * SCALE, below + options.level * (above - below))

    def _find_nuclei(self, stain: np.ndarray, threshold: float) -> np.ndarray:
        """int32 `[H, W]`; see the module's docstring, 3."""
        mpp, options = self.options.mpp, self.options
        mask = (stain > threshold).astype(np.uint8)
        mask = _without_small(mask, _disk_px(options.min_diameter_um, mpp), connectivity=8)
        mask = 1 - _without_small(1 - mask, _disk_px(options.max_hole_um, mpp), connectivity=4)
        radius_px = round(options.opening_um / mpp)
        if radius_px:
            mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, _disk(radius_px))
        nuclei = split_touching(mask > 0, smoothing_px=options.smoothing_um / mpp, neck=options.neck)
        return self._without_faint(nuclei, stain)

    def _without_faint(self, nuclei: np.ndarray, stain: np.ndarray) -> np.ndarray:
        """Drop objects that are too small or hardly darker than the background around them."""
        options = self.options
        count = np.bincount(nuclei.ravel())
        if len(count) == 1:
            return nuclei
        size_px = 2 * round(options.surroundings_um / options.mpp) + 1
        outside = (nuclei == 0).astype(np.float64)
        weight = cv2.blur(outside, (size_px, size_px))
        around = cv2.blur(outside * stain, (size_px, size_px)) / np.maximum(weight, 1e-3)
        contrast = np.bincount(nuclei.ravel(), weights=(stain - around).ravel()) / np.maximum(count, 1)
        keep = (contrast > options.min_object_contrast * SCALE) & (count >= _disk_px(options.min_diameter_um, options.mpp))
        keep[0] = False
        return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[nuclei]

    def _probability(self, stain: np.ndarray, threshold: float, mask: np.ndarray) -> np.ndarray:
        """float32 `[H, W]`: above 0.5 exactly where `mask` is."""
        logit = (stain.astype(np.float32) - np.float32(threshold)) / np.float32(self.options.softness * SCALE)
        probability = 1 / (1 + np.exp(-logit))
        return np.where(mask, np.maximum(probability, 0.51), np.minimum(probability, 0.49))


def _density_table() -> np.ndarray:
    """float32 `[1, 256, 3]`: what a value of R, G or B contributes to the haematoxylin."""
    to_stains = np.linalg.inv(np.array(STAINS))
    density = -np.log10((np.maximum(np.arange(256), DARKEST) + 1) / 256)
    return (density[:, None] * to_stains[:, 0])[None].astype(np.float32)


def _brightest(tile: np.ndarray) -> np.ndarray:
    """bool `[H, W]`: the brightest `BRIGHTEST` of the pixels, and those as bright."""
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
    brighter = np.cumsum(np.bincount(grey.ravel(), minlength=256)[::-1])
    return grey >= 255 - int(np.searchsorted(brighter, BRIGHTEST * grey.size))


def _otsu_means(counts: np.ndarray) -> tuple[float, float]:
    """Mean bins of the two classes into which Otsu's threshold splits a histogram. Equal where there is only one value."""
    bins = np.arange(len(counts))
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * bins)
    mean_below = sum_below / np.maximum(below, 1)
    mean_above = (sum_below[-1] - sum_below) / np.maximum(above, 1)
    between = below * (above * (mean_above - mean_below) ** 2)
    split = int(np.argmax(between))
    if between[split] == 0:
        return float(mean_below[-1]), float(mean_below[-1])
    return float(mean_below[split]), float(mean_above[split])


def _without_small(mask: np.ndarray, min_area_px: int, *, connectivity: int) -> np.ndarray:
    """uint8 0/1 mask without its components of fewer than `min_area_px` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=connectivity)
    large = (stats[:, cv2.CC_STAT_AREA] >= min_area_px).astype(np.uint8)
    large[0] = 0
    return large[labels]


def _disk_px(diameter_um: float, mpp: float) -> int:
    """Pixels in a disk of that diameter."""
    return round(np.pi / 4 * (diameter_um / mpp) ** 2)


def _disk(radius_px: int) -> np.ndarray:
    """uint8 `[2r+1, 2r+1]`, symmetric (OpenCV's own ellipse is not, under transposition)."""
    offset = np.arange(-radius_px, radius_px + 1)
    return (offset[:, None] ** 2 + offset**2 <= radius_px**2 + radius_px).astype(np.uint8)
