"""To files and back: the same outputs for every model, files that others read, and folders that are not what they should."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from csat.errors import ConfigError
from csat.model.files import load_model, local_copy, read_model_config, save_model, weights_name
from csat.storage import files
from csat.tasks import Task
from teachers.registry import load_teacher
from tests.csat.model.test_registry import CASES, build

WEIGHTS = {"csat_nano": "student.safetensors", "unet": "model.safetensors", "hovernet": "hovernet.safetensors"}


def used(name, task, **settings):
    """A model whose norms have seen images."""
    model = build(name, task, **settings)
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 96, 96))
    return model.eval()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_what_was_exported_answers_as_before(tmp_path, name, task):
    model, images = used(name, task), torch.rand(1, 3, 96, 96)
    save_model(model, str(tmp_path / "a"), {"task": task})
    loaded = load_model(str(tmp_path / "a"))
    assert loaded.responses == model.responses and not loaded.training
    with torch.no_grad():
        for head, prediction in model(images).items():
            torch.testing.assert_close(loaded(images)[head], prediction, rtol=0, atol=0)
    config = read_model_config(str(tmp_path / "a"))
    assert config["metadata"] == {"task": task} and weights_name(config) == WEIGHTS.get(name, "model.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_second_export_is_the_same_to_the_byte(tmp_path, name):
    save_model(used(name, Task.NUCLEI), str(tmp_path / "a"), {})
    save_model(load_model(str(tmp_path / "a")), str(tmp_path / "b"), {})
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_bucket_holds_the_same_model(s3, name):
    model, images = used(name, Task.NUCLEI), torch.rand(1, 3, 96, 96)
    save_model(model, f"{s3}/run/exported", {})
    loaded = load_model(f"{s3}/run/exported")
    with torch.no_grad():
        torch.testing.assert_close(loaded(images)["hv"], model(images)["hv"], rtol=0, atol=0)
    with local_copy(f"{s3}/run/exported") as copy:
        assert {path.name for path in copy.iterdir()} == {"config.json", WEIGHTS[name]}
    assert not copy.exists()


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    for name in ("unet", "hovernet"):
        save_model(build(name, Task.NUCLEI), str(tmp_path / name), {})
        state = torch.random.get_rng_state()
        load_model(str(tmp_path / name))
        assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("mode", "classes"), [("fast", ("immune", "tumour")), ("original", ())])
def test_hovernet_in_the_published_form_is_a_teacher_by_name(tmp_path, mode, classes):
    model = (
        used("hovernet", Task.NUCLEI, classes=classes, options={"width": 0.0625, "mode": mode})
        if mode == "fast"
        else (build("hovernet", Task.NUCLEI, classes=classes, options={"width": 0.0625, "mode": mode}).eval())
    )
    save_model(model, str(tmp_path), {})
    options = {"mode": mode, "num_types": len(classes) + 1 if classes else None, "width": 0.0625}
    tile_px = {"fast": 96, "original": 198}[mode]
    published = load_teacher("hovernet", str(tmp_path / "hovernet.safetensors"), options)
    trained = load_teacher(str(tmp_path))
    tiles = torch.randint(0, 256, (1, tile_px, tile_px, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    assert published.spec.weights_sha256 == trained.spec.weights_sha256
    one, other = published.respond(tiles), trained.respond(tiles)
    assert list(one) == list(other) == ["np", "hv", *(["tp"] if classes else [])]
    for name in one:
        torch.testing.assert_close(torch.tensor(one[name]), torch.tensor(other[name]), atol=2e-3, rtol=2e-3)


class TestFolders:
    def test_of_something_else(self, tmp_path):
        (tmp_path / "notes.txt").write_text("")
        with pytest.raises(ConfigError, match="no config.json in it .it holds notes.txt"):
            load_model(str(tmp_path))
        with pytest.raises(ConfigError, match="no config.json in it .there is no such folder"):
            load_model(str(tmp_path / "gone"))

    @pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "bert"}', '{"format": 2, "responses": []}'])
    def test_a_config_of_another_program(self, tmp_path, content):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ConfigError, match="is not JSON|does not describe a model of format 1"):
            load_model(str(tmp_path))

    def test_a_kind_that_is_not_known(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"format": 1, "model": "segformer", "responses": []}))
        with pytest.raises(ConfigError, match="of kind 'segformer'; known are: student, hovernet, unet"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_weights_of_another_model(self, tmp_path, name):
        for folder, classes in (("a", ("x", "y")), ("b", ("x", "y", "z"))):
            save_model(build(name, Task.NUCLEI, classes=classes), str(tmp_path / folder), {})
        (tmp_path / "a" / WEIGHTS[name]).write_bytes((tmp_path / "b" / WEIGHTS[name]).read_bytes())
        with pytest.raises(ConfigError, match="does not fit"):
            load_model(str(tmp_path / "a"))

    def test_a_fanet_of_the_earlier_block(self, tmp_path):
        """Neither as a model nor as a teacher: named, with what to do."""
        save_model(build("fanet", Task.SEGMENTATION, options={"width": 8}), str(tmp_path), {"task": "segmentation"})
        state = load_file(tmp_path / "model.safetensors")
        state["net.encoder.0.0.branch.0.0.weight"] = state.pop("net.encoder.0.0.before.0.weight")
        save_file(state, tmp_path / "model.safetensors")
        for load in (load_model, lambda folder: load_teacher(folder, options={"taps": True})):
            with pytest.raises(ConfigError, match=f"weights of {tmp_path}: .* earlier fanet.* must be trained again"):
                load(str(tmp_path))

    def test_an_export_that_died_is_no_model(self, tmp_path, monkeypatch):
        """Also where an earlier one was whole: its description must not stand beside other weights."""
        save_model(build("unet", Task.NUCLEI), str(tmp_path), {})
        write = files.write_bytes

        def die_after_weights(uri, data):
            write(uri, data)
            raise KeyboardInterrupt

        monkeypatch.setattr(files, "write_bytes", die_after_weights)
        with pytest.raises(KeyboardInterrupt):
            save_model(build("unet", Task.NUCLEI, seed=1), str(tmp_path), {})
        with pytest.raises(ConfigError, match="no config.json"):
            load_model(str(tmp_path))
