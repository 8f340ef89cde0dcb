"""Labelled samples on their way to the workers of a group, and through the teacher pool where there is a teacher."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy

from csat.columns import POSITION
from csat.labels.reader import LabelledReader
from csat.runs.checkpoints import Checkpoints
from csat.runs.plan import Intervals, Plan
from teachers.stage import TeacherStage
from workflows.shell.config import PoolConfig, RayConfig, ReaderConfig
from workflows.shell.data import configure_data


@dataclass(frozen=True, kw_only=True)
class LabelledStream:
    """Called by Ray Train whenever a worker group starts: decodes on the way what the committed checkpoint has not done.

    With a teacher, a pool of actors answers the tiles after they were augmented: teacher and student see the same.
    """

    make_reader: Callable[[], LabelledReader]  # called in each actor: decoded samples are looked up there, not sent there
    plan: Plan
    readers: ReaderConfig
    teacher: dict[str, Any] | None = None  # arguments of `TeacherStage`; None: there is no teacher
    pool: PoolConfig = field(default_factory=PoolConfig)
    checkpoints_uri: str
    settings: RayConfig
    rows_at_once: int = 32

    def __call__(self) -> ray.data.Dataset:
        configure_data(self.settings)
        done: Intervals = Checkpoints(self.checkpoints_uri).latest_cursor().done
        rest = [
            positions[~done.contains(positions)]
            for epoch in range(self.plan.num_epochs)
            for positions in (epoch * self.plan.num_tiles + np.arange(self.plan.num_tiles),)
        ]
        rest = np.concatenate(rest)
        blocks = [pa.table({POSITION: block}) for block in np.array_split(rest, max(1, len(rest) // self.rows_at_once))]
        rows = ray.data.from_blocks(blocks).map_batches(
            _ReaderStage,
            fn_constructor_args=(self.make_reader,),
            batch_size=None,
            num_cpus=self.readers.cpus_per_actor,
            compute=ActorPoolStrategy(min_size=self.readers.min_actors, max_size=self.readers.most_actors),
        )
        if self.teacher is None:
            return rows
        return rows.map_batches(
            TeacherStage,
            fn_constructor_kwargs={**self.teacher, "device": "cuda" if self.pool.gpus_per_actor else "cpu"},
            batch_size=self.pool.batch_size,
            num_cpus=self.pool.cpus_per_actor,
            num_gpus=self.pool.gpus_per_actor or None,
            compute=ActorPoolStrategy(min_size=self.pool.min_actors, max_size=self.pool.most_actors),
        )


class _ReaderStage:
    def __init__(self, make_reader: Callable[[], LabelledReader]):
        self.reader = make_reader()

    def __call__(self, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self.reader(columns)
