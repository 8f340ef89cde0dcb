"""Which methods there are. A new one is its file (or folder) and one line in `METHODS`."""

import math
from collections.abc import Mapping
from typing import Any

from csat.errors import ConfigError
from csat.methods.contract import Method, Setting, Source
from csat.model.contract import Model
from csat.model.student import Student, StudentConfig
from csat.panel import Panel, names_of, of_teacher
from csat.responses import ResponseSpec, TeacherSpec
from csat.settings import read_settings, resolve

# name → class, as "module:attribute": importing the registry imports no method. The class itself is accepted in place of the
# string.
METHODS: dict[str, str | type[Method]] = {
    "rckd": "csat.methods.rckd:RCKD",
    "resolution": "csat.methods.resolution:Resolution",
    "supervised": "csat.methods.supervised:Supervised",
    "coco": "csat.methods.coco.coco:CoCo",
    "attention": "csat.methods.attention:Attention",
}


def find_method(name: str) -> type[Method]:
    """A method's class. Raises ConfigError for a name that is not there, listing those that are."""
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}; there is: {', '.join(METHODS)}")
    return resolve(METHODS[name])


def read_options(name: str, options: Mapping[str, Any]) -> Any:
    """A method's config from the settings of a recipe.

    Args:
        name: Of the method.
        options: Field → value; the value of a nested config is itself such a mapping, or the config.

    Raises:
        ConfigError: an unknown method or setting (the valid ones are listed), or a value that cannot be.
    """
    weights = options.get("weights")
    if isinstance(weights, Mapping):  # of several teachers `nuclei: {np_bce: 2}` is what `nuclei.np_bce: 2` is
        options = {**options, "weights": _by_term(weights)}
    return read_settings(find_method(name).Config, options, what=f"options of method {name!r}")


def _by_term(weights: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in weights.items():
        flat |= _by_term(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def spell_out(method: Mapping[str, Any], *, as_before: bool = False) -> dict[str, Any]:
    """The method's settings (name and options) with every option whose default has changed.

    Args:
        method: As in a configuration.
        as_before: They are of a run that was recorded before the change, if it does not say otherwise.
    """
    name = method.get("name")
    changed = find_method(name).changed_defaults if name in METHODS else {}
    defaults = {option: values[0 if as_before else 1] for option, values in changed.items()}
    return {**method, "options": {**defaults, **(method.get("options") or {})}}


def wanted_responses(
    name: str, options: Mapping[str, Any], teacher: TeacherSpec | None, *, has_labels: bool = False
) -> tuple[ResponseSpec, ...]:
    """What the teacher has to be asked, known before any model is built.

    Args:
        name: Of the method.
        options: Its settings.
        teacher: Whose responses come; None: there is none.
        has_labels: The tiles have labels.

    Raises:
        ConfigError: as `read_options`; a method that does not learn from just what there is, or not from all teachers.
        TeacherError: the teacher does not give what the method needs.
    """
    method_class = _find_fitting(name, teacher, has_labels=has_labels)
    config = read_options(name, options)
    wanted = tuple(method_class.wanted(config, teacher)) if Source.RESPONSES in method_class.learns_from else ()
    if idle := [each for each in names_of(teacher) if not of_teacher(wanted, each)]:
        learned = ", ".join(spec.name for spec in wanted)
        raise ConfigError(
            f"teachers.{idle[0]} would be asked for nothing: method {name} learns {learned}. Leave that teacher out, or name "
            "its responses in method.options"
        )
    return wanted


def build_student(name: str, options: Mapping[str, Any], config: StudentConfig, teacher: TeacherSpec) -> Student:
    """A fresh student with a head for each response that the method wants, on the CPU. Raises as `wanted_responses`."""
    return find_method(name).make_student(config, wanted_responses(name, options, teacher))


def build_method(name: str, options: Mapping[str, Any], model: Model, setting: Setting) -> Method:
    """A method around its model, on the CPU.

    Args:
        name: Of the method.
        options: Its settings.
        model: What is trained: of `build_student`, or with labels of `csat.model.registry.build_model`.
        setting: The run around it.

    Raises:
        ConfigError: settings that cannot work, alone or together.
        TeacherError: the teacher does not give what the method needs.
    """
    method_class = _find_fitting(name, setting.teacher, has_labels=setting.data is not None)
    config = read_options(name, options)
    model.check_tile(setting.tile_px)
    return method_class(config, model, setting)


def whole_step_px(name: str, options: Mapping[str, Any], student_config: StudentConfig, teacher: TeacherSpec) -> int:
    """What the edges of whole images have to be multiples of, so that teacher and student divide them, in teacher's pixels.

    Raises:
        ConfigError: a method, teacher or student that takes tiles of one size only.
    """
    if not find_method(name).takes_any_size:
        takes = [each for each in METHODS if find_method(each).takes_any_size]
        raise ConfigError(f"data.whole is for method {' or '.join(takes)}; {name} learns from square tiles: leave it out")
    if teacher.tile_px is not None:
        sizes = ", ".join([*map(str, teacher.tile_px[:4]), *["…"] * (len(teacher.tile_px) > 4)])
        raise ConfigError(
            f"teacher {teacher.name!r} takes tiles of {sizes} px, and whole images have sizes of their own: use a "
            "convolutional net (of a run of finetune.py with teacher.options.any_size true), or leave data.whole out"
        )
    student = build_student(name, options, student_config, teacher)
    if student.has_one_size:
        raise ConfigError(
            f"backbone {student_config.backbone!r} takes images of one size, and whole images have sizes of their own: choose "
            "a convolutional one, such as resnet10_gn"
        )
    dense = [spec.stride_px for spec in wanted_responses(name, options, teacher) if spec.is_dense]
    shrinks = [each.shrink for each in teacher.members] if isinstance(teacher, Panel) else []
    return math.lcm(student.step_px * student_config.downsample, *dense, *shrinks)


def _find_fitting(name: str, teacher: TeacherSpec | None, *, has_labels: bool) -> type[Method]:
    """The class of a method that learns from just what there is. Raises ConfigError for another, listing those that do."""
    if name not in METHODS or (Source.LABELS in find_method(name).learns_from) != has_labels:
        hint = f" ({name} is a method of {'pretrain.py' if has_labels else 'finetune.py'})" if name in METHODS else ""
        raise ConfigError(f"there is no method {name!r} here{hint}; there is: {', '.join(_methods(has_labels=has_labels))}")
    method_class = find_method(name)
    has_use = Source.RESPONSES in method_class.learns_from
    if has_use and teacher is None:
        raise ConfigError(f"method {name!r} learns from a teacher too: name one with teacher.name, such as a run's folder")
    if not has_use and teacher is not None:
        others = [each for each, one in _methods(has_labels=has_labels).items() if Source.RESPONSES in one.learns_from]
        raise ConfigError(
            f"method {name!r} has no use for a teacher: leave it out, or choose a method that has: {', '.join(others)}"
        )
    return method_class


def _methods(*, has_labels: bool) -> dict[str, type[Method]]:
    """Those that learn from labels, or those that do without."""
    classes = {name: find_method(name) for name in METHODS}
    return {name: one for name, one in classes.items() if (Source.LABELS in one.learns_from) == has_labels}
