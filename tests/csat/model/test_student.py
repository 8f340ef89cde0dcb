"""The student over several backbones: predictions, frozen leftovers, folders, and the errors that a user can meet."""

import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file

from csat.errors import ConfigError
from csat.model.contract import Layer
from csat.model.cost import count_cost
from csat.model.files import load_model, read_model_config, save_model
from csat.model.networks.feature_maps import freeze_unused
from csat.model.parts import BACKBONE, DECODER, HEADS
from csat.model.student import Student, StudentConfig
from csat.model.transfer import transfer
from csat.responses import Kind, ResponseSpec, Symmetry

NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV, channel_names=("horizontal", "vertical"))
TOKENS = ResponseSpec(name="tokens", kind=Kind.FEATURES, channels=20, stride_px=16, symmetry=Symmetry.NONE)
EMBEDDING = ResponseSpec(name="embedding", kind=Kind.FEATURES, channels=12, stride_px=None)
BACKBONES = ("csat", "csat_nano", "resnet18", "efficientnet_b0", "convnextv2_atto", "csatv2")


def make(backbone="csat_nano", responses=(NP, HV), **options) -> Student:
    torch.manual_seed(0)
    return Student(StudentConfig(backbone=backbone, decoder_channels=16, **options), responses)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_predictions_cover_the_tile_at_stride_2(backbone):
    student = make(backbone, (NP, HV, TOKENS, EMBEDDING)).train()
    predictions = student(torch.rand(2, 3, 128, 192))
    shapes = {name: tuple(p.shape) for name, p in predictions.items()}
    assert shapes == {"np": (2, 1, 64, 96), "hv": (2, 2, 64, 96), "tokens": (2, 20, 8, 12), "embedding": (2, 12)}
    student.check_tile(128)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("responses", [(NP, HV), (EMBEDDING,), (NP, EMBEDDING)], ids=["dense", "global", "both"])
def test_exactly_the_trainable_parameters_get_gradients(backbone, responses):
    """DDP waits for ever, or fails, on a parameter that wants a gradient and gets none."""
    student = make(backbone, responses).train()
    sum(
        p.square().mean()
        for p in student(torch.rand(2, 3, 64, 64) if student.stride_px < 64 else torch.rand(2, 3, 128, 128)).values()
    ).backward()
    assert [n for n, p in student.named_parameters() if p.requires_grad != (p.grad is not None)] == []
    assert all(p.requires_grad for p in student.heads.parameters())


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbone_weights_fit_timms_model_strictly(backbone):
    student, model = make(backbone), timm.create_model(backbone, num_classes=0)
    model.load_state_dict(student.backbone.state_dict(), strict=True)
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), student.eval().backbone(x), atol=1e-5, rtol=1e-4)


def test_prediction_lies_where_the_image_says():
    """A bright spot moves the prediction around its own place the most: no offset, no transposition."""
    student, image = make().eval(), torch.full((1, 3, 128, 128), 0.5)
    for parameter in student.heads.parameters():
        torch.nn.init.normal_(parameter)
    spot = image.clone()
    spot[:, :, 88:96, 24:32] = 1.0
    with torch.no_grad():
        difference = (student(spot)["np"] - student(image)["np"]).abs()[0, 0]
    mass = difference**2 / (difference**2).sum()
    centre = torch.arange(64) * 2 + 1.0
    assert abs((mass.sum(1) * centre).sum() - 92) < 6 and abs((mass.sum(0) * centre).sum() - 28) < 6


def test_decoder_is_light():
    config = StudentConfig()
    student = count_cost(_Wrapped(Student(config, (NP, HV))), (1, 3, 224, 224))
    backbone = count_cost(timm.create_model("csat", num_classes=0), (1, 3, 224, 224))
    assert student["macs"] < 1.1 * backbone["macs"] and student["params"] < 1.05 * backbone["params"]


class _Wrapped(torch.nn.Module):
    def __init__(self, student):
        super().__init__()
        self.student = student

    def forward(self, x):
        return self.student(x)["np"]


def test_images_are_normalised_inside():
    student, x = make().eval(), torch.rand(1, 3, 64, 64)
    assert student.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    with torch.no_grad():
        expected = student(x)["np"]
        student.mean.zero_(), student.std.fill_(1.0)
        mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        torch.testing.assert_close(student((x - mean) / std)["np"], expected, atol=1e-5, rtol=1e-4)


def test_probing_leaves_no_trace():
    """Neither batch statistics, nor modes, nor the state of the random numbers."""
    student = make("resnet18").train()
    statistics = {k: v.clone() for k, v in student.state_dict().items() if "running" in k or "num_batches" in k}
    state = torch.random.get_rng_state()
    student.check_tile(64)
    freeze_unused(student, torch.zeros(1, 3, 64, 64))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(student.state_dict()[k], v) for k, v in statistics.items())
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("channels_last", [False, True])
def test_settings_change_no_prediction(channels_last):
    x, plain = torch.rand(2, 3, 64, 64), make(channels_last=False).eval()
    other = make(channels_last=channels_last, grad_checkpointing=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(other(x)["np"], plain(x)["np"], atol=1e-5, rtol=1e-4)
    other.train()(x)["hv"].sum().backward()


def test_bfloat16_autocast():
    student, x = make().eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = student(x)["hv"]
        with torch.autocast("cpu", torch.bfloat16):
            low = student(x)["hv"].float()
    assert torch.nn.functional.cosine_similarity(low.flatten(1), expected.flatten(1)).min() > 0.99


def test_folder_round_trip_is_exact(tmp_path):
    student, x = make(responses=(NP, HV, EMBEDDING), downsample=2), torch.rand(2, 3, 64, 64)
    save_model(student, str(tmp_path), {"mpp": 0.5, "tile_px": 128, "teacher": {"name": "stain"}})
    loaded = load_model(str(tmp_path))
    assert loaded.config == student.config and loaded.responses == student.responses and not loaded.training
    for name, value in student.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    with torch.no_grad():
        for name, value in student.eval()(x).items():
            assert torch.equal(loaded(x)[name], value)
    config = read_model_config(str(tmp_path))
    assert config["metadata"]["teacher"]["name"] == "stain" and config["backbone"] == "csat_nano"
    assert len(config["mean"]) == len(config["std"]) == 3
    timm.create_model("csat_nano", num_classes=0).load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == ["config.json", "csat_timm.py", "model.safetensors", "student.safetensors"]


def test_moving_to_another_task_keeps_backbone_and_decoder():
    student, glands = make(), ResponseSpec(name="glands", kind=Kind.LOGITS, channels=3)
    torch.manual_seed(1)
    moved = Student(StudentConfig(backbone="csat_nano", decoder_channels=16, drop_path=0.2), [glands])
    transfer(student, moved, parts=(BACKBONE, DECODER, HEADS), source_name="a run")
    before, after = student.state_dict(), moved.state_dict()
    shared = [name for name in before if not name.startswith("heads.")]
    assert all(torch.equal(before[name], after[name]) for name in shared)
    assert set(moved(torch.rand(1, 3, 64, 64))) == {"glands"} and moved.config.drop_path == 0.2
    assert all(p.requires_grad for p in moved.decoder.parameters())
    label = ResponseSpec(name="label", kind=Kind.LOGITS, channels=2, stride_px=None)
    assert not any(p.requires_grad for p in make(responses=(label,)).decoder.parameters())


def test_layers_are_what_tap_gives():
    """Also of an image whose edges are no multiples of the coarsest stride, which is padded inside."""
    student = make("resnet18", downsample=2).eval()
    assert student.layers == {
        "encoder": Layer(channels=64, stride_px=8),
        "decoder": Layer(channels=16, stride_px=8),
        "stride_8": Layer(channels=64, stride_px=8),
        "stride_16": Layer(channels=128, stride_px=16),
        "stride_32": Layer(channels=256, stride_px=32),
        "features": Layer(channels=512, stride_px=64),
    }
    for height, width in ((64, 96), (40, 72)):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            maps, predictions = student.tap(images, reversed(student.layers))
            torch.testing.assert_close(predictions, student(images), rtol=0, atol=0)
        assert list(maps) == [*reversed(student.layers)]
        torch.testing.assert_close(maps["encoder"], maps["stride_8"], rtol=0, atol=0)
        for name, layer in student.layers.items():
            stride_px = layer.stride_px // 2
            assert maps[name].shape == (1, layer.channels, height // stride_px, width // stride_px)
    last = student.backbone.forward_features((torch.zeros(1, 3, 64, 64) - student.mean) / student.std)
    torch.testing.assert_close(student.tap(torch.zeros(1, 3, 64, 64), ["features"])[0]["features"], last)
    assert "decoder" not in make(responses=(EMBEDDING,)).layers


def test_weights_of_another_student_are_refused(tmp_path):
    save_model(make(), str(tmp_path / "nano"), {})
    save_model(make("resnet18"), str(tmp_path / "resnet"), {})
    shutil.copy(tmp_path / "resnet" / "student.safetensors", tmp_path / "nano")
    with pytest.raises(ConfigError, match="does not fit a student with the backbone 'csat_nano'.*missing.*unexpected"):
        load_model(str(tmp_path / "nano"))
    (tmp_path / "nano" / "student.safetensors").write_bytes(b"half a file")
    with pytest.raises(ConfigError, match="cannot load the weights of .*nano, student.safetensors"):
        load_model(str(tmp_path / "nano"))
    (tmp_path / "nano" / "student.safetensors").unlink()
    with pytest.raises(ConfigError, match="cannot load the weights of .*nano, student.safetensors"):
        load_model(str(tmp_path / "nano"))


def test_tile_sizes_that_do_not_fit_name_those_that_do():
    with pytest.raises(ConfigError, match="multiple of 2 px.*not 251 px.*250 or 252"):
        make().check_tile(251)
    with pytest.raises(ConfigError, match=r"multiple of 4 px.*downsample 2.*not 82 px.*80 or 84"):
        make(downsample=2).check_tile(82)
    with pytest.raises(ConfigError, match="multiples of 2 px, not 64 x 73 px"):
        make()(torch.rand(1, 3, 64, 73))


@pytest.mark.parametrize("backbone", ["csat_nano", "resnet18"])
def test_a_tile_that_no_stride_divides_is_covered_all_the_same(backbone):
    """HoVer-Net's 270 px tile: the same as the tile with its last rows and columns repeated, cut back to the tile."""
    student = make(backbone=backbone)
    student.check_tile(70)
    x = torch.rand(2, 3, 70, 86)
    padded = torch.nn.functional.pad(x, (0, -86 % student.stride_px, 0, -70 % student.stride_px), mode="replicate")
    with torch.no_grad():
        predictions, whole = student(x), student(padded)
    for name, prediction in predictions.items():
        if prediction.ndim == 4:
            assert prediction.shape[2:] == (35, 43)
            torch.testing.assert_close(prediction, whole[name][..., :35, :43])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="at least one response"):
        make(responses=())
    with pytest.raises(ConfigError, match="names must differ"):
        make(responses=(NP, NP))
    for name in ("a.b.c", ".b", ""):
        with pytest.raises(ConfigError, match="a dot at most"):
            make(responses=(ResponseSpec(name=name, kind=Kind.LOGITS, channels=2),))
    with pytest.raises(ConfigError, match="downsample"):
        StudentConfig(downsample=0)
    with pytest.raises(ConfigError, match="drop_path"):
        StudentConfig(drop_path=1.5)
    with pytest.raises(ConfigError, match="pretrained downloads weights, and student.weights names a.pt: give one"):
        StudentConfig(pretrained=True, weights="a.pt")


def test_student_learns_a_map():
    """The whole chain carries gradient: a few steps lower a loss by half."""
    student, x = make().train(), torch.rand(2, 3, 64, 64)
    target = (torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 2) > 0.5).float()
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(student(x)["np"], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
