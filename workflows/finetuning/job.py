"""What every training on labelled images shares: the data and their order, the teacher's part, the stream."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ray.data import Dataset

from csat.labels.order import SampleOrder, visits_an_epoch
from csat.labels.reader import LabelledReader, read_here
from csat.methods.contract import Method
from csat.methods.registry import wanted_responses
from csat.precision import FLOAT32
from csat.responses import ResponseSpec, TeacherSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.plan import Plan
from csat.training.context import Columns, TrainContext
from teachers.contract import PRECISION
from teachers.registry import has_precision
from teachers.stage import TeacherStage
from workflows.finetuning.build import build_method
from workflows.finetuning.config import FinetuneConfig
from workflows.finetuning.stream import LabelledStream
from workflows.shell.data import TRAIN
from workflows.shell.decode_samples import Prepared
from workflows.shell.group import RunJob


@dataclass(frozen=True, kw_only=True)
class LabelledJob(RunJob):
    """Of one run; what is trained on the data, a subclass says."""

    config: FinetuneConfig
    prepared: Prepared
    teacher: TeacherSpec | None = None  # whom the method learns from too

    @property
    def plan(self) -> Plan:
        labels = [sample.label for sample in self.prepared.data.splits["train"]]
        visits = int(visits_an_epoch(labels, self.config.data.sampling).sum())
        return Plan([visits], [0], num_epochs=self.num_epochs, seed=self.config.train.seed)

    @property
    def responses(self) -> tuple[ResponseSpec, ...]:
        """What the teacher is asked."""
        return wanted_responses(self.config.method.name, self.config.method.options, self.teacher, has_labels=True)

    def teacher_stage(self) -> dict[str, Any] | None:
        """Arguments of a `TeacherStage`, less the device; None where no response is learned."""
        if not self.responses:
            return None
        asked = self.config.teacher
        exact = {PRECISION: FLOAT32} if has_precision(asked.name) else {}  # where the user says no other
        return {
            "name": asked.name,
            "weights": asked.weights,
            "options": exact | asked.options,
            "wanted": [spec.name for spec in self.responses],
            "expected_sha256": self.teacher.weights_sha256,
        }

    def reader(self) -> LabelledReader:
        """Of the training split, over decoded tables or over files."""
        data, settings, plan = self.prepared.data, self.config.data, self.plan
        samples = data.splits["train"]  # the first split: its samples have the first indices
        order = SampleOrder(plan, sampling=settings.sampling, labels=[sample.label for sample in samples])
        return LabelledReader(
            self.prepared.source(),
            samples,
            data.info,
            order,
            augment=settings.augment,
            tile_px=settings.tile_px,
            fit=settings.fit,
            seed=self.config.train.seed,
        )

    def build_method(self) -> Method:
        """The method with its model, seeded: the same weights in every process."""
        return build_method(self.config, self.prepared.data, self.teacher)

    def streams(self) -> dict[str, Callable[[], Dataset]]:
        """Through Ray Data, for a teacher or a set that is not kept in memory; none where every worker reads by itself."""
        teacher = self.teacher_stage()
        if self.prepared.tables is not None and teacher is None:
            return {}
        stream = LabelledStream(
            make_reader=self.reader,
            plan=self.plan,
            readers=self.config.readers,
            teacher=teacher,
            pool=self.config.pool,
            checkpoints_uri=self.checkpoints,
            settings=self.config.ray,
        )
        return {TRAIN: stream}

    def read_here(self, batch_size: int, context: TrainContext) -> Iterator[Columns]:
        """This rank's rows, read by a thread of this process, which asks the teacher too where there is one."""
        done = Checkpoints(self.checkpoints).latest_cursor().done
        reader, teacher = self.reader(), self.teacher_stage()
        if teacher is not None:
            stage = TeacherStage(**teacher, device=context.device.type)
            answered = lambda columns: stage(reader(columns))  # noqa: E731
        else:
            answered = reader
        return read_here(answered, self.plan, done, batch_size=batch_size, rank=context.rank, world_size=context.world_size)
