"""A run's own training on labels: the best weights by the validation split are kept, judged and exported."""

import logging
from dataclasses import dataclass
from typing import Any

from torch import nn

from csat.evaluation import scores
from csat.evaluation.predictions import Predictions, write_predictions
from csat.evaluation.reports.finetuning import write_finetuning_report
from csat.export.folder import export_model, exported_folder, read_exported_config
from csat.model.cost import count_cost, measure_speed
from csat.model.registry import ModelConfig
from csat.runs.folder import RunFolder
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.validation import Validation
from teachers.contract import teacher_record
from workflows.finetuning.job import LabelledJob
from workflows.finetuning.judge import Judge

logger = logging.getLogger(__name__)

JUDGED = ("val", "test")
SPEED_BATCH = 8  # images at once of the speed that evaluation.json states


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
        method.load_state_dict(validation.best_state or trainer.averaged_state())
        model = method.part("student").eval()
        predictions = {split: judge.predict(model, split, is_final=True) for split in JUDGED if splits[split]}
        if context.rank == 0:
            folder = RunFolder(self.run_folder)
            _write_results(folder, self, model, predictions, validation)
            pictures = judge.pictures(model, predictions.get("test") or predictions["val"])
            write_finetuning_report(folder, pictures=pictures)
        context.gather(None)  # nobody leaves before the results are written
        return {"tiles": len(cursor.done)}

    def on_validation(self, figures: dict[str, Any]) -> None:
        logger.info("validation: %s", scores.in_words(figures))


def _write_results(
    folder: RunFolder, job: FinetuneJob, model: nn.Module, predictions: dict[str, Predictions], validation: Validation
) -> None:
    """predictions/, evaluation.json and exported/."""
    config, data = job.config, job.prepared.data
    for split, said in predictions.items():
        write_predictions(folder.path("predictions", f"{split}.parquet"), said)
    figures = {
        split: scores.evaluate([said], num_bootstraps=config.num_bootstraps, seed=config.data.split.seed)
        for split, said in predictions.items()
    }
    input_px = config.data.tile_px // model.downsample
    cost = count_cost(model, (1, 3, input_px, input_px))
    cost |= {"input_px": input_px, "images_per_s": measure_speed(model, (SPEED_BATCH, 3, input_px, input_px))}
    started_from = _started_from(config.model)
    folder.write_json(
        "evaluation.json",
        {
            "task": data.info.task,
            "classes": data.info.classes,
            "metric": scores.check_metric(data.info.task, data.info.classes, config.metric),
            **figures,
            "best_step": validation.best_step,
            "best_metric": validation.best,
            "seed": config.train.seed,
            "model": {"name": config.model.name, "init": config.model.init, "from_run": config.model.from_run},
            "cost": cost,
        },
    )
    metadata = {
        "task": data.info.task,
        "classes": data.info.classes,
        "tile_px": config.data.tile_px,
        "fit": config.data.fit,
        # A whole image that is stretched to the tile has no resolution of its own.
        "mpp": (config.data.mpp or data.info.mpp) if config.data.fit == "crop" else None,
        "licence": data.info.licence,
        "source": data.info.source,
        "data": data.info.name,
        "started_from": started_from,
        "teacher": teacher_record(job.teacher) if job.teacher else None,
    }
    export_model(model, folder.path("exported"), metadata)


def _started_from(model: ModelConfig) -> dict[str, Any] | str:
    """Where the weights came from, for the model card: of a run, what its own export says, its teacher and licence too."""
    if model.from_run is None:
        return model.init
    return {"run": model.from_run, **read_exported_config(exported_folder(model.from_run))["metadata"]}
