"""Resolution-based distillation: its needs, terms, views, colours, refusals, and two processes against one."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csat.errors import ConfigError, TeacherError
from csat.losses.distribution import logits_kl
from csat.losses.resized import resized_error
from csat.methods.contract import Setting
from csat.methods.resolution import Resolution, ResolutionConfig
from csat.model.contract import Model
from csat.responses import Batch, Kind, ResponseSpec
from csat.views.colour_config import ColourConfig
from csat.views.symmetries import apply_d4, apply_d4_tiles, d4_of
from tests.csat.methods.resolution import (
    FEATURES,
    LOGITS,
    MOVING,
    NO_COLOUR,
    SPECS,
    TILE_PX,
    TinyStudent,
    make_batch,
    make_method,
    make_teacher,
)
from tests.support.forks import in_two_processes


class TestWanted:
    def test_the_logits_and_the_map_are_found_among_what_the_teacher_gives(self):
        pooled = ResponseSpec(name="pooled", kind=Kind.FEATURES, channels=9, stride_px=None)
        mask = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=2)
        teacher = make_teacher(pooled, FEATURES, mask, LOGITS)
        assert Resolution.wanted(ResolutionConfig(), teacher) == (LOGITS, FEATURES)

    def test_one_of_several_is_named(self):
        other = replace(FEATURES, name="tokens", channels=9)
        teacher = make_teacher(LOGITS, FEATURES, other)
        with pytest.raises(
            TeacherError, match=r"'fake' gives several: features .*, tokens .*Name one with method.options.features"
        ):
            Resolution.wanted(ResolutionConfig(), teacher)
        assert Resolution.wanted(ResolutionConfig(features="tokens"), teacher) == (LOGITS, other)

    @pytest.mark.parametrize(
        ("specs", "config", "words"),
        [
            ((LOGITS,), {}, ["a feature map of the whole tile", "teacher 'fake' does not give", "label (logits, 3 ch, tile)"]),
            (
                (FEATURES,),
                {},
                ["logits of 2 or more classes", "features (features, 6 ch, map)", "teacher.options.features true"],
            ),
            (SPECS, {"logits": "grade"}, ["the response 'grade' as logits", "label (logits"]),
            ((replace(LOGITS, channels=1), FEATURES), {}, ["2 or more classes"]),
            ((LOGITS, replace(FEATURES, crop_px=8)), {}, ["whole tile"]),
            ((), {}, ["it gives: nothing"]),
        ],
    )
    def test_a_teacher_without_them(self, specs, config, words):
        with pytest.raises(TeacherError) as error:
            Resolution.wanted(ResolutionConfig(**config), make_teacher(*specs))
        for word in ("resolution needs", *words):
            assert word in str(error.value)


class TestTerms:
    def test_they_are_the_formulas(self):
        method, batch = make_method(temperature=2.0, resize="max_pool").eval(), make_batch(3)
        terms = method(batch)
        assert list(terms) == list(method.weights) == ["soft", "pix"]
        assert all(term.shape == (3,) and term.dtype == torch.float32 and (term > 0).all() for term in terms.values())
        predictions = method.student(torch.nn.functional.avg_pool2d(batch.tiles.float() / 255, 2))
        assert predictions["features"].shape[2:] == (4, 4) and batch.responses["features"].shape[2:] == (8, 8)
        torch.testing.assert_close(terms["soft"], logits_kl(predictions["label"], batch.responses["label"], 2.0))
        torch.testing.assert_close(
            terms["pix"], resized_error(predictions["features"], batch.responses["features"], "max_pool")
        )

    def test_the_total_is_the_weighted_sum(self):
        method = make_method(weights={"pix": 0.5})
        terms = {"soft": torch.tensor([1.0, 2.0]), "pix": torch.tensor([4.0, 0.0])}
        assert method.total(terms).tolist() == [3.0, 2.0]

    def test_half_precision(self):
        method, batch = make_method().eval(), make_batch()
        whole = method(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = method(batch)
        for name, term in half.items():
            assert term.dtype == torch.float32
            torch.testing.assert_close(term, whole[name], atol=0.02, rtol=0.02)

    def test_images_of_any_size_one_at_a_time(self):
        """The terms of a rectangle, and the gradient of three accumulated images of three sizes."""
        method, total = make_method(), []
        for size in ((64, 64), (96, 32), (128, 160)):
            terms = method(make_batch(1, size=size))
            assert method.student.seen.shape == (1, 3, size[0] // 2, size[1] // 2)
            method.total(terms).sum().backward()
            total.append(method.student.fc.weight.grad.clone())
        assert all(each.isfinite().all() for each in total) and not torch.equal(total[0], total[1])


class TestViews:
    def test_features_of_unknown_symmetry_leave_the_view_to_the_pool(self):
        method, batch = make_method(seed=3), make_batch(8)
        assert method.view_in_pool and not make_method(flips_and_rotations=False).view_in_pool
        method(batch)
        torch.testing.assert_close(method.student.seen, torch.nn.functional.avg_pool2d(batch.tiles / 255, 2))

    def test_features_that_move_are_carried(self):
        specs = (LOGITS, MOVING)
        method, batch = make_method(specs, downsample=1, seed=3), make_batch(8, specs)
        assert not method.view_in_pool
        method(batch)
        index = d4_of(batch.positions, seed=3)
        assert len(index.unique()) > 3
        torch.testing.assert_close(method.student.seen, apply_d4(batch.tiles, index) / 255)
        method.eval()(batch)
        torch.testing.assert_close(method.student.seen, batch.tiles / 255)

    def test_colours_are_left_to_the_pool(self):
        """Teacher and student see the same colours: the method changes none, and says what the pool should do."""
        method, batch = make_method(), make_batch(2)
        assert method.colour_in_pool == ColourConfig(brightness=0.5, contrast=0.5, saturation=0.5)
        method(batch)
        torch.testing.assert_close(method.student.seen, torch.nn.functional.avg_pool2d(batch.tiles / 255, 2))
        assert make_method(augment=NO_COLOUR).colour_in_pool is None

    @pytest.mark.parametrize("index", range(8))
    def test_carried_features_are_those_of_the_moved_tile(self, index, monkeypatch):
        """The student is the teacher, asked again about the tile that the method shows it."""
        specs = (LOGITS, replace(MOVING, channels=3))
        rng = np.random.default_rng(0)
        tiles = rng.integers(0, 256, (2, TILE_PX, TILE_PX, 3), dtype=np.uint8)

        def say(tiles: np.ndarray) -> dict[str, Tensor]:
            images = torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float() / 255
            features = torch.nn.functional.avg_pool2d(images, 8)
            return {"label": 5 * features.mean((2, 3)), "features": features}

        class Again(nn.Module):
            downsample, see = 1, Model.see

            def forward(self, images: Tensor) -> dict[str, Tensor]:
                return say((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())

        views = torch.full((2,), index, dtype=torch.uint8)
        monkeypatch.setattr("csat.methods.resolution.d4_of", lambda positions, seed: views)
        method = Resolution(ResolutionConfig(), Again(), Setting(tile_px=TILE_PX, teacher=make_teacher(*specs)))
        batch = Batch(tiles=torch.from_numpy(tiles).permute(0, 3, 1, 2), positions=torch.arange(2), responses=say(tiles))
        assert all(term.max() < 1e-6 for term in method(batch).values())
        if index:  # features that stayed where they were would be noticed
            batch.responses["features"] = apply_d4(batch.responses["features"], views)
            turned = apply_d4_tiles(tiles, views.numpy())
            assert resized_error(say(turned)["features"], say(tiles)["features"], "max_pool").min() > 1e-3


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"resize": "nearest"}, "one of max_pool, bicubic, both"),
            ({"temperature": 0.0}, "temperature"),
            ({"weights": {"pix": -1.0}}, "weights.pix"),
        ],
    )
    def test_a_value_that_cannot_be(self, settings, named):
        with pytest.raises(ConfigError, match=named):
            ResolutionConfig(**settings)

    def test_weights_of_other_terms_or_of_none(self):
        with pytest.raises(ConfigError, match="no term of this run: kl; its terms are: soft, pix"):
            make_method(weights={"kl": 1.0})
        with pytest.raises(ConfigError, match="every weight is 0"):
            make_method(weights={"soft": 0, "pix": 0})

    def test_a_tile_that_does_not_fit(self):
        with pytest.raises(ConfigError, match="'features' covers 60 px"):
            Resolution(ResolutionConfig(), TinyStudent(), Setting(tile_px=60, teacher=make_teacher(*SPECS)))

    def test_a_batch_without_its_responses(self):
        batch = make_batch(2)
        batch.responses["features"] = batch.responses["features"][..., 1:]
        with pytest.raises(TeacherError, match=r"'features' of a 64 px tile must be \[2, 6, 8, 8\], got \[2, 6, 8, 7\]"):
            make_method()(batch)
        del batch.responses["label"]
        with pytest.raises(TeacherError, match=r"'label' of a 64 px tile must be \[2, 3\], got nothing"):
            make_method()(batch)


def test_the_only_part_is_the_student():
    method = make_method()
    assert method.turns == ("student",) and method.part("student") is method.student
    with pytest.raises(KeyError):
        method.part("critic")


SPLIT = 3  # of 8 tiles: ranks hold 3 and 5


def train_on_part(rank: int, folder: str) -> None:
    """One rank of two: backward of the sum over its tiles, DDP's mean, the scaling by world / tiles, a step."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batch, rows = make_batch(8), slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    part = Batch(
        tiles=batch.tiles[rows],
        positions=batch.positions[rows],
        responses={name: response[rows] for name, response in batch.responses.items()},
    )
    method = DistributedDataParallel(make_method())
    terms = method(part)
    (method.module.total(terms).sum() * 2 / 8).backward()
    gradients = {name: parameter.grad for name, parameter in method.module.named_parameters()}
    torch.save({"terms": {name: term.detach() for name, term in terms.items()}, "gradients": gradients}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_ragged_halves_agree_with_one(tmp_path: Path):
    in_two_processes(train_on_part, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    method = make_method()
    terms = method(make_batch(8))
    method.total(terms).mean().backward()
    for name, term in terms.items():
        torch.testing.assert_close(torch.cat([rank["terms"][name] for rank in ranks]), term.detach(), atol=1e-5, rtol=1e-5)
    for name, parameter in method.named_parameters():
        assert parameter.grad.abs().max() > 1e-4, name  # or agreement would say nothing
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, atol=1e-5, rtol=1e-5)


def test_whole_images_come_in_their_view_and_in_the_students_own_pixels():
    student, teacher = TinyStudent((LOGITS, MOVING), downsample=2), make_teacher(LOGITS, MOVING)
    method = Resolution(ResolutionConfig(), student, Setting(tile_px=16, teacher=teacher, whole=True))
    assert method.view_in_pool, "images of one batch cannot be transposed one by one"
    batch = make_batch(1, (LOGITS, MOVING), size=(32, 48))
    terms = method(batch)
    torch.testing.assert_close(student.seen, torch.nn.functional.avg_pool2d(batch.tiles.float() / 255, 2))
    own = torch.full((1, 3, 16, 24), 51, dtype=torch.uint8)
    method(replace(batch, student_tiles=own))
    torch.testing.assert_close(student.seen, torch.full((1, 3, 16, 24), 0.2))
    assert terms["soft"].shape == terms["pix"].shape == (1,)


def test_tiles_and_the_students_own_pixels_are_turned_alike():
    method = make_method((LOGITS, MOVING)).train()
    batch = make_batch(4, (LOGITS, MOVING))
    small = torch.nn.functional.avg_pool2d(batch.tiles.float(), 2).round().to(torch.uint8)
    method(batch)
    seen = method.student.seen
    method(replace(batch, student_tiles=small))
    torch.testing.assert_close(method.student.seen, seen, atol=0.51 / 255, rtol=0)
