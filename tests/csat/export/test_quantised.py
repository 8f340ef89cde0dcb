"""Smaller files: what is quantised, what stays, and that a verdict is what was measured. (Of csat: in test_onnx.py.)"""

import numpy as np
import onnx
import pytest

from csat.export.onnx import NAME, Agreement, export_onnx
from csat.export.quantised import FP16, INT8, Verdict, judge, quantise, to_float16
from csat.prediction.opening import open_answers
from csat.tasks import Task
from tests.csat.export.models import answers_of, net, real_tiles


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(folder with a float32, an int8 and a float16 file, the model)"""
    folder, answers = tmp_path_factory.mktemp("smaller"), answers_of(net("unet", Task.SEGMENTATION, width=8, depth=2))
    export_onnx(answers, folder / NAME)
    quantise(folder / NAME, folder / INT8, answers, real_tiles(12))
    to_float16(folder / NAME, folder / FP16)
    return folder, answers


@pytest.mark.parametrize("name", [INT8, FP16])
def test_a_smaller_file_says_nearly_the_same_and_who_it_is(files, name):
    folder, answers = files
    verdict = judge(folder / NAME, folder / name, answers, real_tiles(12), threads=1)
    assert verdict.agreement.mean_difference < 0.02 and verdict.speed > 0 and verdict.tiles_per_s > 0
    assert f"{verdict.speed:.2f} times as fast as float32" in str(verdict)
    opened = open_answers(str(folder / name))
    assert (opened.specs, opened.about.licence, opened.mpp) == (answers.specs, "CC BY 4.0", 0.5)
    assert (folder / name).stat().st_size < (folder / NAME).stat().st_size
    assert {path.name for path in folder.iterdir()} == {NAME, INT8, FP16}


def test_the_first_convolution_and_the_heads_stay(files):
    model = onnx.load(files[0] / INT8)
    made_by = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    quantised = [
        made_by.get(node.input[0]) is not None and made_by[node.input[0]].op_type == "DequantizeLinear"
        for node in convolutions
    ]
    assert not quantised[0] and not quantised[-1] and sum(quantised) == len(convolutions) - 2


def test_a_file_is_kept_where_it_is_faster_and_decides_alike():
    def verdict(speed, decisions):
        agreement = Agreement(difference=0.1, mean_difference=0.001, decisions=decisions, tiles=32)
        return Verdict(agreement=agreement, speed=speed, tiles_per_s=1.0)

    assert verdict(1.5, 0.999).is_kept
    assert not verdict(1.05, 0.999).is_kept and not verdict(3.0, 0.95).is_kept


def test_openvino_says_the_same(files):
    pytest.importorskip("openvino", reason="openvino is an extra and not installed")
    from csat.export.openvino import NAME as OPENVINO
    from csat.export.openvino import convert

    folder, answers = files
    target = folder.parent / "openvino"
    target.mkdir()
    assert "for OpenVINO" in convert(folder / NAME, target, answers, real_tiles(8))
    assert {path.suffix for path in target.iterdir()} == {".xml", ".bin"} and (target / OPENVINO).exists()
    assert np.isfinite((target / OPENVINO).stat().st_size)
