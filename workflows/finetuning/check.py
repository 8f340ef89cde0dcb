"""Everything about a fine-tuning that can be known before an image is decoded."""

from csat.evaluation import scores
from csat.evaluation.leakage import check_leakage
from csat.labels.sets import LabelledData, assemble
from csat.responses import TeacherSpec
from csat.runs.folder import RunFolder
from teachers.registry import describe_teacher, find_teacher
from workflows.finetuning.config import FinetuneConfig
from workflows.finetuning.train import build_method
from workflows.shell.config import check_counts


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


def describe(config: FinetuneConfig) -> TeacherSpec | None:
    """The teacher's spec, checked against the tiles; None without a teacher. Raises ConfigError, TeacherError."""
    if config.teacher is None:
        return None
    check_counts(pool=config.pool, readers=config.readers)
    spec = describe_teacher(config.teacher.name, config.teacher.weights, config.teacher.options)
    mpp = config.data.mpp if config.data.fit == "crop" else None  # an image stretched to its tile has no resolution
    spec.check_view(tile_px=config.data.tile_px, mpp=mpp, accept_any_mpp=config.teacher.accept_any_mpp)
    return spec
