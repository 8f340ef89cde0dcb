"""The settings of pretrain.py."""

from dataclasses import dataclass, field, replace

from csat.model.student import StudentConfig
from csat.settings import Free, Often, Place
from csat.storage import uris
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.training.config import TrainConfig
from teachers.response_cache import CacheConfig
from workflows.shell.config import MethodConfig, PoolConfig, RayConfig, ReaderConfig, TeacherConfig, WorkerConfig

DEMO = "demo"  # in the place of slides


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The synthetic slides of `--slides demo`."""

    num_slides: int = 4  # slides
    size_px: int = 2048  # edge of each, at 0.5 um/px
    seed: int = 0  # of the tissue


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of pretrain.py."""

    run_folder: Free[Place]  # local path or s3://…; the same folder and settings resume an interrupted run
    slides: list[str]  # files, folders, globs, .csv, .xlsx or .txt lists, parquet of tiles; local or s3://; or demo
    teacher: TeacherConfig
    data: TilingConfig = field(default_factory=TilingConfig)  # how slides become tiles
    manifest: ManifestConfig = field(default_factory=lambda: ManifestConfig(holdout_fraction=0.1))  # order and held-out tiles
    student: StudentConfig = field(default_factory=StudentConfig)  # what is trained
    method: MethodConfig = field(default_factory=MethodConfig)  # how it learns from the responses
    train: TrainConfig = field(default_factory=TrainConfig)  # for how long, at which rates
    demo: DemoConfig = field(default_factory=DemoConfig)  # synthetic slides
    readers: Free[ReaderConfig] = field(default_factory=ReaderConfig)  # actors that read tiles
    pool: Free[PoolConfig] = field(default_factory=PoolConfig)  # actors that hold the teacher
    cache: CacheConfig = field(default_factory=CacheConfig)  # keep the teacher's responses; off without a uri
    workers: Free[WorkerConfig] = field(default_factory=WorkerConfig)  # processes that train
    ray: Free[RayConfig] = field(default_factory=RayConfig)  # the cluster
    student_pixels: str = "tile"  # tile: the student sees the tile shrunk; pyramid: the slide's own lower level
    plan: Often[Free[bool]] = False  # only measure and say what the run would take, on which actors and threads; then stop
    report_tiles: Free[int] = 8  # held-out tiles shown in the report
    overwrite: Often[Free[bool]] = False  # delete a run of another configuration in run_folder

    def with_own_places(self) -> "PretrainConfig":
        """See `csat.settings.with_places`: slides are places, but for the word demo."""
        return replace(self, slides=[each if each == DEMO else uris.normalise(each) for each in self.slides])
