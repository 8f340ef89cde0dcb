"""A classifier on a named layer as a teacher: its logits, map and attention maps against the model's own."""

import numpy as np
import pytest
import torch

from csat.errors import TeacherError
from csat.losses.attention import attention_maps, normalise_jointly
from csat.model.files import load_exported, save_model
from csat.model.registry import ModelConfig, build_model
from csat.responses import Kind
from csat.tasks import Task
from teachers.registry import describe_teacher, load_teacher
from tests.support.labelled_toy import make_info

METADATA = {"task": Task.CLASSIFICATION, "tile_px": 64, "mpp": 0.5}


def write_run(folder, **settings) -> str:
    torch.manual_seed(0)
    save_model(
        build_model(ModelConfig(name="csat_nano", **settings), make_info(), None).eval(), f"{folder}/exported", METADATA
    )
    return str(folder)


@pytest.mark.parametrize(("upsample", "stride_px"), [(False, 16), (True, 8)])
def test_it_answers_what_the_exported_model_does(tmp_path, upsample, stride_px):
    run = write_run(tmp_path, downsample=2, options={"layer": "stages.1", "upsample": upsample})
    teacher = load_teacher(run, options={"features": True, "cam": True})
    assert [spec.name for spec in teacher.spec.responses] == ["label", "features", "cam_at_plus", "cam_at"]
    assert teacher.spec.response("cam_at").kind == Kind.ATTENTION and teacher.spec.response("cam_at").stride_px == stride_px
    tiles = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    answers, model = teacher.respond(tiles), load_exported(f"{run}/exported")
    images = torch.nn.functional.avg_pool2d(torch.tensor(tiles).permute(0, 3, 1, 2) / 255, 2)
    maps, predictions = model.tap(images, ["features"])
    features, logits = maps["features"], predictions["label"]
    expected = {"label": logits.detach(), "features": features.detach()}
    expected |= {f"cam_{name}": normalise_jointly(attention_maps(features, logits, form)) for name, form in FORMS.items()}
    for name, value in expected.items():
        assert answers[name].shape[1:] == teacher.spec.response(name).shape(64)
        np.testing.assert_allclose(answers[name], value.numpy(), atol=5e-3, rtol=5e-3, err_msg=name)


FORMS = {"at_plus": "at+", "at": "at"}


def test_another_model_has_no_attention_maps(tmp_path):
    with pytest.raises(TeacherError, match="holds a Student, and cam are maps of a classifier on a named layer"):
        describe_teacher(write_run(tmp_path, decoder_channels=8), options={"cam": True})
