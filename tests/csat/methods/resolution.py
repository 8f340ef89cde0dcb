"""A tiny student, teachers and batches for the tests of resolution-based distillation."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from csat.methods.contract import Setting
from csat.methods.resolution import Resolution, ResolutionConfig
from csat.model.contract import Model
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.views.colour_config import ColourConfig

TILE_PX = 64
LOGITS = ResponseSpec(name="label", kind=Kind.LOGITS, channels=3, stride_px=None)
FEATURES = ResponseSpec(name="features", kind=Kind.FEATURES, channels=6, stride_px=8, symmetry=Symmetry.NONE)
MOVING = replace(FEATURES, symmetry=Symmetry.SCALAR)  # features that are known to move with their tile
SPECS = (LOGITS, FEATURES)
NO_COLOUR = ColourConfig(stain_scale=0.0, stain_shift=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


class TinyStudent(nn.Module):
    """Logits and a map at an eighth of its image; keeps the images that it last saw."""

    see = Model.see

    def __init__(self, specs: tuple[ResponseSpec, ...] = SPECS, downsample: int = 1):
        super().__init__()
        self.downsample = downsample
        torch.manual_seed(0)
        self.names = [spec.name for spec in specs]
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(8, specs[1].channels, 4, stride=4), nn.GELU()
        )
        self.fc = nn.Linear(specs[1].channels, specs[0].channels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen = images
        features = self.trunk(images)
        return dict(zip(self.names, (self.fc(features.mean((2, 3))), features), strict=True))


def make_method(specs: tuple[ResponseSpec, ...] = SPECS, *, downsample: int = 2, **settings) -> Resolution:
    setting = Setting(tile_px=TILE_PX, teacher=make_teacher(*specs))
    return Resolution(ResolutionConfig(**settings), TinyStudent(specs, downsample), setting)


def make_batch(num_tiles: int = 4, specs: tuple[ResponseSpec, ...] = SPECS, size: tuple[int, int] = (TILE_PX,) * 2) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tiles = torch.randint(0, 256, (num_tiles, 3, *size), generator=generator, dtype=torch.uint8)
    logits = torch.randn(num_tiles, specs[0].channels, generator=generator)
    cells = [edge // specs[1].stride_px for edge in size]
    features = torch.randn(num_tiles, specs[1].channels, *cells, generator=generator)
    responses = {specs[0].name: logits.half(), specs[1].name: features.half()}
    return Batch(tiles=tiles, positions=torch.arange(100, 100 + num_tiles), responses=responses)


def make_teacher(*specs: ResponseSpec) -> TeacherSpec:
    return TeacherSpec(name="fake", responses=specs, mpp=0.5)
