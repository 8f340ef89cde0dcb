"""What is known about a pretraining before a slide is opened: the teacher's view, settings that contradict each other."""

import logging
from typing import Any

from csat.errors import ConfigError
from csat.methods.contract import Method
from csat.methods.registry import wanted_responses, whole_step_px
from csat.responses import TeacherSpec
from teachers.registry import describe_teacher
from workflows.pretraining.config import PretrainConfig

logger = logging.getLogger("pretrain")


def describe(config: PretrainConfig) -> TeacherSpec:
    """The teacher's spec, checked against the tiles. Says what of it is learned. Raises ConfigError, TeacherError."""
    spec = describe_teacher(config.teacher.name, config.teacher.weights, teacher_options(config))
    wanted = wanted_responses(config.method.name, config.method.options, spec)
    edge_px = tile_px(config, spec)
    spec.check_view(tile_px=edge_px, mpp=config.data.mpp, accept_any_mpp=config.teacher.accept_any_mpp)
    names = ", ".join(response.name for response in wanted)
    logger.info("teacher %s (%s): learning %s", spec.name, spec.weights_sha256[:12], names)
    return spec


def tile_px(config: PretrainConfig, spec: TeacherSpec) -> int:
    """Edge of the tiles; of whole images, what their edges are made multiples of."""
    if not config.data.whole:
        return config.data.tile_px
    return whole_step_px(config.method.name, config.method.options, config.student, spec)


def teacher_options(config: PretrainConfig) -> dict[str, Any]:
    """The weight-free teacher measures in micrometres: it is told the resolution of the tiles."""
    if config.teacher.name == "stain" and config.data.mpp is not None:
        return {"mpp": config.data.mpp, **config.teacher.options}
    return config.teacher.options


def check_method(config: PretrainConfig, method: Method) -> None:
    """Whether this method can work on these pixels, and with the response cache that is asked for. Raises ConfigError."""
    if config.data.whole and config.manifest.holdout_by == "tile" and config.manifest.holdout_fraction:
        raise ConfigError("manifest.holdout_by tile is about a grid of tiles: use slide with data.whole")
    if config.student_pixels not in ("tile", "pyramid"):
        raise ConfigError(f"student_pixels is tile or pyramid, not {config.student_pixels!r}")
    if config.student_pixels == "pyramid" and (not method.takes_any_size or config.student.downsample == 1):
        raise ConfigError(
            "student_pixels pyramid is for a student at lower resolution than its teacher: method.name resolution with "
            f"student.downsample 2 or more, not {config.method.name} with {config.student.downsample}"
        )
    if config.cache.uri is not None and (method.view_in_pool or method.colour_in_pool is not None):
        what = "view (flip and rotation)" if method.view_in_pool else "colours"
        raise ConfigError(
            f"cache.uri: with method.name {config.method.name} and these options the teacher sees each tile in another "
            f"{what} in every epoch, so that its earlier response is of no use: leave cache.uri out, or choose responses "
            "(maps) and options with which the tile stays as it was scanned until the trainer has it"
        )
