"""timm encoders: the three outputs, the model's own normalisation, the tokens' geometry, and where weights come from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from csat.errors import ConfigError, TeacherError
from csat.responses import Kind, Symmetry
from teachers.contract import sha256_of
from teachers.pathology_encoders import ENCODERS, create_arguments, find_encoder, with_layers
from teachers.registry import build_options
from teachers.timm_encoder import TimmOptions, load

VIT, CNN = "test_vit", "test_resnet"  # timm's miniatures: 160 px, 10 by 10 tokens; 160 px, stride 32
ALL = ("features", "tokens", "logits")


def random_teacher(model, wanted=None, **options):
    return load(TimmOptions(model=model, random_weights=True, **options), weights=None, device="cpu", wanted=wanted)


def noise(num_tiles, tile_px):
    return np.random.default_rng(0).integers(0, 256, (num_tiles, tile_px, tile_px, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("model", "options", "tile_px"),
    [
        (VIT, {"tile_px": 160}, 160),
        (VIT, {"tile_px": 200}, 200),  # resized to 160: 10 x 10 tokens of 20 px
        (VIT, {"tile_px": 240, "img_size": 240}, 240),  # not resized: position embeddings are
        (CNN, {}, 192),
        (CNN, {}, 96),
        ("test_convnext", {}, 128),
    ],
)
def test_responses_are_what_the_spec_says(model, options, tile_px):
    teacher = random_teacher(model, outputs=ALL, micro_batch=2, **options)
    responses = teacher.respond(noise(3, tile_px))
    teacher.spec.check_view(tile_px=tile_px, mpp=None)
    assert list(responses) == [response.name for response in teacher.spec.responses] == list(ALL)
    for response in teacher.spec.responses:
        assert responses[response.name].shape == (3, *response.shape(tile_px))
        assert responses[response.name].dtype == np.float16
        assert np.isfinite(responses[response.name]).all()
        assert response.symmetry == Symmetry.NONE
    assert teacher.spec.response("logits").kind == Kind.LOGITS
    assert teacher.spec.response("tokens").is_dense
    assert not teacher.spec.response("features").is_dense


def test_tokens_lie_where_the_spec_says():
    """A bright square in one cell of the tile changes that cell of the grid most."""
    teacher = random_teacher(VIT, outputs=("tokens",), tile_px=200)
    stride_px = teacher.spec.response("tokens").stride_px
    assert stride_px == 20
    tiles = np.full((2, 200, 200, 3), 90, dtype=np.uint8)
    row, column = 3, 7
    tiles[1, row * stride_px : (row + 1) * stride_px, column * stride_px : (column + 1) * stride_px] = 255
    plain, marked = teacher.respond(tiles)["tokens"].astype(np.float32)
    change = ((plain - marked) ** 2).sum(0)
    assert np.unravel_index(change.argmax(), change.shape) == (row, column)


def test_tile_is_normalised_as_the_model_says():
    teacher = random_teacher(CNN)
    tiles = noise(2, 160)
    config = timm.data.resolve_model_data_config(teacher.net)
    images = torch.tensor(tiles).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(config["mean"]).view(1, 3, 1, 1)) / torch.tensor(config["std"]).view(1, 3, 1, 1)
    with torch.inference_mode():
        expected = teacher.net.forward_head(teacher.net.forward_features(images), pre_logits=True)
    np.testing.assert_allclose(teacher.respond(tiles)["features"], expected, atol=2e-3, rtol=2e-3)


def test_known_encoder_brings_its_own_normalisation_and_facts(monkeypatch):
    """H0-mini, one block deep to be quick. Its timm architecture by itself has ImageNet's statistics and works at 518 px."""
    full = ENCODERS["bioptimus/H0-mini"]
    monkeypatch.setitem(ENCODERS, "bioptimus/H0-mini", replace(full, arguments={**full.arguments, "depth": 1}))
    teacher = random_teacher("hf-hub:bioptimus/H0-mini", outputs=("features", "tokens"), tile_px=256, wanted=["features"])
    assert teacher.input_px == 224
    assert teacher.mean.flatten().tolist() == pytest.approx([255 * m for m in (0.707223, 0.578729, 0.703617)])
    assert teacher.spec.mpp == 0.5
    assert teacher.spec.tile_px == (256,)
    assert teacher.respond(noise(1, 256))["features"].shape == (1, 768)


@pytest.mark.parametrize(
    ("hub_id", "millions", "width"),
    [
        ("MahmoodLab/UNI", 303, 1024),
        ("MahmoodLab/UNI2-h", 681, 1536),
        ("paige-ai/Virchow", 631, 1280),
        ("paige-ai/Virchow2", 631, 1280),
        ("bioptimus/H-optimus-0", 1135, 1536),
        ("bioptimus/H-optimus-1", 1135, 1536),
        ("prov-gigapath/prov-gigapath", 1135, 1536),
        ("bioptimus/H0-mini", 86, 768),
        ("1aurent/vit_base_patch16_224.owkin_pancancer", 86, 768),
    ],
)
def test_known_encoders_have_their_published_size(hub_id, millions, width):
    encoder = ENCODERS[hub_id]
    with torch.device("meta"):
        net = timm.create_model(encoder.architecture, **create_arguments(encoder))
    assert round(sum(parameter.numel() for parameter in net.parameters()) / 1e6) == millions
    assert net.num_features == width
    assert encoder.licence != "unknown"


def test_the_hub_tells_no_cases_apart():
    assert find_encoder("hf-hub:mahmoodlab/uni") is ENCODERS["MahmoodLab/UNI"]
    assert find_encoder("resnet50") is None


class TestArguments:
    """What a hub configuration does not say, for UNI, Virchow and whatever comes next."""

    SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU", "mlp_ratio": 5.0}

    def folder(self, tmp_path, **arguments):
        """A model as the hub keeps it; its configuration names none of the arguments."""
        net = timm.create_model(VIT, num_classes=0, **with_layers(arguments))
        torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
        about = {"input_size": [3, 160, 160], "mean": [0.5] * 3, "std": [0.5] * 3}
        config = {"architecture": VIT, "num_classes": 0, "model_args": {"img_size": 160}, "pretrained_cfg": about}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return net, f"local-dir:{tmp_path}", str(tmp_path / "pytorch_model.bin")

    def load(self, model, weights=None, **options):
        settings = {"model": model, "num_classes": 0, "pretrained": weights is None, **options}
        return load(build_options("timm", settings), weights=weights, device="cpu", wanted=None)

    @pytest.mark.parametrize("given", [{}, SWIGLU, {**SWIGLU, "reg_tokens": 2}])
    def test_from_a_folder_and_from_a_file(self, tmp_path, given):
        """LayerScale is told by the weights themselves, the rest by the user."""
        net, folder, file = self.folder(tmp_path, init_values=1e-5, **given)
        for teacher in (self.load(folder, arguments=given), self.load(VIT, file, arguments=given)):
            for name, value in net.state_dict().items():
                torch.testing.assert_close(teacher.net.state_dict()[name], value)

    @pytest.mark.parametrize(
        ("made_with", "words"),
        [
            ({"reg_tokens": 2}, r"need the option arguments \{reg_tokens: 2\}"),
            (SWIGLU, r"need the option arguments \{mlp_layer: SwiGLUPacked, act_layer: SiLU, mlp_ratio: 5\}"),
        ],
    )
    def test_weights_that_do_not_fit_are_no_missing_network(self, tmp_path, made_with, words):
        _, folder, file = self.folder(tmp_path, **made_with)
        with pytest.raises(TeacherError, match=words):
            self.load(VIT, file)
        with pytest.raises(TeacherError, match="weights that do not fit.*option arguments.*reg_tokens") as error:
            self.load(folder)
        assert "nternet" not in str(error.value)

    def test_a_folder_that_holds_nothing(self, tmp_path):
        with pytest.raises(TeacherError, match="cannot load local-dir:.*config.json") as error:
            self.load(f"local-dir:{tmp_path}")
        assert "nternet" not in str(error.value)

    def test_names(self):
        assert with_layers({"act_layer": "silu", "depth": 2}) == {"act_layer": "silu", "depth": 2}
        with pytest.raises(ConfigError, match="arguments.mlp_layer: .*no.*'SwiGLUPackt'.*SwiGLUPacked"):
            self.load(VIT, arguments={"mlp_layer": "SwiGLUPackt"})
        with pytest.raises(TeacherError, match="does not take these arguments.*num_registers"):
            random_teacher(VIT, arguments={"num_registers": 4})


def test_pooling():
    """Class token, mean of the patches (registers in neither), both."""
    tiles = noise(2, 160)
    answers = {}
    for pool in ("token", "avg", "token+avg"):
        answers[pool] = random_teacher(VIT, pool=pool).respond(tiles)["features"]
    tokens = random_teacher(VIT, outputs=("tokens",)).respond(tiles)["tokens"]
    np.testing.assert_allclose(answers["avg"], tokens.astype(np.float32).mean((2, 3)), atol=2e-3)
    np.testing.assert_array_equal(answers["token+avg"], np.concatenate((answers["token"], answers["avg"]), axis=1))
    with pytest.raises(TeacherError, match="needs a model with a class token"):
        random_teacher(CNN, pool="token")


def test_only_wanted_outputs_are_answered():
    teacher = random_teacher(CNN, outputs=ALL, wanted=["tokens"])
    assert list(teacher.respond(noise(1, 96))) == ["tokens"]


def test_tokens_pin_the_tile_size_of_a_resizing_model():
    assert random_teacher(VIT).spec.tile_px is None
    assert random_teacher(VIT, outputs=("tokens",)).spec.tile_px == (160,)
    assert random_teacher(CNN, outputs=("tokens",)).spec.tile_px is None
    with pytest.raises(ConfigError, match="10x10 tokens, which does not divide tiles of 256 px.* such as 260"):
        random_teacher(VIT, outputs=("tokens",), tile_px=256)
    with pytest.raises(ConfigError, match="a multiple of 32 px"):
        random_teacher(CNN, outputs=("tokens",)).spec.check_view(tile_px=100, mpp=None)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights(tmp_path, suffix):
    torch.manual_seed(3)
    net = timm.create_model(CNN, num_classes=4).eval()
    path = tmp_path / f"mine{suffix}"
    save_file(net.state_dict(), path) if suffix == ".safetensors" else torch.save({"state_dict": net.state_dict()}, path)
    options = TimmOptions(model=CNN, outputs=("logits",), num_classes=4, mpp=0.5, licence="ours")
    teacher = load(options, weights=str(path), device="cpu", wanted=None)
    spec = teacher.spec
    assert (spec.weights_sha256, spec.mpp, spec.licence, spec.source) == (sha256_of(path), 0.5, "ours", str(path))
    assert all(torch.equal(value, teacher.net.state_dict()[name]) for name, value in net.state_dict().items())
    assert teacher.respond(noise(1, 160))["logits"].shape == (1, 4)


def test_weights_that_do_not_fit(tmp_path):
    save_file(timm.create_model(CNN, num_classes=4).state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(TeacherError, match=r"2 of another shape: fc.weight \[4, \d+\].*num_classes"):
        load(TimmOptions(model=CNN), weights=str(tmp_path / "mine.safetensors"), device="cpu", wanted=None)
    with pytest.raises(TeacherError, match=r"missing: .*unexpected: .*Check the option model"):
        load(TimmOptions(model=VIT), weights=str(tmp_path / "mine.safetensors"), device="cpu", wanted=None)


@pytest.mark.parametrize(
    ("options", "weights", "message"),
    [
        ({}, None, "exactly one place.*got none"),
        ({"pretrained": True}, "some.pth", "got weights some.pth and pretrained"),
        ({"pretrained": True, "random_weights": True}, None, "got pretrained and random_weights"),
        ({"outputs": ()}, None, "at least one of features, tokens, logits"),
    ],
)
def test_weights_come_from_one_place(options, weights, message):
    with pytest.raises(ConfigError, match=message):
        load(TimmOptions(model=CNN, **options), weights=weights, device="cpu", wanted=None)


def test_without_the_hub_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for model in ("hf-hub:MahmoodLab/UNI2-h", CNN + ".r160_in1k"):
        with pytest.raises(TeacherError, match=r"cannot fetch .* from the hub.*teacher.weights.*HF_TOKEN") as error:
            load(TimmOptions(model=model, pretrained=True), weights=None, device="cpu", wanted=None)
        assert error.value.__cause__ is not None


def test_unknown_model_and_missing_classifier():
    with pytest.raises(TeacherError, match="cannot build 'resnet1'.*resnet18"):
        random_teacher("resnet1")
    with pytest.raises(TeacherError, match="has no classifier"):
        random_teacher(CNN, outputs=("logits",), num_classes=0)
