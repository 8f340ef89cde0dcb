import json

import pytest

from workflows import benchmark

SMALL = ["--tile_px=64", "--batch_size=2", "--rounds=1", "--threads=1"]


def test_the_figures_are_written(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ['--stages=["student", "model"]', "--model_px=64", '--students=["csat_nano", "resnet18"]', *SMALL]
    argv += [f"--output={output}", '--ways=["float32", "float32, channels first", "bfloat16"]']
    assert benchmark.main(argv) == 0
    figures = json.loads(output.read_text())
    assert figures["model"]["stain"]["median"] > 0 and len(figures["model"]["stain"]["rounds"]) == 1
    assert figures["model"]["stain"]["params"] == 0 and figures["model"]["stain"]["tile_px"] == 64
    assert figures["student"]["csat_nano"]["macs"] < figures["student"]["resnet18"]["macs"]
    for each in figures["student"].values():
        assert all(len(each[what]) == 3 for what in ("forward", "training"))
        assert min(way["least"] for what in ("forward", "training") for way in each[what].values()) > 0
    assert figures["versions"]["torch"] and figures["machine"]["cores"] and figures["seed"] == 0
    said = capsys.readouterr().out
    assert "forward and backward" in said and max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ('--stages=["lunch"]', "no stage lunch"),
        ('--students=["cast"]', "csat"),
        ('--ways=["sideways"]', "no sideways; there are: float32"),
        ("--slides=[/nowhere.svs]", "nowhere.svs"),
        ("--num_slides=1", "at least 2"),
        ("--lightly_python=/nowhere/python", "lightly_python: /nowhere/python is no file"),
    ],
)
def test_mistakes_are_named(capsys, argument, words):
    assert benchmark.main([argument, *SMALL]) == 2
    assert words in capsys.readouterr().err


def test_scale_is_simulated_with_the_code_of_a_run(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ['--stages=["plan", "manifest"]', "--num_slides=8", "--num_tiles=20000", f"--output={output}", *SMALL]
    assert benchmark.main(argv) == 0
    plan, manifest = (json.loads(output.read_text())[stage] for stage in ("plan", "manifest"))
    assert plan["0_tiles_on_their_way.intervals"] == 1
    assert plan["2000_tiles_on_their_way.intervals"] == 1 + -(-2000 // 32)
    assert plan["2000_tiles_on_their_way.cursor_bytes"] < 40 * 64 + 1000
    assert 0 < manifest["tiles"] < 20_000, "some slides are held out"
    assert all(manifest[f"memory_after_{share}_percent_bytes"] > 0 for share in (25, 50, 75, 100))
    assert "20,000 tiles" in capsys.readouterr().out
