"""A WSInfer bundle: valid by WSInfer's own validator, and read by the PyTorch that QuPath holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from csat.errors import ConfigError
from csat.export.onnx import normalised
from csat.export.torchscript import NAME, bundle_config, export_torchscript, why_no_bundle
from csat.model.files import save_model
from csat.tasks import Task
from tests.csat.export.models import LABEL, METADATA, NUCLEI, TILE_PX, answers_of, net, real_tiles, student
from tests.support.alone import run_alone

QUPATH = "2.7.1"  # the PyTorch of QuPath 0.7
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "csat-on-ray" / f"torch-{QUPATH}"

READ = """
import json, torch, numpy as np
config, tiles = json.load(open("config.json")), np.load("tiles.npy")
(normalise,) = [each["arguments"] for each in config["transform"] if each["name"] == "Normalize"]
mean, std = (torch.tensor(normalise[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
images = (torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std
model = torch.jit.load("torchscript_model.pt", map_location="cpu").eval()
with torch.inference_mode():
    parts = [model(images[:1]), model(images[1:8]), model(images[8:])]
assert all(isinstance(part, torch.Tensor) for part in parts)
print(json.dumps({"torch": torch.__version__, "probabilities": torch.cat(parts).softmax(1).tolist()}))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """(folder of a bundle with real tiles beside it, the model)"""
    folder, answers = tmp_path_factory.mktemp("bundle"), answers_of(student(LABEL, downsample=2))
    save_model(answers.model, str(folder), METADATA)
    config = json.loads((folder / "config.json").read_text())
    assert why_no_bundle(answers, config) is None
    assert export_torchscript(answers, folder / NAME, real_tiles()) <= 1e-4
    (folder / "config.json").write_text(json.dumps({**config, **bundle_config(answers)}))
    np.save(folder / "tiles.npy", real_tiles())
    return folder, answers


def test_its_config_is_valid_by_wsinfers_own_validator(bundle, tmp_path):
    pytest.importorskip("wsinfer_zoo.schemas", reason="wsinfer-zoo is not installed")
    command = [sys.executable, "-m", "wsinfer_zoo", "validate-config", str(bundle[0] / "config.json")]
    environment = {**os.environ, "HOME": str(tmp_path)}  # it makes a folder there
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "is VALID" in done.stdout, done.stdout + done.stderr


def test_its_transform_is_what_a_reader_applies(bundle):
    folder, answers = bundle
    config = json.loads((folder / "config.json").read_text())
    assert config["class_names"] == ["fat", "gland", "tumour"] and config["num_classes"] == 3
    assert (config["patch_size_pixels"], config["spacing_um_px"]) == (TILE_PX, 0.5)
    assert [step["name"] for step in config["transform"]] == ["Resize", "ToTensor", "Normalize"]
    assert config["transform"][0]["arguments"] == {"size": TILE_PX}
    tile = torch.from_numpy(real_tiles(1)[0]).permute(2, 0, 1).float() / 255  # what ToTensor makes of it
    normalise = config["transform"][2]["arguments"]
    mean, std = (torch.tensor(normalise[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(normalised(answers, real_tiles(1))[0], (tile - mean) / std)


def test_it_gives_logits_in_a_process_without_this_project(bundle):
    folder, answers = bundle
    said = run_alone(READ, cwd=folder)
    np.testing.assert_allclose(said["probabilities"], answers.answer(real_tiles())["label"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.thorough
def test_the_pytorch_of_qupath_reads_it(bundle):
    """In an environment of its own, kept beside that of the project. Its download (3 GB) may take several runs."""
    folder, answers = bundle
    said = run_alone(READ, cwd=folder, python=str(_qupaths_python()))
    assert said["torch"].startswith(QUPATH)
    np.testing.assert_allclose(said["probabilities"], answers.answer(real_tiles())["label"], atol=1e-4)


def _qupaths_python() -> Path:
    python, done = CACHE / "bin" / "python", CACHE / "complete"
    if not done.exists():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(CACHE)], check=True, capture_output=True, timeout=120)
            install = [str(python), "-m", "pip", "install", "-q", "--no-compile", f"torch=={QUPATH}", "numpy"]
            subprocess.run(install, check=True, capture_output=True, timeout=200)
            subprocess.run([str(python), "-c", "import torch, numpy"], check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"no environment with PyTorch {QUPATH} can be made here: {error}")
        done.touch()
    return python


def test_what_cannot_be_a_bundle_is_told_why():
    assert "does something else" in why_no_bundle(answers_of(student(NUCLEI)), {})
    stretched = answers_of(student(LABEL))
    stretched.mpp = None
    assert "has to know the resolution" in why_no_bundle(stretched, {})
    assert "timm has no place" in why_no_bundle(answers_of(student(LABEL)), {"architecture": "deit", "num_classes": 0})


def test_a_classifier_that_timm_does_not_have_is_one_too(tmp_path):
    answers = answers_of(net("unet", Task.CLASSIFICATION, width=4, depth=2))
    assert why_no_bundle(answers, {"model": "unet"}) is None
    assert export_torchscript(answers, tmp_path / NAME, real_tiles()) <= 1e-4


def test_a_model_that_depends_on_what_else_is_in_the_batch_is_not_written(tmp_path):
    answers = answers_of(student(LABEL))

    class Swayed(type(answers.model)):
        def see(self, tiles, **options):
            return super().see(tiles, **options) * tiles.float().mean() / 200

    answers.model.__class__ = Swayed
    with pytest.raises(ConfigError, match="does not say what the model says"):
        export_torchscript(answers, tmp_path / NAME, real_tiles())
