"""Backbones by name, and the errors of names and options that cannot work."""

import re
import subprocess
import sys

import pytest
import timm

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
