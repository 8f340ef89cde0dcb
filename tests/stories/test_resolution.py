"""Resolution-based distillation through the whole path, of whole images; of tiles of slides: test_precision.py."""

import json
import logging

import pyarrow.parquet as pq
import pytest
from PIL import Image

from csat.runs.checkpoints import Checkpoints
from csat.slides.synthetic import paint
from tests.support.verbs import arguments
from workflows import pretrain

TEACHER = {"model": "resnet18", "outputs": ["tokens", "logits"], "num_classes": 3, "random_weights": True}
SETTINGS = {
    "teacher__name": "timm",
    "teacher__options": json.dumps(TEACHER),
    "method__name": "resolution",
    "student__downsample": 2,
}


def test_a_teacher_that_has_no_logits_is_refused(tmp_path, slides, capsys):
    assert pretrain.main(arguments(slides, tmp_path / "run", method__name="resolution")) == 2
    message = capsys.readouterr().err
    assert "resolution needs logits" in message and "teacher 'stain' does not give; it gives: np" in message


def test_a_factor_that_does_not_divide_the_tile_is_refused(tmp_path, slides, capsys):
    assert pretrain.main(arguments(slides, tmp_path / "run", **{**SETTINGS, "student__downsample": 8})) == 2
    assert "multiple of 128 px (stride 16 x downsample 8), not 64 px: set --data.tile_px to 128" in capsys.readouterr().err


WHOLE = {
    "data__whole": "image",
    "data__mpp": None,
    "data__max_px": 160,
    "data__min_tissue": 0.0,
    "manifest__holdout_by": "slide",
    "manifest__holdout_fraction": 0.25,  # two of nine: the one that is too large, and another
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Eight images of tissue in three sizes, none a multiple of a stride, and one that is too large."""
    folder = tmp_path_factory.mktemp("images")
    pixels, _ = paint(512, seed=4)
    sizes = [(150, 70), (90, 120), (40, 33)]
    for index in range(8):
        width, height = sizes[index % 3]
        left, top = index % 3 * 160, index // 3 * 130
        Image.fromarray(pixels[top : top + height, left : left + width]).save(folder / f"{index}.png")
    Image.fromarray(pixels[:100, :161]).save(folder / "large.png")
    return sorted(folder.glob("*.png"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method__name": "rckd", "teacher__name": "stain", "teacher__options": "{}"}, "rckd learns from square tiles"),
        ({"manifest__holdout_by": "tile"}, "use slide with --data.whole"),
        ({"student__backbone": "vit_tiny_patch16_224"}, "takes images of one size"),
        ({"teacher__options": json.dumps({**TEACHER, "model": "vit_tiny_patch16_224"})}, "takes tiles of 224 px"),
    ],
)
def test_what_cannot_take_whole_images_is_refused(tmp_path, images, capsys, settings, message):
    assert pretrain.main(arguments(images, tmp_path / "run", **{**SETTINGS, **WHOLE, **settings})) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_pixels_of_a_pyramid_need_a_student_at_lower_resolution(tmp_path, slides, capsys):
    settings = {**SETTINGS, "student__downsample": 1, "student_pixels": "pyramid"}
    assert pretrain.main(arguments(slides, tmp_path / "run", **settings)) == 2
    assert "student at lower resolution" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.thorough
def test_whole_images_of_varying_size(ray_cluster, images, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    options = {"train__epochs": 2, "train__batch_size": 4, "train__accumulate": 2, "workers__num_workers": 2}
    options |= {"train__log_every_steps": 1, "train__checkpoint_every_steps": 1, "train__keep_checkpoints": 99}
    options |= {"pool__batch_size": 3, "student_pixels": "pyramid", "manifest__chunk_tiles": 2}
    argv = arguments(images, folder, **SETTINGS, **WHOLE, **options)
    assert pretrain.main(argv) == 0
    assert "whole images up to 160 x 96 px (multiples of 32)" in caplog.text
    bad = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert [(row["slide"].endswith("large.png"), row["reason"]) for row in bad] == [(True, "too_large")]
    assert "161 x 100 px as it is, and data.max_px is 160" in bad[0]["message"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert {"student_vs_teacher.logits.agreement", "student_vs_teacher.tokens.cosine"} <= evaluation.keys()
    _check_accounts(folder)
    trained = Checkpoints(str(folder / "checkpoints")).latest_cursor()

    # The machine goes away after the second step: the same command trains the rest, and nothing twice.
    names = sorted(path.name for path in (folder / "checkpoints").iterdir() if path.is_dir())
    (folder / "checkpoints" / "latest.json").write_text(json.dumps({"name": names[1], "kept": names[:2]}))
    half = Checkpoints(str(folder / "checkpoints")).latest_cursor()
    assert 0 < len(half.done) < len(trained.done)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
    assert pretrain.main(argv) == 0
    _check_accounts(folder)
    assert Checkpoints(str(folder / "checkpoints")).latest_cursor().done == trained.done


def _check_accounts(folder):
    for epoch in json.loads((folder / "accounting.json").read_text())["epochs"]:
        assert epoch["trained"] == epoch["manifest"] == 7
