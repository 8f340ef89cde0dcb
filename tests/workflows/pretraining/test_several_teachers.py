"""Several teachers as they are put together: from settings to stages, batches and a method; and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from csat.columns import OK, POSITION, QUARANTINED, READ_S, REASON, STATUS, TEACHER_S, TILE, UNANSWERED_PREFIX
from csat.errors import ConfigError, TeacherError
from csat.methods.rckd import RCKD
from csat.methods.registry import read_options
from csat.model.contract import Model
from csat.model.student import StudentConfig
from csat.panel import split_name
from csat.responses import Kind, Symmetry
from csat.runs.plan import Plan
from csat.tiles.grid import TilingConfig
from csat.training.batches import to_batches
from csat.training.config import TrainConfig
from csat.views.colour_config import ColourConfig
from csat.views.symmetries import apply_d4_tiles, d4_of
from teachers.cached_stage import CachedTeacherStage
from teachers.registry import load_teacher
from teachers.response_cache import ResponseCache
from teachers.rows import shrunk
from teachers.stage import TeacherStage
from tests.csat.methods.test_equivariance import LOGIT_LIMIT
from tests.failures.scripted import Errs
from workflows.pretraining.check import describe
from workflows.pretraining.config import PretrainConfig, named_teachers
from workflows.pretraining.job import make_job
from workflows.pretraining.stream import teacher_arguments
from workflows.shell import command_line
from workflows.shell.config import MethodConfig, NamedTeacher, PoolConfig, TeacherConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")

STAIN = NamedTeacher(name="stain")
HOVERNET = {"mode": "original", "random_weights": True, "width": 0.125, "mpp": 0.25, "precision": "float32"}
RESNET = {"model": "resnet18", "num_classes": 0, "random_weights": True, "mpp": 0.5, "precision": "float32"}


def config_of(folder="x", *, tile_px=64, mpp=0.5, options=None, **teachers):
    return PretrainConfig(
        run_folder=str(folder),
        slides=["x"],
        teachers=teachers,
        data=TilingConfig(mpp=mpp, tile_px=tile_px),
        student=StudentConfig(backbone="csat_nano", decoder_channels=16),
        method=MethodConfig(options={"augment": NO_COLOUR, **(options or {})}),
        train=TrainConfig(batch_size=8, precision="float32"),
    )


NO_COLOUR = dict(stain_scale=0.0, stain_shift=0.0, brightness=0.0, contrast=0.0, saturation=0.0)


class Brightness(nn.Module):
    """How bright squares of 2 px are, less a margin of 8; and how that rises to the right and below, between neighbours."""

    def forward(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grey = F.avg_pool2d(tiles.mean(dim=1, keepdim=True) / 255, 2)
        inner = grey[:, :, 4:-4, 4:-4]
        across = grey[:, :, 4:-4, 5:-3] - grey[:, :, 4:-4, 3:-5]
        down = grey[:, :, 5:-3, 4:-4] - grey[:, :, 3:-5, 4:-4]
        return inner, torch.cat([across, down], dim=1)


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """A teacher with a cropped, strided answer that turns with its tile exactly, for tiles of 48 px."""
    path = tmp_path_factory.mktemp("scripted") / "brightness.pt"
    torch.jit.script(Brightness()).save(str(path))
    about = {"stride_px": 2, "crop_px": 8}
    np_ = {"name": "np", "kind": "probability", "channels": 1, "symmetry": "scalar", **about}
    hv = {"name": "hv", "kind": "regression", "channels": 2, "symmetry": "hv", **about}
    path.with_suffix(".json").write_text(json.dumps({"mpp": 0.5, "tile_px": 48, "outputs": [np_, hv]}))
    return str(path)


class TeachersAsStudent(nn.Module):
    """Answers what the teachers themselves say of the tile that the method shows it, over the whole tile; asked again, of the
    same tiles, the same."""

    see = Model.see

    def __init__(self, stream, responses):
        super().__init__()
        self.responses, self.downsample, self.said = responses, 1, None
        self.shrinks = {each.name: each.shrink for each in stream.teachers}
        self.teachers = {
            each.name: load_teacher(each.teacher.name, each.teacher.weights, each.teacher.options, wanted=each.own_names)
            for each in stream.teachers
        }

    def forward(self, images):
        tiles = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        if self.said is None:
            self.said = {name: each.respond(shrunk(tiles, self.shrinks[name])) for name, each in self.teachers.items()}
        predictions = {}
        for spec in self.responses:
            name, own = split_name(spec.name)
            x = torch.from_numpy(self.said[name][own]).float()
            if spec.kind == Kind.PROBABILITY:
                x = torch.logit(x, LOGIT_LIMIT) if spec.channels == 1 else x.clamp_min(LOGIT_LIMIT).log()
            if spec.is_dense:
                x = F.pad(x, [spec.crop_px // spec.stride_px] * 4)
            predictions[spec.name] = x
        return predictions


def rows_in_each_view(tile_px, seed=0):
    """One painted tile at eight positions, each of which is seen in another of the eight views."""
    views = d4_of(np.arange(200), seed)
    positions = np.array([int(np.flatnonzero(views == index)[0]) for index in range(8)])
    rng = np.random.default_rng(1)
    small = rng.integers(60, 240, (tile_px // 6 + 1, tile_px // 6 + 1, 3), dtype=np.uint8)
    tile = np.kron(small, np.ones((6, 6, 1), np.uint8))[:tile_px, :tile_px]
    return {
        POSITION: positions,
        TILE: np.repeat(tile[None], 8, axis=0),
        STATUS: np.zeros(8, np.uint8),
        REASON: np.full(8, "", object),
        READ_S: np.zeros(8, np.float32),
        "slide": np.full(8, "a.svs", object),
    }


def answered(config, rows):
    """The job's own stages over rows, one after the other; and its method."""
    job, methods = make_job(config, describe(config))
    for number in range(len(job.stream.teachers)):
        rows = TeacherStage(**teacher_arguments(job.stream, number))(rows)
    return rows, job, methods[None]


def losses_of(rows, job, method):
    """Loss terms of the method, in training, with a student that says what the teachers say."""
    if not isinstance(method.student, TeachersAsStudent):
        method.student = TeachersAsStudent(job.stream, method.responses)
    (batch,) = to_batches(rows, method, torch.device("cpu"))
    return {name: term.tolist() for name, term in method.train()(batch).items()}


def test_views_are_carried_alike_whatever_resolution_and_margin_a_teacher_has(brightness):
    """0.25 and 0.5 um/px, a whole answer and a cropped one in cells of 4 px: all agree in each of the eight views."""
    scripted = NamedTeacher(name="torchscript", weights=brightness, shrink=2)
    config = config_of(tile_px=96, mpp=0.25, whole=replace(STAIN, shrink=1), cropped=scripted)
    rows, job, method = answered(config, rows_in_each_view(96))
    cropped = {spec.name: spec for spec in method.responses}["cropped.hv"]
    assert (cropped.stride_px, cropped.crop_px, cropped.symmetry) == (4, 16, Symmetry.HV)
    assert rows["response_cropped.hv"].shape == (8, 2, 16, 16) and rows["response_whole.np"].shape == (8, 1, 96, 96)
    assert not method.view_in_pool
    terms = losses_of(rows, job, method)
    assert {"whole.np_bce", "whole.hv_gradient", "cropped.np_dice", "cropped.hv_mse", "cropped.hv_gradient"} <= terms.keys()
    for name, values in terms.items():
        assert max(values) < 2e-3, (name, values)
    wrong = {**rows, "response_cropped.hv": rows["response_cropped.hv"][:, ::-1]}
    assert min(losses_of(wrong, job, method)["cropped.hv_mse"]) > 1e-3, "channels that are swapped would be noticed"


def test_one_view_is_drawn_for_teachers_that_have_to_see_it():
    """HoVer-Net (80 of 270 px), features of which nobody knows how they turn, and stain at half the resolution."""
    nuclei, tissue = NamedTeacher(name="hovernet", options=HOVERNET), NamedTeacher(name="timm", options=RESNET, shrink=2)
    given = rows_in_each_view(270)
    config = config_of(tile_px=270, mpp=0.25, nuclei=nuclei, coarse=replace(STAIN, shrink=2), tissue=tissue)
    rows, job, method = answered(config, given)
    assert method.view_in_pool and job.stream.view_seed == 0
    np.testing.assert_array_equal(rows[TILE], apply_d4_tiles(given[TILE], np.arange(8)))
    assert rows["response_nuclei.np"].shape == (8, 1, 80, 80) and rows["response_coarse.np"].shape == (8, 1, 135, 135)
    terms = losses_of(rows, job, method)
    for name, values in terms.items():
        assert max(values) < 2e-3, (name, values)
    turned = {**rows, "response_nuclei.hv": rows["response_nuclei.hv"][..., ::-1].copy()}
    noticed = min(losses_of(turned, job, method)["nuclei.hv_mse"])
    assert noticed > 1e-4 and noticed > 100 * max(terms["nuclei.hv_mse"]), "another view would be noticed"


def test_what_is_kept_of_one_teacher_is_turned_with_the_tile_for_the_other(tmp_path):
    """One tile in eight epochs: stain is asked once, of the tile as it was scanned, and features of each view."""
    teachers = {"tissue": NamedTeacher(name="timm", options=RESNET), "coarse": replace(STAIN, shrink=2)}
    job, methods = make_job(config := config_of(tile_px=64, **teachers), describe(config))
    stream = job.stream
    assert [each.name for each in stream.keepable] == ["coarse"]
    stain = load_teacher("stain", None, stream.keepable[0].teacher.options)
    cache = ResponseCache(str(tmp_path / "cache"), {}, stain.spec.responses)
    stream = stream.with_caches({"coarse": cache})
    assert [each.name for each in stream.teachers] == ["coarse", "tissue"] and stream.without_cache().keepable
    given, plan = rows_in_each_view(64), Plan([1], [0], num_epochs=200, seed=0)
    kept, asked = (teacher_arguments(stream, number) for number in (0, 1))
    assert kept["view_seed"] is None and asked["view_seed"] == 0
    stage = CachedTeacherStage(cache, plan, batch_size=4, **kept)
    (first,) = stage({name: column[:1] for name, column in given.items()})
    (rows,) = stage(dict(given))
    assert first[TEACHER_S].all() and not rows[TEACHER_S].any(), "asked once"
    rows["response_coarse.hv"].flags.writeable = False
    rows = TeacherStage(**asked)(rows)
    np.testing.assert_array_equal(rows[TILE], apply_d4_tiles(given[TILE], np.arange(8)))
    job = replace(job, stream=stream)
    terms = losses_of(rows, job, methods[None])
    assert {"tissue.features_cosine", "coarse.hv_mse"} <= terms.keys()
    for name, values in terms.items():
        assert max(values) < 2e-3, (name, values)
    wrong = {**rows, "response_coarse.hv": rows["response_coarse.hv"][:, ::-1].copy()}
    assert min(losses_of(wrong, job, methods[None])["coarse.hv_mse"]) > 1e-4


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, ["coarse"]),
        ({"colour": ColourConfig(brightness=0.1)}, []),
        ({"largest_px": ((64, 32),)}, []),
        ({"view_seed": None}, ["coarse", "tissue"]),
    ],
)
def test_what_can_be_kept(changes, kept):
    config = config_of(tissue=NamedTeacher(name="timm", options=RESNET), coarse=replace(STAIN, shrink=2))
    stream = replace(make_job(config, describe(config))[0].stream, **changes)
    assert [each.name for each in stream.keepable] == kept


@pytest.fixture(scope="module")
def errs(tmp_path_factory):
    """A teacher that raises on a tile with a black first pixel."""
    path = tmp_path_factory.mktemp("scripted") / "errs.pt"
    torch.jit.script(Errs()).save(str(path))
    output = {"name": "np", "kind": "probability", "channels": 1, "stride_px": 1, "crop_px": 0, "symmetry": "scalar"}
    path.with_suffix(".json").write_text(json.dumps({"mpp": None, "tile_px": 64, "outputs": [output]}))
    return str(path)


def test_a_tile_that_one_teacher_cannot_bear_is_answered_by_the_other(errs):
    config = config_of(first=NamedTeacher(name="torchscript", weights=errs), second=STAIN)
    given = rows_in_each_view(64)
    given[TILE][3, 0, 0] = 0
    rows, _, method = answered(config, given)
    assert (rows[STATUS] == OK).all() and rows[UNANSWERED_PREFIX + "second"].tolist() == [""] * 8
    why = rows[UNANSWERED_PREFIX + "first"].tolist()
    assert why[3].startswith("teacher_error") and [*why[:3], *why[4:]] == [""] * 7
    assert not rows["response_first.np"][3].any() and rows["response_second.np"][3].any()
    np.testing.assert_allclose(rows[TEACHER_S], rows[f"{TEACHER_S}.first"] + rows[f"{TEACHER_S}.second"])
    (batch,) = to_batches(rows, method, torch.device("cpu"))
    assert batch.answered["first"].tolist() == [True] * 3 + [False] + [True] * 4 and batch.answered["second"].all()


def test_a_tile_that_no_teacher_answers_is_quarantined_with_what_each_said(errs):
    scripted = NamedTeacher(name="torchscript", weights=errs)
    config = config_of(first=scripted, second=replace(scripted, shrink=1))
    given = rows_in_each_view(64)
    given[TILE][3, 0, 0] = 0
    given[STATUS][5], given[REASON][5] = QUARANTINED, "unreadable: x"
    rows, _, method = answered(config, given)
    assert rows[STATUS].tolist() == [OK] * 3 + [QUARANTINED, OK, QUARANTINED, OK, OK]
    assert rows[REASON][3].startswith("unanswered: first: teacher_error") and "; second: teacher_error" in rows[REASON][3]
    assert rows[REASON][5] == "unreadable: x"
    assert len(next(to_batches(rows, method, torch.device("cpu")))) == 6


def test_a_broken_teacher_is_named(errs):
    config = config_of(fine=STAIN, broken=NamedTeacher(name="torchscript", weights=errs))
    given = rows_in_each_view(64)
    given[TILE][:, 0, 0] = 0
    with pytest.raises(TeacherError, match="teacher 'broken' has not answered one of its first 8 tiles"):
        answered(config, given)


def test_one_teacher_is_as_it_was():
    """Neither names nor columns nor pixels are others."""
    one = {"teacher": TeacherConfig(name="stain"), "teachers": {}, "pool": PoolConfig(batch_size=4)}
    config = replace(config_of(a=STAIN), **one)
    rows, job, method = answered(config, rows_in_each_view(64))
    added = set(rows) - set(rows_in_each_view(64))
    assert added == {"response_np", "response_hv", TEACHER_S}
    assert method.teachers == () and list(method.weights) == ["np_bce", "np_dice", "hv_mse", "hv_gradient"]
    assert job.stream.teachers[0].pool.batch_size == 4 and job.teacher.name == "stain"


def test_the_command_line(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("teachers: {tissue: {name: timm, options: {model: resnet18, micro_batch: 4}}}\n")
    argv = ["--run_folder", "x", "--slides", "y", "--teachers.nuclei", "stain", "--config", str(recipe)]
    argv += ["--teachers.tissue.options.model", "resnet10t", "--teachers.tissue.pool.gpus_per_actor=0.5"]
    more = ["--teachers.tissue.shrink", "2", "--method.options.weights.nuclei.np_bce", "3"]
    config = command_line.parse(PretrainConfig, "", [*argv, *more], nested={"teachers": named_teachers})
    assert read_options("rckd", config.method.options).weights == {"nuclei.np_bce": 3}
    assert config.teacher is None and list(config.asked) == ["nuclei", "tissue"], "by name, however they were given"
    tissue = config.asked["tissue"]
    assert (tissue.name, tissue.shrink, tissue.pool.gpus_per_actor) == ("timm", 2, 0.5)
    assert tissue.options == {"model": "resnet10t", "micro_batch": 4}
    without = command_line.parse(PretrainConfig, "", [*argv, "--teachers.tissue", "null"], nested={"teachers": named_teachers})
    assert list(without.asked) == ["nuclei"]
    wrong = {"nuclei.shrnk": "'teachers.nuclei.shrnk'. Did you mean teachers.NAME.shrink", "b.shrink": "which teacher is it"}
    for setting, words in wrong.items():
        with pytest.raises(ConfigError, match=words):
            command_line.parse(PretrainConfig, "", [*argv, f"--teachers.{setting}", "2"], nested={"teachers": named_teachers})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teacher": TeacherConfig(name="stain"), "teachers": {"a": STAIN}}, "leave teacher out, also of the recipe"),
        ({}, "there is no teacher"),
        ({"teachers": {"a": STAIN}, "pool": PoolConfig(batch_size=2)}, "teachers.a.pool"),
        ({"teachers": {"A b": STAIN}}, "a word of small letters"),
        ({"teachers": {"weights": STAIN}}, "none of its settings"),
    ],
)
def test_settings_that_contradict_each_other(changes, words):
    with pytest.raises(ConfigError, match=words):
        PretrainConfig(run_folder="x", slides=["y"], **changes)


@pytest.mark.parametrize(
    ("teachers", "options", "words"),
    [
        ({"a": STAIN, "b": NamedTeacher(name="hovernet")}, {}, r"^teachers.b: .*Set teachers.b.weights"),
        ({"a": STAIN, "b": replace(STAIN, shrink=3)}, {}, r"^teachers.b: a tile of 64 px cannot be shrunk 3 times"),
        ({"a": STAIN, "b": STAIN}, {"responses": ["a.np"]}, "teachers.b would be asked for nothing"),
        ({"a": STAIN, "b": STAIN}, {"responses": ["np", "a.hv", "b.np"]}, "which teacher 'a . b' does not give"),
        ({"a": STAIN}, {"weights": {"np_bce": 1}}, "its terms are: a.np_bce"),
    ],
)
def test_what_cannot_work_is_said_with_the_teacher_s_name(teachers, options, words):
    config = config_of(options=options, **teachers)
    with pytest.raises((ConfigError, TeacherError), match=words):
        make_job(config, describe(config))


def test_each_teacher_s_own_nuclei_mask_its_gradient():
    config = config_of(a=STAIN, b=replace(STAIN, shrink=2))
    method = make_job(config, describe(config))[1][None]
    assert isinstance(method, RCKD) and method.nuclei["b.hv"] == "b.np" and method.nuclei["a.hv"] == "a.np"
    only = config_of(options={"responses": ["a.np", "b.hv"]}, a=STAIN, b=STAIN)
    method = make_job(only, describe(only))[1][None]
    assert list(method.weights) == ["a.np_bce", "a.np_dice", "b.hv_mse"], "there are no nuclei of b to mask by"


def test_resolution_learns_the_logits_of_one_and_the_map_of_another():
    logits, tokens = ({**RESNET, "outputs": [output], "num_classes": 3} for output in ("logits", "tokens"))
    classes = NamedTeacher(name="timm", options=logits, weight=0.5)
    maps = NamedTeacher(name="timm", options={**tokens, "mpp": 1.0}, shrink=2)
    config = replace(config_of(classes=classes, maps=maps), method=MethodConfig(name="resolution"))
    rows, job, method = answered(config, rows_in_each_view(64))
    assert method.weights == {"soft": 0.5, "pix": 1.0} and method.teacher_of_term == {"soft": "classes", "pix": "maps"}
    assert rows["response_maps.tokens"].shape == (8, 512, 1, 1), "32 px at a stride of 32"
    (batch,) = to_batches(rows, method, torch.device("cpu"))
    assert all(torch.isfinite(term).all() and term.shape == (8,) for term in method.train()(batch).values())
    both = replace(config_of(classes=classes, maps=maps, more=classes), method=MethodConfig(name="resolution"))
    with pytest.raises(TeacherError, match="gives several: classes.logits .* more.logits .*method.options.logits"):
        make_job(both, describe(both))
