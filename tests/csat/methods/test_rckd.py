"""RCKD over a tiny student: terms, views, colours, alignment, weights, a step, and two processes against one."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csat.errors import ConfigError, TeacherError
from csat.methods.contract import Setting
from csat.methods.rckd import RCKD, RCKDConfig
from csat.model.contract import Model
from csat.responses import Batch, Kind, ResponseSpec, Symmetry, TeacherSpec
from csat.views.colour_config import ColourConfig
from csat.views.grid import align
from csat.views.symmetries import apply_d4, d4_of
from tests.support.forks import in_two_processes

TILE_PX = 32
NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=6)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=6, symmetry=Symmetry.HV)
TP = ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=4, stride_px=4)
FEATURES = ResponseSpec(name="features", kind=Kind.FEATURES, channels=7, stride_px=None)
TOKENS = ResponseSpec(name="tokens", kind=Kind.FEATURES, channels=5, stride_px=8, symmetry=Symmetry.NONE)
LOGITS = ResponseSpec(name="logits", kind=Kind.LOGITS, channels=3, stride_px=None)
CAM = ResponseSpec(name="cam", kind=Kind.ATTENTION, channels=3, stride_px=8)
NUCLEI = (NP, HV, TP, FEATURES)
NO_COLOUR = ColourConfig(stain_scale=0.0, stain_shift=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


class TinyStudent(nn.Module):
    """Two convolutions and one head per response; keeps the images that it last saw."""

    see = Model.see

    def __init__(self, specs: tuple[ResponseSpec, ...], downsample: int = 1):
        super().__init__()
        self.downsample = downsample
        torch.manual_seed(0)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 16, 3, padding=1), nn.GELU()
        )
        self.heads = nn.ModuleDict({spec.name: nn.Conv2d(16, spec.channels, 1) for spec in specs})
        self.is_dense = {spec.name: spec.is_dense for spec in specs}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.seen = images
        maps = {name: head(self.trunk(images)) for name, head in self.heads.items()}
        return {name: x if self.is_dense[name] else x.mean(dim=(2, 3)) for name, x in maps.items()}


def make_teacher(*specs: ResponseSpec) -> TeacherSpec:
    return TeacherSpec(name="fake", responses=specs, mpp=0.25)


def make_method(specs: tuple[ResponseSpec, ...] = NUCLEI, *, downsample: int = 1, **settings) -> RCKD:
    setting = Setting(tile_px=TILE_PX, teacher=make_teacher(*specs))
    return RCKD(RCKDConfig(**settings), TinyStudent(specs, downsample), setting)


def make_batch(num_tiles: int = 8, specs: tuple[ResponseSpec, ...] = NUCLEI, dtype: torch.dtype = torch.float16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tiles = torch.randint(0, 256, (num_tiles, 3, TILE_PX, TILE_PX), generator=generator, dtype=torch.uint8)
    responses = {}
    for spec in specs:
        x = torch.randn(num_tiles, *spec.shape(TILE_PX), generator=generator)
        if spec.kind == Kind.PROBABILITY:
            x = x.sigmoid() if spec.channels == 1 else x.softmax(1)
        responses[spec.name] = x.to(dtype)
    return Batch(tiles=tiles, positions=torch.arange(100, 100 + num_tiles), responses=responses)


def take(batch: Batch, rows: slice) -> Batch:
    return Batch(
        tiles=batch.tiles[rows],
        positions=batch.positions[rows],
        responses={name: response[rows] for name, response in batch.responses.items()},
    )


class TestTerms:
    def test_each_kind_of_response_has_its_losses_per_tile(self):
        specs = (*NUCLEI, TOKENS, LOGITS)
        terms = make_method(specs)(make_batch(3, specs))
        assert list(terms) == [
            "np_bce",
            "np_dice",
            "hv_mse",
            "hv_gradient",
            "tp_kl",
            "features_cosine",
            "tokens_cosine",
            "logits_kl",
        ]
        assert all(term.shape == (3,) and term.dtype == torch.float32 and (term > 0).all() for term in terms.values())

    def test_no_gradient_term_without_nuclei_on_the_same_grid(self):
        assert list(make_method((HV,)).weights) == ["hv_mse"]
        coarse = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, stride_px=2, crop_px=6)
        assert "hv_gradient" not in make_method((HV, coarse)).weights
        assert "hv_gradient" in make_method((HV, NP)).weights

    def test_the_total_is_the_weighted_sum(self):
        method = make_method((NP, TP), weights={"np_dice": 0.5, "tp_kl": 0})
        assert method.weights == {"np_bce": 1.0, "np_dice": 0.5, "tp_kl": 0.0}
        terms = {"np_bce": torch.tensor([1.0, 2.0]), "np_dice": torch.tensor([4.0, 0.0]), "tp_kl": torch.tensor([9.0, 9.0])}
        assert method.total(terms).tolist() == [3.0, 2.0]

    def test_a_term_of_weight_zero_still_reaches_its_head(self):
        # DDP waits for a gradient of every parameter: a head that the loss does not touch would hang the run.
        method = make_method((NP, TP), weights={"tp_kl": 0})
        method.total(method(make_batch(2, (NP, TP)))).sum().backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        assert not method.student.heads["tp"].weight.grad.any() and method.student.heads["np"].weight.grad.any()

    def test_the_temperature_reaches_the_distributions(self):
        batch = make_batch(2, (TP,))
        cold, warm = (make_method((TP,), temperature=t).eval()(batch)["tp_kl"] for t in (1.0, 4.0))
        assert not torch.allclose(cold, warm)

    def test_half_precision(self):
        method, batch = make_method().eval(), make_batch()
        whole = method(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = method(batch)
        for name, term in half.items():
            assert term.dtype == torch.float32
            torch.testing.assert_close(term, whole[name], atol=0.02, rtol=0.02)


class TestViews:
    def test_the_student_sees_the_tile_in_the_view_of_its_position(self):
        method, batch = make_method((NP,), augment=NO_COLOUR, seed=3), make_batch(8, (NP,))
        method(batch)
        index = d4_of(batch.positions, seed=3)
        assert len(index.unique()) > 3
        torch.testing.assert_close(method.student.seen, apply_d4(batch.tiles, index) / 255)

    def test_nothing_is_varied_in_evaluation(self):
        method, batch = make_method((NP,)).eval(), make_batch(4, (NP,))
        method(batch)
        torch.testing.assert_close(method.student.seen, batch.tiles / 255)

    def test_nothing_is_turned_when_switched_off(self):
        method, batch = make_method((NP,), augment=NO_COLOUR, flips_and_rotations=False), make_batch(8, (NP,))
        method(batch)
        torch.testing.assert_close(method.student.seen, batch.tiles / 255)

    def test_the_view_is_left_to_the_pool_where_a_response_cannot_be_turned(self):
        specs = (NP, TOKENS)
        method, batch = make_method(specs, augment=NO_COLOUR), make_batch(8, specs)
        assert method.view_in_pool
        method(batch)
        torch.testing.assert_close(method.student.seen, batch.tiles / 255)
        assert not make_method().view_in_pool
        assert not make_method(specs, flips_and_rotations=False).view_in_pool

    def test_colours_change_for_the_student_only(self):
        batch = make_batch(4)
        before = {name: response.clone() for name, response in batch.responses.items()}
        tiles = batch.tiles.clone()
        method = make_method(flips_and_rotations=False)
        method(batch)
        assert (method.student.seen - tiles / 255).abs().amax(dim=(1, 2, 3)).min() > 0.01
        assert torch.equal(batch.tiles, tiles)
        assert all(torch.equal(batch.responses[name], before[name]) for name in before)

    def test_a_tile_has_the_same_loss_in_any_batch(self):
        method, batch = make_method(), make_batch()
        together = method(batch)
        apart = [method(take(batch, rows)) for rows in (slice(0, 1), slice(1, 6), slice(6, 8))]
        for name, term in together.items():
            torch.testing.assert_close(torch.cat([part[name] for part in apart]), term)

    def test_a_forward_draws_from_no_global_generator(self):
        method, batch = make_method(), make_batch(2)
        state = torch.random.get_rng_state()
        method(batch)
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_the_student_may_see_less_than_the_teacher(self):
        method, batch = make_method(downsample=4, augment=NO_COLOUR, flips_and_rotations=False), make_batch(2)
        terms = method(batch)
        expected = (batch.tiles / 255).unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
        torch.testing.assert_close(method.student.seen, expected)
        assert all(term.isfinite().all() for term in terms.values())


class TestWanted:
    def test_by_default_every_response_that_has_a_loss(self):
        assert RCKD.wanted(RCKDConfig(), make_teacher(NP, CAM, FEATURES)) == (NP, FEATURES)

    def test_or_those_that_are_named(self):
        assert RCKD.wanted(RCKDConfig(responses=("hv", "np", "hv")), make_teacher(NP, HV, TP)) == (HV, NP)

    def test_a_missing_response_names_need_teacher_and_what_there_is(self):
        with pytest.raises(TeacherError, match=r"rckd needs the response tp, which teacher 'fake'.*np \(probability, 1 ch\)"):
            RCKD.wanted(RCKDConfig(responses=("np", "tp")), make_teacher(NP, HV))

    def test_a_teacher_without_any_use(self):
        single = ResponseSpec(name="score", kind=Kind.LOGITS, channels=1, stride_px=None)
        with pytest.raises(TeacherError, match="no loss for any response of teacher 'fake': cam .*score"):
            RCKD.wanted(RCKDConfig(), make_teacher(CAM, single))

    def test_a_response_without_a_loss_cannot_be_asked_for(self):
        with pytest.raises(ConfigError, match="no loss for cam"):
            RCKD.wanted(RCKDConfig(responses=("cam",)), make_teacher(NP, CAM))


class TestRefusals:
    def test_a_weight_that_names_no_term(self):
        with pytest.raises(ConfigError, match="no term of this run: np_dise; its terms are: np_bce, np_dice"):
            make_method((NP,), weights={"np_dise": 2.0})

    def test_all_weights_zero(self):
        with pytest.raises(ConfigError, match="every weight is 0"):
            make_method((FEATURES,), weights={"features_cosine": 0})

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"temperature": 0.0}, "temperature"),
            ({"weights": {"np_bce": -1.0}}, "weights.np_bce"),
            ({"weights": {"np_bce": float("nan")}}, "weights.np_bce"),
            ({"weights": {"np_bce": "high"}}, "weights.np_bce"),
            ({"responses": ()}, "responses"),
            ({"responses": "np"}, "responses"),
        ],
    )
    def test_a_value_that_cannot_be(self, settings, named):
        with pytest.raises(ConfigError, match=named):
            RCKDConfig(**settings)

    def test_a_tile_that_does_not_fit(self):
        with pytest.raises(ConfigError, match="'tp' covers 30 px"):
            RCKD(RCKDConfig(), TinyStudent((TP,)), Setting(tile_px=30, teacher=make_teacher(TP)))

    def test_a_batch_without_its_responses(self):
        batch = make_batch(2, (NP,))
        with pytest.raises(TeacherError, match=r"'hv' of a 32 px tile must be \[2, 2, 20, 20\], got nothing"):
            make_method((NP, HV))(batch)
        batch.responses["np"] = batch.responses["np"][..., 1:]
        with pytest.raises(TeacherError, match=r"'np' of a 32 px tile must be \[2, 1, 20, 20\], got \[2, 1, 20, 19\]"):
            make_method((NP,))(batch)


def test_the_only_part_is_the_student():
    method = make_method((NP,))
    assert method.turns == ("student",) and method.part("student") is method.student
    with pytest.raises(KeyError):
        method.part("critic")


def test_steps_lower_every_term_on_a_fixed_batch():
    method, batch = make_method(flips_and_rotations=False, augment=NO_COLOUR), make_batch(4)
    with torch.no_grad():  # noise cannot be learned: the teacher is another tiny net, with stronger opinions
        teacher = TinyStudent(NUCLEI)
        for parameter in teacher.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
        for spec in NUCLEI:
            says = align(teacher(batch.tiles / 255)[spec.name], spec, TILE_PX)
            if spec.kind == Kind.PROBABILITY:
                says = says.sigmoid() if spec.channels == 1 else says.softmax(1)
            batch.responses[spec.name] = says
    before = method(batch)
    optimiser = torch.optim.SGD(method.part("student").parameters(), lr=0.01)
    method.total(before).mean().backward()
    optimiser.step()
    assert method.total(method(batch)).mean() < method.total(before).mean()
    optimiser = torch.optim.Adam(method.part("student").parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        method.total(method(batch)).mean().backward()
        optimiser.step()
    after = method(batch)
    for name in before:
        assert after[name].mean() < 0.8 * before[name].mean(), name


SPLIT = 3  # of 8 tiles: ranks hold 3 and 5
WEIGHTS = {"hv_gradient": 0.3, "np_bce": 2.0}


def train_on_part(rank: int, folder: str) -> None:
    """One rank of two: backward of the sum over its tiles, DDP's mean, the scaling by world / tiles, a step."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    batch = make_batch()
    part = take(batch, slice(0, SPLIT) if rank == 0 else slice(SPLIT, None))
    method = DistributedDataParallel(make_method(weights=WEIGHTS))
    optimiser = torch.optim.AdamW(method.module.part("student").parameters(), lr=0.01)
    terms = method(part)
    method.module.total(terms).sum().backward()
    num_tiles = torch.tensor(len(part))
    dist.all_reduce(num_tiles)
    for parameter in method.parameters():
        parameter.grad *= 2 / num_tiles.item()
    gradients = {name: parameter.grad.clone() for name, parameter in method.module.named_parameters()}
    optimiser.step()
    torch.save(
        {
            "terms": {name: term.detach() for name, term in terms.items()},
            "gradients": gradients,
            "state": method.module.state_dict(),
        },
        f"{folder}/{rank}.pt",
    )
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_ragged_halves_agree_with_one(tmp_path: Path):
    in_two_processes(train_on_part, str(tmp_path))
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    method, batch = make_method(weights=WEIGHTS), make_batch()
    optimiser = torch.optim.AdamW(method.part("student").parameters(), lr=0.01)
    terms = method(batch)
    method.total(terms).mean().backward()
    for name, term in terms.items():
        torch.testing.assert_close(torch.cat([rank["terms"][name] for rank in ranks]), term.detach(), atol=1e-5, rtol=1e-5)
    for name, parameter in method.named_parameters():
        assert parameter.grad.abs().max() > 1e-4, name  # or agreement would say nothing
        for rank in ranks:
            torch.testing.assert_close(rank["gradients"][name], parameter.grad, atol=1e-5, rtol=1e-5)
    optimiser.step()
    for name, value in method.state_dict().items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
        torch.testing.assert_close(ranks[0]["state"][name], value, atol=1e-4, rtol=0)
