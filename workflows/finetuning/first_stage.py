"""What a method needs trained before it, within a run: trained over the training part, and kept in a folder of its own.

Which modules these are, and how they learn, the method says (`csat.methods.contract.FirstStage`). The folder lies in the run's
and has checkpoints and metrics: interrupted and started again, the stage resumes.
"""

import logging
from dataclasses import dataclass, replace
from typing import Any

from csat.methods.contract import FirstStage
from csat.responses import ResponseSpec
from csat.runs.folder import RunFolder
from csat.runs.recorder import read_metrics
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from workflows.finetuning.job import LabelledJob

logger = logging.getLogger(__name__)


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
        """Train to the end and write the folder."""
        stage = self.build_method().first_stage()
        method = stage.make_method().to(context.device)
        settings = replace(self.config.train, epochs=self.epochs, optim=replace(self.config.train.optim, ema_decay=None))
        trainer = Trainer(method, self.plan, context, settings, run_folder=self.folder, tile_px=self.config.data.tile_px)
        cursor = trainer.run()
        if context.rank == 0:
            stage.save(self.folder)
            logger.info("the %s of teacher %s are trained", stage.name, self.teacher.weights_sha256[:12])
            metrics = read_metrics(self.folder)
            if said := stage.warning(metrics[-1] if metrics else {}):
                logger.warning(said)
        context.gather(None)  # nobody reads them before they are written
        return {"tiles": len(cursor.done)}


def make_first_job(job: LabelledJob, stage: FirstStage) -> FirstStageJob:
    """The stage before a run's own training."""
    asked = stage.make_method().responses
    return FirstStageJob(
        config=job.config, prepared=job.prepared, teacher=job.teacher, stage=stage.name, epochs=stage.epochs, asked=asked
    )
