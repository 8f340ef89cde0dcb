"""Several teachers that answer different tiles: by hand, and on the loop, where two processes have to agree with one."""

import os

import numpy as np
import pytest
import torch
import torch.distributed as dist

from csat.columns import RESPONSE_PREFIX, TEACHER_S, UNANSWERED_PREFIX
from csat.methods.contract import Setting
from csat.methods.rckd import RCKD, RCKDConfig
from csat.model.student import Student, StudentConfig
from csat.panel import Member, make_panel
from csat.responses import Batch, Kind, ResponseSpec, TeacherSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.recorder import read_metrics
from csat.training.config import TrainConfig
from csat.training.context import TrainContext
from csat.training.loop import Trainer
from csat.training.optim import OptimConfig
from csat.training.shares import share_out, shared
from csat.views.colour_config import ColourConfig
from tests.support.forks import in_two_processes
from tests.support.toy import TILE_PX, toy_plan, toy_rows

COLOUR = TeacherSpec(
    name="c", responses=(ResponseSpec(name="mean", kind=Kind.REGRESSION, channels=3, stride_px=None),), mpp=None
)
GREY = TeacherSpec(name="g", responses=(ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),), mpp=None)
PANEL = make_panel([Member(name="colour", spec=COLOUR), Member(name="grey", spec=GREY)])
WEIGHTS = {"colour": 1.0, "grey": 0.5}
NO_COLOUR = ColourConfig(stain_scale=0.0, stain_shift=0.0, brightness=0.0, contrast=0.0, saturation=0.0)
# Positions that a teacher has no answer for. 8 to 11, a whole step, has none of grey; rank 1 has none of colour in the first.
LACKING = {"colour": (2, 3, 5, 13), "grey": (0, 8, 9, 10, 11, 14, 19)}


def method():
    torch.manual_seed(0)
    student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), PANEL.responses)
    return RCKD(RCKDConfig(augment=NO_COLOUR), student, Setting(tile_px=TILE_PX, teacher=PANEL, teacher_weights=WEIGHTS))


def stream(positions, size, *, noise=0.0, lacking=LACKING, **options):
    positions = list(positions)
    for start in range(0, len(positions), size):
        taken = np.array(positions[start : start + size])
        rows = toy_rows(taken, **options)
        rows[f"{RESPONSE_PREFIX}colour.mean"] = rows.pop(f"{RESPONSE_PREFIX}mean")
        rows[f"{RESPONSE_PREFIX}grey.np"] = (rows["tile"].mean(axis=3)[:, None] / 255).astype(np.float16)
        for name, (column, _) in {"colour": ("colour.mean", 0), "grey": ("grey.np", 0)}.items():
            is_lacking = np.isin(taken, lacking[name])
            rows[RESPONSE_PREFIX + column][is_lacking] = noise  # what stands there must be of no matter
            rows[UNANSWERED_PREFIX + name] = np.where(is_lacking, "teacher_error: no", "").astype(object)
            rows[f"{TEACHER_S}.{name}"] = np.full(len(taken), 0.5, np.float32)
        yield rows


def train(folder, positions, *, config, plan, **options):
    context = TrainContext(lambda size: stream(positions, size, **options))
    trainer = Trainer(method(), plan, context, config, run_folder=str(folder), tile_px=TILE_PX)
    return trainer, trainer.run()


def test_shares_by_hand():
    """Four tiles of which three have an answer: each of them counts 4/3, so that the mean over four is theirs over three."""
    batch = Batch(
        tiles=torch.zeros(4, 3, 1, 1),
        positions=torch.arange(4),
        answered={"a": torch.tensor([True, True, False, True]), "b": torch.ones(4, dtype=torch.bool)},
    )
    share_out([batch], ["a", "b"], 4, TrainContext(lambda size: iter(())))
    assert batch.shares.keys() == {"a"}, "who has answered all changes nothing"
    terms = {"x": torch.tensor([1.0, 2.0, float("nan"), 6.0], requires_grad=True), "y": torch.tensor([1.0, 1.0, 1.0, 1.0])}
    weighed = shared(terms, {"x": "a", "y": "b"}, batch)
    assert weighed["x"].mean().item() == pytest.approx(3.0)
    weighed["x"].mean().backward()
    assert terms["x"].grad.tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert weighed["y"] is terms["y"]


def test_one_teacher_needs_no_shares():
    batch = Batch(tiles=torch.zeros(1, 3, 1, 1), positions=torch.arange(1))
    share_out([batch], [], 1, TrainContext(lambda size: iter(())))
    assert not batch.shares and shared({"x": torch.ones(1)}, {}, batch)["x"].tolist() == [1.0]


def test_weights_are_those_of_the_term_and_of_its_teacher():
    assert method().weights == {"colour.mean_mse": 1.0, "grey.np_bce": 0.5, "grey.np_dice": 0.5}
    assert method().teacher_of_term == {"colour.mean_mse": "colour", "grey.np_bce": "grey", "grey.np_dice": "grey"}


CONFIG = TrainConfig(epochs=1, batch_size=4, log_every_steps=1, precision="float32", optim=OptimConfig(weight_decay=0.0))


def test_a_step_is_the_mean_of_each_teacher_over_what_it_has_answered(tmp_path):
    """Step 1: colour lacks two of four tiles, grey one. What stands in the place of an answer that is not there is unseen."""
    trainer, cursor = train(tmp_path / "a", range(24), config=CONFIG, plan=toy_plan(24, 1), bad=(6,))
    assert cursor.counts == {0: [23, 1, 0]}
    assert {name: cursor.meters[f"unanswered.{name}"] for name in LACKING} == {"colour": 4, "grey": 7}
    first = read_metrics(str(tmp_path / "a"))[0]
    fresh, (rows, *_) = method(), stream(range(4), 4)
    with torch.no_grad():
        terms = fresh(
            Batch(
                tiles=torch.from_numpy(rows["tile"].copy()).permute(0, 3, 1, 2),
                positions=torch.arange(4),
                responses={spec.name: torch.from_numpy(rows[RESPONSE_PREFIX + spec.name]) for spec in fresh.responses},
            )
        )
    answered = {"colour.mean_mse": [0, 1], "grey.np_bce": [1, 2, 3], "grey.np_dice": [1, 2, 3]}
    expected = {name: terms[name][rows].mean().item() for name, rows in answered.items()}
    for name, value in expected.items():
        assert first[f"loss/{name}"] == pytest.approx(value, rel=1e-5)
    assert first["loss"] == pytest.approx(sum(fresh.weights[name] * value for name, value in expected.items()), rel=1e-5)
    rows = Checkpoints(str(tmp_path / "a" / "checkpoints")).load().quarantine.to_pylist()
    assert {(row["position"], row["reason"]) for row in rows if row["status"] == "unanswered"} == {
        (position, f"{name}.teacher_error") for name, positions in LACKING.items() for position in positions
    }
    other, _ = train(tmp_path / "b", range(24), config=CONFIG, plan=toy_plan(24, 1), bad=(6,), noise=0.7)
    for name, tensor in trainer.learner.method.state_dict().items():
        torch.testing.assert_close(other.learner.method.state_dict()[name], tensor, rtol=0, atol=0)


def test_who_has_answered_everything_changes_nothing(tmp_path):
    """Bit for bit: the same as of one stream in which nothing is said of who has answered."""
    nothing = {"colour": (), "grey": ()}
    trainer, _ = train(tmp_path / "a", range(24), config=CONFIG, plan=toy_plan(24, 1), lacking=nothing)
    plain = method()
    plain.teachers = ()
    context = TrainContext(lambda size: stream(range(24), size, lacking=nothing))
    other = Trainer(plain, toy_plan(24, 1), context, CONFIG, run_folder=str(tmp_path / "b"), tile_px=TILE_PX)
    other.run()
    for name, tensor in trainer.learner.method.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], tensor, rtol=0, atol=0)


# Rank r of two takes these: the second has fewer tiles, and of the second step none that is good.
ALL = list(range(22))
PARTS = [[p for p in ALL if p % 4 in (0, 1)], [p for p in ALL if p % 4 in (2, 3)]]


def _rank(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    trainer, cursor = train(folder, PARTS[rank], config=CONFIG, plan=toy_plan(22, 1), bad=(6, 7))
    assert cursor.counts == {0: [20, 2, 0]}
    torch.save(trainer.learner.method.state_dict(), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path, free_port):
    """Unequal ranks, of which one has no answer of a teacher where the other has some: one process learns the same."""
    one, _ = train(tmp_path / "one", ALL, config=CONFIG, plan=toy_plan(22, 1), bad=(6, 7))
    (tmp_path / "two").mkdir()
    in_two_processes(_rank, str(tmp_path / "two"), free_port)
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for name, tensor in one.learner.method.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        torch.testing.assert_close(ranks[0][name], tensor, rtol=1e-2, atol=2e-3)
    lines = [read_metrics(str(tmp_path / which)) for which in ("one", "two")]
    for name in ("loss", "loss/colour.mean_mse", "loss/grey.np_bce"):
        np.testing.assert_allclose(*([line[name] for line in each] for each in lines), rtol=1e-3, err_msg=name)
    counts = [Checkpoints(str(tmp_path / which / "checkpoints")).latest_cursor().meters for which in ("one", "two")]
    assert counts[0]["unanswered.grey"] == counts[1]["unanswered.grey"] == 6 + 1
