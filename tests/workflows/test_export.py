"""export.py from a finished run to files that open elsewhere, in a process without this project."""

import json

import numpy as np
import pytest
from PIL import Image

from csat.model.files import load_exported, save_model
from csat.prediction.opening import open_answers
from csat.storage import files
from tests.csat.export.models import LABEL, METADATA, TILE_PX, real_tiles, student
from tests.support.alone import run_alone
from workflows import export
from workflows.comparison.config import AnswererConfig
from workflows.comparison.judged import read_judged

SMALL = {"config.json", "student.safetensors", "README.md", "export.json"}  # files of a small export
OPEN = """
import json, sys, timm, torch, onnxruntime, numpy as np
sys.path.insert(0, ".")
import csat_timm
tiles, config = np.load(sys.argv[1]), json.load(open("config.json"))
model = timm.create_model("local-dir:.", pretrained=True).eval()
mean, std = (np.array(config["pretrained_cfg"][name], np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
images = (tiles.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
with torch.inference_mode():
    of_timm = model(torch.from_numpy(images)).softmax(1)
    of_wsinfer = torch.jit.load("torchscript_model.pt")(torch.from_numpy(images)).softmax(1)
of_onnx = onnxruntime.InferenceSession("model.onnx").run(["label"], {"images": images})[0]
print(json.dumps([of_timm.tolist(), of_wsinfer.tolist(), of_onnx.tolist()]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an exported classifier and real images to try it with."""
    folder = tmp_path_factory.mktemp("export")
    save_model(student(LABEL), str(folder / "run" / "exported"), {**METADATA, "task": "classification"})
    (folder / "tiles").mkdir()
    for number, tile in enumerate(real_tiles(4, 2 * TILE_PX)):
        Image.fromarray(tile).save(folder / "tiles" / f"{number}.png")
    return folder


def run(place, output, *more):
    argv = ["--model", str(place / "run"), "--output", str(output), "--tiles", json.dumps([str(place / "tiles")])]
    return export.main([*argv, "--num_tiles", "8", *more])


@pytest.mark.slow
def test_every_file_opens_elsewhere_and_says_the_same(place, capsys):
    output = place / "out"
    # The images state no resolution of their own: they are taken to have the model's.
    assert run(place, output) == 0
    printed = capsys.readouterr().out
    assert "README.md" in printed and "torchscript_model.pt" in printed
    tiles = real_tiles(9)
    np.save(place / "tiles.npy", tiles)
    expected = open_answers(str(place / "run")).answer(tiles)["label"]
    for said in run_alone(OPEN, str(place / "tiles.npy"), cwd=output):
        np.testing.assert_allclose(said, expected, atol=1e-4)
    np.testing.assert_array_equal(open_answers(str(output)).answer(tiles)["label"], expected)
    assert load_exported(str(output)).responses == LABEL
    both = (AnswererConfig(model=str(each)) for each in (output / "model.onnx", place / "run"))
    file, run_itself = (read_judged(each, None, device="cpu") for each in both)
    assert (file.task, file.classes, file.sees) == (run_itself.task, run_itself.classes, run_itself.sees)
    np.testing.assert_allclose(file.answers.answer(tiles)["label"], expected, atol=1e-4)
    assert "Tried with real tiles: 8, of tiles" in (output / "README.md").read_text()


def test_a_small_one_is_the_weights_in_half_precision_and_the_card(place, tmp_path, capsys):
    output, exported = tmp_path / "small", place / "run" / "exported"
    config = json.loads((exported / "config.json").read_text())
    config["metadata"] |= {"started_from": {"run": "/home/someone/runs/first", "licence": "MIT"}}
    save_model(load_exported(str(exported)), str(tmp_path / "run" / "exported"), config["metadata"])
    argv = ["--model", str(tmp_path / "run"), "--output", str(output), "--tiles", json.dumps([str(place / "tiles")])]
    assert export.main([*argv, "--num_tiles", "8", "--small", "true"]) == 0
    assert {path.name for path in output.iterdir()} == SMALL
    assert (output / "student.safetensors").stat().st_size < 0.6 * (exported / "student.safetensors").stat().st_size
    tiles, whole, small = real_tiles(5), open_answers(str(place / "run")), open_answers(str(output))
    np.testing.assert_allclose(small.answer(tiles)["label"], whole.answer(tiles)["label"], atol=0.01)
    assert small.model.state_dict()["mean"].equal(whole.model.state_dict()["mean"]), "what is small keeps its digits"
    assert "/home/someone" not in (output / "config.json").read_text()
    assert "in half precision: at most" in (output / "README.md").read_text()


def test_from_bucket_to_bucket(place, s3, capsys):
    """The run lies in a bucket and the output goes to one, in one go."""
    for path in (place / "run" / "exported").iterdir():
        files.write_bytes(files.join(s3, "runs", "lung", "exported", path.name), path.read_bytes())
    output = files.join(s3, "models", "lung")
    argv = ["--model", f"{s3}/runs/lung", "--output", output, "--tiles", json.dumps([str(place / "tiles")]), "--num_tiles=8"]
    assert export.main([*argv, "--small", "true"]) == 0
    assert output in capsys.readouterr().out
    assert {files.base_name(uri) for uri in files.list_dir(output)} == SMALL
    tiles, of_run = real_tiles(5), open_answers(f"{s3}/runs/lung")
    np.testing.assert_allclose(open_answers(output).answer(tiles)["label"], of_run.answer(tiles)["label"], atol=0.01)


def test_what_cannot_work_is_refused_before_anything_is_made(place, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))

    def refusal(*more):
        assert run(place, tmp_path / "out", *more) == 2
        return capsys.readouterr().err

    assert "push is hf-hub:OWNER/NAME" in refusal("--push", "owner/name")
    assert "--num_tiles must be at least 7" in refusal("--num_tiles", "3")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    argv = ["--model", str(tmp_path), "--output", str(tmp_path / "out")]
    assert export.main(argv) == 2
    assert "neither a run folder nor an exported model" in capsys.readouterr().err
    assert export.main(["--model", str(place / "run"), "--output", str(tmp_path / "out")]) == 2
    assert "name some" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("by hand")
    assert run(place, tmp_path / "mine") == 2
    assert "which no export has made" in capsys.readouterr().err


def test_the_licence_of_slides_goes_with_the_model(place, tmp_path):
    metadata = {name: value for name, value in METADATA.items() if name != "licence"}
    save_model(student(LABEL), str(tmp_path / "exported"), metadata)
    argv = ["--model", str(tmp_path), "--output", str(tmp_path / "out"), "--tiles", json.dumps([str(place / "tiles")])]
    assert export.main([*argv, "--num_tiles=8", "--small=true", "--licence", "slides of ours: CC BY 4.0"]) == 0
    assert "CC BY 4.0" in open_answers(str(tmp_path / "out")).about.licence
    assert "slides of ours: CC BY 4.0" in (tmp_path / "out" / "README.md").read_text()


def test_a_licence_is_read_first(place, tmp_path, capsys):
    teacher = {"name": "timm", "licence": "CC BY-NC-ND 4.0", "source": "hf-hub:MahmoodLab/UNI"}
    save_model(student(LABEL), str(tmp_path / "exported"), {**METADATA, "licence": None, "teacher": teacher})
    assert export.main(["--model", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "CC BY-NC-ND 4.0 forbids passing on what is made from it" in said and "--accept_license=true" in said
    assert not files.exists(str(tmp_path / "out" / "config.json"))
