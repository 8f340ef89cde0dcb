"""A pretraining as its workers see it: the method, and the streams that it learns from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.data import Dataset

from csat.methods.contract import Method, Setting
from csat.methods.registry import build_method, build_student
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.tiles.manifest import Manifest
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from teachers.response_cache import ResponseCache
from workflows.pretraining.check import teacher_options, tile_px
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.stream import ResumingStream, StreamConfig
from workflows.shell.config import TeacherConfig
from workflows.shell.data import CACHED, TRAIN
from workflows.shell.group import RunJob


@dataclass(frozen=True, kw_only=True)
class PretrainJob(RunJob):
    """Everything that a worker needs to know."""

    config: PretrainConfig
    teacher: TeacherSpec
    stream: StreamConfig

    @property
    def plan(self) -> Plan:
        return self.stream.plan

    def over(self, manifest: Manifest) -> "PretrainJob":
        """The job over these tiles, in an order that follows from the seed."""
        chunks = manifest.chunks
        plan = Plan(chunks["rows"], chunks["shard"], num_epochs=self.num_epochs, seed=self.config.train.seed)
        largest_px = None if self.stream.largest_px is None else manifest.largest_px or self.stream.largest_px
        return replace(self, stream=replace(self.stream, plan=plan, largest_px=largest_px))

    def with_config(self, config: PretrainConfig) -> "PretrainJob":
        """The job with what was decided about how it computes: settings that change nothing about what it learns."""
        teacher = replace(self.stream.teacher, options=teacher_options(config))
        stream = replace(self.stream, teacher=teacher, readers=config.readers, pool=config.pool)
        return replace(self, config=config, stream=stream)

    def with_cache(self, cache: ResponseCache) -> "PretrainJob":
        """The job with the teacher's responses kept: then there are two streams."""
        return replace(self, stream=replace(self.stream, cache=cache))

    def build_method(self) -> Method:
        """The method with its student, seeded: the same weights in every process."""
        return build(self.config, self.teacher, tile_px=self.stream.tile_px)

    def streams(self) -> dict[str, Callable[[], Dataset]]:
        names = [TRAIN] if self.stream.cache is None else [TRAIN, CACHED]
        made = ResumingStream(config=self.stream, checkpoints_uri=self.checkpoints, settings=self.config.ray)
        return {name: replace(made, part=name) for name in names}

    def on_stream(self, name: str) -> None:
        if name == CACHED:
            self.stream.cache.mark_complete()  # an epoch has been through the teacher stage

    def work(self, context: TrainContext) -> dict[str, Any]:
        if self.workers.threads is not None:
            torch.set_num_threads(self.workers.threads)
        method = self.build_method()
        if stage := method.first_stage():
            stage.load(stage.folder(self.run_folder))
        method = method.to(context.device)
        trainer = Trainer(method, self.plan, context, self.config.train, run_folder=self.folder, tile_px=self.stream.tile_px)
        cursor = trainer.run()
        return {"step": cursor.step, "tiles": len(cursor.done)}


def build(config: PretrainConfig, teacher: TeacherSpec, *, tile_px: int) -> Method:
    """The method with its student, seeded. Raises ConfigError, TeacherError for settings that cannot work."""
    torch.manual_seed(config.train.seed)
    whole = config.data.whole is not None
    setting = Setting(tile_px=tile_px, teacher=teacher, whole=whole, seed=config.train.seed)
    student = build_student(config.method.name, config.method.options, config.student, teacher)
    return build_method(config.method.name, config.method.options, student, setting)


def make_job(config: PretrainConfig, teacher: TeacherSpec) -> tuple[PretrainJob, Method]:
    """The job before its tiles are known, and what it will train. A plan of one batch stands for theirs, until `over`.

    Raises:
        ConfigError, TeacherError: settings of student and method that cannot work.
    """
    edge_px = tile_px(config, teacher)
    method = build(config, teacher, tile_px=edge_px)
    stream = StreamConfig(
        manifest_uri=RunFolder(config.run_folder).path("manifest"),
        plan=Plan([config.train.batch_size], [0], num_epochs=1, seed=0),
        tile_px=edge_px,
        readers=config.readers,
        pool=config.pool,
        teacher=TeacherConfig(name=config.teacher.name, weights=config.teacher.weights, options=teacher_options(config)),
        teacher_sha256=teacher.weights_sha256,
        **asked_by(method),
        largest_px=None if config.data.whole is None else ((edge_px, edge_px),),
        student_factor=config.student.downsample if config.student_pixels == "pyramid" else None,
    )
    return PretrainJob(config=config, teacher=teacher, stream=stream), method


def asked_by(method: Method) -> dict[str, Any]:
    """What a method asks of the stream: responses, and the view and the colours in which the teacher sees a tile."""
    return {
        "responses": method.responses,
        "view_seed": method.seed if method.view_in_pool else None,
        "colour": method.colour_in_pool,
        "colour_seed": method.seed,
    }
