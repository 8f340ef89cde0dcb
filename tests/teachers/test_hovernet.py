"""HoVer-Net: the published tensors, the geometry, both checkpoint forms, and what is said when weights do not fit."""

import numpy as np
import pytest
import torch

from csat.errors import ConfigError, TeacherError
from csat.model.networks.hovernet import MARGIN_PX, HoVerNet
from csat.responses import Kind, Symmetry
from teachers.contract import sha256_of
from teachers.hovernet import HoverNetOptions, load, load_checkpoint
from teachers.registry import load_teacher
from teachers.weights import read_state_dict

WIDTH = 0.0625  # as narrow as it gets: the geometry does not depend on it
PUBLISHED_NETS = [("fast", 6, "hovernet_fast_6types", 37.64), ("original", 5, "hovernet_original_5types", 54.74)]


def random_teacher(wanted=None, **options):
    return load(HoverNetOptions(random_weights=True, width=WIDTH, **options), weights=None, device="cpu", wanted=wanted)


def noise(num_tiles, tile_px):
    return np.random.default_rng(0).integers(0, 256, (num_tiles, tile_px, tile_px, 3), dtype=np.uint8)


@pytest.fixture
def narrow_checkpoint(tmp_path):
    """A checkpoint of a narrow net, wrapped as asked; and the net."""

    def save(mode="fast", num_types=6, *, width=WIDTH, wrap=None, prefix="", name="own.pth", drop=()):
        torch.manual_seed(1)
        net = HoVerNet(mode=mode, num_types=num_types, width=width).eval()
        state = {prefix + key: value for key, value in net.state_dict().items() if key not in drop}
        torch.save({wrap: state, "epoch": 50} if wrap else state, tmp_path / name)
        return tmp_path / name, net

    return save


@pytest.mark.parametrize(("mode", "num_types", "listing", "millions"), PUBLISHED_NETS)
def test_tensors_are_the_published_ones(shared_data, mode, num_types, listing, millions):
    lines = (shared_data("hovernet") / f"{listing}.tsv").read_text().splitlines()
    with torch.device("meta"):
        net = HoVerNet(mode=mode, num_types=num_types)
    ours = [
        f"{name}\t{'x'.join(map(str, tensor.shape))}\t{str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in net.state_dict().items()
    ]
    assert len(ours) == 798
    assert ours == lines
    assert sum(parameter.numel() for parameter in net.parameters()) == pytest.approx(millions * 1e6, abs=0.005e6)


@pytest.mark.parametrize(("mode", "tile_px", "output_px"), [("fast", 256, 164), ("original", 270, 80)])
def test_published_shapes_at_full_width(mode, tile_px, output_px):
    with torch.device("meta"):  # shapes without the arithmetic
        outputs = HoVerNet(mode=mode, num_types=5)(torch.zeros(2, 3, tile_px, tile_px))
    assert list(outputs) == ["tp", "np", "hv"]  # the published order
    assert {name: tuple(output.shape[1:]) for name, output in outputs.items()} == {
        "tp": (5, output_px, output_px),
        "np": (2, output_px, output_px),
        "hv": (2, output_px, output_px),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "tile_px", "output_px"), [("fast", 256, 164), ("original", 270, 80)])
def test_published_width_answers(mode, tile_px, output_px):
    options = HoverNetOptions(mode=mode, random_weights=True)
    responses = load(options, weights=None, device="cpu", wanted=None).respond(noise(1, tile_px))
    assert {name: values.shape for name, values in responses.items()} == {
        "np": (1, 1, output_px, output_px),
        "hv": (1, 2, output_px, output_px),
        "tp": (1, 6, output_px, output_px),
    }
    assert all(np.isfinite(values).all() for values in responses.values())


@pytest.mark.parametrize("mode", ["fast", "original"])
def test_sizes_in_the_spec_work_and_their_neighbours_are_refused(mode):
    spec = random_teacher(mode=mode).spec
    with torch.device("meta"):
        net = HoVerNet(mode=mode, width=WIDTH)
        for tile_px in (*spec.tile_px[:3], *spec.tile_px[20::30], spec.tile_px[-1]):
            output = net(torch.zeros(1, 3, tile_px, tile_px), branches=["np"])["np"]
            assert output.shape[1:] == (2, *spec.response("np").shape(tile_px)[1:])
        for tile_px in (spec.tile_px[0] - 8, spec.tile_px[0] + 1, spec.tile_px[5] + 4):
            with pytest.raises(ConfigError, match=rf"not {tile_px} px. Nearest: \d+ or \d+ px"):
                net(torch.zeros(1, 3, tile_px, tile_px))
            with pytest.raises(ConfigError, match=f"tiles of {tile_px} px"):
                spec.check_view(tile_px=tile_px, mpp=0.25)


@pytest.mark.parametrize("mode", ["fast", "original"])
def test_output_lies_in_the_middle_of_the_tile(mode):
    """The gradient of one output pixel is centred on the image pixel that the spec says it covers."""
    torch.manual_seed(0)
    net = HoVerNet(mode=mode, width=WIDTH, num_types=None).eval()
    tile_px, margin_px = {"fast": 176, "original": 270}[mode], MARGIN_PX[mode]
    image = torch.rand(1, 3, tile_px, tile_px).mul(255).requires_grad_()
    row, column = 30, 50
    net(image, branches=["np"])["np"][0, 1, row, column].backward()
    weight = image.grad[0].abs().sum(0)
    weight = weight**2 / (weight**2).sum()  # squared: the far field of a large receptive field is noise
    positions = torch.arange(tile_px, dtype=torch.float32)
    assert (weight.sum(1) @ positions).item() == pytest.approx(margin_px + row, abs=6)
    assert (weight.sum(0) @ positions).item() == pytest.approx(margin_px + column, abs=6)


def test_a_compiled_net_answers_the_same_and_is_one_graph(monkeypatch):
    graphs = []

    def keep(graph, inputs):  # instead of the compiler, which takes minutes on a CPU: what it would be given
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(HoVerNet, "compile", lambda net: torch.nn.Module.compile(net, backend=keep))
    tiles = noise(3, 128)
    eager = random_teacher(precision="float32", micro_batch=2).respond(tiles)
    assert not graphs
    compiled = random_teacher(precision="float32", micro_batch=2, compile=True).respond(tiles)
    assert len(graphs) == 2, "two tiles at once, then one, and nothing that cuts the net in parts"
    for name, values in eager.items():
        np.testing.assert_allclose(compiled[name], values, atol=1e-3)


def test_responses_are_what_the_spec_says():
    teacher = random_teacher(micro_batch=2)
    tiles = noise(3, 128)
    responses = teacher.respond(tiles)
    spec = {response.name: response for response in teacher.spec.responses}
    assert list(responses) == list(spec) == ["np", "hv", "tp"]
    for name, values in responses.items():
        assert values.dtype == np.float16
        assert values.shape == (3, *spec[name].shape(128)) == (3, {"np": 1, "hv": 2, "tp": 6}[name], 36, 36)
    assert (spec["np"].kind, spec["hv"].kind, spec["tp"].kind) == (Kind.PROBABILITY, Kind.REGRESSION, Kind.PROBABILITY)
    assert (spec["np"].symmetry, spec["hv"].symmetry, spec["tp"].symmetry) == (Symmetry.SCALAR, Symmetry.HV, Symmetry.SCALAR)
    assert responses["np"].min() > 0
    assert responses["np"].max() < 1
    assert responses["np"].astype(np.float32).std() > 0
    np.testing.assert_allclose(responses["tp"].astype(np.float32).sum(1), 1, atol=5e-3)
    with torch.inference_mode():  # the nucleus is the second of np's two channels; hv comes as it is
        raw = teacher.net(torch.tensor(tiles).permute(0, 3, 1, 2).float())
    np.testing.assert_allclose(responses["np"][:, 0], raw["np"].softmax(1)[:, 1], atol=1e-3)
    np.testing.assert_allclose(responses["hv"], raw["hv"], atol=1e-3)


def test_a_tile_is_answered_alike_alone_and_in_a_batch():
    teacher, tiles = random_teacher(), noise(3, 96)
    together, alone = teacher.respond(tiles), teacher.respond(tiles[1:2])
    for name in together:
        np.testing.assert_allclose(together[name][1:2], alone[name], atol=1e-3)


def test_read_only_tiles_are_accepted():
    tiles = noise(1, 96)
    tiles.flags.writeable = False
    assert random_teacher().respond(tiles)["np"].shape == (1, 1, 4, 4)


def test_bfloat16_is_close_to_float32():
    tiles = noise(1, 96)
    exact, fast = random_teacher().respond(tiles), random_teacher(precision="bfloat16").respond(tiles)
    for name in exact:
        assert fast[name].dtype == np.float16
        np.testing.assert_allclose(fast[name], exact[name], atol=0.03)


def test_only_wanted_branches_are_computed():
    teacher = random_teacher(wanted=["hv"])
    teacher.net.decoder["np"].register_forward_hook(lambda *_: pytest.fail("np was not wanted"))
    teacher.net.decoder["tp"]["u3"].register_forward_hook(lambda *_: pytest.fail("tp was not wanted"))
    assert [response.name for response in teacher.spec.responses] == ["hv"]
    assert list(teacher.respond(noise(1, 96))) == ["hv"]
    with pytest.raises(TeacherError, match="asked for edges; it has: np, hv, tp"):
        random_teacher(wanted=["edges"])


def test_a_net_without_types_has_no_tp():
    assert [response.name for response in random_teacher(num_types=None).spec.responses] == ["np", "hv"]


def test_loads_by_name_from_plain_options():
    options = {"mode": "original", "num_types": None, "width": WIDTH, "random_weights": True}
    teacher = load_teacher("hovernet", options=options, wanted=["np"])
    assert teacher.spec.response("np").shape(270) == (1, 80, 80)
    with pytest.raises(ConfigError, match="mode"):
        load_teacher("hovernet", options=options | {"mode": "quick"})


def test_random_weights_need_to_be_asked_for():
    with pytest.raises(TeacherError, match=r"needs weights and got none.*random_weights"):
        load(HoverNetOptions(width=WIDTH), weights=None, device="cpu", wanted=None)
    with pytest.raises(ConfigError, match="choose one"):
        load(HoverNetOptions(random_weights=True), weights="some.pth", device="cpu", wanted=None)


def test_random_weights_are_seeded_and_say_what_they_are():
    state_before = torch.random.get_rng_state()
    first, same, other = random_teacher(), random_teacher(), random_teacher(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state_before)
    assert first.spec.licence == "none (random weights)"
    assert first.spec.weights_sha256 == same.spec.weights_sha256 != other.spec.weights_sha256
    weight = "conv_bot.weight"
    assert torch.equal(first.net.state_dict()[weight], same.net.state_dict()[weight])
    assert not torch.equal(first.net.state_dict()[weight], other.net.state_dict()[weight])


@pytest.mark.parametrize(("wrap", "prefix"), [(None, ""), ("desc", ""), ("desc", "module."), (None, "module.")])
def test_both_checkpoint_forms_load(narrow_checkpoint, wrap, prefix):
    path, net = narrow_checkpoint(wrap=wrap, prefix=prefix)
    loaded = load_checkpoint(path, width=WIDTH)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in net.state_dict().items())


def test_manifest_facts_come_from_the_file(narrow_checkpoint):
    path, _ = narrow_checkpoint(wrap="desc", name="hovernet_fast_pannuke_type_tf2pytorch.tar")
    spec = load(HoverNetOptions(width=WIDTH), weights=str(path), device="cpu", wanted=None).spec
    assert spec.weights_sha256 == sha256_of(path)
    assert spec.mpp == 0.25
    assert spec.licence == "CC BY-NC-SA 4.0 (PanNuke), going by the file's name: verify"
    assert spec.source == str(path)
    assert spec.response("tp").channel_names[1] == "neoplastic"
    named = load(HoverNetOptions(width=WIDTH, trained_on="pannuke"), weights=str(path), device="cpu", wanted=None).spec
    assert named.licence == "CC BY-NC-SA 4.0 (PanNuke)"


def test_own_weights_have_the_licence_that_is_given(narrow_checkpoint):
    path, _ = narrow_checkpoint()
    for options, licence in (
        (HoverNetOptions(width=WIDTH), "unknown"),
        (HoverNetOptions(width=WIDTH, licence="ours"), "ours"),
    ):
        assert load(options, weights=str(path), device="cpu", wanted=None).spec.licence == licence


@pytest.mark.parametrize(
    ("saved", "asked", "message"),
    [
        (("fast", 6), {"mode": "original"}, r"mode fast with 6 types.*ask for mode original with 6 types.*mode=fast, or"),
        (("original", 5), {}, r"mode original with 5 types.*Set the teacher's options mode=original, num_types=5, or"),
        (("fast", 5), {}, r"with 5 types.*ask for mode fast with 6 types.*num_types=5, or"),
        (("original", None), {"mode": "original"}, r"mode original without types.*num_types=null, or"),
    ],
)
def test_a_checkpoint_of_another_kind_names_the_option(narrow_checkpoint, saved, asked, message):
    path, _ = narrow_checkpoint(*saved)
    with pytest.raises(TeacherError, match=message):
        load_checkpoint(path, **{"width": WIDTH, **asked})


def test_a_checkpoint_of_another_width_names_the_width(narrow_checkpoint):
    path, _ = narrow_checkpoint()
    with pytest.raises(TeacherError, match=r"narrowed to 0.0625 of the published width.*width=0.0625"):
        load_checkpoint(path, width=0.125)


def test_loading_is_strict(narrow_checkpoint):
    path, _ = narrow_checkpoint(drop=["d2.units.3.conv2.weight", "upsample2x.unpool_mat"])
    with pytest.raises(TeacherError, match=r"796 tensors.*\(798\): 2 missing: d2.units.3.conv2.weight, upsample2x.unpool_mat"):
        load_checkpoint(path, width=WIDTH)


def test_weights_of_another_network_are_named_as_such(tmp_path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(TeacherError, match=r"linear.pth is not a HoVer-Net checkpoint: its 2 tensors begin with weight, bias"):
        load_checkpoint(tmp_path / "linear.pth")


class Bomb:
    """Unpickles to a call."""

    def __reduce__(self):
        return print, ("this file ran code",)


def test_no_code_of_a_checkpoint_runs(tmp_path, capsys):
    torch.save({"desc": {}, "extra": Bomb()}, tmp_path / "bomb.tar")
    with pytest.raises(TeacherError, match="loading it would run code from it"):
        read_state_dict(tmp_path / "bomb.tar", teacher="hovernet")
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content"), [("page.pth", b"<html>404</html>"), ("page.safetensors", b"<html>"), ("none.pth", b"")]
)
def test_a_file_that_is_no_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TeacherError, match=name):
        read_state_dict(tmp_path / name, teacher="hovernet")


def test_a_file_without_tensors(tmp_path):
    torch.save({"epoch": 3, "history": [1.0]}, tmp_path / "log.pth")
    with pytest.raises(TeacherError, match="keys epoch, history; expected a state_dict"):
        read_state_dict(tmp_path / "log.pth", teacher="hovernet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, "width"),
        ({"width": 1.5}, "width"),
        ({"num_types": 1}, "num_types"),
        ({"trained_on": "pannuk"}, "one of pannuke"),
        ({"trained_on": "consep"}, "are mode original with num_types 5, and the options say fast with 6"),
        ({"micro_batch": 0}, "micro_batch"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        load(HoverNetOptions(**{"random_weights": True, "width": WIDTH, **options}), weights=None, device="cpu", wanted=None)
