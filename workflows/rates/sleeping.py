"""A run's stream with a teacher that sleeps, in a process with a Ray of its own: what the stage actors times.

python -m workflows.rates.sleeping ASKED.as_json() FILE.json

The figure goes into the file, the stream's manifest into a folder beside it.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from csat.columns import POSITION
from csat.errors import ConfigError
from csat.responses import Kind, ResponseSpec, TeacherSpec
from teachers.contract import Teacher, sha256_of_settings
from teachers.registry import TEACHERS

NAME, CHANNELS = "sleeping", 32
TILE_PX, BATCH, CHUNK_TILES = 128, 16, 64
MIDDLE = (0.25, 0.85)  # of the tiles: what counts, once every actor has answered
PID_BASE = 2048  # float16 holds whole numbers up to here
CPUS_PER_ACTOR = 0.01  # reserved: they sleep
TILES_AT_ONCE = 32  # that are taken from the stream
FEWEST_TILES = 64  # that a rate is taken from


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Which stream.

    Attributes:
        actors: That hold the teacher.
        tile_s: That it takes for a tile.
        seconds: Of the stream, if all of them were always busy.
    """

    slides: list[str]
    actors: int
    tile_s: float
    seconds: float

    def as_json(self) -> str:
        return json.dumps(asdict(self))


@dataclass(frozen=True, kw_only=True)
class SleepingOptions:
    """How long it takes."""

    tile_s: float  # seconds for a tile


class SleepingTeacher(Teacher):
    """Says of every tile which process has seen it, after a while."""

    def __init__(self, options: SleepingOptions):
        self.options = options
        response = ResponseSpec(name="features", kind=Kind.FEATURES, channels=CHANNELS, stride_px=None)
        sha256 = sha256_of_settings(options, version=1)
        self.spec = TeacherSpec(name=NAME, responses=(response,), mpp=None, weights_sha256=sha256, licence="none")

    def respond(self, tiles: np.ndarray) -> dict[str, np.ndarray]:
        time.sleep(self.options.tile_s * len(tiles))
        said = np.ones((len(tiles), CHANNELS), np.float16)
        said[:, :2] = divmod(os.getpid(), PID_BASE)
        return {"features": said}


def load_sleeping(options: SleepingOptions, *, weights: str | None, device: str, wanted: Sequence[str] | None) -> Teacher:
    return SleepingTeacher(options)


def register() -> None:
    """Make the teacher known to a process; Ray calls it in each of its own."""
    TEACHERS[NAME] = (SleepingOptions, load_sleeping)


def make_config(asked: Asked, manifest_uri: str) -> Any:
    """The `StreamConfig`, over a manifest that is made here."""
    from csat.runs.plan import Plan
    from csat.tiles.grid import TilingConfig
    from csat.tiles.manifest import ManifestConfig, read_manifest
    from csat.tiles.manifest_writer import ManifestWriter
    from csat.tiles.sources import list_slides
    from csat.tiles.tiling import tile_slide
    from teachers.registry import describe_teacher
    from workflows.pretraining.stream import StreamConfig, StreamTeacher
    from workflows.shell.config import PoolConfig, ReaderConfig, TeacherConfig

    tiling, slides = TilingConfig(tile_px=TILE_PX), list_slides(asked.slides)
    config = ManifestConfig(chunk_tiles=CHUNK_TILES, holdout_fraction=0.0)
    writer = ManifestWriter(manifest_uri, config, "sleeping", tiling, slides)
    for slide in slides:
        writer.add(slide, tile_slide(slide, tiling))
    writer.close()
    manifest, wanted = read_manifest(manifest_uri), asked.seconds * asked.actors / asked.tile_s
    epochs = max(1, round(wanted / manifest.num_tiles))
    options = {"tile_s": asked.tile_s}
    spec = describe_teacher(NAME, None, options)
    number = {"min_actors": asked.actors, "max_actors": asked.actors}
    teacher = StreamTeacher(
        name=None,
        teacher=TeacherConfig(name=NAME, options=options),
        sha256=spec.weights_sha256,
        responses=spec.responses,
        pool=PoolConfig(**number, cpus_per_actor=CPUS_PER_ACTOR, gpus_per_actor=1.0, batch_size=BATCH),
    )
    return StreamConfig(
        manifest_uri=manifest_uri,
        plan=Plan(manifest.chunks["rows"], manifest.chunks["shard"], num_epochs=epochs, seed=0),
        tile_px=TILE_PX,
        readers=ReaderConfig(),
        teachers=(teacher,),
    )


def tiles_per_s(asked: Asked, scratch: Path) -> float:
    """Of the stream in its middle.

    Raises:
        ConfigError: not all actors had answered before its end.
    """
    import ray

    from csat.columns import RESPONSE_PREFIX
    from csat.runs.plan import Intervals
    from workflows.pretraining.stream import make_stream
    from workflows.shell.config import RayConfig, WorkerConfig
    from workflows.shell.data import configure_data

    register()
    config = make_config(asked, str(scratch / "manifest"))
    runtime = {"worker_process_setup_hook": "workflows.rates.sleeping.register"}
    ray.init(include_dashboard=False, runtime_env=runtime, log_to_driver=False, num_gpus=asked.actors)  # in Ray's books only
    configure_data(RayConfig())
    done, times, actors = [0], [time.monotonic()], [set()]
    batches = {"batch_size": TILES_AT_ONCE, "prefetch_batches": WorkerConfig().prefetch_batches}
    for batch in make_stream(config, Intervals()).iter_batches(**batches):
        done.append(done[-1] + len(batch[POSITION]))
        times.append(time.monotonic())
        actors.append(actors[-1] | {tuple(said) for said in batch[f"{RESPONSE_PREFIX}features"][:, :2].tolist()})
    return steady(done, times, list(map(len, actors)), asked.actors)


def steady(done: Sequence[int], times: Sequence[float], actors: Sequence[int], wanted: int) -> float:
    """Tiles/s between two shares of a stream, and while so many actors answer.

    Args:
        done, times, actors: Tiles, seconds, and actors that have answered any, after each batch.

    Raises:
        ConfigError: they came too late.
    """
    first, last = (next(i for i, number in enumerate(done) if number >= share * done[-1]) for share in MIDDLE)
    first = next((i for i, number in enumerate(actors) if i >= first and number >= wanted), last)
    if done[last] - done[first] < FEWEST_TILES:
        raise ConfigError(f"{actors[-1]} of {wanted} actors had answered before the end of the stream: make it longer")
    return (done[last] - done[first]) / (times[last] - times[first])


if __name__ == "__main__":
    place = Path(sys.argv[2])
    rate = tiles_per_s(Asked(**json.loads(sys.argv[1])), place.with_suffix(""))
    place.write_text(json.dumps({"tiles_per_s": rate}))
