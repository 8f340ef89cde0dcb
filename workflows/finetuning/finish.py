"""What is left in the run folder of a fine-tuning: by rank 0 results and model, then by the driver accounts and throughput.

In a pretraining the driver makes all of it: its student is compared with the teacher, whose actors need the machines that the
workers have left. Here all ranks judge together, with the best weights that they hold, so the results come before they leave.
"""

from typing import Any

from torch import nn

from csat.evaluation import scores
from csat.evaluation.predictions import Predictions, write_predictions
from csat.model.cost import count_cost, measure_speed
from csat.model.files import exported_folder, read_model_config, save_model
from csat.model.registry import ModelConfig
from csat.runs.accounts import write_accounts, write_throughput
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.training.validation import Validation
from teachers.contract import teacher_record
from workflows.finetuning.job import LabelledJob

SPEED_BATCH = 8  # images at once of the speed that evaluation.json states


def finish(folder: RunFolder, job: LabelledJob) -> dict[str, Any]:
    """Everything after the last rank has left. Returns what evaluation.json holds."""
    evaluation = folder.read_json("evaluation.json")
    checkpoint = Checkpoints(folder.path("checkpoints")).load()
    is_stopped = len(checkpoint.cursor.done) < job.num_positions
    write_accounts(folder, job.plan, checkpoint, is_stopped=is_stopped)
    write_throughput(folder, checkpoint, num_workers=job.workers.num_workers, costs={None: evaluation["cost"]})
    folder.set_status("finished")
    return evaluation


def write_results(
    folder: RunFolder, job: LabelledJob, model: nn.Module, predictions: dict[str, Predictions], validation: Validation
) -> None:
    """predictions/, evaluation.json and exported/; called on rank 0, on whose device the speed is measured."""
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
    save_model(model, folder.path("exported"), metadata)


def _started_from(model: ModelConfig) -> dict[str, Any] | str:
    """Where the weights came from, for the model card: of a run, what its own export says, its teacher and licence too."""
    if model.from_run is None:
        return model.init
    return {"run": model.from_run, **read_model_config(exported_folder(model.from_run))["metadata"]}
