"""The user's TorchScript model: its JSON, the dry run, and what is said when the two disagree."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from csat.errors import ConfigError, TeacherError
from csat.responses import Kind, Symmetry
from teachers.contract import sha256_of
from teachers.torchscript import TorchScriptOptions, load

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")

NP = {
    "name": "np",
    "kind": "probability",
    "channels": 1,
    "stride_px": 1,
    "crop_px": 2,
    "symmetry": "scalar",
    "activation": "sigmoid",
}
EMBEDDING = {"name": "embedding", "kind": "features", "channels": 3, "stride_px": None}
DESCRIPTION = {"mpp": 0.5, "tile_px": 32, "outputs": [NP, EMBEDDING]}


class Two(nn.Module):
    """A map that loses 2 px on each side, and a vector."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 5)

    def forward(self, x):
        return self.conv(x), x.mean((2, 3))


class AsDict(Two):
    def forward(self, x):
        return {"embedding": x.mean((2, 3)), "np": self.conv(x)}


class Infinite(Two):
    def forward(self, x):
        return self.conv(x), x.mean((2, 3)) / 0


@pytest.fixture
def saved(tmp_path):
    """Save a module and its JSON side by side; returns the path of the module."""

    def save(description, module=None):
        module = (module or Two()).eval()
        path = tmp_path / "model.pt"
        torch.jit.trace(module, torch.rand(2, 3, 32, 32), strict=False).save(path)
        (tmp_path / "model.json").write_text(description if isinstance(description, str) else json.dumps(description))
        return path

    return save


def load_it(path, wanted=None, **options):
    return load(TorchScriptOptions(**options), weights=str(path), device="cpu", wanted=wanted)


def noise(num_tiles, tile_px=32):
    return np.random.default_rng(0).integers(0, 256, (num_tiles, tile_px, tile_px, 3), dtype=np.uint8)


@pytest.mark.parametrize("module", [Two, AsDict])
def test_answers_as_described(saved, module):
    torch.manual_seed(0)
    module = module().eval()
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    description = DESCRIPTION | {"normalisation": {"scale": 255, "mean": mean, "std": std}, "licence": "MIT", "name": "mine"}
    path = saved(description, module)
    teacher = load_it(path, micro_batch=2)
    tiles = noise(3)
    responses = teacher.respond(tiles)
    images = (torch.tensor(tiles).permute(0, 3, 1, 2) / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(
        1, 3, 1, 1
    )
    with torch.inference_mode():
        np.testing.assert_allclose(responses["np"], module.conv(images).sigmoid(), atol=1e-3)
        np.testing.assert_allclose(responses["embedding"], images.mean((2, 3)), atol=2e-3)
    spec = teacher.spec
    assert (spec.name, spec.mpp, spec.tile_px, spec.licence) == ("mine", 0.5, (32,), "MIT")
    assert (spec.weights_sha256, spec.source) == (sha256_of(path), str(path))
    assert spec.response("np").kind == Kind.PROBABILITY
    assert spec.response("embedding").symmetry == Symmetry.NONE  # the safe reading of a JSON that does not say


def test_pixels_come_as_they_are_without_normalisation(saved):
    tiles = noise(2)
    np.testing.assert_allclose(load_it(saved(DESCRIPTION)).respond(tiles)["embedding"], tiles.mean((1, 2)), rtol=2e-3)


def test_softmax_and_wanted(saved):
    module = nn.Conv2d(3, 4, 2, stride=2)
    output = {"name": "tp", "kind": "probability", "channels": 4, "stride_px": 2, "activation": "softmax"}
    responses = load_it(saved({"mpp": None, "tile_px": [32, 64], "outputs": [output]}, module)).respond(noise(2, 64))
    np.testing.assert_allclose(responses["tp"].astype(np.float32).sum(1), np.ones((2, 32, 32)), atol=5e-3)
    assert list(load_it(saved(DESCRIPTION), wanted=["np"]).respond(noise(1))) == ["np"]
    with pytest.raises(TeacherError, match="asked for tp; it has: np, embedding"):
        load_it(saved(DESCRIPTION), wanted=["tp"])


def test_json_elsewhere(saved, tmp_path):
    path = saved(DESCRIPTION)
    (tmp_path / "model.json").rename(tmp_path / "other.json")
    with pytest.raises(TeacherError, match=r"no weights file .*model.json.*the JSON that describes the model"):
        load_it(path)
    assert load_it(path, spec=str(tmp_path / "other.json")).spec.tile_px == (32,)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("{", "is not valid JSON"),
        ([], "expected an object with the keys name, mpp"),
        ({"tile_px": 32, "outputs": [NP]}, "the key 'mpp' is missing; expected micrometres per pixel, or null"),
        (DESCRIPTION | {"tile": 32}, "unknown key 'tile'; expected some of: name, mpp, tile_px"),
        (DESCRIPTION | {"mpp": "0.5"}, "mpp is '0.5'; expected micrometres per pixel"),
        (DESCRIPTION | {"tile_px": []}, r"tile_px is \[\]; expected a tile edge"),
        (DESCRIPTION | {"outputs": []}, "expected at least one, each with its own name"),
        (DESCRIPTION | {"outputs": [NP, NP]}, "each with its own name"),
        (
            DESCRIPTION | {"outputs": [NP, EMBEDDING | {"kind": "feature"}]},
            r"outputs\[1\]: kind is 'feature'; expected one of prob",
        ),
        (DESCRIPTION | {"outputs": [NP | {"channels": "1"}]}, r"outputs\[0\]: channels is '1'; expected int"),
        (DESCRIPTION | {"outputs": [NP | {"channels": True}]}, r"channels is True; expected int"),
        (DESCRIPTION | {"outputs": [NP | {"channels": 0}]}, r"channels 0 .*at least 1"),
        (
            DESCRIPTION | {"outputs": [NP | {"activation": "relu"}]},
            "activation is 'relu'; expected one of none, sigmoid, softmax",
        ),
        (DESCRIPTION | {"outputs": [NP | {"stride_px": 3}]}, "covers 28 px of a 32 px tile at stride 3"),
        (DESCRIPTION | {"outputs": [NP | {"symmetry": "hv"}]}, "an hv field has 2 channels"),
        (DESCRIPTION | {"normalisation": {"mean": [0.5]}}, r"normalisation: mean is \[0.5\]; expected three numbers"),
        (DESCRIPTION | {"normalisation": {"std": [0, 1, 1]}}, "expected above 0"),
        (DESCRIPTION | {"normalisation": {"means": [0, 0, 0]}}, "normalisation: unknown key 'means'"),
    ],
)
def test_a_json_that_is_wrong_names_the_key(saved, description, message):
    with pytest.raises(ConfigError, match=message):
        load_it(saved(description))


@pytest.mark.parametrize(
    ("outputs", "module", "message"),
    [
        (
            [NP | {"crop_px": 1}, EMBEDDING],
            Two,
            r"'np', tiles of 32 px: the model gave \[2, 1, 28, 28\] .* promises \[2, 1, 30, 30\]",
        ),
        ([EMBEDDING, NP], Two, "promises"),
        ([NP], Two, "the model returned 2 outputs; its JSON names the outputs np"),
        (
            [NP | {"name": "nuclei"}, EMBEDDING],
            AsDict,
            "a dict of embedding, np; its JSON names the outputs nuclei, embedding",
        ),
        ([NP | {"activation": "none"}, EMBEDDING], Two, "a probability between .* set its activation"),
        ([NP, EMBEDDING | {"kind": "probability", "activation": "sigmoid"}], Two, "do not sum to 1"),
        ([NP, EMBEDDING], Infinite, "'embedding', tiles of 32 px: NaN or infinite"),
    ],
)
def test_a_model_that_does_not_do_what_its_json_says(saved, outputs, module, message):
    with pytest.raises(TeacherError, match=message):
        load_it(saved(DESCRIPTION | {"outputs": outputs}, module()))


def test_a_model_that_fails_on_its_tile(saved):
    with pytest.raises(TeacherError, match=r"the model failed on float32 \[2, 3, 4, 4\].*Check tile_px"):
        load_it(saved(DESCRIPTION | {"tile_px": 4, "outputs": [NP | {"crop_px": 0}, EMBEDDING]}))


def test_a_state_dict_is_not_torchscript(saved):
    path = saved(DESCRIPTION)
    torch.save(Two().state_dict(), path)
    with pytest.raises(TeacherError, match="is not a TorchScript file.*a state_dict"):
        load_it(path)
