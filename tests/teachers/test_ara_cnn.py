"""ARA-CNN: what it answers, on weights of this test and on the published ones."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from csat.errors import ConfigError, TeacherError
from csat.responses import Kind, Symmetry
from teachers.ara_cnn import AraCnn
from teachers.registry import load_teacher

CLASSES = ("TUM", "STR", "NORM", "LYM", "DEB", "MUC", "ADI", "MUS")


@pytest.fixture
def weights(tmp_path):
    """A file of random weights that names its classes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AraCnn(8)
        for bn in net.bn:  # else those of a fresh network, which change nothing
            bn.running_mean.uniform_(-1, 1), bn.running_var.uniform_(0.5, 2)
    state = {name: tensor for name, tensor in net.state_dict().items() if "num_batches" not in name}
    path = tmp_path / "ara.safetensors"
    save_file(state, path, metadata={"classes": ",".join(CLASSES), "licence": "MIT", "origin": "this test"})
    return str(path)


def by_hand(state, images):
    """The network once more, from its description alone. Float `[B, 3, 128, 128]` in [0, 1] → features, logits."""

    def normed(x, i):
        scale = state[f"bn.{i}.weight"] / (state[f"bn.{i}.running_var"] + 1e-3).sqrt()
        shift = state[f"bn.{i}.bias"] - scale * state[f"bn.{i}.running_mean"]
        x = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
        return torch.where(x > 0, x, 0.1 * x)

    def conv(x, i, **how):
        return F.conv2d(x, state[f"conv.{i}.weight"], state[f"conv.{i}.bias"], **how)

    def halved(x, how):
        return how(x.unfold(2, 2, 2).unfold(3, 2, 2), (-2, -1))

    framed = torch.zeros(len(images), 3, 131, 131)
    framed[:, :, 1:129, 1:129] = images  # one row above and to the left, two below and to the right
    x = halved(normed(conv(framed, 0, stride=4), 0), torch.amax)
    for i in range(1, 8):
        x = x + normed(conv(x, i, padding=1), i)
        x = halved(x, torch.mean) if i in (4, 7) else x
    features = x.flatten(2).mean(2)
    hidden = features @ state["fc.weight"].T + state["fc.bias"]
    return features, torch.where(hidden > 0, hidden, 0.1 * hidden) @ state["main.weight"].T + state["main.bias"]


def check_against_hand(path, tiles):
    teacher = load_teacher("ara_cnn", path, {"tile_px": 128, "precision": "float32"})
    features, logits = by_hand(load_file(path), torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255)
    said = teacher.respond(tiles)
    np.testing.assert_allclose(said["features"], features, rtol=2e-3, atol=2e-3)  # answers are float16
    np.testing.assert_allclose(said["logits"], logits, rtol=2e-3, atol=2e-2)


def test_it_answers_as_its_description_says(weights):
    tiles = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    check_against_hand(weights, tiles)


def test_what_it_says_of_itself(weights):
    spec = load_teacher("ara_cnn", weights).spec
    assert [(each.name, each.kind, each.channels, each.stride_px, each.symmetry) for each in spec.responses] == [
        ("logits", Kind.LOGITS, 8, None, Symmetry.NONE),
        ("features", Kind.FEATURES, 64, None, Symmetry.NONE),
    ]
    assert spec.response("logits").channel_names == CLASSES
    assert (spec.mpp, spec.tile_px, spec.licence, spec.source) == (0.5, (224,), "MIT", "this test")
    assert load_teacher("ara_cnn", weights, {"tile_px": 128}).spec.mpp == 0.875
    assert load_teacher("ara_cnn", weights, {"tile_px": 100, "field_um": 50.0}).spec.mpp == 0.5


def test_a_tile_of_another_edge_is_seen_whole(weights):
    teacher = load_teacher("ara_cnn", weights, {"tile_px": 256, "precision": "float32"}, wanted=["features"])
    small = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    large = small.repeat(2, 1).repeat(2, 2)
    said = teacher.respond(large)
    assert list(said) == ["features"] and said["features"].shape == (2, 64)
    expected = load_teacher("ara_cnn", weights, {"tile_px": 128, "precision": "float32"}).respond(small)["features"]
    np.testing.assert_allclose(said["features"], expected, rtol=0.05, atol=0.05)


def test_weights_that_do_not_fit_are_refused(weights, tmp_path):
    nameless = tmp_path / "nameless.safetensors"
    save_file(load_file(weights), nameless)
    with pytest.raises(ConfigError, match="does not name its classes: give them, in order, as the option classes"):
        load_teacher("ara_cnn", str(nameless))
    assert load_teacher("ara_cnn", str(nameless), {"classes": list(CLASSES)}).spec.mpp == 0.5
    with pytest.raises(TeacherError, match=r"main.weight \[8, 32\] \(expected \[2, 32\]\)"):
        load_teacher("ara_cnn", str(nameless), {"classes": ["a", "b"]})
    state = {name: tensor for name, tensor in load_file(weights).items() if name != "conv.7.bias"}
    torch.save(state, tmp_path / "short.pt")
    with pytest.raises(TeacherError, match="1 missing: conv.7.bias"):
        load_teacher("ara_cnn", str(tmp_path / "short.pt"), {"classes": list(CLASSES)})


class TestPublishedWeights:
    @pytest.mark.parametrize(("name", "mpp"), [("nct_crc_8class", 0.5), ("kather2016_8class", 150 * 0.495 / 224)])
    def test_they_fit_and_answer_as_the_description_says(self, shared_data, name, mpp):
        path = str(shared_data("ara_cnn") / f"{name}.safetensors")
        spec = load_teacher("ara_cnn", path).spec
        assert spec.mpp == pytest.approx(mpp) and spec.licence == "MIT" and spec.response("logits").channels == 8
        check_against_hand(path, np.random.default_rng(2).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8))

    def test_it_tells_tumour_from_healthy_mucosa(self, shared_data):
        """Polyps' tiles show more tissue than its own, and were not normalised: only the order of the classes is asked for."""
        teacher = load_teacher("ara_cnn", str(shared_data("ara_cnn") / "nct_crc_8class.safetensors"), {"precision": "float32"})
        root = shared_data("crc_polyp5")
        tumour = {}
        for name in ("AC", "H"):
            files = sorted((root / name).glob("*.jpg"))[::8]
            tiles = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
            logits = teacher.respond(tiles)["logits"].astype(np.float32)
            tumour[name] = (logits[:, 0] - logits[:, 2]).mean()  # TUM against NORM
        assert tumour["AC"] > tumour["H"] + 0.5, tumour
