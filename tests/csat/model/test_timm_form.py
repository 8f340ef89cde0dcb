"""An exported folder is a timm model: opened by timm in a process that has this project's files nowhere on its path."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from csat.model.files import load_model, save_model
from csat.model.student import Student, StudentConfig
from csat.model.timm_form import OWN, network_source
from csat.responses import Kind, ResponseSpec, Symmetry
from tests.support.alone import run_alone

NUCLEI = (
    ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1),
    ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV),
)
LABEL = (ResponseSpec(name="label", kind=Kind.LOGITS, channels=3, stride_px=None, channel_names=("a", "b", "c")),)
METADATA = {"tile_px": 128, "mpp": 0.5, "licence": "CC BY 4.0"}

# Opens each folder that it is given and shows it the same images.
OPEN = """
import json, sys, timm, torch
from pathlib import Path
from safetensors.torch import load_file
images, opened = load_file("images.safetensors")["images"], {}
before = [timm.is_model(name) for name in ("csat", "csat_nano", "resnet10_gn")]
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    for path in Path(folder).glob("*_timm.py"):
        __import__(path.stem)
    model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        out = model((images - mean) / std)
    config = {name: config[name] for name in ("input_size", "crop_pct")}
    opened[folder] = {"out": out.tolist(), "labels": model.pretrained_cfg.get("label_names"), **config}
after = [timm.is_model(name) for name in ("csat", "csat_nano", "resnet10_gn")]
print(json.dumps({"before": before, "after": after, "opened": opened}))
"""


def student(backbone, responses, downsample=2):
    """Its norms have seen images, and it tells them apart."""
    torch.manual_seed(0)
    model = Student(StudentConfig(backbone=backbone, decoder_channels=8, downsample=downsample), responses)
    for head in model.heads.values():
        nn.init.normal_(head.fc.weight)
    with torch.no_grad():
        model.train()(torch.rand(4, 3, 64, 64))
    return model.eval()


CLASSIFIERS = ("csat_nano", "resnet10_gn", "resnet18", "vit_tiny_patch16_224")
WITH_DECODERS = ("csat_nano", "efficientnet_b0")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(what timm said in a process of its own, the models that were written, the images that both saw)"""
    folder, images = tmp_path_factory.mktemp("exported"), torch.rand(2, 3, 64, 64)
    models = {f"{name}-label": student(name, LABEL) for name in CLASSIFIERS}
    models |= {f"{name}-nuclei": student(name, NUCLEI) for name in WITH_DECODERS}
    for name, model in models.items():
        save_model(model, str(folder / name), METADATA)
    save_file({"images": images}, folder / "images.safetensors")
    return run_alone(OPEN, *models, cwd=folder), models, images


@pytest.mark.parametrize("backbone", CLASSIFIERS)
def test_timm_opens_a_classifier_with_its_classes(alone, backbone):
    said, models, images = alone
    opened = said["opened"][f"{backbone}-label"]
    with torch.no_grad():
        expected = models[f"{backbone}-label"](images)["label"]
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.tensor(opened["out"]), expected, atol=1e-4, rtol=0)
    assert opened["labels"] == ["a", "b", "c"]
    assert opened["input_size"] == [3, 64, 64] and opened["crop_pct"] == 1.0  # what the model sees of a tile of 128 px


@pytest.mark.parametrize("backbone", WITH_DECODERS)
def test_timm_opens_the_backbone_of_a_student_with_a_decoder(alone, backbone):
    said, models, images = alone
    model, opened = models[f"{backbone}-nuclei"], said["opened"][f"{backbone}-nuclei"]
    with torch.no_grad():
        expected = model.backbone((images - model.mean) / model.std)
    torch.testing.assert_close(torch.tensor(opened["out"]), expected, atol=1e-4, rtol=0)
    assert opened["labels"] is None


def test_a_network_of_ours_is_one_file_that_stands_alone(alone):
    assert alone[0]["before"] == [False] * 3 and alone[0]["after"] == [True] * 3
    assert all(len(network_source(architecture)) == 1 for architecture in OWN) and network_source("resnet18") == {}


def test_our_own_loader_opens_the_same_folder(tmp_path):
    model, images = student("csat_nano", LABEL), torch.rand(2, 3, 64, 64)
    save_model(model, str(tmp_path), METADATA)
    assert torch.equal(load_model(str(tmp_path))(images)["label"], model(images)["label"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "csat_nano" and config["num_classes"] == 3 and config["format"] == 1
    assert config["pretrained_cfg"]["license"] == "CC BY 4.0"


def test_a_classifier_that_timm_has_no_place_for_stays_out(tmp_path):
    """This backbone's own classifier has two heads: timm gets what comes before them, and our file holds all."""
    model = student("deit_tiny_distilled_patch16_224", LABEL, downsample=1)
    save_model(model, str(tmp_path), {"tile_px": None})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["num_classes"] == 0 and "label_names" not in config
    assert not any(name.startswith("head") for name in load_file(tmp_path / "model.safetensors"))
