"""Synthetic H&E slides with known nuclei: the demo, the tests and the evidence that a student learns nuclei.

A slide is painted in optical density space, as a stained section is: densities of haematoxylin and eosin are drawn, blurred
by the optics, and turned into light by Beer-Lambert (`I = I0 · exp(-(h·H + e·E))`, Ruifrok & Johnston 2001). The stain
vectors lie between Ruifrok & Johnston's and Macenko's (2009), with their own jitter and strength per slide, so a fixed
colour deconvolution is a decent teacher and not a perfect one.

What is painted: glands with pseudostratified epithelium (vesicular oval nuclei with a rim and nucleoli), wavy collagen with
spindle nuclei, lymphocytes (small, dark, also in aggregates), and eosin-only distractors: red cells and thick fibres. The
tissue is a ragged island on white glass. The truth is what was painted: one instance id per nucleus, at level 0.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import tifffile

from csat.errors import ConfigError

VERSION = 1  # part of the file name: a slide made by other rules is another file
LEVEL_FACTORS = (1, 4, 16)
MAX_NUCLEI = 65535  # instance ids are uint16
TRUTH_SUFFIX = ".nuclei.png"
MAP_MPP = 2.0  # resolution of the region maps (tissue, epithelium, lumen), um/px
TEXTURE_PX = 1024  # edge of the periodic textures
BLOCK_CELLS = 256  # edge of a painted block, in cells of the region maps
MARGIN_CELLS = 4  # painted and thrown away around a block, so that blur and interpolation know no borders

# Directions of the stains in (R, G, B) optical density; only their direction counts.
RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])


@dataclass(frozen=True)
class NucleusKind:
    """Size, shape and stain of one kind of nucleus. Ranges are uniform."""

    length_um: tuple[float, float]
    width_um: tuple[float, float]
    bend: float  # sideways shift of the ends, share of the length
    roughness: float  # amplitude of the contour's harmonics
    density: tuple[float, float]  # haematoxylin, natural-log optical density
    vesicular: float  # 0: flat and dark; 1: pale inside, with rim, clumps and nucleoli


EPITHELIAL = NucleusKind((8.5, 12.0), (6.0, 8.0), 0.02, 0.05, (0.95, 1.45), 1.0)
SPINDLE = NucleusKind((11.0, 18.0), (2.8, 4.4), 0.10, 0.04, (1.2, 1.8), 0.45)
LYMPHOCYTE = NucleusKind((5.6, 7.2), (5.2, 6.6), 0.0, 0.03, (1.7, 2.3), 0.2)
KINDS = (EPITHELIAL, SPINDLE, LYMPHOCYTE)


def make_slides(folder: str | Path, *, num_slides: int, size_px: int, mpp: float = 0.5, seed: int = 0) -> list[Path]:
    """Write `num_slides` pyramidal slides and their truth; those that are there already are left alone.

    Args:
        folder: Made when absent. Local.
        num_slides: How many; slide `i` is the same whatever this is.
        size_px: Edge of level 0.
        mpp: Resolution of level 0, um/px; everything is painted to that scale.
        seed: Of everything.

    Returns:
        The slides' paths (`.svs`: an Aperio-like tiled TIFF, JPEG, levels 1/4/16, mpp set); the truth of each lies beside it
        as `<stem>.nuclei.png`, uint16 `[size_px, size_px]`, 0 = no nucleus.

    Raises:
        ConfigError: a size or resolution out of range, or a slide of more nuclei than uint16 can name.
    """
    if num_slides < 1 or size_px < 256 or not 0.1 <= mpp <= 2.0:
        raise ConfigError(
            f"synthetic slides need num_slides >= 1, size_px >= 256 and 0.1 <= mpp <= 2, "
            f"not num_slides={num_slides}, size_px={size_px}, mpp={mpp}"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(num_slides):
        path = folder / f"demo_v{VERSION}_{size_px}px_{round(mpp * 1000)}nm_seed{seed}_{index:03d}.svs"
        paths.append(path)
        if path.exists() and truth_path(path).exists():
            continue
        image, labels = paint(size_px, mpp=mpp, seed=seed, index=index)
        _commit(truth_path(path), lambda temporary, labels=labels: _write_truth(temporary, labels))
        _commit(path, lambda temporary, image=image: _write_pyramid(temporary, image, mpp))  # last: a slide has its truth
    return paths


def truth_path(slide: str | Path) -> Path:
    """Where the truth of a synthetic slide lies."""
    slide = Path(slide)
    return slide.with_name(slide.stem + TRUTH_SUFFIX)


def read_truth(slide: str | Path, x_px: int, y_px: int, size_px: int) -> np.ndarray | None:
    """Instance ids of a square of level 0: uint16 `[size_px, size_px]`, 0 outside the slide; None where there is no truth."""
    path = truth_path(slide)
    if not path.exists():
        return None
    labels = _load_truth(str(path), path.stat().st_mtime_ns)
    window = np.zeros((size_px, size_px), dtype=np.uint16)
    top, left = max(y_px, 0), max(x_px, 0)
    found = labels[top : max(y_px + size_px, 0), left : max(x_px + size_px, 0)]
    window[top - y_px : top - y_px + found.shape[0], left - x_px : left - x_px + found.shape[1]] = found
    return window


def paint(size_px: int, *, mpp: float = 0.5, seed: int = 0, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """One slide in memory: image uint8 `[size_px, size_px, 3]` RGB and instance ids uint16 `[size_px, size_px]`."""
    scene = _Scene(size_px, mpp, np.random.default_rng((VERSION, seed, index)))
    image = np.empty((size_px, size_px, 3), dtype=np.uint8)
    block_px = BLOCK_CELLS * scene.cell_px
    for top in range(0, size_px, block_px):
        for left in range(0, size_px, block_px):
            height, width = min(block_px, size_px - top), min(block_px, size_px - left)
            image[top : top + height, left : left + width] = _paint_block(scene, left, top)[:height, :width]
    m = scene.margin_px
    return image, np.ascontiguousarray(scene.labels[m : m + size_px, m : m + size_px])


class _Scene:
    """Where everything lies on one slide. Arrays carry a margin all around, so that blocks can be cut without care.

    Attributes:
        tissue, epithelium, lumen: uint8 maps of `cell_px` level-0 pixels a cell.
        wave: float32 map, um: how far the fibres are pushed sideways.
        labels: uint16 level-0 instance ids. red_cells: uint8 level-0 density.
        density, vesicular: float32 per instance id.
    """

    def __init__(self, size_px: int, mpp: float, rng: np.random.Generator):
        self.mpp, self.cell_px = mpp, max(1, round(MAP_MPP / mpp))
        self.cell_um = self.cell_px * mpp
        self.margin_px = MARGIN_CELLS * self.cell_px
        cells = -(-size_px // (BLOCK_CELLS * self.cell_px)) * BLOCK_CELLS + 2 * MARGIN_CELLS
        self.inner_cells = size_px / self.cell_px  # of the slide itself
        self.angle = rng.uniform(0, np.pi)
        self.offset_px = rng.integers(0, TEXTURE_PX, 2)
        t = rng.uniform(0, 1)
        stains = (1 - t) * RUIFROK + t * MACENKO + rng.normal(0, 0.02, (2, 3))
        strength = np.array([[rng.uniform(0.85, 1.2)], [rng.uniform(0.75, 1.2)]])
        self.stains = (strength * stains / np.linalg.norm(stains, axis=1, keepdims=True) * np.sqrt(3)).astype(np.float32)
        self.glass = rng.uniform(238, 247) + rng.uniform(-2, 2, 3)
        self.blur_um = rng.uniform(0.25, 0.5)
        self.tissue = self._island(cells, rng)
        self.epithelium = np.zeros_like(self.tissue)
        self.lumen = np.zeros_like(self.tissue)
        side_px = cells * self.cell_px
        self.labels = np.zeros((side_px, side_px), dtype=np.uint16)
        self.red_cells = np.zeros((side_px, side_px), dtype=np.uint8)
        seeds = self._glands(rng)  # draws the gland maps, which the fibres then flow around
        around = cv2.GaussianBlur(self.epithelium, (0, 0), 30 / self.cell_um).astype(np.float32) / 255
        self.wave = 25.0 * _smooth_noise(cells, 120 / self.cell_um, rng) + 90.0 * around
        seeds = np.concatenate([seeds, self._stroma(rng)])
        self._red_cells(rng)
        self._nuclei(seeds[rng.permutation(len(seeds))], rng)

    def _island(self, cells: int, rng: np.random.Generator) -> np.ndarray:
        """A ragged tissue island that leaves glass all around, and a few holes."""
        axis = (np.arange(cells, dtype=np.float32) - MARGIN_CELLS) / self.inner_cells * 2 - 1  # -1 … 1 over the slide
        radius = (np.abs(axis[None, :]) ** 3 + np.abs(axis[:, None]) ** 3) ** (1 / 3)
        edge = _smooth_noise(cells, self.inner_cells / 14, rng) * 0.07 + _smooth_noise(cells, 6, rng) * 0.012
        holes = _smooth_noise(cells, self.inner_cells / 18, rng) > 2.5
        return ((radius + edge < 0.84) & ~holes & (radius < 0.95)).astype(np.uint8) * 255

    def _glands(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the glands; returns seeds of their nuclei `[n, 4]`: x, y (level-0 px, margin included), direction, kind."""
        centres = self._points(rng, per_mm2=160, inside=self.tissue)
        taken = 255 - self.tissue
        seeds = [np.empty((0, 4))]
        for x, y in centres:
            radius_um = rng.uniform(28, 70)
            reach = int((radius_um * 1.25 + 10) / self.cell_um)
            cx, cy = int(x / self.cell_px), int(y / self.cell_px)
            if taken[max(cy - reach, 0) : cy + reach : 3, max(cx - reach, 0) : cx + reach : 3].any():
                continue
            cv2.circle(taken, (cx, cy), reach, 255, -1)
            theta = np.linspace(0, 2 * np.pi, 96, endpoint=False)
            shape = 1 + sum(rng.normal(0, 0.09) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
            outer_um = radius_um * np.clip(shape, 0.75, 1.25)
            is_solid = rng.uniform() < 0.25
            height_um = rng.uniform(18, 26)  # of the epithelium
            self._fill(self.epithelium, x, y, theta, outer_um)
            if not is_solid:
                self._fill(self.lumen, x, y, theta, np.maximum(outer_um - height_um, 0.15 * radius_um))
            seeds.append(self._gland_seeds(x, y, theta, outer_um, is_solid, rng))
        return np.concatenate(seeds)

    def _gland_seeds(self, x, y, theta, outer_um, is_solid, rng) -> np.ndarray:
        seeds = []
        # Rings from the basal membrane inwards: one and a half layers in a gland, all the way in a solid nest.
        depths_um = np.arange(6.0, outer_um.min() - 4, 9.0) if is_solid else np.array([6.5, 13.0])
        for layer, depth_um in enumerate(depths_um):
            ring_um = outer_um - depth_um
            count = int(2 * np.pi * ring_um.mean() / 7.6)
            at = np.sort((np.arange(count) + rng.normal(0, 0.16, count)) * 2 * np.pi / max(count, 1))
            at = at[rng.uniform(size=count) < (0.45 if layer and not is_solid else 0.93)]
            r = (np.interp(at, theta, ring_um, period=2 * np.pi) + rng.normal(0, 1.3, len(at))) / self.mpp
            direction = rng.uniform(0, np.pi, len(at)) if is_solid else at + rng.normal(0, 0.25, len(at))
            seeds.append(np.stack([x + r * np.cos(at), y + r * np.sin(at), direction, np.zeros(len(at))], axis=1))
        return np.concatenate(seeds) if seeds else np.empty((0, 4))

    def _stroma(self, rng: np.random.Generator) -> np.ndarray:
        """Seeds of spindle cells along the fibres, and of lymphocytes: scattered, and in aggregates."""
        stroma = self.tissue & ~self.epithelium
        crowd = (_smooth_noise(len(stroma), 45 / self.cell_um, rng) > 1.6).astype(np.uint8) * 255 & stroma
        spindle = self._points(rng, per_mm2=1100, inside=stroma)
        cells = np.concatenate(
            [self._points(rng, per_mm2=260, inside=stroma), self._points(rng, per_mm2=9000, inside=crowd)]
        )
        slope_x, slope_y = np.gradient(self.wave, self.cell_um, axis=(1, 0))
        at = tuple((spindle[:, ::-1] / self.cell_px).astype(int).T)
        # A fibre is a line of constant v = -x·sin + y·cos + wave: it runs across v's gradient.
        grad_x, grad_y = slope_x[at] - np.sin(self.angle), slope_y[at] + np.cos(self.angle)
        direction = np.arctan2(-grad_x, grad_y) + rng.normal(0, 0.18, len(spindle))
        round_ = np.column_stack([cells, rng.uniform(0, np.pi, len(cells)), np.full(len(cells), 2)])
        return np.concatenate([np.column_stack([spindle, direction, np.ones(len(spindle))]), round_])

    def _red_cells(self, rng: np.random.Generator) -> None:
        """Eosin-only discs of 6-7 um, in small pools."""
        for x, y in self._points(rng, per_mm2=9, inside=self.tissue & ~self.epithelium):
            spread_px = rng.uniform(8, 25) / self.mpp
            for dx, dy in rng.normal(0, spread_px, (rng.integers(6, 45), 2)):
                radius_px = rng.uniform(2.9, 3.6) / self.mpp
                at = (int((x + dx) * 16), int((y + dy) * 16))
                cv2.circle(self.red_cells, at, int(radius_px * 16), int(rng.integers(150, 230)), -1, shift=4)
                cv2.circle(self.red_cells, at, int(radius_px * 6), int(rng.integers(110, 150)), -1, shift=4)

    def _nuclei(self, seeds: np.ndarray, rng: np.random.Generator) -> None:
        """Draw the nuclei one after the other; a nucleus mostly on top of another is left out, touching ones stay."""
        contours = _contours(seeds, self.mpp, rng)
        limit = self.labels.shape[0] - 1
        kinds = []
        for contour, (x, y, _, kind) in zip(contours, seeds, strict=True):
            probe = np.clip(contour.astype(np.intp), 0, limit)
            covered = self.labels[probe[:, 1], probe[:, 0]] > 0
            if covered.mean() > 0.2 or self.labels[int(y), int(x)] or not self.tissue[tuple(probe[0, ::-1] // self.cell_px)]:
                continue
            kinds.append(int(kind))
            if len(kinds) > MAX_NUCLEI:
                raise ConfigError(
                    f"a slide of {limit + 1} px at {self.mpp} um/px has more than {MAX_NUCLEI} nuclei, which the truth's "
                    "uint16 cannot name: make more, smaller slides"
                )
            cv2.fillPoly(self.labels, [np.round(contour * 16).astype(np.int32)], len(kinds), shift=4)
        kinds = np.array(kinds, dtype=np.intp)
        low, high = np.array([kind.density for kind in KINDS]).T
        self.density = np.zeros(len(kinds) + 1, dtype=np.float32)
        self.density[1:] = rng.uniform(low[kinds], high[kinds])
        self.vesicular = np.zeros(len(kinds) + 1, dtype=np.float32)
        self.vesicular[1:] = np.array([kind.vesicular for kind in KINDS])[kinds] * rng.uniform(0.7, 1.2, len(kinds))

    def _points(self, rng: np.random.Generator, *, per_mm2: float, inside: np.ndarray) -> np.ndarray:
        """Random points inside a map: float `[n, 2]`, x and y in level-0 px, margin included."""
        rows, columns = np.nonzero(inside)
        count = rng.poisson(per_mm2 * len(rows) * (self.cell_um / 1000) ** 2)
        if not len(rows) or not count:
            return np.empty((0, 2))
        chosen = rng.integers(0, len(rows), count)
        return (np.stack([columns[chosen], rows[chosen]], axis=1) + rng.uniform(0, 1, (count, 2))) * self.cell_px

    def _fill(self, area: np.ndarray, x: float, y: float, theta: np.ndarray, radius_um: np.ndarray) -> None:
        points = np.stack([x + radius_um / self.mpp * np.cos(theta), y + radius_um / self.mpp * np.sin(theta)], axis=1)
        cv2.fillPoly(area, [np.round(points / self.cell_px * 16).astype(np.int32)], 255, shift=4)


def _contours(seeds: np.ndarray, mpp: float, rng: np.random.Generator) -> np.ndarray:
    """Outlines of nuclei at `seeds` `[n, 4]` (x, y, direction, kind): float `[n, 24, 2]`, level-0 px."""
    kinds = seeds[:, 3].astype(np.intp)

    def draw(name: str) -> np.ndarray:
        low, high = np.array([getattr(kind, name) for kind in KINDS]).T
        return rng.uniform(low[kinds], high[kinds])[:, None] / (2 * mpp)

    theta = np.linspace(0, 2 * np.pi, 24, endpoint=False)[None]
    rough = np.array([kind.roughness for kind in KINDS])[kinds][:, None]
    shape = 1 + sum(rng.normal(0, 1, rough.shape) * rough * np.cos(k * theta + rng.uniform(0, 7, rough.shape)) for k in (2, 3, 4))
    length, width = draw("length_um"), draw("width_um")
    along, across = length * shape * np.cos(theta), width * shape * np.sin(theta)
    bend = np.array([kind.bend for kind in KINDS])[kinds][:, None] * rng.normal(0, 1, rough.shape)
    across = across + bend * 2 * length * (along / length) ** 2
    c, s = np.cos(seeds[:, 2:3]), np.sin(seeds[:, 2:3])
    return np.stack([seeds[:, :1] + along * c - across * s, seeds[:, 1:2] + along * s + across * c], axis=2)


def _paint_block(scene: _Scene, left: int, top: int) -> np.ndarray:
    """RGB of the block whose corner is (left, top) in level-0 px: uint8 `[B, B, 3]` without margin."""
    side = (BLOCK_CELLS + 2 * MARGIN_CELLS) * scene.cell_px
    cells = np.s_[top // scene.cell_px :, left // scene.cell_px :]

    def region(area: np.ndarray) -> np.ndarray:
        cut = area[cells][: BLOCK_CELLS + 2 * MARGIN_CELLS, : BLOCK_CELLS + 2 * MARGIN_CELLS].astype(np.float32)
        return cv2.resize(cut, (side, side), interpolation=cv2.INTER_LINEAR)

    textures = _textures(scene.mpp)
    index_x = (np.arange(left, left + side) + scene.offset_px[0]) % TEXTURE_PX
    index_y = (np.arange(top, top + side) + scene.offset_px[1]) % TEXTURE_PX
    mottle, grain, chromatin, noise = (textures[name][index_y][:, index_x] for name in ("mottle", "grain", "chromatin", "noise"))
    fibre = _fibres(scene, region(scene.wave), left, top)
    labels = scene.labels[top : top + side, left : left + side]
    nucleus = (labels > 0).astype(np.uint8)

    # Ragged borders: the maps are coarse, so the texture decides where exactly tissue, epithelium and lumen end.
    tissue = np.clip((region(scene.tissue) / 255 - 0.5 + 0.2 * grain) * 5 + 0.5, 0, 1)
    epithelium = np.clip((region(scene.epithelium) / 255 - 0.5) * 4 + 0.5, 0, 1)
    lumen = np.clip((region(scene.lumen) / 255 - 0.5 + 0.15 * mottle) * 3 + 0.5, 0, 1)
    clefts = np.clip((fibre - 1.1) * 1.6, 0, 1) * (1 - epithelium)
    present = np.maximum(tissue * (1 - 0.93 * clefts) * (1 - 0.95 * lumen), nucleus)

    bundle = np.clip(-fibre - 0.4, 0, 2)
    eosin_stroma = 0.40 - 0.10 * fibre + 0.22 * bundle + 0.05 * grain
    eosin = eosin_stroma + (0.36 + 0.07 * mottle + 0.05 * grain - eosin_stroma) * epithelium
    haematoxylin = 0.07 + 0.02 * mottle + (0.14 + 0.04 * mottle + 0.04 * grain) * epithelium
    red = scene.red_cells[top : top + side, left : left + side].astype(np.float32) / 255
    eosin = (eosin + 0.75 * red) * present
    haematoxylin = haematoxylin * present * (1 - 0.8 * (red > 0))

    nuclear = _nuclear_density(scene, labels, chromatin)
    inside = nucleus.astype(np.float32)
    haematoxylin = haematoxylin * (1 - inside) + nuclear
    eosin = eosin * (1 - 0.45 * inside)
    sigma_px = scene.blur_um / scene.mpp
    haematoxylin = cv2.GaussianBlur(haematoxylin, (0, 0), sigma_px)
    eosin = cv2.GaussianBlur(np.maximum(eosin, 0), (0, 0), sigma_px)

    rgb = np.empty((side, side, 3), dtype=np.float32)
    for channel in range(3):
        light = cv2.exp(-(haematoxylin * scene.stains[0, channel] + eosin * scene.stains[1, channel])) * scene.glass[channel]
        rgb[..., channel] = light + 2.0 * np.roll(noise, 331 * channel, axis=1)
    m = scene.margin_px
    return np.clip(np.round(rgb[m:-m, m:-m]), 0, 255).astype(np.uint8)


def _nuclear_density(scene: _Scene, labels: np.ndarray, chromatin: np.ndarray) -> np.ndarray:
    """Haematoxylin of the nuclei: pale inside with rim, clumps and nucleoli where vesicular, flat where not."""
    lone = (labels > 0).astype(np.uint8)
    lone[:, 1:] &= labels[:, 1:] == labels[:, :-1]
    lone[1:] &= labels[1:] == labels[:-1]
    depth_um = cv2.distanceTransform(lone, cv2.DIST_L2, 3) * scene.mpp
    rim = np.exp(-((depth_um - 0.5) ** 2) / 0.5)
    nucleoli = np.clip(chromatin - 1.7, 0, 1) * (depth_um > 1.0)
    texture = -0.18 + 0.34 * rim + 0.17 * chromatin + 0.5 * nucleoli
    return scene.density[labels] * np.maximum(1 + scene.vesicular[labels] * texture, 0.35)


def _fibres(scene: _Scene, wave_um: np.ndarray, left: int, top: int) -> np.ndarray:
    """The collagen texture, bent along the wave: float32, mean 0, deviation 1; high where there are gaps."""
    side = wave_um.shape[0]
    x = ((np.arange(side) + left) * scene.mpp).astype(np.float32)[None, :]
    y = ((np.arange(side) + top) * scene.mpp).astype(np.float32)[:, None]
    c, s = np.float32(np.cos(scene.angle)), np.float32(np.sin(scene.angle))
    u = (x * c + y * s) / np.float32(scene.mpp)
    v = (y * c - x * s + wave_um) / np.float32(scene.mpp)
    # remap's coordinates are 16 bit: take whole periods off first.
    u -= np.floor(u.min() / TEXTURE_PX) * TEXTURE_PX
    v -= np.floor(v.min() / TEXTURE_PX) * TEXTURE_PX
    return cv2.remap(_textures(scene.mpp)["fibre"], u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


@lru_cache(maxsize=2)
def _textures(mpp: float) -> dict[str, np.ndarray]:
    """Periodic textures, float32 `[TEXTURE_PX, TEXTURE_PX]`, mean 0 and deviation 1. Sizes are in um, like the tissue's."""
    rng = np.random.default_rng((VERSION, 77))

    def noise(*sigmas_um: tuple[float, float]) -> np.ndarray:
        total = 0
        for along_um, across_um in sigmas_um:
            white = np.fft.rfft2(rng.standard_normal((TEXTURE_PX, TEXTURE_PX)))
            fy = np.fft.fftfreq(TEXTURE_PX)[:, None] * across_um / mpp
            fx = np.fft.rfftfreq(TEXTURE_PX)[None, :] * along_um / mpp
            layer = np.fft.irfft2(white * np.exp(-2 * np.pi**2 * (fx**2 + fy**2)), s=(TEXTURE_PX, TEXTURE_PX))
            total = total + (layer - layer.mean()) / layer.std()
        return (total / total.std()).astype(np.float32)

    return {
        "fibre": noise((22.0, 0.9), (50.0, 3.0)),
        "mottle": noise((3.0, 3.0), (10.0, 10.0)),
        "grain": noise((0.6, 0.6), (1.6, 1.6)),
        "chromatin": noise((0.55, 0.55)),
        "noise": noise((0.4 * mpp, 0.4 * mpp)),  # the sensor's: in pixels
    }


def _smooth_noise(cells: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise over a region map, mean 0 and deviation 1: drawn coarsely and enlarged, so its cost is the map's size."""
    coarse = max(4, int(2 * cells / max(sigma, 1.0)))
    grid = cv2.GaussianBlur(rng.standard_normal((coarse, coarse)).astype(np.float32), (0, 0), 2.0)
    return cv2.resize(grid / grid.std(), (cells, cells), interpolation=cv2.INTER_CUBIC)


def _write_pyramid(path: Path, image: np.ndarray, mpp: float) -> None:
    """Tiled TIFF of three levels that OpenSlide opens as Aperio, with mpp and magnification."""
    height, width = image.shape[:2]
    description = f"Aperio Image Library v11.2.1\r\n{width}x{height} synthetic H&E|AppMag = {10 / mpp:g}|MPP = {mpp:.4f}"
    options = dict(tile=(256, 256), photometric="ycbcr", compression="jpeg", compressionargs={"level": 90}, software="csat")
    options |= dict(resolution=(1e4 / mpp, 1e4 / mpp), resolutionunit="CENTIMETER", metadata=None)
    with tifffile.TiffWriter(path) as tiff:
        for factor in LEVEL_FACTORS:
            size = (max(1, width // factor), max(1, height // factor))
            level = image if factor == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            tiff.write(level, description=description, **options)


def _write_truth(path: Path, labels: np.ndarray) -> None:
    done, data = cv2.imencode(".png", labels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    path.write_bytes(data.tobytes())


@lru_cache(maxsize=2)
def _load_truth(path: str, mtime_ns: int) -> np.ndarray:
    """The whole truth of one slide, kept while its tiles are read; `mtime_ns` makes a rewritten file another entry."""
    return cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)


def _commit(path: Path, write) -> None:
    """Write beside, then rename: a killed run leaves no half slide."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
