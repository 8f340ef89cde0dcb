"""One ONNX file says what the model says, on real tiles, in any batch, where there is neither torch nor this project."""

import json

import numpy as np
import onnx
import pytest
import torch

from csat.errors import ConfigError
from csat.export.onnx import NAME, check_onnx, compare, export_onnx
from csat.export.quantised import left_in_float32
from csat.prediction.onnx_answers import OnnxAnswers
from csat.prediction.opening import open_answers
from csat.responses import Kind
from csat.tasks import Task
from tests.csat.export.models import EMBEDDING, LABEL, NUCLEI, TILE_PX, answers_of, net, real_tiles, student
from tests.support.alone import run_alone

MODELS = {
    "nuclei": lambda: answers_of(student(NUCLEI, downsample=2)),
    "label": lambda: answers_of(student((*LABEL, *EMBEDDING), backbone="resnet10_gn")),
    "unet": lambda: answers_of(net("unet", Task.SEGMENTATION, width=4, depth=2)),
}

ALONE = """
import json, sys, numpy as np, onnxruntime
assert "torch" not in sys.modules
tiles, said = dict(np.load("tiles.npz")), {}
for name in sys.argv[1:]:
    session = onnxruntime.InferenceSession(name + ".onnx", providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    mean, std = (np.array(json.loads(about[key]), np.float32).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    shown = tiles[about["tile_px"]]
    images = (shown.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
    values = dict(zip([output.name for output in session.get_outputs()], session.run(None, {"images": images})))
    np.savez(name + ".npz", **values)
    said[name] = dict(about)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder with a file per model, the models, what a process without this project read in them)"""
    folder, models = tmp_path_factory.mktemp("onnx"), {name: make() for name, make in MODELS.items()}
    for name, answers in models.items():
        export_onnx(answers, folder / f"{name}.onnx")
    np.savez(folder / "tiles.npz", **{str(edge): real_tiles(7, edge) for edge in (TILE_PX,)})
    return folder, models, run_alone(ALONE, *models, cwd=folder)


@pytest.mark.parametrize("name", MODELS)
def test_the_file_agrees_with_the_model_on_real_tiles(exported, name):
    folder, models, _ = exported
    found = check_onnx(models[name], folder / f"{name}.onnx", real_tiles(12, models[name].tile_px))
    assert found.difference <= 1e-4 and found.decisions >= 0.999 and found.tiles == 12
    assert [path.name for path in folder.glob(f"{name}.onnx*")] == [f"{name}.onnx"]  # one file, nothing beside it


@pytest.mark.parametrize("name", MODELS)
def test_without_this_project_it_says_the_same(exported, name):
    folder, models, said = exported
    answers = models[name]
    expected, values = answers.answer(real_tiles(7, answers.tile_px)), np.load(folder / f"{name}.npz")
    assert set(values) == set(expected)
    for key in expected:
        np.testing.assert_allclose(values[key], expected[key], atol=1e-4, rtol=1e-5)
    about = said[name]
    assert json.loads(about["classes"]) == list(answers.classes) and json.loads(about["mpp"]) == 0.5
    assert about["licence"] == "CC BY 4.0" and about["sha256"] == "ab" * 32


def test_it_is_opened_as_any_other_model(exported):
    folder, models, _ = exported
    opened, answers = open_answers(str(folder / "nuclei.onnx")), models["nuclei"]
    assert (opened.specs, opened.task, opened.classes) == (answers.specs, Task.NUCLEI, ("one", "two"))
    assert (opened.tile_px, opened.mpp, opened.about.licence) == (TILE_PX, 0.5, "CC BY 4.0")
    assert compare(answers, opened, real_tiles()).difference <= 1e-4
    with pytest.raises(ConfigError, match="made for tiles of 64 px, not of 96"):
        open_answers(str(folder / "nuclei.onnx"), tile_px=96)
    with pytest.raises(ConfigError, match="onnxruntime does not run on cuda here"):
        OnnxAnswers(str(folder / "nuclei.onnx"), device="cuda")


def test_it_tells_nothing_of_the_machine_that_made_it(exported):
    for path in exported[0].glob("*.onnx"):
        content = path.read_bytes()
        assert b"stack_trace" not in content and b"site-packages" not in content and b".py" not in content


def test_attention_and_grn_of_csat_would_not_be_quantised(exported):
    model = onnx.load(exported[0] / "nuclei.onnx")
    kept = set(left_in_float32(model))
    scopes = {
        node.name: str(list(node.metadata_props)) for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")
    }
    for part in ("attention", "heads."):
        inside = {name for name, scope in scopes.items() if part in scope}
        assert inside and inside <= kept, part
    assert 0 < len(kept) < len(scopes)
    assert any("conv_dw" in scope for name, scope in scopes.items() if name not in kept)


def test_a_file_that_says_something_else_is_refused(exported):
    folder, models, _ = exported
    other = student((*LABEL, *EMBEDDING), backbone="resnet10_gn")
    with torch.no_grad():
        other.heads["label"].fc.weight *= 0.99
    with pytest.raises(ConfigError, match="does not say what the model says: at most .* apart"):
        check_onnx(answers_of(other), folder / "label.onnx", real_tiles())


def test_files_of_others_are_refused_with_what_was_expected(tmp_path, exported):
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ConfigError, match="is not an ONNX file that onnxruntime can read"):
        open_answers(str(tmp_path / "text.onnx"))
    with pytest.raises(ConfigError, match="there is no file"):
        open_answers(str(tmp_path / "gone.onnx"))
    model = onnx.load(exported[0] / "label.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ConfigError, match="of another program: it does not say what it answers"):
        open_answers(str(tmp_path / "bare.onnx"))


def test_from_a_bucket(exported, s3):
    from csat.storage import files

    folder, models, _ = exported
    files.write_bytes(f"{s3}/models/{NAME}", (folder / "label.onnx").read_bytes())
    opened = open_answers(f"{s3}/models/{NAME}")
    assert opened.specs[0].kind == Kind.PROBABILITY
    np.testing.assert_allclose(
        opened.answer(real_tiles(2))["label"], models["label"].answer(real_tiles(2))["label"], atol=1e-5
    )


def test_the_model_is_left_as_it_was(exported):
    fresh = MODELS["label"]().answer(real_tiles(2))
    np.testing.assert_array_equal(exported[1]["label"].answer(real_tiles(2))["label"], fresh["label"])
