"""The settings of doctor.py: those of the run that it looks at, and how it says what it found."""

from dataclasses import dataclass
from typing import Literal

from csat.errors import ConfigError
from csat.settings import Often
from workflows.pretraining.config import PretrainConfig


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(PretrainConfig):
    """Settings of doctor.py: all of pretrain.py, and these."""

    format: Often[Literal["text", "json"]] = "text"  # of what is found
    sample_slides: int = 3  # slides that are opened, evenly from the first to the last
    calibrate: bool = True  # measure rates and plan the run, where no check failed

    def __post_init__(self):
        super().__post_init__()
        if self.sample_slides < 1:
            raise ConfigError(f"sample_slides must be at least 1, not {self.sample_slides}")
