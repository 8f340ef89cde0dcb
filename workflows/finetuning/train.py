"""A run's own training on labels: the best weights by the validation split are kept, judged and exported."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import nn

from csat.evaluation import scores
from csat.evaluation.reports.finetuning import write_finetuning_report
from csat.runs.folder import RunFolder
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.validation import Validation
from workflows.finetuning.finish import write_results
from workflows.finetuning.job import LabelledJob
from workflows.finetuning.judge import Judge

logger = logging.getLogger(__name__)

JUDGED = ("val", "test")


@dataclass(frozen=True, kw_only=True)
class FinetuneJob(LabelledJob):
    """Trains to the end (or to where the validation says stop), then judges and exports the best weights."""

    def work(self, context: TrainContext) -> dict[str, Any]:
        config, splits = self.config, self.prepared.data.splits
        method = self.build_method()
        if stage := method.first_stage():
            stage.load(stage.folder(self.run_folder))
        method = method.to(context.device)
        judge = Judge(self, context)

        def measure(model: nn.Module, context: TrainContext) -> dict[str, float]:
            return scores.validate(judge.predict(model, "val", is_final=False), metric=config.metric)

        validation = Validation(config.validation, measure, tiles_per_epoch=self.plan.num_tiles)
        trainer = Trainer(
            method,
            self.plan,
            context,
            config.train,
            run_folder=self.folder,
            tile_px=config.data.tile_px,
            validation=validation,
        )
        cursor = trainer.run()
        method.load_state_dict(validation.best_state or trainer.learner.averaged_state())
        model = method.part("student").eval()
        predictions = {split: judge.predict(model, split, is_final=True) for split in JUDGED if splits[split]}
        if context.rank == 0:
            folder = RunFolder(self.run_folder)
            write_results(folder, self, model, predictions, validation)
            pictures = judge.pictures(model, predictions.get("test") or predictions["val"])
            write_finetuning_report(folder, pictures=pictures)
        context.gather(None)  # nobody leaves before the results are written
        return {"tiles": len(cursor.done)}

    def on_validation(self, figures: dict[str, Any]) -> None:
        logger.info("validation: %s", scores.in_words(figures))
