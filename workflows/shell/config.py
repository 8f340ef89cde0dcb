"""Settings that the verbs share: which teacher, which method, and how the work is spread over the cluster."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from csat.errors import ConfigError
from csat.settings import Free, ModelPlace, Often, places_in
from teachers.registry import find_teacher, with_places

if TYPE_CHECKING:
    from csat.storage.node_cache import SlideCache

MOST_ACTORS = 2  # of a stage whose number is neither set nor planned


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Which teacher answers, and from what weights."""

    name: Often[str]  # stain, hovernet, timm, ara_cnn, torchscript, a run folder of finetune.py, or a name in the package
    weights: Often[ModelPlace | None] = None  # file of weights, on every node or s3://; stain and a run's folder need none
    options: Often[dict[str, Any]] = field(default_factory=dict)  # fields of that teacher's options, such as mode: fast
    accept_any_mpp: bool = False  # show it tiles of another resolution than it was made for

    def with_own_places(self) -> "TeacherConfig":
        """See `csat.settings.with_places`: the folder of a run in the place of a name is the teacher `run` of that folder.

        Which options are places, the teacher's own say.
        """
        name, weights = find_teacher(self.name, self.weights)
        # No teacher is loaded to find nothing: only text may be a place.
        is_text = any(isinstance(value, str) for value in self.options.values())
        return replace(self, name=name, weights=weights, options=with_places(name, self.options) if is_text else self.options)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """Which method turns responses into a loss."""

    name: Often[str] = "rckd"  # a name of csat.methods.registry
    options: dict[str, Any] = field(default_factory=dict)  # fields of that method's config, such as temperature: 2.0

    def with_own_places(self) -> "MethodConfig":
        """See `csat.settings.with_places`: which options are places, the method's own config says."""
        if not self.options:
            return self  # no method is loaded to find nothing
        from csat.methods.registry import METHODS, find_method

        return replace(self, options=places_in(find_method(self.name).Config, self.options)) if self.name in METHODS else self


@dataclass(frozen=True, kw_only=True)
class ReaderConfig:
    """The actors that read and decode tiles."""

    min_actors: int = 1  # actors at least
    max_actors: int | None = None  # actors at most; None: planned, or 2 where no plan was made
    cpus_per_actor: float = 0.25  # CPUs reserved for each
    max_open_slides: int = 64  # slide handles that one actor keeps open; best no fewer than manifest.slides_per_window
    max_background: float | None = None  # filter tiles with a larger share of near-white pixels; None: keep every tile
    cache_folder: str = "~/.cache/csat-on-ray/slides"  # on every node's disk; only slides in a bucket are cached
    cache_gb: float = 50.0  # most disk that the cache takes on a node

    @property
    def most_actors(self) -> int:
        """Actors at most, also where that is left open."""
        return MOST_ACTORS if self.max_actors is None else self.max_actors

    def slide_cache(self) -> "SlideCache":
        """The node-local cache of slides that live in a bucket."""
        from csat.storage.node_cache import SlideCache  # settings are read without the parts that move files

        return SlideCache(self.cache_folder, int(self.cache_gb * 1e9))


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The teacher actor pool."""

    min_actors: int = 1  # actors at least; all of them must fit beside the workers
    max_actors: Often[int | None] = None  # teacher actors at most, Ray adds and removes them; None: planned, or 2 without plan
    cpus_per_actor: float = 0.375  # CPUs reserved for each: two fit beside a worker and a reader on two cores
    threads: int | None = None  # of torch in each; None: planned, or one for each reserved CPU
    gpus_per_actor: Often[float] = 0.0  # GPUs reserved for each teacher actor; 0.5 lets two share one
    batch_size: int = 32  # tiles that the teacher sees at once

    @property
    def most_actors(self) -> int:
        """Actors at most, also where that is left open."""
        return MOST_ACTORS if self.max_actors is None else self.max_actors


@dataclass(frozen=True, kw_only=True)
class NamedTeacher(TeacherConfig):
    """One of several teachers, and the actors that hold it."""

    shrink: int = 1  # it sees the tile averaged over squares of so many pixels: 2 where it was made for half the resolution
    weight: float = 1.0  # all of its loss terms times this
    pool: Free[PoolConfig] = field(default_factory=PoolConfig)  # actors that hold this teacher

    def __post_init__(self):
        if self.shrink < 1:
            raise ConfigError(f"shrink of a teacher is a whole factor of at least 1, not {self.shrink}")
        if not 0 < self.weight < math.inf:
            raise ConfigError(f"weight of a teacher is a number above 0, not {self.weight}; leave a teacher out to do without")


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """The DDP workers that train the student."""

    num_workers: Often[int] = 1  # processes that train
    cpus_per_worker: float = 1.0  # CPUs reserved for each
    threads: int | None = None  # of torch in each; None: planned, or one for each reserved CPU and for cores that stand idle
    gpus_per_worker: Often[float] = 0.0  # GPUs reserved for each process that trains: 0 or 1
    max_failures: int = 3  # times that a lost worker or node restarts the group from the last checkpoint
    prefetch_batches: int = 0  # on the worker's node before it begins with one, for slow networks; one is ahead anyway


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Which cluster, and the bound on what it keeps in memory for this run."""

    address: Often[str | None] = None  # of a running cluster, or "auto"; None: RAY_ADDRESS where set, else this machine
    stream_gb: float = 0.5  # object-store memory that tiles and responses on their way may take, over all nodes
    stall_timeout_s: float = 600.0  # stop where the stream stands still, or workers that have room do not start, for so long


def check_counts(**configs: Any) -> None:
    """Refuse actor counts (min_actors, max_actors) that contradict each other. Raises ConfigError."""
    for name, config in configs.items():
        most = getattr(config, "most_actors", config.max_actors)
        most = max(1, config.min_actors) if most is None else most  # as many as there is room for
        if not 1 <= config.min_actors <= most:
            raise ConfigError(
                f"{name}.min_actors {config.min_actors} and {name}.max_actors {most}: the least must be 1 or "
                "more and no more than the most"
            )
