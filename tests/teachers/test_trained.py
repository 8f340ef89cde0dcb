"""A fine-tuned model as a teacher: every model and task against the exported model's own predictions, and bad folders."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from csat.columns import OK, POSITION, REASON, STATUS, TILE
from csat.errors import ConfigError, TeacherError
from csat.methods.registry import wanted_responses
from csat.model.files import load_exported, save_model
from csat.model.networks.hovernet import MARGIN_PX
from csat.model.registry import ModelConfig, build_model
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.views.grid import align
from csat.views.symmetries import apply_d4, apply_d4_tiles
from teachers.contract import sha256_of, teacher_record
from teachers.registry import describe_teacher, find_teacher, load_teacher
from teachers.stage import TeacherStage

MODELS = {
    "csat_nano": {"decoder_channels": 8},
    "unet": {"options": {"width": 4, "depth": 2}},
    "hovernet": {"options": {"width": 0.0625}},
    "fanet": {"options": {"width": 8}},
}
TILE_PX = {"csat_nano": 64, "unet": 64, "hovernet": 128, "fanet": 64}
CASES = [("hovernet", Task.NUCLEI), *((name, task) for name in ("csat_nano", "unet") for task in Task)]
CASES += [("fanet", Task.SEGMENTATION)]
CLASSES = {Task.NUCLEI: ("immune", "tumour"), Task.SEGMENTATION: ("other", "gland"), Task.CLASSIFICATION: ("a", "b", "c")}


def info_of(task: Task) -> DatasetInfo:
    return DatasetInfo(
        name="own", task=task, classes=CLASSES[task], mpp=0.5, licence="CC BY 4.0", source="our ward", group="patient"
    )


def fresh(name: str, task: Task, seed: int = 0, **settings) -> nn.Module:
    """A model whose answers differ from place to place, as a trained one's do: used norms, heads that are not near zero."""
    torch.manual_seed(seed)
    model = build_model(ModelConfig(name=name, **{**MODELS[name], **settings}), info_of(task), load_exported)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    if isinstance(model, Student):
        for parameter in model.heads.parameters():
            nn.init.normal_(parameter)
    images = torch.tensor(noise(4, 96, seed=9)).permute(0, 3, 1, 2) / 255  # like what it will be asked, dark and light
    with torch.no_grad():
        model.train()(images * torch.linspace(0.4, 1, 4).view(-1, 1, 1, 1))
    return model.eval()


def write_run(folder, model: nn.Module, task: Task | None, **changes) -> str:
    """What finetune.py leaves, as far as a teacher looks at it."""
    metadata = {"task": task, "classes": CLASSES.get(task), "tile_px": 64, "fit": "crop", "mpp": 0.5}
    metadata |= {"licence": "CC BY 4.0", "source": "our ward", "started_from": "scratch", **changes}
    save_model(model, files.join(str(folder), "exported"), metadata)
    return str(folder)


def noise(num: int, tile_px: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (num, tile_px // 8, tile_px // 8, 3), dtype=np.uint8)
    tiles = coarse.repeat(8, axis=1).repeat(8, axis=2)
    tiles.flags.writeable = False
    return tiles


@pytest.mark.parametrize(("name", "task"), CASES)
def test_answers_are_the_exported_models_own(tmp_path, name, task):
    run, tile_px = write_run(tmp_path / "run", fresh(name, task), task), TILE_PX[name]
    teacher, tiles = load_teacher(run, options={"micro_batch": 2}), noise(3, tile_px)
    teacher.spec.check_view(tile_px=tile_px, mpp=0.5)
    answers = teacher.respond(tiles)
    model = load_exported(f"{run}/exported")
    with torch.inference_mode():
        raw = model(torch.tensor(tiles).permute(0, 3, 1, 2) / 255)
    expected = {
        "np": torch.sigmoid,
        "hv": lambda x: x,
        "tp": lambda x: x.softmax(1),
        "mask": lambda x: x,
        "label": lambda x: x,
    }
    heads = {Task.NUCLEI: ["np", "hv", "tp"], Task.SEGMENTATION: ["mask"], Task.CLASSIFICATION: ["label"]}[task]
    assert list(answers) == [spec.name for spec in teacher.spec.responses] == heads
    margin_px = MARGIN_PX["fast"] if name == "hovernet" else 0
    for spec in teacher.spec.responses:
        own = expected[spec.name](raw[spec.name])
        own = own[..., margin_px : own.shape[-2] - margin_px, margin_px : own.shape[-1] - margin_px] if spec.is_dense else own
        assert answers[spec.name].dtype == np.float16 and answers[spec.name].shape == (3, *spec.shape(tile_px))
        np.testing.assert_allclose(answers[spec.name], own.numpy(), atol=2e-3, rtol=2e-3)
        assert answers[spec.name].astype(np.float32).std() > 1e-3


@pytest.mark.parametrize(("name", "stride_px", "crop_px"), [("csat_nano", 2, 0), ("unet", 1, 0), ("hovernet", 1, 46)])
def test_the_spec_says_what_the_method_needs(tmp_path, name, stride_px, crop_px):
    specs = {
        spec.name: spec for spec in describe_teacher(write_run(tmp_path, fresh(name, Task.NUCLEI), Task.NUCLEI)).responses
    }
    assert [spec.kind for spec in specs.values()] == [Kind.PROBABILITY, Kind.REGRESSION, Kind.PROBABILITY]
    assert [spec.symmetry for spec in specs.values()] == [Symmetry.SCALAR, Symmetry.HV, Symmetry.SCALAR]
    assert {(spec.stride_px, spec.crop_px) for spec in specs.values()} == {(stride_px, crop_px)}
    assert specs["tp"].channel_names == ("background", "immune", "tumour")


def test_classes_are_logits(tmp_path):
    mask = describe_teacher(write_run(tmp_path / "a", fresh("unet", Task.SEGMENTATION), Task.SEGMENTATION)).response("mask")
    label = describe_teacher(write_run(tmp_path / "b", fresh("unet", Task.CLASSIFICATION), Task.CLASSIFICATION)).response(
        "label"
    )
    assert mask.kind == label.kind == Kind.LOGITS
    assert mask.channel_names == ("other", "gland") and label.channel_names == ("a", "b", "c")
    assert mask.is_dense and not label.is_dense


def test_a_downsampled_student_answers_on_its_own_grid(tmp_path):
    """Cell i of the answer lies where the spec says: aligning the whole prediction to that grid changes nothing."""
    model = fresh("csat_nano", Task.SEGMENTATION, downsample=2)
    teacher, tiles = load_teacher(write_run(tmp_path, model, Task.SEGMENTATION)), noise(1, 128)
    spec = teacher.spec.response("mask")
    assert spec.stride_px == 4
    small = torch.nn.functional.avg_pool2d(torch.tensor(tiles).permute(0, 3, 1, 2) / 255, 2)
    with torch.inference_mode():
        raw = model(small)["mask"]
    np.testing.assert_allclose(teacher.respond(tiles)["mask"], align(raw, spec, 128).numpy(), atol=2e-3, rtol=2e-3)
    with pytest.raises(ConfigError, match="stride 4"):
        teacher.spec.check_view(tile_px=126, mpp=0.5)


def test_a_classifier_answers_whole_images_where_the_user_says_so(tmp_path):
    model = fresh("csat_nano", Task.CLASSIFICATION)
    run = write_run(tmp_path, model, Task.CLASSIFICATION)
    assert load_teacher(run, options={"features": True}).spec.tile_px == (64,)
    teacher = load_teacher(run, options={"features": True, "any_size": True})
    assert teacher.spec.tile_px is None
    image = noise(1, 96)[:, :64]
    answers = teacher.respond(image)
    assert answers["features"].shape == (1, *teacher.spec.response("features").shape((64, 96)))
    with torch.inference_mode():
        expected = model(torch.tensor(image).permute(0, 3, 1, 2) / 255)["label"]
    np.testing.assert_allclose(answers["label"], expected.numpy(), atol=2e-3, rtol=2e-3)


def test_answers_move_with_the_tile_as_the_spec_says(tmp_path):
    """A U-Net whose kernels have the square's symmetries sees a turned tile as the turned answer, at the right place."""
    model = fresh("unet", Task.SEGMENTATION)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                kernel = module.weight
                turns = [torch.rot90(each, k, (2, 3)) for each in (kernel, kernel.flip(3)) for k in range(4)]
                kernel.copy_(sum(turns) / 8)
    teacher, tiles = load_teacher(write_run(tmp_path, model, Task.SEGMENTATION)), noise(8, 64)
    index = np.arange(8, dtype=np.uint8)
    spec = teacher.spec.response("mask")
    turned = apply_d4(torch.tensor(teacher.respond(tiles)["mask"]), torch.from_numpy(index), spec.symmetry)
    np.testing.assert_allclose(teacher.respond(apply_d4_tiles(tiles, index))["mask"], turned.numpy(), atol=5e-3)


@pytest.mark.parametrize("name", ["csat_nano", "unet", "hovernet"])
def test_only_what_is_wanted_is_answered(tmp_path, name):
    run = write_run(tmp_path, fresh(name, Task.NUCLEI), Task.NUCLEI)
    tiles = noise(1, TILE_PX[name])
    some, all_of_them = load_teacher(run, wanted=["hv"]).respond(tiles), load_teacher(run).respond(tiles)
    assert list(some) == ["hv"]
    np.testing.assert_array_equal(some["hv"], all_of_them["hv"])
    with pytest.raises(TeacherError, match="asked for mask; it has: np, hv, tp"):
        load_teacher(run, wanted=["mask"])


def test_bfloat16_is_close_to_float32(tmp_path):
    run, tiles = write_run(tmp_path, fresh("csat_nano", Task.NUCLEI), Task.NUCLEI), noise(1, 64)
    exact, fast = load_teacher(run).respond(tiles), load_teacher(run, options={"precision": "bfloat16"}).respond(tiles)
    for answer in exact:
        np.testing.assert_allclose(fast[answer], exact[answer], atol=0.2)  # values reach beyond 5


class TestIdentity:
    def test_it_is_the_weights_file(self, tmp_path):
        run = write_run(tmp_path / "run", fresh("hovernet", Task.NUCLEI), Task.NUCLEI)
        spec = describe_teacher("run", run)
        assert spec.weights_sha256 == sha256_of(tmp_path / "run" / "exported" / "hovernet.safetensors")
        assert (spec.name, spec.mpp, spec.licence) == ("run", 0.5, "CC BY 4.0")
        assert spec.source == f"{run}/exported: hovernet trained on our ward"
        assert json.loads(json.dumps(teacher_record(spec)))["weights_sha256"] == spec.weights_sha256

    def test_run_folder_exported_folder_and_name_are_one_teacher(self, tmp_path, monkeypatch):
        run = write_run(tmp_path / "run", fresh("unet", Task.SEGMENTATION), Task.SEGMENTATION)
        monkeypatch.chdir(tmp_path)
        # The name counts before a folder that is called like it.
        specs = [describe_teacher(*asked) for asked in ((run,), ("run", "run"), (f"{run}/exported",), ("./run/",))]
        assert all(spec == specs[0] for spec in specs)
        assert find_teacher("./run/") == ("run", run) == find_teacher("run", "run")

    def test_the_licence_names_what_the_weights_started_from(self, tmp_path):
        before = {"run": "runs/rckd", "teacher": {"name": "hovernet", "licence": "CC BY-NC-SA 4.0"}, "licence": None}
        run = write_run(tmp_path, fresh("unet", Task.SEGMENTATION), Task.SEGMENTATION, started_from=before)
        assert describe_teacher(run).licence == "CC BY 4.0; CC BY-NC-SA 4.0"

    def test_nothing_is_known_of_it(self, tmp_path):
        unknown = dict.fromkeys(("classes", "tile_px", "fit", "mpp", "licence", "source", "started_from"))
        spec = describe_teacher(write_run(tmp_path, fresh("csat_nano", Task.NUCLEI), None, **unknown))
        assert (spec.mpp, spec.licence, spec.tile_px) == (None, "unknown", None)
        spec.check_view(tile_px=96, mpp=0.25)


class TestTileSizes:
    def test_hovernet_and_unet_name_the_sizes_that_they_take(self, tmp_path):
        hovernet = describe_teacher(write_run(tmp_path / "a", fresh("hovernet", Task.NUCLEI), Task.NUCLEI))
        unet = describe_teacher(write_run(tmp_path / "b", fresh("unet", Task.NUCLEI), Task.NUCLEI))
        assert hovernet.tile_px[:2] == (96, 104) and unet.tile_px[:2] == (4, 8)
        for spec, tile_px in ((hovernet, 250), (unet, 62)):
            with pytest.raises(ConfigError, match=f"does not take tiles of {tile_px} px"):
                spec.check_view(tile_px=tile_px, mpp=0.5)

    @pytest.mark.parametrize("name", ["csat_nano", "unet"])
    def test_a_verdict_on_the_whole_tile_holds_for_the_trained_size(self, tmp_path, name):
        spec = describe_teacher(write_run(tmp_path, fresh(name, Task.CLASSIFICATION), Task.CLASSIFICATION))
        with pytest.raises(ConfigError, match="nearest that it takes: 64 px"):
            spec.check_view(tile_px=128, mpp=0.5)


class TestStage:
    def columns(self, tiles):
        rows = {POSITION: np.arange(len(tiles)), TILE: tiles, STATUS: np.full(len(tiles), OK, np.uint8)}
        return {**rows, REASON: np.array([""] * len(tiles), dtype=object)}

    def test_it_answers_in_the_pool(self, tmp_path):
        run, tiles = write_run(tmp_path, fresh("hovernet", Task.NUCLEI), Task.NUCLEI), noise(3, 96)
        spec = describe_teacher(run)
        wanted = [response.name for response in wanted_responses("rckd", {}, spec)]
        out = TeacherStage(run, wanted=wanted, expected_sha256=spec.weights_sha256)(self.columns(tiles))
        assert wanted == ["np", "hv", "tp"] and (out[STATUS] == OK).all()
        for name, answer in load_teacher(run).respond(tiles).items():
            np.testing.assert_array_equal(out[f"response_{name}"], answer)

    def test_a_folder_that_changed_is_noticed(self, tmp_path):
        sha256 = describe_teacher(write_run(tmp_path, fresh("unet", Task.NUCLEI), Task.NUCLEI)).weights_sha256
        run = write_run(tmp_path, fresh("unet", Task.NUCLEI, seed=1), Task.NUCLEI)
        with pytest.raises(TeacherError, match="the same path holds different files"):
            TeacherStage("run", run, expected_sha256=sha256)


@pytest.mark.parametrize("name", ["csat_nano", "unet", "hovernet"])
def test_from_a_bucket(s3, tmp_path, name):
    model = fresh(name, Task.NUCLEI)
    run, copy = write_run(f"{s3}/runs/teacher", model, Task.NUCLEI), write_run(tmp_path, model, Task.NUCLEI)
    remote, local, tiles = load_teacher(run), load_teacher(copy), noise(1, 96)
    assert remote.spec.weights_sha256 == local.spec.weights_sha256
    assert remote.spec.source.startswith(f"{run}/exported")
    for answer, values in local.respond(tiles).items():
        np.testing.assert_array_equal(remote.respond(tiles)[answer], values)


class TestBadInput:
    def test_neither_a_name_nor_a_folder(self, tmp_path):
        for name in ("hovrnet", str(tmp_path / "absent")):
            with pytest.raises(ConfigError, match=f"no teacher '{name}'; there are: stain, hovernet.*run of finetune.py"):
                load_teacher(name)

    def test_a_bucket_without_the_folder(self, s3):
        with pytest.raises(ConfigError, match="no teacher 's3://.*absent'.*there is no such folder"):
            load_teacher(f"{s3}/runs/absent")

    def test_a_run_that_has_not_finished(self, tmp_path):
        (tmp_path / "config.yaml").write_text("run_folder: x\n")
        with pytest.raises(ConfigError, match="has not exported its model yet: let it finish"):
            load_teacher(str(tmp_path))

    def test_a_folder_of_nothing(self, tmp_path):
        with pytest.raises(ConfigError, match="neither a run folder nor an exported model"):
            load_teacher(str(tmp_path))

    def test_a_folder_together_with_weights(self, tmp_path):
        with pytest.raises(ConfigError, match=r"leave out the weights a\.pth"):
            load_teacher(str(tmp_path), "a.pth")

    def test_no_folder_at_all(self):
        with pytest.raises(TeacherError, match="teacher=FOLDER"):
            load_teacher("run")

    def test_a_student_of_pretraining(self, tmp_path):
        student = Student(
            StudentConfig(backbone="csat_nano", decoder_channels=8),
            [ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)],
        )
        save_model(student, str(tmp_path / "exported"), {"mpp": 0.5, "method": "rckd", "teacher": {"name": "stain"}})
        with pytest.raises(TeacherError, match="imitates the teacher 'stain'.*fine-tune"):
            load_teacher(str(tmp_path))

    def test_another_resolution(self, tmp_path):
        spec = describe_teacher(write_run(tmp_path, fresh("unet", Task.NUCLEI), Task.NUCLEI))
        with pytest.raises(ConfigError, match=r"made for 0\.5 um/px and the tiles are read at 0\.25"):
            spec.check_view(tile_px=64, mpp=0.25)

    def test_weights_that_are_cut_off(self, tmp_path):
        run = write_run(tmp_path, fresh("unet", Task.NUCLEI), Task.NUCLEI)
        path = tmp_path / "exported" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ConfigError, match="cannot load the weights"):
            load_teacher(run)

    def test_weights_that_are_gone(self, tmp_path):
        for name, weights in (("unet", "model"), ("csat_nano", "student"), ("hovernet", "hovernet")):
            run = write_run(tmp_path / name, fresh(name, Task.NUCLEI), Task.NUCLEI)
            (tmp_path / name / "exported" / f"{weights}.safetensors").unlink()
            with pytest.raises(ConfigError, match=f"{weights}.safetensors"):
                load_teacher(run)

    def test_an_unknown_option(self, tmp_path):
        with pytest.raises(ConfigError, match="no setting 'mode'.*precision, micro_batch"):
            load_teacher(write_run(tmp_path, fresh("unet", Task.NUCLEI), Task.NUCLEI), options={"mode": "fast"})


class TestFeatures:
    """The last map of a classifier, which resolution-based distillation learns."""

    def test_they_are_the_backbones_last_map(self, tmp_path):
        run = write_run(tmp_path, fresh("csat_nano", Task.CLASSIFICATION, downsample=2), Task.CLASSIFICATION)
        teacher, tiles = load_teacher(run, options={"features": True}), noise(3, 64)
        label, features = teacher.spec.responses
        assert (label.name, features.name) == ("label", "features")
        assert (features.kind, features.channels, features.stride_px) == (Kind.FEATURES, 96, 32)
        assert features.symmetry == Symmetry.NONE  # the pool has to show it the turned tile
        answers, model = teacher.respond(tiles), load_exported(f"{run}/exported")
        with torch.inference_mode():
            images = (torch.tensor(tiles).permute(0, 3, 1, 2) / 255).unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean((3, 5))
            expected = model.backbone.forward_features((images - model.mean) / model.std)
            logits = model(images)["label"]
        np.testing.assert_allclose(answers["features"], expected.numpy(), atol=2e-2, rtol=2e-3)
        np.testing.assert_allclose(answers["label"], logits.numpy(), atol=2e-2, rtol=2e-3)
        assert [spec.name for spec in wanted_responses("resolution", {}, teacher.spec)] == ["label", "features"]

    def test_they_come_only_where_they_are_asked_for(self, tmp_path):
        spec = describe_teacher(write_run(tmp_path, fresh("csat_nano", Task.CLASSIFICATION), Task.CLASSIFICATION))
        assert [response.name for response in spec.responses] == ["label"]
        with pytest.raises(TeacherError, match="resolution needs a feature map.*'run' does not give; it gives: label"):
            wanted_responses("resolution", {}, spec)

    def test_a_model_without_a_backbone_has_none(self, tmp_path):
        run = write_run(tmp_path, fresh("unet", Task.CLASSIFICATION), Task.CLASSIFICATION)
        with pytest.raises(
            TeacherError, match="UNetModel that answers label, and features is the last map of a timm backbone"
        ):
            describe_teacher(run, options={"features": True})


@pytest.mark.parametrize(("name", "channels", "stride_px"), [("fanet", (32, 32), 1), ("csat_nano", (24, 8), 2)])
def test_a_segmentation_answers_its_tapped_maps_too(tmp_path, name, channels, stride_px):
    model = fresh(name, Task.SEGMENTATION)
    folder = write_run(tmp_path, model, Task.SEGMENTATION)
    tiles = noise(2, 64)
    teacher = load_teacher(folder, options={"taps": True})
    assert [(r.name, r.kind, r.channels, r.stride_px, r.symmetry) for r in teacher.spec.responses] == [
        ("mask", Kind.LOGITS, 2, stride_px, Symmetry.SCALAR),
        ("encoder", Kind.FEATURES, channels[0], 4, Symmetry.NONE),
        ("decoder", Kind.FEATURES, channels[1], 4, Symmetry.NONE),
    ]
    with torch.no_grad():
        maps, predictions = model.tap(torch.tensor(tiles).permute(0, 3, 1, 2) / 255, ["encoder", "decoder"])
    said = teacher.respond(tiles)
    for name, expected in (maps | predictions).items():
        np.testing.assert_allclose(said[name], expected.numpy(), rtol=2e-3, atol=2e-3)
    only = load_teacher(folder, options={"taps": True}, wanted=["decoder", "mask"]).respond(tiles)
    assert only.keys() == {"decoder", "mask"}
    np.testing.assert_array_equal(only["decoder"], said["decoder"])


def test_a_model_without_taps_is_refused(tmp_path):
    folder = write_run(tmp_path, fresh("unet", Task.SEGMENTATION), Task.SEGMENTATION)
    with pytest.raises(TeacherError, match="holds a UNetModel, and taps are two maps of a segmentation by fanet, mobile_unet"):
        load_teacher(folder, options={"taps": True})
