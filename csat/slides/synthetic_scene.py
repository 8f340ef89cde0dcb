"""Where everything lies on a synthetic slide: tissue, glands, fibres, nuclei. `csat.slides.synthetic` paints it."""

from dataclasses import dataclass

import cv2
import numpy as np

from csat.errors import ConfigError

VERSION = 1  # part of the seed and of the file names: a slide made by other rules is another slide
TEXTURE_PX = 1024  # edge of the periodic textures
MAX_NUCLEI = 65535  # instance ids are uint16
MAP_MPP = 2.0  # resolution of the region maps (tissue, epithelium, lumen), um/px
BLOCK_PX = 1024  # about the edge of a painted block: a whole number of cells of the region maps
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


EPITHELIAL = NucleusKind((8.5, 12.0), (6.0, 8.0), 0.02, 0.05, (0.55, 1.15), 1.0)
SPINDLE = NucleusKind((11.0, 18.0), (2.8, 4.4), 0.06, 0.04, (0.7, 1.4), 0.5)
LYMPHOCYTE = NucleusKind((5.6, 7.2), (5.2, 6.6), 0.0, 0.03, (1.25, 1.85), 0.25)
KINDS = (EPITHELIAL, SPINDLE, LYMPHOCYTE)


class Scene:
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
        self.block_cells = max(1, BLOCK_PX // self.cell_px)
        num_blocks = -(-size_px // (self.block_cells * self.cell_px))
        cells = num_blocks * self.block_cells + 2 * MARGIN_CELLS
        self.inner_cells = size_px / self.cell_px  # of the slide itself
        self.angle = rng.uniform(0, np.pi)
        self.offset_px = rng.integers(0, TEXTURE_PX, 2)
        t = rng.uniform(0.3, 1)
        stains = (1 - t) * RUIFROK + t * MACENKO + rng.normal(0, 0.02, (2, 3))
        strength = np.array([[rng.uniform(0.85, 1.2)], [rng.uniform(0.7, 1.05)]])
        self.stains = (strength * stains / np.linalg.norm(stains, axis=1, keepdims=True) * np.sqrt(3)).astype(np.float32)
        self.glass = (rng.uniform(238, 247) + rng.uniform(-2, 2, 3)).astype(np.float32)
        self.blur_um = rng.uniform(0.25, 0.5)
        self.basophilia = rng.uniform(0.12, 0.27)  # haematoxylin of the epithelium's cytoplasm
        self.cleft_level = rng.uniform(1.4, 2.0)
        self.tissue = self._island(cells, rng)
        self.epithelium = np.zeros_like(self.tissue)
        self.lumen = np.zeros_like(self.tissue)
        side_px = cells * self.cell_px
        self.labels = np.zeros((side_px, side_px), dtype=np.uint16)
        self.red_cells = np.zeros((side_px, side_px), dtype=np.uint8)
        seeds = self._glands(rng)  # draws the gland maps, which the fibres then flow around
        around = cv2.GaussianBlur(self.epithelium, (0, 0), 30 / self.cell_um).astype(np.float32) / 255
        self.wave = 3.5 * _smooth_noise(cells, 25 / self.cell_um, rng) + 25.0 * _smooth_noise(cells, 120 / self.cell_um, rng)
        self.wave += 60.0 * around
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
        centres = self._points(rng, per_mm2=700, inside=self.tissue)
        taken = 255 - self.tissue
        seeds = [np.empty((0, 4))]
        for x, y in centres:
            radius_um = rng.uniform(28, 65)
            reach = int((radius_um * 1.1 + 5) / self.cell_um)
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
                lumen_um = 0.5 * (outer_um + outer_um.mean()) - height_um
                self._fill(self.lumen, x, y, theta, np.maximum(lumen_um, 0.18 * radius_um))
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
        crowd = (_smooth_noise(len(stroma), 45 / self.cell_um, rng) > 1.45).astype(np.uint8) * 255 & stroma
        spindle = self._points(rng, per_mm2=1100, inside=stroma)
        cells = np.concatenate([self._points(rng, per_mm2=350, inside=stroma), self._points(rng, per_mm2=9000, inside=crowd)])
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
        self.density *= np.where(rng.uniform(size=len(self.density)) < 0.12, 0.6, 1).astype(np.float32)  # cut off centre: pale
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
        half_px = rng.uniform(low[kinds], high[kinds])[:, None] / (2 * mpp)
        return np.maximum(half_px - 0.5, 0.8)  # fillPoly paints the outline too

    theta = np.linspace(0, 2 * np.pi, 24, endpoint=False)[None]
    rough = np.array([kind.roughness for kind in KINDS])[kinds][:, None]
    shape = 1 + sum(
        rng.normal(0, 1, rough.shape) * rough * np.cos(k * theta + rng.uniform(0, 7, rough.shape)) for k in (2, 3, 4)
    )
    length, width = draw("length_um"), draw("width_um")
    along, across = length * shape * np.cos(theta), width * shape * np.sin(theta)
    bend = np.array([kind.bend for kind in KINDS])[kinds][:, None] * rng.normal(0, 1, rough.shape)
    across = across + bend * 2 * length * (along / length) ** 2
    c, s = np.cos(seeds[:, 2:3]), np.sin(seeds[:, 2:3])
    return np.stack([seeds[:, :1] + along * c - across * s, seeds[:, 1:2] + along * s + across * c], axis=2)


def _smooth_noise(cells: int, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise over a region map, mean 0 and deviation 1: drawn coarsely and enlarged, so its cost is the map's size."""
    coarse = max(4, int(2 * cells / max(sigma, 1.0)))
    grid = cv2.GaussianBlur(rng.standard_normal((coarse, coarse)).astype(np.float32), (0, 0), 2.0)
    return cv2.resize(grid / grid.std(), (cells, cells), interpolation=cv2.INTER_CUBIC)
