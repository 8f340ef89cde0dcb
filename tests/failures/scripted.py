"""Teachers that go wrong on a tile by its first pixel, as TorchScript files."""

import json
from pathlib import Path

import torch

from tests.support.verbs import SMALL


class Errs(torch.nn.Module):
    """Brightness per pixel; raises on a tile whose first pixel is black, NaN where it is pure red."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        first = tiles[:, :, 0, 0]
        if bool((first.sum(dim=1) == 0).any()):
            raise ValueError("a poisoned tile")
        is_red = (first[:, 0] > 250) & (first[:, 1:].sum(dim=1) == 0)
        return torch.where(is_red.view(-1, 1, 1, 1), torch.nan, tiles.mean(dim=1, keepdim=True) / 255)


class Hangs(torch.nn.Module):
    """Brightness per pixel; for ever on a tile that has a black first pixel."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        count = 0
        while bool((tiles[:, :, 0, 0].sum(dim=1) == 0).any()):
            count += 1
        return tiles.mean(dim=1, keepdim=True) / 255


class Picky(torch.nn.Module):
    """Brightness per pixel. Of tiles that are not noise it raises on those whose first pixel has an even sum; of multiples of
    ten it answers NaN."""

    def __init__(self, bias: float = 0.0):
        super().__init__()
        self.bias = torch.nn.Parameter(torch.tensor(bias))

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        first = tiles[:, :, 0, 0].sum(dim=1).round().long()
        step = (tiles[..., 1:] - tiles[..., :-1]).abs().mean(dim=(1, 2, 3))
        is_even = (first % 2 == 0) & (step > 0.5) & (step < 40)
        if bool((is_even & (first % 10 != 0)).any()):
            raise ValueError("a tile that it cannot bear")
        return torch.where(is_even.view(-1, 1, 1, 1), torch.nan, tiles.mean(dim=1, keepdim=True) / 255 + self.bias)


def save_teacher(teacher: torch.nn.Module, path: Path, *, tile_px: int = SMALL["data.tile_px"]) -> Path:
    """What `--teacher torchscript --teacher.weights PATH` takes: the module, and beside it what it answers."""
    torch.jit.script(teacher).save(str(path))
    output = {"name": "np", "kind": "probability", "channels": 1, "stride_px": 1, "crop_px": 0, "symmetry": "scalar"}
    path.with_suffix(".json").write_text(json.dumps({"mpp": None, "tile_px": tile_px, "outputs": [output]}))
    return path
