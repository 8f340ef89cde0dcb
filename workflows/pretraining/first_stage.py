"""What a method needs trained before it, within a pretraining: over the same tiles, in a folder of its own in the run's."""

from dataclasses import dataclass
from typing import Any

from csat.runs.folder import RunFolder
from csat.training.context import TrainContext
from csat.training.first_stage import train_first_stage
from workflows.pretraining.job import PretrainJob, asked_by
from workflows.pretraining.students import Methods, a_reader


@dataclass(frozen=True, kw_only=True)
class FirstStageJob(PretrainJob):
    """The same tiles and teacher as the run's own training, for other epochs, in another folder."""

    stage: str  # its name, and that of its folder
    epochs: int

    @property
    def num_epochs(self) -> int:
        return self.epochs

    @property
    def folder(self) -> str:
        return RunFolder(self.run_folder).path(self.stage)

    def work(self, context: TrainContext) -> dict[str, Any]:
        stage, tile_px = a_reader(self.build_methods()).first_stage(), self.stream.tile_px
        cursor = train_first_stage(stage, self.plan, context, self.config.train, folder=self.folder, tile_px=tile_px)
        return {"step": cursor.step, "tiles": len(cursor.done)}


def make_first_job(job: PretrainJob, methods: Methods) -> FirstStageJob | None:
    """What the run has to train before its own training, before its tiles are known; None: nothing, or it has it.

    Its responses are asked of the teacher in every epoch: the response cache is for those of the run's own training.

    Raises:
        ConfigError: what was trained before does not fit this teacher or student.
    """
    stage = a_reader(methods).first_stage()
    if stage is None:
        return None
    if not stage.is_missing(job.run_folder):
        stage.load(stage.folder(job.run_folder))
        return None
    stream = asked_by(stage.make_method(), job.stream).without_cache()
    return FirstStageJob(config=job.config, teacher=job.teacher, stream=stream, stage=stage.name, epochs=stage.epochs)
