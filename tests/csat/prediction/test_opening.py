"""What was trained or exported answers tiles as the model itself does; what cannot is refused with what would do."""

import numpy as np
import pytest
import torch

from csat.errors import ConfigError
from csat.model.files import load_exported, save_model
from csat.model.registry import ModelConfig, build_model
from csat.model.student import Student, StudentConfig
from csat.prediction.opening import open_answers
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.tasks import DatasetInfo, Task
from csat.views.grid import align

HOVERNET = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=6, channel_names=("nucleus",)),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, crop_px=6, symmetry=Symmetry.HV),
    ResponseSpec(name="tp", kind=Kind.PROBABILITY, channels=3, crop_px=6, channel_names=("background", "one", "two")),
    ResponseSpec(name="tokens", kind=Kind.FEATURES, channels=4, stride_px=16),
    ResponseSpec(name="embedding", kind=Kind.FEATURES, channels=5, stride_px=None),
)
LEARNED = {
    "tile_px": 64,
    "mpp": 0.5,
    "method": "rckd",
    "teacher": {"name": "hovernet", "licence": "CC BY-NC-SA 4.0 (PanNuke)"},
}
LABELLED = {"task": "classification", "classes": ["a", "b"], "tile_px": 64, "fit": "crop", "mpp": 0.5, "licence": "CC BY 4.0"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a student that learned of a teacher, and a classifier, exported as runs do."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    config = StudentConfig(backbone="csat_nano", decoder_channels=8, downsample=2)
    save_model(Student(config, HOVERNET).eval(), str(folder / "nuclei" / "exported"), LEARNED)
    info = DatasetInfo(
        name="own", task=Task.CLASSIFICATION, classes=("a", "b"), mpp=0.5, licence="CC BY 4.0", source="ours", group="patient"
    )
    unet = build_model(ModelConfig(name="unet", options={"width": 4, "depth": 2}), info, load_exported)
    save_model(unet.eval(), str(folder / "classes" / "exported"), LABELLED)
    return folder


def tiles(number=3, edge=64):
    return np.random.default_rng(0).integers(0, 256, (number, edge, edge, 3), np.uint8)


def test_a_pretrained_student_answers_finished_maps(runs):
    answers = open_answers(str(runs / "nuclei"))
    assert (answers.tile_px, answers.mpp, answers.task, answers.classes) == (64, 0.5, Task.NUCLEI, ("one", "two"))
    assert answers.about.name == "nuclei" and answers.about.licence == "CC BY-NC-SA 4.0 (PanNuke)"
    assert len(answers.about.sha256) == 64
    assert [spec.name for spec in answers.specs] == ["np", "hv", "tp", "embedding"]  # a map of features is none
    said = answers.answer(tiles())
    assert all(said[spec.name].shape == (3, *spec.shape(64)) and said[spec.name].dtype == np.float32 for spec in answers.specs)
    assert said["np"].shape == (3, 1, 52, 52)
    model = load_exported(str(runs / "nuclei"))
    with torch.no_grad():
        raw = model(model.see(torch.tensor(tiles()).permute(0, 3, 1, 2)))
    np.testing.assert_allclose(said["np"], align(raw["np"], HOVERNET[0], 64).sigmoid(), atol=1e-6)
    np.testing.assert_allclose(said["hv"], align(raw["hv"], HOVERNET[1], 64), atol=1e-6)
    np.testing.assert_allclose(said["tp"], align(raw["tp"], HOVERNET[2], 64).softmax(1), atol=1e-6)
    np.testing.assert_allclose(said["embedding"], raw["embedding"], atol=1e-6)


def test_the_exported_folder_is_the_run(runs):
    whole, inner = open_answers(str(runs / "classes")), open_answers(str(runs / "classes" / "exported"))
    assert whole.about.name == inner.about.name == "classes" and whole.about.sha256 == inner.about.sha256
    assert whole.task == Task.CLASSIFICATION and whole.classes == ("a", "b")
    (label,) = whole.answer(tiles()).values()
    np.testing.assert_allclose(label.sum(1), 1, atol=1e-6)
    np.testing.assert_array_equal(label, inner.answer(tiles())["label"])


def test_a_tile_is_answered_alike_in_any_batch(runs):
    answers = open_answers(str(runs / "nuclei"))
    together, alone = answers.answer(tiles()), answers.answer(tiles()[1:2])
    for name, values in together.items():
        np.testing.assert_allclose(values[1:2], alone[name], atol=1e-5)


def test_no_tiles_have_no_answers(runs):
    answers = open_answers(str(runs / "nuclei"))
    tiles = np.zeros((0, answers.tile_px, answers.tile_px, 3), np.uint8)
    assert {len(said) for said in answers.answer(tiles).values()} == {0}


def test_a_cpu_is_shown_a_few_tiles_at_once(runs, monkeypatch):
    answers, seen = open_answers(str(runs / "nuclei")), []
    answers.model.register_forward_pre_hook(lambda _, images: seen.append(len(images[0])))
    monkeypatch.setattr("csat.prediction.answers.AT_ONCE_PX", 4 * 32**2)  # it sees tiles of 64 px at half their size
    said = answers.answer(tiles(9))
    assert seen == [4, 4, 1]
    for name, values in answers.answer(tiles(9)[7:8]).items():
        assert said[name].shape[0] == 9 and said[name].flags.c_contiguous
        np.testing.assert_allclose(said[name][7:8], values, atol=1e-5)
    monkeypatch.setattr("csat.prediction.answers.AT_ONCE_PX", 1)
    answers.answer(tiles(2))
    assert seen[-2:] == [1, 1]


@pytest.mark.parametrize(("best", "used"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_the_best_precision_is_the_machines(runs, monkeypatch, best, used):
    monkeypatch.setenv("CSAT_BEST_PRECISION", best)
    asked, chosen = (open_answers(str(runs / "nuclei"), precision=each) for each in (used, "best"))
    assert chosen.precision == used
    np.testing.assert_array_equal(chosen.answer(tiles())["np"], asked.answer(tiles())["np"])


def test_no_other_precision_is_taken_for_float32(runs):
    with pytest.raises(ConfigError, match="precision is best, float32 or bfloat16, not 'bf16'"):
        open_answers(str(runs / "nuclei"), precision="bf16")


def test_another_tile_size_is_taken_where_the_model_takes_it(runs):
    assert open_answers(str(runs / "nuclei"), tile_px=96).answer(tiles(1, 96))["np"].shape == (1, 1, 84, 84)
    with pytest.raises(ConfigError, match="multiple of 16 px"):
        open_answers(str(runs / "nuclei"), tile_px=97)


def test_a_model_of_whole_images_is_told_its_tile(runs, tmp_path):
    save_model(load_exported(str(runs / "classes")), str(tmp_path), {**LABELLED, "tile_px": None})
    with pytest.raises(ConfigError, match="say which, as in tile_px"):
        open_answers(str(tmp_path))
    assert open_answers(str(tmp_path), tile_px=64).tile_px == 64


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="neither a run folder nor an exported model"):
        open_answers(str(tmp_path))
