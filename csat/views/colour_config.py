"""The settings of colour augmentation, for processes that only pass them on and load no torch."""

from dataclasses import dataclass, fields

from csat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ColourConfig:
    """How far colours may go; each draw is uniform on both sides. All zero: the student sees the tile as the teacher does."""

    stain_scale: float = 0.2  # relative change of each stain's amount, of haematoxylin, eosin and the residual
    stain_shift: float = 0.05  # optical density added to each stain everywhere (0.05 dims white by 5%)
    brightness: float = 0.1  # relative change of intensity
    contrast: float = 0.1  # relative change of the distance to the tile's mean grey
    saturation: float = 0.1  # relative change of the distance to each pixel's own grey
    sharpness: float = 0.0  # relative change of what is finer than 1.5 px; a detail that falls below 0 is gone

    def __post_init__(self):
        for item in fields(self):
            value = getattr(self, item.name)
            most = 4 if item.name == "sharpness" else 1
            if not 0 <= value < most:
                raise ConfigError(f"augment.{item.name} must be in [0, {most}), not {value}")

    @property
    def is_identity(self) -> bool:
        return not any(getattr(self, item.name) for item in fields(self))
