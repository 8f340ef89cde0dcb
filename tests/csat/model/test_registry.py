"""Every model for every task, from every start; settings that cannot work together."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from csat.errors import ConfigError
from csat.model.files import load_exported, save_model
from csat.model.networks.hovernet import MARGIN_PX
from csat.model.parts import DECODER
from csat.model.registry import ModelConfig, build_model
from csat.tasks import DatasetInfo, Task, heads_of

SMALL = {
    "csat_nano": {"decoder_channels": 8},
    "unet": {"options": {"width": 4, "depth": 2}},
    "hovernet": {"options": {"width": 0.0625}},
    "fanet": {"options": {"width": 8}},
}
CLASSES = {Task.NUCLEI: ("immune", "tumour"), Task.SEGMENTATION: ("other", "gland"), Task.CLASSIFICATION: ("a", "b", "c")}
NETS = ("fanet", "mobile_unet", "enet", "erfnet")
# A task with maps that each of the small models serves, and those that find nuclei.
DENSE = {name: Task.SEGMENTATION if name in NETS else Task.NUCLEI for name in SMALL}
FOR_NUCLEI = [name for name, task in DENSE.items() if task == Task.NUCLEI]
CASES = [("hovernet", Task.NUCLEI), *((name, task) for name in ("csat_nano", "unet") for task in Task)]
CASES += [(name, Task.SEGMENTATION) for name in NETS]


def info_of(task, classes=None) -> DatasetInfo:
    classes = CLASSES[task] if classes is None else classes
    return DatasetInfo(name="own", task=task, classes=classes, mpp=None, licence="", source="", group="patient")


def build(name, task, *, seed=0, classes=None, **settings):
    """A small model, seeded; from_run is an exported folder or a run folder."""
    torch.manual_seed(seed)
    config = ModelConfig(name=name, **{**SMALL.get(name, {}), **settings})
    return build_model(config, info_of(task, classes), load_exported)


@pytest.fixture
def run(tmp_path):
    """`run("unet", Task.NUCLEI)` is the folder of a fine-tuned model."""

    def make(name, task, **settings):
        folder = tmp_path / f"{name}-{task}-{len(list(tmp_path.iterdir()))}"
        save_model(build(name, task, seed=1, **settings), str(folder / "exported"), {"task": task})
        return str(folder)

    return make


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_model_has_the_heads_of_every_task(name, task):
    model = build(name, task).eval()
    crop_px = MARGIN_PX["fast"] if name == "hovernet" else 0
    assert model.responses == heads_of(info_of(task), crop_px=crop_px)
    model.check_tile(96)
    with torch.no_grad():
        predictions = model(torch.rand(2, 3, 96, 96))
    stride_px = 2 if name == "csat_nano" else 1
    assert list(predictions) == [spec.name for spec in model.responses]
    for spec in model.responses:
        dense = (96 // stride_px,) * 2 if spec.is_dense else ()
        assert predictions[spec.name].shape == (2, spec.channels, *dense)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_every_trainable_parameter_gets_a_gradient(name, task):
    """DDP waits for ever, or fails, on a parameter that wants a gradient and gets none."""
    model = build(name, task).train()
    sum(prediction.square().mean() for prediction in model(torch.rand(2, 3, 96, 96)).values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad != (p.grad is not None)] == []


def test_nuclei_without_types_have_no_type_head():
    for name in FOR_NUCLEI:
        assert [spec.name for spec in build(name, Task.NUCLEI, classes=()).responses] == ["np", "hv"]


def test_a_seed_gives_the_same_weights_in_every_process(run):
    folder = run("unet", Task.SEGMENTATION)
    for settings in ({}, {"init": "run", "from_run": folder, "transfer": "backbone"}):
        one, other = (build("unet", Task.SEGMENTATION, **settings).state_dict() for _ in range(2))
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_run_goes_on_as_the_model_that_it_exported(run, name, task):
    folder = run(name, task)
    model = build(name, task, init="run", from_run=folder).eval()
    images = torch.rand(1, 3, 96, 96)
    before = load_exported(f"{folder}/exported")
    with torch.no_grad():
        for head, prediction in before(images).items():
            torch.testing.assert_close(model(images)[head], prediction, rtol=0, atol=0)
    assert model.training is False and build(name, task, init="run", from_run=folder).training


class TestFreeze:
    @pytest.mark.parametrize(("name", "task"), CASES)
    def test_only_the_rest_trains(self, run, name, task):
        folder = run(name, task)
        for freeze, frozen in (("backbone", ("backbone",)), ("backbone+decoder", ("backbone", "decoder"))):
            model = build(name, task, init="run", from_run=folder, freeze=freeze)
            own = {part: set(model.tensors_of(part)) for part in ("backbone", "decoder", "heads")}
            trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            assert not trainable & set().union(*(own[part] for part in frozen))
            assert trainable & own["heads"] and (freeze != "backbone" or not own["decoder"] or trainable & own["decoder"])

    def test_random_weights_are_not_frozen(self):
        with pytest.raises(ConfigError, match="freeze backbone with model.init scratch"):
            ModelConfig(freeze="backbone")

    @pytest.mark.parametrize("settings", [{"init": "pretrained"}, {"init": "run", "from_run": "x", "transfer": "backbone"}])
    def test_a_random_decoder_is_not_frozen(self, settings):
        with pytest.raises(ConfigError, match="a decoder that has learned something"):
            ModelConfig(freeze="backbone+decoder", **settings)

    def test_nor_one_that_the_run_never_had(self, run):
        for name in ("csat_nano", "unet"):
            settings = {"init": "run", "from_run": run(name, Task.CLASSIFICATION), "freeze": "backbone+decoder"}
            with pytest.raises(ConfigError, match="a part of the decoder is not in .*model.freeze backbone"):
                build(name, Task.SEGMENTATION, **settings)
            assert build(name, Task.CLASSIFICATION, **settings).parts()[DECODER] == []


@pytest.mark.parametrize(
    ("name", "task", "of", "settings"),
    [
        ("mobilenetv3_small_050", Task.NUCLEI, "backbone", {"decoder_channels": 8}),
        ("mobilenetv3_small_050", Task.CLASSIFICATION, "backbone", {"options": {"layer": "blocks.3"}}),
        ("mobile_unet", Task.SEGMENTATION, "net.encoder", {}),
    ],
)
def test_weights_of_a_file_are_the_start_of_every_model_around_a_timm_backbone(tmp_path, name, task, of, settings):
    torch.manual_seed(5)
    state = timm.create_model("mobilenetv2_100" if name == "mobile_unet" else name).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    place = str(tmp_path / "weights.safetensors")
    model = build(name, task, init="pretrained", weights=place, **settings)
    own = model.get_submodule(of).state_dict()
    assert own["conv_stem.weight"].shape == state["conv_stem.weight"].shape
    assert all(torch.equal(tensor, state[key]) for key, tensor in own.items()) and len(own) > 20
    # The model's own files need that file no more, and do not name it.
    save_model(model, str(tmp_path / "run" / "exported"), {"task": task})
    (tmp_path / "weights.safetensors").unlink()
    assert place not in (tmp_path / "run" / "exported" / "config.json").read_text()
    again = load_exported(str(tmp_path / "run")).state_dict()
    assert all(torch.equal(tensor, again[key]) for key, tensor in model.state_dict().items())


class TestBadSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"init": "imagenet"}, "model.init is one of scratch, pretrained, run, not 'imagenet'"),
            ({"init": "run", "from_run": "x", "transfer": "head"}, "model.transfer is one of backbone, backbone.decoder, all"),
            ({"freeze": "all"}, "model.freeze is one of none, backbone, backbone.decoder, not 'all'"),
            ({"from_run": "x"}, "model.init 'scratch' with model.from_run 'x'"),
            ({"init": "run"}, "model.init 'run' with model.from_run None"),
            ({"weights": "a.pt"}, "model.weights a.pt goes with model.init pretrained, not with scratch"),
        ],
    )
    def test_values(self, settings, words):
        with pytest.raises(ConfigError, match=words):
            ModelConfig(**settings)

    @pytest.mark.parametrize("task", [Task.SEGMENTATION, Task.CLASSIFICATION])
    def test_hovernet_is_for_nuclei(self, task):
        with pytest.raises(ConfigError, match=f"hovernet finds nuclei, and the task is {task}: choose unet"):
            build("hovernet", task)

    @pytest.mark.parametrize("name", ["unet", "hovernet"])
    @pytest.mark.parametrize(
        "settings",
        [{"drop_path": 0.1}, {"downsample": 2}, {"init": "pretrained"}, {"decoder_channels": 8}, {"grad_checkpointing": True}],
    )
    def test_settings_of_timm_backbones(self, name, settings):
        with pytest.raises(ConfigError, match=f"model '{name}' has no {next(iter(settings))}"):
            build(name, Task.NUCLEI, **settings)

    def test_options(self):
        with pytest.raises(ConfigError, match="model.options of unet: there is no setting 'mode'.*width, depth"):
            build("unet", Task.NUCLEI, options={"mode": "fast"})
        with pytest.raises(ConfigError, match="'csat_nano' has none: width"):
            build("csat_nano", Task.NUCLEI, options={"width": 1})

    def test_a_name_that_timm_does_not_have(self):
        with pytest.raises(ConfigError, match="no model 'resnet19': did you mean resnet18"):
            build("resnet19", Task.NUCLEI)

    def test_a_run_that_is_gone(self, tmp_path):
        with pytest.raises(ConfigError, match="neither a run folder nor an exported model.*there is no such folder"):
            build("unet", Task.NUCLEI, init="run", from_run=str(tmp_path / "gone"))

    def test_a_run_that_has_not_finished(self, tmp_path):
        (tmp_path / "config.yaml").write_text("")
        with pytest.raises(ConfigError, match="has not exported its model yet: let it finish"):
            build("unet", Task.NUCLEI, init="run", from_run=str(tmp_path))


def test_networks_for_segmentation(run):
    """What they refuse, and that the one head moves with everything else, to the same network only."""
    with pytest.raises(ConfigError, match="model enet segments, and the task is nuclei"):
        build("enet", Task.NUCLEI)
    with pytest.raises(ConfigError, match="model 'fanet' has no init pretrained"):
        build("fanet", Task.SEGMENTATION, init="pretrained")
    with pytest.raises(ConfigError, match="width"):
        build("erfnet", Task.SEGMENTATION, options={"width": 8})
    folder = run("fanet", Task.SEGMENTATION)
    model = build("fanet", Task.SEGMENTATION, seed=7, init="run", from_run=folder)
    assert torch.equal(model.net.head[1].weight, load_exported(folder).net.head[1].weight)
    with pytest.raises(ConfigError, match="holds a fanet, and model.name asks for a enet"):
        build("enet", Task.SEGMENTATION, init="run", from_run=folder)
