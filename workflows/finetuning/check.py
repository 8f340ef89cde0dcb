"""Everything about a fine-tuning that can be known before an image is decoded."""

from csat.evaluation import scores
from csat.evaluation.leakage import check_leakage
from csat.labels.sets import LabelledData, assemble
from csat.runs.folder import RunFolder
from teachers.registry import find_teacher
from workflows.finetuning.build import build_method, describe
from workflows.finetuning.config import FinetuneConfig


def check(config: FinetuneConfig, data: LabelledData | None = None) -> LabelledData:
    """Everything that can be known without decoding: layouts, parts, classes, model, method, leakage.

    Args:
        data: Of the same `data` settings, where they were assembled before.

    Raises:
        ConfigError, DatasetError, StorageError: what is wrong and what to try.
    """
    data = data or assemble(config.data)
    scores.check_metric(data.info.task, data.info.classes, config.metric)
    teacher = describe(config)
    method = build_method(config, data, teacher)
    stage, run_folder = method.first_stage(), RunFolder(config.run_folder).uri
    if stage and not stage.is_missing(run_folder):
        stage.load(stage.folder(run_folder))
    if not config.accept_leakage:
        taught_by = find_teacher(config.teacher.name, config.teacher.weights)[1] if config.teacher else None
        check_leakage(config.model.from_run, data, teacher=taught_by)
    return data
