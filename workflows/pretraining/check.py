"""What is known about a pretraining before a slide is opened: the teacher's view, settings that contradict each other."""

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from csat.errors import ConfigError, TeacherError
from csat.methods.contract import Method
from csat.methods.registry import wanted_responses, whole_step_px
from csat.model.student import StudentConfig
from csat.panel import Member, make_panel, of_teacher
from csat.responses import TeacherSpec
from teachers.registry import describe_teacher
from workflows.pretraining.config import PretrainConfig
from workflows.pretraining.students import Methods, of_student
from workflows.shell.config import NamedTeacher, PoolConfig

logger = logging.getLogger("pretrain")


def describe(config: PretrainConfig) -> TeacherSpec:
    """The teacher's spec, or that of several as one (`Panel`), checked against the tiles. Says what of it is learned.

    Raises:
        ConfigError, TeacherError: of several, with the name of the one that it is about.
    """
    members = {name: _member(config, name) for name in config.asked}
    spec = members[None].spec if None in members else make_panel(list(members.values()))
    wanted = wanted_responses(config.method.name, config.method.options, spec)
    edge_px = tile_px(config, spec)
    for name, member in members.items():
        with _about(name):
            any_mpp = config.asked[name].accept_any_mpp
            member.check_view(tile_px=edge_px, mpp=config.data.mpp, accept_any_mpp=any_mpp)
    for name, member in members.items():
        own = wanted if name is None else of_teacher(wanted, name)
        who, sees = member.spec.name if name is None else f"{name} ({member.spec.name})", _in_words(config, member)
        names = ", ".join(response.name for response in own)
        logger.info("teacher %s (%s)%s: learning %s", who, member.spec.weights_sha256[:12], sees, names)
    return spec


def tile_px(config: PretrainConfig, spec: TeacherSpec) -> int:
    """Edge of the tiles; of whole images, what their edges are made multiples of."""
    if not config.data.whole:
        return config.data.tile_px
    steps = []
    for name, student in config.each_student().items():
        with of_student(name):
            steps.append(whole_step_px(config.method.name, config.method.options, student, spec))
    return math.lcm(*steps)


def teacher_options(teacher: NamedTeacher, *, mpp: float | None) -> dict[str, Any]:
    """The weight-free teacher measures in micrometres: it is told the resolution of the tiles, as it sees them."""
    if teacher.name == "stain" and mpp is not None:
        return {"mpp": mpp * teacher.shrink, **teacher.options}
    return teacher.options


def pools_of(config: PretrainConfig) -> dict[str, PoolConfig]:
    """Setting → actors that hold a teacher."""
    return {"pool" if name is None else f"teachers.{name}.pool": each.pool for name, each in config.asked.items()}


def _member(config: PretrainConfig, name: str | None) -> Member:
    teacher = config.asked[name]
    with _about(name):
        spec = describe_teacher(teacher.name, teacher.weights, teacher_options(teacher, mpp=config.data.mpp))
    return Member(name=name or "", spec=spec, shrink=teacher.shrink)


@contextmanager
def _about(name: str | None) -> Iterator[None]:
    """What is said of a teacher's settings, said of those of one of several."""
    try:
        yield
    except (ConfigError, TeacherError) as error:
        if name is None:
            raise
        raise type(error)(f"teachers.{name}: {as_named(str(error), name)}") from error


def as_named(message: str, name: str | None) -> str:
    """A message in which settings of the only teacher are those of one of several."""
    if name is None:
        return message
    own = re.sub(r"(?<![\w.])teacher\.(?=[a-z])", f"teachers.{name}.", message)
    return re.sub(r"(?<![\w.])pool\.(?=[a-z])", f"teachers.{name}.pool.", own)


def _in_words(config: PretrainConfig, member: Member) -> str:
    """How a teacher sees the tile, where that is not as it is."""
    if member.shrink == 1:
        return ""
    at = "" if config.data.mpp is None else f" at {config.data.mpp * member.shrink:g} um/px"
    return f", which sees tiles shrunk {member.shrink} times{at}"


def check_methods(config: PretrainConfig, methods: Methods) -> None:
    """Whether the method can work on these pixels. Raises ConfigError."""
    for (name, method), student in zip(methods.items(), config.each_student().values(), strict=True):
        with of_student(name):
            _check_method(config, method, student)


def _check_method(config: PretrainConfig, method: Method, student: StudentConfig) -> None:
    if config.data.whole and config.manifest.holdout_by == "tile" and config.manifest.holdout_fraction:
        raise ConfigError("manifest.holdout_by tile is about a grid of tiles: use slide with data.whole")
    if config.student_pixels not in ("tile", "pyramid"):
        raise ConfigError(f"student_pixels is tile or pyramid, not {config.student_pixels!r}")
    if config.student_pixels == "pyramid" and (not method.takes_any_size or student.downsample == 1):
        raise ConfigError(
            "student_pixels pyramid is for a student at lower resolution than its teacher: method.name resolution with "
            f"student.downsample 2 or more, not {config.method.name} with {student.downsample}"
        )
