"""A trained model in the hand: what `csat.load` returns. Shown a tile, it answers; the transform is in it."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from csat.errors import ConfigError
from csat.prediction.answers import About, Answers
from csat.prediction.nuclei import nuclei_of_tile
from csat.prediction.opening import open_answers
from csat.prediction.slide_frame import SlideFrame
from csat.responses import ResponseSpec
from csat.slides.reader import SlideReader, open_slide, read_tile
from csat.storage import files
from csat.storage.node_cache import SlideCache
from csat.tasks import Task
from csat.tiles.grid import TilingConfig, plan_scale
from csat.tiles.sources import list_slides

Tile = "np.ndarray | Image.Image | torch.Tensor"
CACHE_BYTES = 64 * 2**30  # of slides from buckets, in the folder for temporary files


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """One nucleus of a tile. Lengths are pixels of the tile, from its upper left corner; x to the right, y down.

    Attributes:
        type: Its class; "nucleus" where the model tells none apart.
        probability: Mean probability that its pixels are nucleus, 0 to 1.
        x, y: Its centroid.
        area_um2: None where the model has no resolution.
        area_px: In pixels of the tile.
        outline: float `[N, 2]`, x and y along its border, closed: the last point is the first.
    """

    type: str
    probability: float
    x: float
    y: float
    area_um2: float | None
    area_px: float
    outline: np.ndarray = field(repr=False)


class Loaded:
    """A trained model. Called with a tile it returns what it says of it, by name.

        model = csat.load("runs/nuclei")
        tile = model.on("slide.svs", 1_200, 900)
        said = model(tile)              # {"np": float32 [1, H, W], "hv": …, "tp": …}
        nuclei = model.nuclei(tile)     # [Nucleus(type="neoplastic", x=…, y=…, area_um2=…), …]

    Attributes:
        specs: What it says: names, channels, and the margin that it leaves out.
        tile_px: Edge of the tiles that it takes.
        mpp: um/px of those tiles; None: it has no resolution of its own.
        task: classification, segmentation, nuclei, or None.
        classes: What it tells apart, in order; of nuclei their types.
        about: Name, source, licence and hash.
    """

    def __init__(self, answers: Answers):
        self.answers = answers
        self._slide: tuple[str, SlideReader] | None = None  # the one that was read last stays open

    specs: tuple[ResponseSpec, ...] = property(lambda self: self.answers.specs)
    tile_px: int = property(lambda self: self.answers.tile_px)
    mpp: float | None = property(lambda self: self.answers.mpp)
    task: Task | None = property(lambda self: self.answers.task)
    classes: tuple[str, ...] = property(lambda self: self.answers.classes)
    about: About = property(lambda self: self.answers.about)

    def __repr__(self) -> str:
        mpp = f"{self.mpp:g} um/px" if self.mpp else "any resolution"
        return f"<{self.about.name}: {', '.join(spec.name for spec in self.specs)} of tiles of {self.tile_px} px at {mpp}>"

    def __call__(self, tile: Tile) -> dict[str, np.ndarray]:
        """What it says of a tile, or of several.

        Args:
            tile: RGB, `tile_px` pixels square, at the model's resolution. A Pillow image; a NumPy array `[H, W, 3]` or
                `[B, H, W, 3]`; a torch tensor `[3, H, W]` or `[B, 3, H, W]` (as torchvision has it). Integers are 0 to 255,
                floats 0 to 1. Nothing else is to be done to it: no normalisation, no resizing.

        Returns:
            name → float32: of a map `[C, n, n]` over the tile less the margin that its spec names (`crop_px`), else `[C]`.
            Probabilities are between 0 and 1. Of several tiles each has one axis more, first.

        Raises:
            ConfigError: another size, other values, no RGB; says what was expected.
        """
        tiles, is_one = _as_tiles(tile, self.tile_px)
        said = self.answers.answer(tiles)
        return {name: values[0] for name, values in said.items()} if is_one else said

    def nuclei(self, tile: Tile, *, threshold: float = 0.5) -> list[Nucleus]:
        """The nuclei of a tile, by HoVer-Net's post-processing. Those at its border are cut by it.

        Args:
            tile: One, as for calling the model.
            threshold: Probability from which a pixel is nucleus.

        Raises:
            ConfigError: a model that does not find nuclei, or a tile that it does not take.
        """
        if self.task != Task.NUCLEI:
            names = ", ".join(spec.name for spec in self.specs)
            raise ConfigError(f"{self.about.name} answers {names}; nuclei need the maps np and hv: load a model that has them")
        tiles, is_one = _as_tiles(tile, self.tile_px)
        if not is_one:
            raise ConfigError(f"nuclei are of one tile, not of {len(tiles)}: call it for each")
        maps = {name: values[0] for name, values in self.answers.answer(tiles).items()}
        frame = SlideFrame(slide="tile", width_px=self.tile_px, height_px=self.tile_px, mpp_x=self.mpp, mpp_y=self.mpp)
        crop_px = next(spec.crop_px for spec in self.specs if spec.name == "np")
        whole = {"x_px": 0, "y_px": 0, "level": 0, "read_px": self.tile_px, "aspect": 1.0}
        place = frame.place(**whole, tile_px=self.tile_px, crop_px=crop_px)
        types = ("background", *self.classes) if self.classes else ()
        return [_nucleus(row) for row in nuclei_of_tile(maps, place, frame, types=types, threshold=threshold).to_pylist()]

    def on(self, slide: str, x: int, y: int, *, mpp: float | None = None, edge_px: int | None = None) -> np.ndarray:
        """A tile of a slide, read at the model's resolution.

        Args:
            slide: A slide or an image, as every verb reads it; a path or a URI.
            x: Left edge, pixels of level 0.
            y: Upper edge, pixels of level 0.
            mpp: um/px of a slide that does not state its own.
            edge_px: Of the tile; None: `tile_px`, which the model takes.

        Returns:
            uint8 `[edge_px, edge_px, 3]`, RGB; white outside the slide.

        Raises:
            SlideError: it cannot be read, states no resolution, or is too coarse for this model.
        """
        uri = files.normalise(slide)
        if self._slide is None or self._slide[0] != uri:
            (row,) = list_slides([uri], source_mpp=mpp)
            cache = SlideCache(Path(tempfile.gettempdir()) / "csat-slides", CACHE_BYTES)
            reader = open_slide(row.slide, row.kind, source_mpp=mpp, cache=cache)
            self.close()
            self._slide = uri, reader
        reader, edge_px = self._slide[1], edge_px or self.tile_px
        scale = plan_scale(uri, reader.levels, reader.resolution, TilingConfig(mpp=self.mpp, tile_px=edge_px))
        read_px, down_px = (max(1, round(edge_px * ratio)) for ratio in (scale.across, scale.down))
        where = {"x_px": x, "y_px": y, "level": scale.level, "read_px": read_px, "aspect": down_px / read_px}
        return read_tile(reader, **where, tile_px=edge_px)

    def close(self) -> None:
        """Let go of the slide that `on` has read last."""
        if self._slide is not None:
            self._slide[1].close()
            self._slide = None


def load(place: str, *, tile_px: int | None = None, device: str = "cpu", precision: str = "float32") -> Loaded:
    """See `csat.load`."""
    return Loaded(open_answers(place, tile_px=tile_px, device=device, precision=precision))


def _nucleus(row: dict[str, Any]) -> Nucleus:
    outline = shapely.get_coordinates(shapely.from_wkb(row["geometry"]).exterior)
    return Nucleus(
        type=row["class"],
        probability=row["prob"],
        x=row["x_px"],
        y=row["y_px"],
        area_um2=row["area_um2"],
        area_px=float(shapely.from_wkb(row["geometry"]).area),
        outline=outline,
    )


def _as_tiles(tile: Tile, tile_px: int) -> tuple[np.ndarray, bool]:
    """uint8 `[B, tile_px, tile_px, 3]`, and whether it was a single one without that axis."""
    is_tensor = hasattr(tile, "detach")
    values = (
        tile.detach().cpu().numpy() if is_tensor else np.asarray(tile.convert("RGB") if hasattr(tile, "convert") else tile)
    )
    is_one = values.ndim == 3
    tiles = values[None] if is_one else values
    if is_tensor and tiles.ndim == 4:
        tiles = tiles.transpose(0, 2, 3, 1)
    if tiles.ndim != 4 or tiles.shape[1:] != (tile_px, tile_px, 3) or not len(tiles):
        expected = f"[3, {tile_px}, {tile_px}]" if is_tensor else f"[{tile_px}, {tile_px}, 3]"
        raise ConfigError(
            f"a tile is {expected} here, and this is {list(values.shape)}: read it at the model's resolution (model.on does), "
            "or load the model with another tile_px"
        )
    return _as_bytes(tiles), is_one


def _as_bytes(tiles: np.ndarray) -> np.ndarray:
    if tiles.dtype == np.uint8:
        return np.ascontiguousarray(tiles)
    low, high = tiles.min(), tiles.max()
    if np.issubdtype(tiles.dtype, np.integer) and low >= 0 and high <= 255:
        return tiles.astype(np.uint8)
    if np.issubdtype(tiles.dtype, np.floating) and low >= 0 and high <= 1:
        return (tiles * 255).round().astype(np.uint8)
    raise ConfigError(
        f"pixels are integers from 0 to 255 or floats from 0 to 1, and these are {tiles.dtype} from {low:.4g} to {high:.4g}: "
        "undo the normalisation, the model has its own"
    )
