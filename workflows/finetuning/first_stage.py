"""What a method needs trained before it, within a fine-tuning: over the training part, in a folder of its own in the run's."""

from dataclasses import dataclass
from typing import Any

from csat.methods.contract import FirstStage
from csat.responses import ResponseSpec
from csat.runs.folder import RunFolder
from csat.training.context import TrainContext
from csat.training.first_stage import train_first_stage
from workflows.finetuning.job import LabelledJob


@dataclass(frozen=True, kw_only=True)
class FirstStageJob(LabelledJob):
    """The same data and teacher as the run's own training, for other epochs, in another folder."""

    stage: str  # its name, and that of its folder
    epochs: int
    asked: tuple[ResponseSpec, ...]

    @property
    def num_epochs(self) -> int:
        return self.epochs

    @property
    def folder(self) -> str:
        return RunFolder(self.run_folder).path(self.stage)

    @property
    def responses(self) -> tuple[ResponseSpec, ...]:
        return self.asked

    def work(self, context: TrainContext) -> dict[str, Any]:
        stage, tile_px = self.build_method().first_stage(), self.config.data.tile_px
        cursor = train_first_stage(stage, self.plan, context, self.config.train, folder=self.folder, tile_px=tile_px)
        return {"tiles": len(cursor.done)}


def make_first_job(job: LabelledJob, stage: FirstStage) -> FirstStageJob:
    """The stage before a run's own training."""
    asked = stage.make_method().responses
    return FirstStageJob(
        config=job.config, prepared=job.prepared, teacher=job.teacher, stage=stage.name, epochs=stage.epochs, asked=asked
    )
