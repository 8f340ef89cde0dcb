"""CoCo: terms at agreement, gradients, each network on a fixed batch, two processes, and the paraphrasers' folder."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from csat.columns import OK, POSITION, REASON, STATUS, TILE
from csat.errors import ConfigError, TeacherError
from csat.methods.coco.coco import SHARE_STREAM, CoCo, CoCoConfig
from csat.methods.coco.paraphrasers import LAYERS, load_paraphrasers, make_paraphrasers, save_paraphrasers
from csat.methods.contract import Setting
from csat.methods.registry import build_method
from csat.model.contract import Layer, Model
from csat.model.registry import ModelConfig, build_model
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.runs.plan import Plan
from csat.tasks import Task
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig, make_own_optimiser
from csat.views.draws import uniforms
from tests.support.forks import in_two_processes
from tests.support.labelled_toy import make_info

TILE_PX, CELLS = 32, 4
INFO = make_info(Task.SEGMENTATION)
MASK = ResponseSpec(name="mask", kind=Kind.LOGITS, channels=2, channel_names=INFO.classes)
MAPS = tuple(ResponseSpec(name=name, kind=Kind.FEATURES, channels=6, stride_px=4) for name in LAYERS)
TEACHER = TeacherSpec(name="run", responses=(MASK, *MAPS), mpp=None, weights_sha256="a" * 64)
NETS = ("mobile_unet", "enet", "erfnet", "csat_nano")


class Tapped(nn.Module):
    """Three convolutions without norms, so that a tile's answer depends on nothing but the tile."""

    downsample, see = 1, Model.see
    layers = {"encoder": Layer(channels=5, stride_px=4), "decoder": Layer(channels=3, stride_px=4)}

    def check_tile(self, tile_px):
        assert tile_px % 4 == 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.responses = (MASK,)
        self.encoder, self.decoder, self.head = nn.Conv2d(3, 5, 4, 4), nn.Conv2d(5, 3, 3, padding=1), nn.Conv2d(3, 2, 1)

    def tap(self, images, layers):
        encoded = self.encoder(images)
        maps = {"encoder": encoded, "decoder": self.decoder(encoded.relu())}
        logits = nn.functional.interpolate(self.head(maps["decoder"]), scale_factor=4.0)
        return {name: maps[name] for name in layers}, {"mask": logits}


def make_batch(num: int = 3, seed: int = 0) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    responses = {spec.name: torch.randn(num, *spec.shape(TILE_PX), generator=draw).half() for spec in TEACHER.responses}
    return Batch(
        tiles=torch.randint(0, 256, (num, 3, TILE_PX, TILE_PX), generator=draw, dtype=torch.uint8),
        positions=torch.arange(num),
        responses=responses,
        targets={"mask": torch.randint(0, 2, (num, TILE_PX, TILE_PX), generator=draw).to(torch.uint8)},
    )


def make(model: nn.Module | None = None, teacher: TeacherSpec = TEACHER, **options) -> CoCo:
    options = {"cells": CELLS, "lambda_s": 1.0, "lambda_adv": 0.1, **options}
    model = model or Tapped()
    torch.manual_seed(1)
    return build_method("coco", options, model, Setting(tile_px=TILE_PX, data=INFO, teacher=teacher)).train()


def named(name: str) -> nn.Module:
    torch.manual_seed(0)
    settings = {"decoder_channels": 8} if name == "csat_nano" else {}
    return build_model(ModelConfig(name=name, **settings), INFO, load=None)


def test_a_student_that_agrees_loses_nothing_to_the_correlation():
    """The teacher's maps are the student's own; the teacher's logits too: the critic cannot tell."""
    maps = (replace(spec, channels=Tapped.layers[spec.name].channels) for spec in MAPS)
    method, batch = make(teacher=replace(TEACHER, responses=(MASK, *maps)), use_paraphraser=False), make_batch()
    with torch.no_grad():
        tapped, predictions = method.model.tap(batch.tiles / 255, LAYERS)
    batch.responses = tapped | predictions
    assert method(batch)["coco"].abs().max() < 1e-10  # the student's turn, which leaves its logits for the critic's
    assert method(batch, "critic")["critic"].abs().max() < 1e-5


def test_the_terms_of_each_turn_reach_their_own_part_only():
    method, batch = make(), make_batch()
    assert method.turns == ("student", "critic")
    terms = method(batch)
    assert terms.keys() == {"ce", "coco", "adv"} and all(term.shape == (3,) for term in terms.values())
    assert torch.equal(method.total(terms), terms["ce"] + terms["coco"] + 0.1 * terms["adv"])
    for name, term in terms.items():
        grads = torch.autograd.grad(term.sum(), list(method.model.parameters()), retain_graph=True, allow_unused=True)
        assert sum(float(grad.abs().sum()) for grad in grads if grad is not None) > 0, name
    method.total(terms).sum().backward()
    assert all(p.grad is None for p in [*method.critic.parameters(), *method.paraphrasers.parameters()])
    method.zero_grad()
    terms = method(batch, "critic")
    assert terms.keys() == {"critic", "penalty"} and method.weights["penalty"] == 10
    method.total(terms).sum().backward()
    assert all(p.grad is None for p in method.model.parameters())
    assert all(p.grad is not None for p in method.critic.parameters())


def test_ablations():
    batch = make_batch()
    assert make(lambda_s=0)(batch).keys() == {"ce", "adv"}
    method = make(lambda_adv=0)
    assert method.turns == ("student",) and method.critic is None and method(batch).keys() == {"ce", "coco"}
    assert [spec.name for spec in method.responses] == ["encoder", "decoder"]
    method = make(lambda_s=0, lambda_adv=0)
    assert method.responses == () and method(batch).keys() == {"ce"}
    raw, paraphrased = make(use_paraphraser=False), make()
    assert not len(raw.paraphrasers) and len(paraphrased.paraphrasers) == 2
    assert not torch.allclose(raw(batch)["coco"], paraphrased(batch)["coco"])


def test_half_precision_gives_float32_terms_close_by():
    method, batch = make(), make_batch()
    expected = {name: term for turn in method.turns for name, term in method(batch, turn).items()}
    with torch.autocast("cpu", torch.bfloat16):
        terms = {name: term for turn in method.turns for name, term in method(batch, turn).items()}
    for name, term in terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, expected[name], rtol=0.1, atol=0.05)


@pytest.mark.parametrize("name", NETS)
def test_each_network_lowers_its_loss_on_a_fixed_batch(name):
    method, batch = make(named(name)), make_batch(2)
    for module in method.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
    optimisers = {turn: torch.optim.Adam(method.part(turn).parameters(), lr=1e-3) for turn in method.turns}
    losses = []
    for _ in range(6):
        terms = {}
        for turn in method.turns:
            optimisers[turn].zero_grad()
            terms[turn] = method(batch, turn)
            method.total(terms[turn]).mean().backward()
            optimisers[turn].step()
        losses.append(float(terms["student"]["ce"].mean() + terms["student"]["coco"].mean()))
    assert losses[-1] < losses[0]


def test_the_student_runs_once_a_step_and_its_norms_see_the_batch_once(tmp_path):
    """Also with a critic, in parts, and in a step without a critic: counted in the loop, where the turns meet."""
    steps, counts = 2, {}
    for lambda_adv, accumulate in ((0.0, 1), (0.1, 1), (0.1, 2)):
        method, runs = make(named("enet"), lambda_adv=lambda_adv, critic_width=8), []
        method.model.net.initial.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        folder = tmp_path / f"{lambda_adv}-{accumulate}"
        trainer = train(method, folder, steps=range(steps), total=steps, accumulate=accumulate, tiles=4)
        assert trainer.step == steps and len(runs) == steps * accumulate
        assert {int(m.num_batches_tracked) for m in method.model.modules() if isinstance(m, nn.BatchNorm2d)} == {len(runs)}
        counts[lambda_adv, accumulate] = method.model.state_dict()
    with_critic, without = counts[0.1, 1], counts[0.0, 1]
    name = next(name for name in without if name.endswith("running_mean"))
    torch.testing.assert_close(with_critic[name], without[name], atol=1e-3, rtol=1e-2)


def test_the_critic_learns_from_the_logits_of_the_students_turn():
    """Not from those of the student after its update; and the penalty is of the slope in both of the critic's inputs."""
    method, batch = make(), make_batch()
    with torch.no_grad():
        before = method.model.tap(batch.tiles / 255, ())[1]["mask"]
    method(batch)
    torch.testing.assert_close(batch.kept["logits"], before)
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(1.0)
    terms = method(batch, "critic")
    images, teacher = batch.tiles / 255, batch.responses["mask"].float()
    expected = method.critic(images, before).mean((1, 2, 3)) - method.critic(images, teacher).mean((1, 2, 3))
    torch.testing.assert_close(terms["critic"], expected)
    share = uniforms(batch.positions, 1, seed=method.seed, stream=SHARE_STREAM).view(-1, 1, 1, 1)
    inputs = images.requires_grad_(), torch.lerp(before, teacher, share).requires_grad_()
    slopes = torch.autograd.grad(method.critic(*inputs).mean((1, 2, 3)).sum(), inputs)
    norms = sum(slope.square().sum((1, 2, 3)) for slope in slopes).sqrt()
    torch.testing.assert_close(terms["penalty"], (norms - 1).square(), atol=1e-5, rtol=1e-4)


def test_a_student_at_half_the_teachers_maps_is_compared_in_cells():
    coarse = TeacherSpec(name="run", responses=(MASK, *(replace(spec, stride_px=8) for spec in MAPS)), mpp=None)
    method, batch = make(teacher=coarse), make_batch()
    for name in LAYERS:
        batch.responses[name] = nn.functional.avg_pool2d(batch.responses[name].float(), 2)
    assert torch.isfinite(method(batch)["coco"]).all()


# ------------------------------------------------------------------------------------------------- the loop, both stages


def rows_of(positions) -> dict[str, np.ndarray]:
    batches = [make_batch(1, seed=int(position) % 4) for position in positions]
    rows = {
        POSITION: np.asarray(positions, np.int64),
        TILE: np.stack([batch.tiles[0].permute(1, 2, 0).numpy() for batch in batches]),
        STATUS: np.full(len(positions), OK, np.uint8),
        REASON: np.full(len(positions), "", object),
        "target_mask": np.stack([batch.targets["mask"][0].numpy() for batch in batches]),
        "read_s": np.zeros(len(positions), np.float32),
        "teacher_s": np.zeros(len(positions), np.float32),
        "slide": np.full(len(positions), "", object),
        "x_px": np.zeros(len(positions), np.int64),
        "y_px": np.zeros(len(positions), np.int64),
    }
    for spec in TEACHER.responses:
        rows[f"response_{spec.name}"] = np.stack([batch.responses[spec.name][0].numpy() for batch in batches])
    return rows


def train(
    method, folder, *, steps: range = range(8), total: int = 8, accumulate: int = 1, tiles: int = 2, context=None
) -> Trainer:
    """`steps` of a run of `total`, of so many tiles each, in so many parts."""
    plan = Plan([4], [0], num_epochs=total * tiles // 4, seed=0)
    size = tiles // accumulate
    starts = range(steps.start * tiles, steps.stop * tiles, size)
    context = context or TrainContext(batches=lambda _: (rows_of(range(start, start + size)) for start in starts))
    optim = OptimConfig(lr=1e-3, ema_decay=None, warmup=0.0)
    config = TrainConfig(
        epochs=total * tiles // 4,
        batch_size=tiles,
        accumulate=accumulate,
        log_every_steps=1,
        checkpoint_every_steps=1,
        optim=optim,
    )
    trainer = Trainer(method, plan, context, config, run_folder=str(folder), tile_px=TILE_PX)
    trainer.run() if steps.stop == total else trainer._run()  # the second: as if killed after the last of its steps
    return trainer


def test_a_run_goes_on_with_both_optimisers(tmp_path):
    """Stopped after three of eight steps and run again: the same weights, critic and Adam's moments as in one go."""
    whole = train(make(), tmp_path / "whole")
    first = train(make(), tmp_path / "parts", steps=range(3))
    group = first.learner.optimisers["critic"].param_groups[0]
    assert group["betas"] == (0.9, 0.99) and group["lr"] == pytest.approx(3e-5 * (1 - 4 / 16) ** 0.9)  # of the third step
    assert first.learner.optimisers["student"].param_groups[0]["lr"] > 1e-4  # the run's own, by its own schedule
    resumed = make()
    parts = train(resumed, tmp_path / "parts", steps=range(3, 8))
    assert parts.step == whole.step == 8
    for name, tensor in whole.learner.method.state_dict().items():
        torch.testing.assert_close(parts.learner.method.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    states = [trainer.learner.optimisers["critic"].state_dict()["state"] for trainer in (whole, parts)]
    assert states[0].keys() == states[1].keys() and float(states[1][0]["step"]) == 8


PARTS = (((0, 1), (2,), (4, 5), (6, 7)), ((3,),))  # of each rank, two a step: the second has none left for the second step


def _rank(rank: int, folder: str) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    context = TrainContext(batches=lambda _: (rows_of(part) for part in PARTS[rank]))
    trainer = train(make(), folder, total=2, steps=range(2), tiles=4, accumulate=2, context=context)
    torch.save(trainer.learner.method.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_in_parts_agree_with_one_the_critic_too(tmp_path):
    """Whole steps with both turns, ragged, in parts of a step, and a rank without tiles: the weights of one process."""
    one = train(make(), tmp_path / "one", total=2, steps=range(2), tiles=4).learner.method.state_dict()
    in_two_processes(_rank, str(tmp_path))
    start = make().state_dict()
    for rank in (0, 1):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in one.items():
            # Where a gradient is only rounding errors, Adam makes steps of its rate of them: of a critic's bias before an
            # instance norm, which has no effect, and of a few in a million of its weights.
            is_critic = name.startswith("critic")
            torch.testing.assert_close(theirs[name], tensor, atol=1e-4 if is_critic else 5e-6, rtol=1e-4, msg=name)
            if is_critic and not name.endswith("bias"):
                off = ~torch.isclose(theirs[name], tensor, atol=5e-6, rtol=1e-4)
                assert off.float().mean() <= 1e-5, name
    assert not torch.allclose(one["critic.layers.0.weight"], start["critic.layers.0.weight"], atol=2e-5)


def test_paraphrasers_learn_to_reconstruct_and_are_frozen_then(tmp_path):
    first, batch = make(paraphraser_lr=0.5, paraphraser_epochs=3).first_stage(), make_batch()
    assert (first.name, first.epochs) == ("paraphrasers", 3) and first.is_missing(str(tmp_path))
    stage = first.make_method()
    field = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))  # all channels say it, each in its strength
    batch.responses = dict.fromkeys(LAYERS, (field * torch.linspace(-1, 1, 6).view(1, 6, 1, 1)).half())
    optimiser = make_own_optimiser(stage.part("student"), stage.own_optimisers["student"])
    group = optimiser.param_groups[0]
    assert (type(optimiser), group["momentum"], group["weight_decay"]) == (torch.optim.SGD, 0.9, 2e-4)
    errors = []
    for _ in range(100):
        optimiser.zero_grad()
        terms = stage(batch)
        stage.total(terms).mean().backward()
        optimiser.step()
        errors.append({name: float(term.detach().mean()) for name, term in terms.items()})
    assert errors[-1]["encoder"] < 0.5 * errors[0]["encoder"]
    last = stage(batch)
    spread = batch.responses["encoder"].float().numpy().reshape(3, 6, -1).std(2)  # over each tile, of each channel
    np.testing.assert_allclose(last["encoder_missed"], last["encoder"].detach() / (spread**2).mean(1), rtol=1e-4)
    assert stage.weights["encoder_missed"] == 0
    assert errors[-1]["decoder"] < 0.99 * errors[0]["decoder"]  # through three channels it takes longer
    first.save(first.folder(str(tmp_path)))
    assert not first.is_missing(str(tmp_path))
    fresh = make()
    fresh.first_stage().load(str(tmp_path / "paraphrasers"))
    for name, tensor in stage.student.state_dict().items():
        assert torch.equal(fresh.paraphrasers.state_dict()[name], tensor)
    assert not any(p.requires_grad for p in fresh.paraphrasers.parameters())


def test_which_runs_have_paraphrasers_to_train(tmp_path):
    """None without the correlation or with the teacher's own maps; a folder that the settings name is never trained again."""
    assert make(lambda_s=0).first_stage() is None and make(use_paraphraser=False).first_stage() is None
    given = make(paraphrasers=str(tmp_path / "others")).first_stage()
    assert given.folder("/runs/mine") == str(tmp_path / "others") and not given.is_missing("/runs/mine")
    assert make().first_stage().folder("/runs/mine") == "/runs/mine/paraphrasers"


def test_untrained_paraphrasers_are_told_of():
    stage = make().first_stage()
    assert stage.warning({}) is None
    assert stage.warning({"loss/encoder_missed": 0.3, "loss/decoder_missed": 0.5}) is None
    words = stage.warning({"loss/encoder_missed": 0.3, "loss/decoder_missed": 13.2})
    assert "error is 30% (encoder) and 1320% (decoder) of the variance" in words and "the paper's is 0.0003" in words


# ----------------------------------------------------------------------------------------------------------- refusals


def test_paraphrasers_of_another_teacher_or_student_are_refused(tmp_path):
    folder = str(tmp_path / "p")
    save_paraphrasers(make_paraphrasers((6, 6), (5, 3)), folder, teacher_sha256="b" * 64)
    with pytest.raises(ConfigError, match=f"hash {'b' * 16}.*teacher has {'a' * 16}"):
        load_paraphrasers(make_paraphrasers((6, 6), (5, 3)), folder, teacher_sha256="a" * 64)
    with pytest.raises(ConfigError, match=r"\[6, 3\].*\[6, 4\]"):
        load_paraphrasers(make_paraphrasers((6, 6), (5, 4)), folder, teacher_sha256="b" * 64)
    with pytest.raises(ConfigError, match="there are no paraphrasers in"):
        load_paraphrasers(make_paraphrasers((6, 6), (5, 3)), str(tmp_path / "none"), teacher_sha256="b" * 64)


def test_what_cannot_work_is_refused():
    without = TeacherSpec(name="unet-run", responses=(MASK,), mpp=None)
    with pytest.raises(TeacherError, match=r"method coco needs the response 'encoder'.*teacher 'unet-run'.*it gives: mask"):
        make(teacher=without)
    assert make(teacher=without, lambda_s=0).turns == ("student", "critic")
    with pytest.raises(TeacherError, match="needs the response 'mask'"):
        make(teacher=TeacherSpec(name="run", responses=MAPS, mpp=None))
    others = replace(MASK, channel_names=("other", "nucleus"))
    with pytest.raises(ConfigError, match="other, nucleus.*background, gland"):
        make(teacher=TeacherSpec(name="run", responses=(others, *MAPS), mpp=None))
    with pytest.raises(ConfigError, match="32 px has maps of 8 x 8: set method.options.cells 8"):
        make(cells=16)
    with pytest.raises(ConfigError, match="a UNetModel has none to tap"):
        make(build_model(ModelConfig(name="unet", options={"width": 4, "depth": 2}), INFO, load=None))
    with pytest.raises(ConfigError, match="learns a segmentation, and the task is nuclei"):
        CoCo(CoCoConfig(), Tapped(), Setting(tile_px=TILE_PX, data=make_info(Task.NUCLEI), teacher=TEACHER))
    with pytest.raises(ConfigError, match="method 'coco' learns from a teacher too"):
        make(teacher=None)
    with pytest.raises(ConfigError, match="'supervised' has no use for a teacher.*that has: coco"):
        build_method("supervised", {}, Tapped(), Setting(tile_px=32, data=INFO, teacher=TEACHER))
    for wrong in ({"lambda_s": -1.0}, {"lambda_adv": float("nan")}, {"cells": 0}, {"critic_lr": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CoCoConfig(**wrong)
