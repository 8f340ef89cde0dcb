"""The teacher's responses, carried through a view, are what the teacher says about the tile in that view.

The student here is the teacher itself, asked again about the tile that the method shows it. If tile and responses are not
turned alike, or an HV map keeps a wrong sign or axis, student and teacher disagree and a loss is not zero.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

from csat.instances import hv_targets
from csat.methods.contract import Setting
from csat.methods.rckd import RCKD, RCKDConfig
from csat.model.contract import Model
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.views.colour_config import ColourConfig
from csat.views.symmetries import apply_d4, apply_d4_tiles
from teachers.stain import RESPONSES as STAIN_RESPONSES
from teachers.stain import StainOptions, StainTeacher

TILE_PX, CROP_PX, STRIDE_PX = 96, 8, 2
SPECS = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=CROP_PX, stride_px=STRIDE_PX),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=CROP_PX, stride_px=STRIDE_PX, symmetry=Symmetry.HV),
    ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=3, crop_px=CROP_PX, stride_px=STRIDE_PX),
    ResponseSpec(name="features", kind=Kind.FEATURES, channels=4, stride_px=None),
)
NO_COLOUR = ColourConfig(stain_scale=0.0, stain_shift=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
LOGIT_LIMIT = 1e-4  # probabilities of 0 and 1 have no logit: the student is held this far from them


def paint_tile(seed: int) -> np.ndarray:
    """uint8 `[TILE_PX, TILE_PX, 3]`: dark ellipses here and there, some touching, on uneven pink."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:TILE_PX, :TILE_PX]
    tile = np.empty((TILE_PX, TILE_PX, 3))
    tile[:] = (225, 170, 205)
    tile += ndimage.gaussian_filter(rng.normal(0, 60, tile.shape), (3, 3, 0))
    for _ in range(12):
        row, column, angle = rng.uniform(8, TILE_PX - 8, 2).tolist() + [rng.uniform(0, np.pi)]
        across = (columns - column) * np.cos(angle) + (rows - row) * np.sin(angle)
        along = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
        tile[(across / rng.uniform(4, 6)) ** 2 + (along / rng.uniform(6, 9)) ** 2 < 1] = rng.uniform(
            (60, 40, 110), (100, 70, 150)
        )
    return tile.round().clip(0, 255).astype(np.uint8)


def rule_teacher(tiles: np.ndarray) -> dict[str, np.ndarray]:
    """A teacher that crops and strides: nuclei by a threshold, HoVer-Net's maps about their centres, types by colour."""
    masks = tiles[..., 0] < 150
    hv = np.stack([hv_targets(ndimage.label(mask)[0]) for mask in masks])
    is_bluish = masks & (tiles[..., 2] > 130)
    types = np.stack([~masks, masks & ~is_bluish, is_bluish], axis=1)

    def shrink(x: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(x.astype(np.float32))[..., CROP_PX:-CROP_PX, CROP_PX:-CROP_PX]
        return F.avg_pool2d(x, STRIDE_PX).numpy()

    mean = tiles.reshape(len(tiles), -1, 3).mean(axis=1).astype(np.float32) / 255
    features = np.concatenate([mean, masks.mean(axis=(1, 2), dtype=np.float32)[:, None]], axis=1)
    return {"np": shrink(masks[:, None]), "hv": shrink(hv), "tp": shrink(types), "features": features}


def stain_teacher(tiles: np.ndarray) -> dict[str, np.ndarray]:
    return StainTeacher(StainOptions(mpp=0.5)).respond(tiles)


class TeacherAsStudent(nn.Module):
    """Answers with the teacher's response to the images, as the raw predictions of a student: over the whole tile."""

    see = Model.see

    def __init__(self, teacher: Callable, specs: tuple[ResponseSpec, ...]):
        super().__init__()
        self.teacher, self.specs, self.downsample = teacher, specs, 1

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        tiles = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        predictions = {}
        for spec in self.specs:
            x = torch.from_numpy(self.teacher(tiles)[spec.name]).float()
            if spec.kind == Kind.PROBABILITY:
                x = torch.logit(x, LOGIT_LIMIT) if spec.channels == 1 else x.clamp_min(LOGIT_LIMIT).log()
            if spec.is_dense:
                x = F.pad(x, [spec.crop_px // spec.stride_px] * 4)
            predictions[spec.name] = x
        return predictions


def losses_under(index: int, teacher: Callable, specs: tuple[ResponseSpec, ...], monkeypatch) -> dict[str, float]:
    tiles = np.stack([paint_tile(seed) for seed in (0, 1)])
    batch = Batch(
        tiles=torch.from_numpy(tiles).permute(0, 3, 1, 2),
        positions=torch.arange(2),
        responses={name: torch.from_numpy(response) for name, response in teacher(tiles).items()},
    )
    views = torch.full((2,), index, dtype=torch.uint8)
    monkeypatch.setattr("csat.methods.rckd.d4_of", lambda positions, seed: views)
    setting = Setting(tile_px=TILE_PX, teacher=TeacherSpec(name="rule", responses=specs, mpp=None))
    method = RCKD(RCKDConfig(augment=NO_COLOUR), TeacherAsStudent(teacher, specs), setting)
    return {name: term.max().item() for name, term in method(batch).items()}


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize(("teacher", "specs"), [(rule_teacher, SPECS), (stain_teacher, STAIN_RESPONSES)])
def test_carried_responses_are_those_of_the_moved_tile(index, teacher, specs, monkeypatch):
    losses = losses_under(index, teacher, specs, monkeypatch)
    assert {"np_bce", "np_dice", "hv_mse", "hv_gradient"} <= losses.keys()
    for name, loss in losses.items():
        assert loss < 1e-3, (name, loss)


@pytest.mark.parametrize("index", range(1, 8))
def test_maps_without_their_signs_and_axes_would_be_noticed(index, monkeypatch):
    wrong = tuple(replace(spec, symmetry=Symmetry.SCALAR) for spec in SPECS)
    losses = losses_under(index, rule_teacher, wrong, monkeypatch)
    assert losses["hv_mse"] > 0.05
    assert losses["np_bce"] < 1e-3


@pytest.mark.parametrize("index", range(8))
@pytest.mark.parametrize(("teacher", "specs"), [(rule_teacher, SPECS), (stain_teacher, STAIN_RESPONSES)])
def test_cell_by_cell(index, teacher, specs):
    tiles = np.stack([paint_tile(seed) for seed in range(3)])
    views = np.full(3, index)
    recomputed = teacher(apply_d4_tiles(tiles, views))
    for spec in specs:
        carried = apply_d4(torch.from_numpy(teacher(tiles)[spec.name]), torch.from_numpy(views), spec.symmetry)
        torch.testing.assert_close(carried, torch.from_numpy(recomputed[spec.name]), atol=2e-3, rtol=0)
