"""A pretraining as its workers see it: the method, and the streams that it learns from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray.data import Dataset

from csat.methods.contract import Method, Setting
from csat.methods.registry import build_method, build_student
from csat.panel import member_of, of_teacher
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from csat.runs.plan import Plan
from csat.tiles.manifest import Manifest
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from teachers.response_cache import ResponseCache
from workflows.pretraining.check import teacher_options, tile_px
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.stream import ResumingStream, StreamConfig, StreamTeacher
from workflows.pretraining.students import Methods, check_no_first_stage, of_student, same_of_all, student_factor
from workflows.shell.config import NamedTeacher, TeacherConfig
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
        asked = config.asked
        teachers = tuple(
            replace(each, teacher=_as_shown(asked[each.name], config), pool=asked[each.name].pool)
            for each in self.stream.teachers
        )
        return replace(self, config=config, stream=replace(self.stream, teachers=teachers, readers=config.readers))

    def with_caches(self, caches: Mapping[str | None, ResponseCache]) -> "PretrainJob":
        """The job with responses of these teachers kept: then there are two streams."""
        return replace(self, stream=self.stream.with_caches(caches))

    def build_methods(self) -> Methods:
        """The method with each student, seeded: the same weights in every process."""
        return build(self.config, self.teacher, tile_px=self.stream.tile_px)

    def streams(self) -> dict[str, Callable[[], Dataset]]:
        names = [TRAIN, CACHED] if self.stream.is_cached else [TRAIN]
        made = ResumingStream(config=self.stream, checkpoints_uri=self.checkpoints, settings=self.config.ray)
        return {name: replace(made, part=name) for name in names}

    def on_stream(self, name: str) -> None:
        if name == CACHED:
            for each in self.stream.teachers:
                if each.cache is not None:
                    each.cache.mark_complete()  # an epoch has been through the teacher stage

    def work(self, context: TrainContext) -> dict[str, Any]:
        if self.workers.threads is not None:
            torch.set_num_threads(self.workers.threads)
        methods = self.build_methods()
        for method in methods.values():
            if stage := method.first_stage():
                stage.load(stage.folder(self.run_folder))
            method.to(context.device)
        trainer = Trainer(methods, self.plan, context, self.config.train, run_folder=self.folder, tile_px=self.stream.tile_px)
        cursor = trainer.run()
        return {"step": cursor.step, "tiles": len(cursor.done)}


def build(config: PretrainConfig, teacher: TeacherSpec, *, tile_px: int) -> Methods:
    """The method with each student, seeded alike. Raises ConfigError, TeacherError for settings that cannot work."""
    name, options, whole = config.method.name, config.method.options, config.data.whole is not None
    weights = {name: each.weight for name, each in config.asked.items() if name is not None}
    setting = Setting(tile_px=tile_px, teacher=teacher, whole=whole, seed=config.train.seed, teacher_weights=weights)
    methods: Methods = {}
    for student, settings in config.each_student().items():
        torch.manual_seed(config.train.seed)  # of each: it begins as it would alone
        with of_student(student):
            methods[student] = build_method(name, options, build_student(name, options, settings, teacher), setting)
    return methods


def make_job(config: PretrainConfig, teacher: TeacherSpec) -> tuple[PretrainJob, Methods]:
    """The job before its tiles are known, and what it will train. A plan of one batch stands for theirs, until `over`.

    Raises:
        ConfigError, TeacherError: settings of students and method that cannot work, alone or together.
    """
    edge_px = tile_px(config, teacher)
    methods = build(config, teacher, tile_px=edge_px)
    check_no_first_stage(methods, config.method.name)
    stream = StreamConfig(
        manifest_uri=RunFolder(config.run_folder).path("manifest"),
        plan=Plan([config.train.batch_size], [0], num_epochs=1, seed=0),
        tile_px=edge_px,
        readers=config.readers,
        teachers=tuple(_stream_teacher(config, teacher, name) for name in config.asked),
        largest_px=None if config.data.whole is None else ((edge_px, edge_px),),
        student_factor=student_factor(config),
    )
    asked = same_of_all({name: asked_by(method, stream) for name, method in methods.items()}, config.method.name)
    return PretrainJob(config=config, teacher=teacher, stream=asked), methods


def asked_by(method: Method, stream: StreamConfig) -> StreamConfig:
    """The stream as a method asks for it: its responses, and the view and the colours in which teachers see a tile."""
    return replace(
        stream,
        teachers=tuple(
            replace(each, responses=tuple(method.responses if each.name is None else of_teacher(method.responses, each.name)))
            for each in stream.teachers
        ),
        view_seed=method.seed if method.view_in_pool else None,
        colour=method.colour_in_pool,
        colour_seed=method.seed,
    )


def _stream_teacher(config: PretrainConfig, teacher: TeacherSpec, name: str | None) -> StreamTeacher:
    """One of the settings' teachers, before it is known what it is asked."""
    asked = config.asked[name]
    spec = teacher if name is None else member_of(teacher, name).spec
    shown = _as_shown(asked, config)
    return StreamTeacher(
        name=name, teacher=shown, sha256=spec.weights_sha256, responses=(), pool=asked.pool, shrink=asked.shrink
    )


def _as_shown(asked: NamedTeacher, config: PretrainConfig) -> TeacherConfig:
    """What a teacher is loaded by."""
    return TeacherConfig(name=asked.name, weights=asked.weights, options=teacher_options(asked, mpp=config.data.mpp))
