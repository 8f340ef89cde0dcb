"""Models that come with the package: found by name wherever a model is asked for, and fit to be passed on."""

import json

import numpy as np
import pytest
import torch

import csat
from csat import shipped
from csat.errors import ConfigError, TeacherError
from csat.evaluation.leakage import seen_by
from csat.export.facts import why_not_released
from csat.licences import is_unknown, licences_of
from csat.model.files import exported_folder, load_exported, save_model
from csat.model.registry import ModelConfig, build_model
from csat.model.student import Student, StudentConfig
from csat.settings import with_places
from csat.tasks import DatasetInfo, Task, heads_of
from teachers.registry import find_teacher, load_teacher
from workflows.comparison.config import AnswererConfig, EvaluateConfig
from workflows.prediction.config import AnswersConfig
from workflows.prediction.model import open_model
from workflows.shell import command_line
from workflows.shell.config import TeacherConfig

NUCLEI = DatasetInfo(name="own", task=Task.NUCLEI, classes=(), mpp=0.5, licence="CC0", source="", group="")
LARGEST_BYTES = 7_000_000


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A student called toy in the place of those of the package, and an empty folder to be in."""
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    torch.manual_seed(0)
    student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), heads_of(NUCLEI)).eval()
    save_model(student, str(tmp_path / "weights" / "toy"), {"tile_px": 64, "mpp": 0.5, "licence": "CC0"}, is_small=True)
    (tmp_path / "weights" / "begun").mkdir()  # without a config.json it is none
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return student


def test_which_there_are(toy, tmp_path):
    assert shipped.names() == ["toy"]
    assert shipped.folder_of("toy") == str(tmp_path / "weights" / "toy")
    assert [shipped.folder_of(name) for name in ("begun", "weights/toy", "..", "", "toy/")] == [None] * 5


def test_it_is_loaded_by_its_name(toy, tmp_path):
    model = csat.load("toy")
    assert (model.about.name, model.tile_px, model.mpp, model.task) == ("toy", 64, 0.5, Task.NUCLEI)
    tile = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    save_model(toy, str(tmp_path / "whole"), {"tile_px": 64, "mpp": 0.5})
    np.testing.assert_allclose(model(tile)["np"], csat.load(str(tmp_path / "whole"))(tile)["np"], atol=0.01)
    assert load_exported("toy").backbone.state_dict()["stem.0.weight"].dtype == torch.float32


def test_every_verb_takes_the_name(toy):
    assert with_places(AnswersConfig(name="toy")).name == "toy"
    assert open_model(AnswersConfig(name="toy"), tile_px=None, mpp=None, device="cpu").about.name == "toy"
    assert with_places(AnswererConfig(model="toy")).model == "toy"
    argv = ["--runs", "{own: toy, both: [toy, runs/a], more: {model: toy}}", "--run_folder", "out"]
    runs = command_line.parse(EvaluateConfig, "", argv).runs
    assert (runs["own"], runs["both"][0], runs["more"]) == ("toy", "toy", {"model": "toy"}) and runs["both"][1].startswith("/")
    config = with_places(ModelConfig(name="csat_nano", decoder_channels=8, init="run", from_run="toy"))
    model = build_model(config, NUCLEI, load_exported)
    start = load_exported("toy").state_dict()
    assert config.from_run == "toy" and all(torch.equal(tensor, start[key]) for key, tensor in model.state_dict().items())


def test_a_folder_of_the_users_goes_first(toy, tmp_path):
    torch.manual_seed(1)
    own = Student(StudentConfig(backbone="csat_nano", decoder_channels=16), heads_of(NUCLEI))
    save_model(own, str(tmp_path / "here" / "toy"), {"tile_px": 32, "mpp": 0.5})
    assert csat.load("toy").tile_px == 32
    assert with_places(AnswersConfig(name="toy")).name == str(tmp_path / "here" / "toy")


def test_a_message_says_which_there_are(toy):
    for load in (
        exported_folder,
        csat.load,
        lambda name: open_model(AnswersConfig(name=name), tile_px=None, mpp=None, device="cpu"),
    ):
        with pytest.raises(ConfigError, match="With the package come: toy"):
            load("toyy")


def test_a_trained_model_is_a_teacher_by_its_name(toy, caplog):
    """Where it lies differs from node to node, so the name travels."""
    student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), heads_of(NUCLEI)).eval()
    metadata = {"task": "nuclei", "tile_px": 64, "mpp": 0.5, "licence": "CC0", "source": "own"}
    save_model(student, str(shipped.FOLDER / "taught"), metadata, is_small=True)
    assert find_teacher("taught") == find_teacher(*find_teacher("taught")) == ("run", "taught")
    config = with_places(TeacherConfig(name="taught"))
    assert (config.name, config.weights) == ("run", "taught") and with_places(config) == config
    spec = load_teacher("taught").spec
    assert [response.name for response in spec.responses] == ["np", "hv"]
    assert (spec.mpp, spec.licence) == (0.5, "CC0") and spec.source.startswith("taught: ")
    with pytest.raises(ConfigError, match="With the package come: taught, toy"):
        find_teacher("taughtt")
    with pytest.raises(ConfigError, match="has its own weights"):
        find_teacher("taught", "a.pth")
    with pytest.raises(TeacherError, match="holds a student of pretrain.py"):
        save_model(student, str(shipped.FOLDER / "told"), {"teacher": {"name": "taught"}}, is_small=True)
        load_teacher("told")
    assert not seen_by("taught") and not seen_by("taught")
    assert caplog.text.count("taught comes with the package: its card says what it was trained on") == 1


@pytest.mark.parametrize("name", shipped.names())
def test_what_is_shipped_may_be_passed_on(name):
    """Its size, its card, its licences, and no place of the machine that made it."""
    folder = shipped.FOLDER / name
    weights = {path.name for path in folder.iterdir()} - {"config.json", "README.md"}
    assert len(weights) == 1 and weights.pop().endswith(".safetensors")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LARGEST_BYTES
    config, card = (folder / "config.json").read_text(), (folder / "README.md").read_text()
    metadata = json.loads(config)["metadata"]
    assert licences_of(metadata) and not any(map(is_unknown, licences_of(metadata))) and not why_not_released(metadata)
    assert "## Licence" in card and "## Figures" in card
    assert not any(word in text for word in ('"/', " /home/", " /root/", " /tmp/") for text in (config, card))
    assert csat.load(name).task == Task.NUCLEI
