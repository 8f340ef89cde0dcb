"""Backbones by name, and the errors of names and options that cannot work."""

import re
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

from csat.errors import ConfigError
from csat.model.networks.backbones import _written_in_timm, create_backbone


def test_unknown_name_shows_what_looks_like_it():
    with pytest.raises(ConfigError, match="no model 'resnet_18'.*did you mean.*resnet18"):
        create_backbone("resnet_18")
    with pytest.raises(ConfigError, match="no model 'csat_v2'.*csat"):
        create_backbone("csat_v2")
    with pytest.raises(ConfigError, match="see timm.list_models"):
        create_backbone("%%")


def test_names_are_read_off_the_files_that_register_them():
    known = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__.startswith(("timm.", "csat."))]
    assert _written_in_timm() == sorted(known)  # other tests register models of their own


def test_an_unknown_name_is_refused_without_loading_timm():
    code = (
        "import sys\nfrom csat.errors import ConfigError\nfrom csat.model.networks.backbones import create_backbone\n"
        "try:\n    create_backbone('resnet_18')\nexcept ConfigError as error:\n    print('timm' in sys.modules, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.match(r"False timm [\d.]+ has no model 'resnet_18': did you mean .*resnet18", said), said


def test_option_that_the_model_lacks():
    name = next(n for n in ("vgg11", "vgg13") if timm.is_model(n))
    with pytest.raises(ConfigError, match=f"cannot make '{name}'.*drop_path_rate"):
        create_backbone(name, drop_path=0.1)


def test_options_arrive():
    backbone = create_backbone("csat_nano", drop_path=0.3, grad_checkpointing=True)
    assert max(m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath") == pytest.approx(0.3)
    assert all(stage.grad_checkpointing for stage in backbone.stages)
    assert backbone.num_classes == 0


class TestWeightsOfAFile:
    NAME = "mobilenetv3_small_050"

    @pytest.fixture
    def net(self):
        """A whole network, with a classifier of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return timm.create_model(self.NAME, num_classes=5)

    @pytest.mark.parametrize("form", ["half.safetensors", "flat.pt", "wrapped.pth"])
    def test_they_are_taken_but_for_the_classifier(self, net, tmp_path, form):
        path, state = tmp_path / form, net.state_dict()
        if form == "half.safetensors":
            state = {name: tensor.half() for name, tensor in state.items() if not name.endswith("tracked")}
            save_file(state, path)
        else:
            torch.save({"state_dict": state, "epoch": 3} if "wrapped" in form else state, path)
        backbone = create_backbone(self.NAME, pretrained=str(path))
        own = backbone.state_dict()
        assert len(own) > 100 and not any(name.startswith("classifier") for name in own)
        for name, tensor in own.items():
            if name in state:
                assert torch.equal(tensor, state[name].to(tensor.dtype)), name

    def test_they_go_into_csat_too(self, tmp_path):
        state = create_backbone("csat_nano").state_dict()
        save_file(state, tmp_path / "nano.safetensors")
        found = create_backbone("csat_nano", pretrained=str(tmp_path / "nano.safetensors")).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in state.items())

    def test_those_of_another_network_are_refused(self, net, tmp_path):
        path = tmp_path / "other.safetensors"
        state = {name: tensor for name, tensor in net.state_dict().items() if name != "conv_stem.weight"}
        save_file({**state, "bn1.weight": torch.ones(3), "stem.weight": torch.ones(2)}, path)
        words = "not those of timm's 'mobilenetv3_small_050': 1 missing .conv_stem.weight.; 1 of another shape .bn1.weight."
        with pytest.raises(ConfigError, match=words + "; 1 unknown to it .stem.weight.. Name the network"):
            create_backbone(self.NAME, pretrained=str(path))

    def test_files_that_are_none(self, tmp_path):
        with pytest.raises(ConfigError, match="there is no file of weights .*gone.pt"):
            create_backbone(self.NAME, pretrained=str(tmp_path / "gone.pt"))
        for name in ("page.safetensors", "page.pt"):
            (tmp_path / name).write_text("<html>")
            with pytest.raises(ConfigError, match="is no safetensors file, nor a torch file of tensors alone"):
                create_backbone(self.NAME, pretrained=str(tmp_path / name))
        torch.save({"epoch": 3}, tmp_path / "empty.pt")
        with pytest.raises(ConfigError, match="holds no weights by name"):
            create_backbone(self.NAME, pretrained=str(tmp_path / "empty.pt"))

    def test_code_in_a_file_is_not_run(self, tmp_path):
        ran = []

        class Code:
            def __reduce__(self):
                return ran.append, (1,)

        torch.save({"a": Code()}, tmp_path / "code.pt")
        with pytest.raises(ConfigError, match="nor a torch file of tensors alone"):
            create_backbone(self.NAME, pretrained=str(tmp_path / "code.pt"))
        assert ran == []

    @pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite2"])
    def test_real_weights(self, shared_data, name):
        path = shared_data("imagenet") / f"{name}.safetensors"
        backbone = create_backbone(name, pretrained=str(path)).eval()
        whole = timm.create_model(name, checkpoint_path=str(path)).eval()  # its own reading, with the classifier
        image = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            features = backbone(image)
            assert torch.equal(features, whole.forward_head(whole.forward_features(image), pre_logits=True))
        assert features.std() > 0.05
