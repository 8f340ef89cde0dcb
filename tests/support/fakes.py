"""A fake teacher: instant, deterministic from the pixels, and able to fail on chosen tiles."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from csat.responses import Kind, ResponseSpec, Symmetry, TeacherSpec
from teachers.contract import Teacher, select_responses, sha256_of_settings

RAISES, ANSWERS_NAN = (255, 0, 255), (0, 255, 0)  # colour of the first pixel of a tile that the teacher fails on


@dataclass(frozen=True, kw_only=True)
class FakeOptions:
    """Settings of the fake teacher."""

    crop_px: int = 0
    dies_after: int | None = None  # calls after which it fails on everything
    seed: int = 0  # changes its hash, and nothing else


class FakeTeacher(Teacher):
    """`np` is the brightness, `hv` the brightness' slope along x and y, `features` the mean colour (symmetry unknown)."""

    def __init__(self, options: FakeOptions | None = None, wanted: Sequence[str] | None = None):
        self.options = options or FakeOptions()
        self.num_calls = 0
        crop_px = self.options.crop_px
        responses = (
            ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=crop_px),
            ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=crop_px, symmetry=Symmetry.HV),
            ResponseSpec(name="features", kind=Kind.FEATURES, channels=3, stride_px=None, symmetry=Symmetry.NONE),
        )
        self.spec = TeacherSpec(
            name="fake",
            responses=select_responses(responses, wanted, teacher="fake"),
            mpp=None,
            weights_sha256=sha256_of_settings(self.options, version=1),
            licence="CC0-1.0",
            source="tests/support/fakes.py",
        )

    def respond(self, tiles):
        self.num_calls += 1
        if self.options.dies_after is not None and self.num_calls > self.options.dies_after:
            raise RuntimeError("the device is lost")
        if (tiles[:, 0, 0] == RAISES).all(axis=-1).any():
            raise ValueError("cannot bear this tile")
        crop_px, (height, width) = self.options.crop_px, tiles.shape[1:3]
        grey = tiles.mean(axis=3, dtype=np.float32) / 255
        answers = {
            "np": grey[:, None],
            "hv": np.stack(np.gradient(grey, axis=(2, 1)), axis=1),
            "features": tiles.mean(axis=(1, 2)) / 255,
        }
        answers = {spec.name: answers[spec.name].astype(np.float16) for spec in self.spec.responses}
        for spec in self.spec.responses:
            if spec.is_dense:
                answers[spec.name] = answers[spec.name][..., crop_px : height - crop_px, crop_px : width - crop_px]
        answers[self.spec.responses[0].name][(tiles[:, 0, 0] == ANSWERS_NAN).all(axis=-1)] = np.nan
        return answers


def load(options: FakeOptions, *, weights=None, device="cpu", wanted=None) -> FakeTeacher:
    """As a teacher's module has it: `TEACHERS["fake"] = ("tests.support.fakes:FakeOptions", "tests.support.fakes:load")`."""
    return FakeTeacher(options, wanted)


def fake_loader(name, weights, options, *, device, wanted) -> FakeTeacher:
    """As `TeacherStage(loader=fake_loader)` takes it."""
    return load(FakeOptions(**(options or {})), weights=weights, device=device, wanted=wanted)
