"""The settings of predict.py."""

from dataclasses import dataclass, field, replace
from typing import Any

from csat.errors import ConfigError
from csat.precision import check_precision
from csat.settings import Free, Often, Place
from csat.shipped import is_shipped
from csat.storage import uris
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from teachers.registry import TEACHERS
from workflows.shell.config import RayConfig, ReaderConfig

CHUNK_TILES = 128  # tiles that are read together


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """Which model answers."""

    name: Often[str]  # a run, an exported folder or an ONNX file, local or s3://; a student by its name; a teacher: stain
    weights: Often[Place | None] = None  # of a teacher that needs them
    options: Often[dict[str, Any]] = field(default_factory=dict)  # of a teacher, such as mode: fast
    precision: Often[str] = "float32"  # or bfloat16, which is faster where the hardware has it; best: bfloat16 there alone

    def __post_init__(self):
        check_precision("model.precision", self.precision)

    def with_own_places(self) -> "AnswersConfig":
        """See `csat.settings.with_places`: all that is no teacher's and no student's name is a place."""
        is_name = self.name in TEACHERS or is_shipped(self.name)
        return self if is_name else replace(self, name=uris.normalise(self.name))


@dataclass(frozen=True, kw_only=True)
class SeenConfig:
    """Which tiles the model is shown: as it was trained, where nothing else is said. The settings data.NAME."""

    mpp: Often[float | None] = None  # resolution, um/px; null: the model's own (of a model without one, pixels as they are)
    tile_px: Often[int | None] = None  # edge of a tile, px; null: the model's own
    min_tissue: Often[float] = 0.05  # smallest share of tissue, 0 to 1; 0 shows every tile
    allow_upsampling: bool = False  # enlarge slides whose finest level is over 12% coarser than wanted
    max_upsampling: float = 2.0  # with allow_upsampling: at most so many times; a slide that needs more is quarantined
    source_mpp: Often[float | None] = None  # resolution of slides and rows that state none, um/px; beats a guess, nothing else
    tissue_thumbnail_px: int = 2048  # longer edge of the picture in which tissue is looked for, px

    def tiling(self, *, mpp: float | None, tile_px: int, overlap_px: int, margin_px: int) -> TilingConfig:
        """How slides are cut for a model that is shown such tiles, and says nothing of their margin. Raises ConfigError."""
        same = {name: getattr(self, name) for name in ("min_tissue", "allow_upsampling", "max_upsampling", "source_mpp")}
        same |= {"tissue_thumbnail_px": self.tissue_thumbnail_px, "cover_edges": True}
        return TilingConfig(mpp=mpp, tile_px=tile_px, overlap_px=overlap_px, margin_px=margin_px, **same)


@dataclass(frozen=True, kw_only=True)
class MapsConfig:
    """How fine the maps of a slide are."""

    heatmap_um: float = 8.0  # edge of a cell of a heatmap, um; of what answers whole tiles, a cell is a tile
    mask_um: float = 2.0  # edge of a cell of a mask, um

    def __post_init__(self):
        for name in ("heatmap_um", "mask_um"):
            if not 0.1 <= getattr(self, name) <= 1000:
                raise ConfigError(f"maps.{name} is a length, 0.1 to 1000 um, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The actors that hold the model."""

    min_actors: int = 1  # actors at least
    max_actors: Often[int | None] = None  # actors with the model at most; null: one for each core, or place on a GPU
    cpus_per_actor: float = 0.5  # CPUs reserved for each
    gpus_per_actor: Often[float] = 0.0  # GPUs reserved for each actor with the model; 0.5 lets two share one
    batch_size: int = 32  # tiles that the model is shown at once


@dataclass(frozen=True, kw_only=True)
class OutlineConfig:
    """The actors that make nuclei and tables of what the model said."""

    min_actors: int = 1  # actors at least
    max_actors: Often[int | None] = None  # actors that make nuclei and tables at most; null: one for each core
    cpus_per_actor: float = 0.25  # CPUs reserved for each


@dataclass(frozen=True, kw_only=True)
class AssemblyConfig:
    """The tasks that write the files of a slide when all its tiles are answered."""

    max_slides: int = 2  # slides whose files are written at the same time
    cpus_per_slide: float = 0.25  # CPUs reserved for each
    retries: int = 2  # of a task that died with its node, or that its storage failed

    def __post_init__(self):
        if self.max_slides < 1 or self.cpus_per_slide < 0 or self.retries < 0:
            raise ConfigError("assembly.max_slides must be 1 or more, assembly.cpus_per_slide and assembly.retries 0 or more")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Settings of predict.py."""

    model: AnswersConfig
    slides: list[str]  # files, folders, globs, .csv, .xlsx or .txt lists, parquet of tiles; local or s3://
    output: Free[Place]  # local folder or s3://…; the same folder and settings resume an interrupted run
    write: Often[list[str]] = field(default_factory=list)  # files, as nuclei.parquet heatmap.png; none said: by the task
    data: SeenConfig = field(default_factory=SeenConfig)  # which tiles the model is shown
    maps: MapsConfig = field(default_factory=MapsConfig)  # how fine heatmaps and masks are
    readers: Free[ReaderConfig] = field(default_factory=ReaderConfig)  # actors that read tiles
    network: Free[NetworkConfig] = field(default_factory=NetworkConfig)  # actors that hold the model
    outlines: Free[OutlineConfig] = field(default_factory=OutlineConfig)  # actors that make nuclei and tables
    assembly: Free[AssemblyConfig] = field(default_factory=AssemblyConfig)  # tasks that write the files
    ray: Free[RayConfig] = field(default_factory=RayConfig)  # the cluster
    show: Often[Free[int]] = 0  # most typical and most odd fields on the page report.html, as many of each
    overwrite: Often[Free[bool]] = False  # delete a prediction of another configuration in output

    def with_own_places(self) -> "PredictConfig":
        """See `csat.settings.with_places`."""
        return replace(self, slides=[uris.normalise(each) for each in self.slides])

    @property
    def manifest(self) -> ManifestConfig:
        """Slide after slide, row after row: the order in which tiles are answered, and files are written."""
        return ManifestConfig(shuffle=False, chunk_tiles=CHUNK_TILES)
