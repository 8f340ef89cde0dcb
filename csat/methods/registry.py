"""The methods by name, and how a recipe's settings become one."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

from csat.errors import ConfigError
from csat.methods.attention import Attention, AttentionConfig
from csat.methods.coco.coco import CoCo, CoCoConfig
from csat.methods.contract import Method
from csat.methods.rckd import RCKD, RCKDConfig
from csat.methods.resolution import Resolution, ResolutionConfig
from csat.methods.supervised import Supervised, SupervisedConfig
from csat.model.student import StudentConfig
from csat.responses import ResponseSpec, TeacherSpec
from csat.settings import read_settings
from csat.tasks import DatasetInfo

# Without labels: pretrain.py.
METHODS: dict[str, tuple[type, type[Method]]] = {
    "rckd": (RCKDConfig, RCKD),
    "resolution": (ResolutionConfig, Resolution),
}
# With labels: finetune.py.
LABELLED_METHODS: dict[str, tuple[type, type[Method]]] = {
    "supervised": (SupervisedConfig, Supervised),
    "coco": (CoCoConfig, CoCo),
    "attention": (AttentionConfig, Attention),
}
# Options whose default has changed: what it was, and what it is. config.yaml spells them out from then on.
CHANGED_DEFAULTS: dict[str, dict[str, tuple[Any, Any]]] = {
    "coco": {"lambda_s": (0.01, 1.0), "lambda_adv": (0.001, 0.1)},
    "attention": {"alpha_kd": (1.0, 0.0)},
}


def spell_out(method: Mapping[str, Any], *, as_before: bool = False) -> dict[str, Any]:
    """The method's settings (name and options) with every option whose default has changed.

    Args:
        method: As in a configuration.
        as_before: They are of a run that was recorded before the change, if it does not say otherwise.
    """
    changed = CHANGED_DEFAULTS.get(method.get("name"), {})
    defaults = {option: values[0 if as_before else 1] for option, values in changed.items()}
    return {**method, "options": {**defaults, **(method.get("options") or {})}}


def read_options(name: str, options: Mapping[str, Any]) -> Any:
    """A method's config from the settings of a recipe.

    Args:
        name: Of the method.
        options: Field → value; the value of a nested config is itself such a mapping, or the config.

    Raises:
        ConfigError: an unknown method or setting (the valid ones are listed), or a value that cannot be.
    """
    return _read(METHODS, name, options, LABELLED_METHODS, "finetune.py")


def wanted_responses(name: str, options: Mapping[str, Any], teacher: TeacherSpec) -> tuple[ResponseSpec, ...]:
    """What the teacher pool has to produce, known before any model is built.

    Raises:
        ConfigError: as `read_options`.
        TeacherError: the teacher does not give what the method needs.
    """
    config = read_options(name, options)
    return METHODS[name][1].needs(config, teacher)


def build_method(
    name: str,
    options: Mapping[str, Any],
    student_config: StudentConfig,
    teacher: TeacherSpec,
    *,
    tile_px: int,
    whole: bool = False,
) -> Method:
    """A method with a fresh student, on the CPU.

    Args:
        name: Of the method.
        options: Its settings.
        student_config: Of the student to build.
        teacher: Whose responses it learns.
        tile_px: Edge of the tiles; of whole images what their edges are multiples of (`whole_step_px`).
        whole: Images of any size come, not tiles.

    Raises:
        ConfigError: settings that cannot work, alone or together.
        TeacherError: the teacher does not give what the method needs.
    """
    config = read_options(name, options)
    _, method_class = METHODS[name]
    responses = method_class.needs(config, teacher)
    student = method_class.make_student(student_config, responses)
    student.check_tile(tile_px)
    more = {"whole": True} if whole else {}
    return method_class(config, student, responses, tile_px=tile_px, downsample=student_config.downsample, **more)


def whole_step_px(name: str, options: Mapping[str, Any], student_config: StudentConfig, teacher: TeacherSpec) -> int:
    """What the edges of whole images have to be multiples of, so that teacher and student divide them, in teacher's pixels.

    Raises:
        ConfigError: a method, teacher or student that takes tiles of one size only.
    """
    method_class = METHODS[name][1]
    if not method_class.takes_any_size:
        takes = [each for each, (_, one) in METHODS.items() if one.takes_any_size]
        raise ConfigError(f"--data.whole is for method {' or '.join(takes)}; {name} learns from square tiles: leave it out")
    if teacher.tile_px is not None:
        sizes = ", ".join([*map(str, teacher.tile_px[:4]), *["…"] * (len(teacher.tile_px) > 4)])
        raise ConfigError(
            f"teacher {teacher.name!r} takes tiles of {sizes} px, and whole images have sizes of their own: use a "
            "convolutional net (of a run of finetune.py with --teacher.options.any_size true), or leave --data.whole out"
        )
    responses = method_class.needs(read_options(name, options), teacher)
    student = method_class.make_student(student_config, responses)
    if student.backbone.pretrained_cfg.get("fixed_input_size"):
        raise ConfigError(
            f"backbone {student_config.backbone!r} takes images of one size, and whole images have sizes of their own: choose "
            "a convolutional one, such as resnet10_gn"
        )
    return math.lcm(student.step_px * student_config.downsample, *(spec.stride_px for spec in responses if spec.is_dense))


def build_labelled_method(
    name: str,
    options: Mapping[str, Any],
    model: nn.Module,
    *,
    info: DatasetInfo,
    tile_px: int,
    class_counts: np.ndarray | None,
    teacher: TeacherSpec | None = None,
) -> Method:
    """A method that learns from labels, around a model.

    Args:
        name: Of the method.
        options: Its settings.
        model: As `csat.model.registry.build_model` makes it.
        info: Task and classes of the data.
        tile_px: Edge of the tiles.
        class_counts: int `[classes]`, training samples by class; None where a sample has no class.
        teacher: Whose responses it learns too; None: there is none.

    Raises:
        ConfigError: settings that cannot work, alone or together.
        TeacherError: the teacher does not give what the method needs.
    """
    responses = labelled_responses(name, options, teacher)
    config, method_class = _read_labelled(name, options), LABELLED_METHODS[name][1]
    more = {"responses": responses} if method_class.has_teacher else {}
    return method_class(config, model, info=info, tile_px=tile_px, class_counts=class_counts, **more)


def labelled_responses(name: str, options: Mapping[str, Any], teacher: TeacherSpec | None) -> tuple[ResponseSpec, ...]:
    """What a method with labels learns from the teacher.

    Raises:
        ConfigError: as `read_options`; a method that learns from a teacher without one, or another with one.
        TeacherError: the teacher does not give what the method needs.
    """
    config, method_class = _read_labelled(name, options), LABELLED_METHODS[name][1]
    if method_class.has_teacher and teacher is None:
        raise ConfigError(f"method {name!r} learns from a teacher too: name one with --teacher.name, such as a run's folder")
    if not method_class.has_teacher and teacher is not None:
        others = ", ".join(each for each, (_, one) in LABELLED_METHODS.items() if one.has_teacher)
        raise ConfigError(f"method {name!r} has no use for a teacher: leave it out, or choose a method that has: {others}")
    return method_class.needs(config, teacher) if method_class.has_teacher else ()


def _read_labelled(name: str, options: Mapping[str, Any]) -> Any:
    return _read(LABELLED_METHODS, name, options, METHODS, "pretrain.py")


def _read(methods: Mapping[str, tuple], name: str, options: Mapping[str, Any], others: Mapping[str, tuple], verb: str) -> Any:
    if name not in methods:
        hint = f" ({name} is a method of {verb})" if name in others else ""
        raise ConfigError(f"there is no method {name!r} here{hint}; there is: {', '.join(methods)}")
    return read_settings(methods[name][0], options, what=f"options of method {name!r}")
