"""The method of a fine-tuning with its model, and the teacher that it may learn from."""

import torch

from csat.labels.sets import LabelledData
from csat.labels.splits import class_counts
from csat.methods import registry
from csat.methods.contract import Method, Setting
from csat.model.files import load_exported
from csat.model.registry import build_model
from csat.responses import TeacherSpec
from teachers.registry import describe_teacher
from workflows.finetuning.config import FinetuneConfig
from workflows.shell.config import check_counts


def build_method(config: FinetuneConfig, data: LabelledData, teacher: TeacherSpec | None = None) -> Method:
    """The method with its model, seeded: the same weights in every process. Raises ConfigError for what cannot work."""
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, data.info, load=load_exported)
    counts = None
    if data.splits["train"][0].label is not None:
        counts = tuple(class_counts(data.splits["train"], len(data.info.classes)).tolist())
    setting = Setting(
        tile_px=config.data.tile_px, teacher=teacher, data=data.info, class_counts=counts, seed=config.train.seed
    )
    return registry.build_method(config.method.name, config.method.options, model, setting)


def describe(config: FinetuneConfig) -> TeacherSpec | None:
    """The teacher's spec, checked against the tiles; None without a teacher. Raises ConfigError, TeacherError."""
    if config.teacher is None:
        return None
    check_counts(pool=config.pool, readers=config.readers)
    spec = describe_teacher(config.teacher.name, config.teacher.weights, config.teacher.options)
    mpp = config.data.mpp if config.data.fit == "crop" else None  # an image stretched to its tile has no resolution
    spec.check_view(tile_px=config.data.tile_px, mpp=mpp, accept_any_mpp=config.teacher.accept_any_mpp)
    return spec
