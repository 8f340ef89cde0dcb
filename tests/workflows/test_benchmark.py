import json

import pytest

from workflows import benchmark

SMALL = ["--tile_px=64", "--batch_size=2", "--rounds=1", "--threads=1"]


def test_the_figures_are_written(tmp_path, capsys):
    output = tmp_path / "figures.json"
    argv = ['--stages=["student", "reader"]', '--students=["csat_nano", "resnet18"]', f"--output={output}", *SMALL]
    assert benchmark.main(argv) == 0
    figures = json.loads(output.read_text())
    assert set(figures) == {"student", "reader", "machine"}
    assert figures["student"]["csat_nano"]["macs"] < figures["student"]["resnet18"]["macs"]
    assert all(rates["forward"] > 0 and rates["training"] > 0 for rates in figures["student"].values())
    assert "forward and backward" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "words"),
    [('--stages=["lunch"]', "no stage lunch"), ('--students=["cast"]', "csat"), ("--slides=[/nowhere.svs]", "nowhere.svs")],
)
def test_mistakes_are_named(capsys, argument, words):
    assert benchmark.main([argument, *SMALL]) == 2
    assert words in capsys.readouterr().err
