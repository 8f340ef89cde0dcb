import pytest

from csat.precision import BFLOAT16, FLOAT32
from workflows.rates import peers
from workflows.rates.commands import Sample, Watched
from workflows.rates.config import BenchmarkConfig
from workflows.rates.contenders import DEFAULTS, Lightly, Loop, Ours, Task
from workflows.rates.peers import measure_peers


@pytest.fixture
def asked(monkeypatch):
    """Commands are not run: ours takes 10 s and does 16 images/s, LightlyTrain half of that, the loop a fifth more."""
    runs = []

    def stand_in(contender, seconds, rate):
        def run(self, task, images, out, precision, spread):
            runs.append((contender, precision, spread, len(list(images.iterdir()))))
            slow = 2 if spread == {"workers": 0, "processes": 2} else 3
            rates = rate * (slow if spread in self.tried else 3) / 3
            watched = Watched(seconds=seconds, samples=[Sample(0.0, 0, {"others": 32.0})])
            return watched, [(32, 32 / rates)] * 10

        return run

    for contender, seconds, rate in ((Ours, 10.0, 16.0), (Lightly, 20.0, 8.0), (Loop, 8.0, 19.2)):
        monkeypatch.setattr(contender, "run", stand_in(contender.name, seconds, rate))
    monkeypatch.setattr(Lightly, "version", lambda self: "0.18.0")
    monkeypatch.setattr(peers, "gather_images", _gather)
    monkeypatch.setattr(peers, "make_teacher", lambda path, seed: None)
    return runs


def _gather(config, folder):
    (folder / "images").mkdir()
    for index in range(320):
        (folder / "images" / f"{index:03d}.jpg").touch()
    return 320


def test_everybody_takes_turns_and_is_held_against_ours(asked, capsys):
    figures = measure_peers(BenchmarkConfig(rounds=2, lightly_python="lightly/bin/python"))
    tried = [run for run in asked if run[3] == peers.TRIED_IMAGES]
    assert len(tried) == 2 * (len(Lightly.tried) + len(Loop.tried)) and not [run for run in tried if run[0] == Ours.name]
    counted = [run for run in asked if run[3] == 320]
    order = [(name, precision) for name, precision, _, _ in counted]
    names = (Ours.name, Lightly.name, Loop.name)
    assert order[:8] == [
        (name, p) for p in (FLOAT32, BFLOAT16, DEFAULTS) for name in names if (name, p) != (Loop.name, DEFAULTS)
    ]
    assert order[8:11] == [(name, FLOAT32) for name in (Lightly.name, Loop.name, Ours.name)], "another one begins"
    assert {str(spread) for name, precision, spread, _ in counted if (name, precision) == (Lightly.name, DEFAULTS)} == {"{}"}
    assert not any(spread == {"workers": 0, "processes": 2} for *_, spread, _ in counted), "it was the slowest"
    faster = figures[FLOAT32][Lightly.name]["ours_is_faster"]
    assert faster["whole"]["median"] == 2.0 and faster["steady"]["median"] == 2.0
    assert figures[DEFAULTS][Loop.name]["ours_is_faster"]["whole"]["rounds"] == [0.8, 0.8]
    said = capsys.readouterr().out
    assert "LightlyTrain 0.18.0" in said and "x2.00" in said and max(map(len, said.splitlines())) <= 100


def test_without_lightlytrain(asked, capsys, caplog):
    figures = measure_peers(BenchmarkConfig(rounds=1))
    assert Lightly.name not in figures[FLOAT32] and "is left out" in caplog.text


def test_all_are_given_the_same(tmp_path):
    task = Task(weights=tmp_path / "teacher.pt", device="cpu", seed=3)
    ours = " ".join(Ours(more=["--pool.threads=2"]).command(task, tmp_path / "images", tmp_path / "out", BFLOAT16))
    assert "--train.precision=bfloat16" in ours and '"precision": "bfloat16"' in ours and ours.endswith("--pool.threads=2")
    assert "precision" not in " ".join(Ours().command(task, tmp_path / "images", tmp_path / "out", DEFAULTS))
    theirs = Lightly(python="python").settings(task, tmp_path / "images", tmp_path / "out", BFLOAT16)
    assert theirs["precision"] == "bf16-mixed" and theirs["transform_args"]["gaussian_blur"] is None
    defaults = Lightly(python="python").settings(task, tmp_path / "images", tmp_path / "out", DEFAULTS)
    assert not {"precision", "transform_args", "num_workers"} & defaults.keys()
    for name, value in {"batch_size": 32, "seed": 3, "data": str(tmp_path / "images")}.items():
        assert theirs[name] == value
