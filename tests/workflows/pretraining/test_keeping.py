"""Are responses kept: what the settings say, and what the figures say where they leave it open."""

import json
from dataclasses import replace

import pytest

from csat.errors import ConfigError
from csat.runs.folder import RunFolder
from csat.runs.forecast import KeptCosts
from csat.slides.synthetic import make_slides
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig, read_manifest
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.sources import list_slides
from csat.tiles.tiling import tile_slide
from csat.training.config import TrainConfig
from teachers.keeping import Keeping
from teachers.response_cache import CacheConfig, ResponseCache, projected_bytes
from tests.workflows.pretraining.test_calibration import config_of
from workflows.pretraining import keeping
from workflows.pretraining.check import describe
from workflows.pretraining.job import make_job
from workflows.pretraining.keeping import (
    decides_to_keep,
    guessed_costs,
    in_words,
    kept_costs,
    make_record,
    measure,
    with_cache,
)
from workflows.shell.config import NamedTeacher

SLOW = Keeping(answer_s=0.1, keep_s=0.02, read_s=0.01, num_bytes=1e5, free_bytes=1e12)
FAST = replace(SLOW, answer_s=0.005)


@pytest.fixture
def manifest(tmp_path):
    tiling = TilingConfig(mpp=0.5, tile_px=64)
    slides = list_slides([str(make_slides(tmp_path / "slides", num_slides=1, size_px=512, seed=1)[0])])
    writer = ManifestWriter(str(tmp_path / "run" / "manifest"), ManifestConfig(holdout_fraction=0.0), "x", tiling, slides)
    writer.add(slides[0], tile_slide(slides[0], tiling))
    writer.close()
    return read_manifest(str(tmp_path / "run" / "manifest"))


@pytest.fixture
def asked(monkeypatch):
    """What an actor would be asked is counted; it says `asked.says`."""

    class Asked(list):
        says = SLOW

    asked = Asked()

    def on_actor(teacher, run, stream, rows, number, probe):
        asked.append((number, probe))
        return asked.says

    monkeypatch.setattr(keeping, "on_actor", on_actor)
    return asked


def job_of(tmp_path, manifest, *, epochs=3, **changes):
    train = TrainConfig(batch_size=8, precision="float32", epochs=epochs)
    config = config_of(tmp_path, train=train, **changes)
    return make_job(config, describe(config))[0].over(manifest)


def cache_in(tmp_path, **settings):
    return CacheConfig(uri=str(tmp_path / "cache"), **settings)


@pytest.mark.parametrize(("says", "is_kept"), [(SLOW, True), (FAST, False), (replace(SLOW, free_bytes=1e3), False)])
def test_what_is_cheaper_is_done_and_said(tmp_path, manifest, asked, caplog, says, is_kept):
    caplog.set_level("INFO")
    asked.says = says
    job = job_of(tmp_path, manifest, cache=cache_in(tmp_path))
    assert decides_to_keep(job, manifest) is is_kept
    record = RunFolder(job.run_folder).read_json("keeping.json")
    assert record["actor_s_kept"] == pytest.approx(manifest.num_tiles * (says.answer_s + says.keep_s + 2 * says.read_s))
    assert record["actor_s_answered_again"] == pytest.approx(manifest.num_tiles * 3 * says.answer_s)
    assert "responses are kept in" in caplog.text if is_kept else "responses are not kept: " in caplog.text
    asked.says = FAST if is_kept else SLOW
    assert decides_to_keep(job, manifest) is is_kept and len(asked) == 1, "a resumed run stays with it"


@pytest.mark.parametrize("keep", [True, False])
def test_a_setting_wins(tmp_path, manifest, asked, keep):
    assert decides_to_keep(job_of(tmp_path, manifest, cache=cache_in(tmp_path, keep=keep)), manifest) is keep
    assert not asked and RunFolder(str(tmp_path / "run")).read_json("keeping.json") is None


def test_one_epoch_keeps_what_others_may_read(tmp_path, manifest, asked):
    assert decides_to_keep(job_of(tmp_path, manifest, epochs=1, cache=cache_in(tmp_path)), manifest) and not asked


def test_without_a_place_nothing_is_kept_and_a_plan_says_what_that_costs(tmp_path, manifest, asked, capsys):
    assert decides_to_keep(job_of(tmp_path, manifest), manifest) is False and not asked
    assert decides_to_keep(job_of(tmp_path, manifest, plan=True), manifest) is False and len(asked) == 1
    said = capsys.readouterr().out
    assert "cache.uri names no place" in said and "100 ms to answer, 20 ms to keep, 10 ms to read again" in said
    (_, probe) = asked[0]
    assert probe.uri == RunFolder(str(tmp_path / "run")).uri and probe.key["probe"]


def test_what_is_complete_is_read(tmp_path, manifest, asked, monkeypatch):
    monkeypatch.setattr(keeping.cluster, "check_is_shared", lambda *_, **__: None)
    asked.says = FAST
    job = job_of(tmp_path, manifest, cache=cache_in(tmp_path))
    for each in with_cache(job, manifest).stream.teachers:
        each.cache.mark_complete()
    assert decides_to_keep(job, manifest) and not asked


def test_a_run_that_an_earlier_version_began_keeps_on_keeping(tmp_path, manifest, asked):
    job = job_of(tmp_path, manifest, cache=cache_in(tmp_path))
    RunFolder(job.run_folder).set_status("interrupted")
    assert decides_to_keep(job, manifest) and not asked


def test_what_was_not_found_out_is_said(tmp_path, manifest, asked, caplog):
    asked.says = "no answer within 300 s"
    assert decides_to_keep(job_of(tmp_path, manifest, cache=cache_in(tmp_path)), manifest)
    assert "was not found out: no answer within 300 s" in caplog.text


def test_what_is_over_the_budget_is_refused_before_it_is_measured(tmp_path, manifest, asked):
    with pytest.raises(ConfigError, match="more than cache.budget_gb"):
        decides_to_keep(job_of(tmp_path, manifest, cache=cache_in(tmp_path, budget_gb=1e-6)), manifest)
    assert not asked


def test_several_teachers_are_kept_together(tmp_path, manifest, asked):
    """The one is worth keeping and the other is not: it is their sum that counts."""
    record = make_record({"nuclei": SLOW, "tissue": FAST}, num_tiles=1000, epochs=3)
    assert record["is_kept"] and record["actor_s_kept"] == pytest.approx(1000 * (0.14 + 0.045))
    said = in_words(json.loads(json.dumps(record)), uri="s3://bucket/cache")
    assert "  nuclei      a tile takes 100 ms" in said and "  tissue      a tile takes 5 ms" in said
    assert "  kept        3.1 minutes of one actor over 3 epochs, 0.2 GB" in said and "  not kept    5." in said
    teachers = {"fine": NamedTeacher(name="stain"), "coarse": NamedTeacher(name="stain", shrink=2)}
    job = job_of(tmp_path, manifest, teacher=None, teachers=teachers, cache=cache_in(tmp_path))
    assert decides_to_keep(job, manifest) and [number for number, _ in asked] == [0, 1]


def test_only_what_can_be_kept_is_measured_and_kept(tmp_path, manifest, asked, monkeypatch, caplog):
    """Of features, which are others in each view, there is nothing to keep; the other teacher's number stays its own."""
    caplog.set_level("INFO")
    monkeypatch.setattr(keeping.cluster, "check_is_shared", lambda *_, **__: None)
    options = {"model": "resnet18", "num_classes": 0, "random_weights": True, "mpp": 0.5, "precision": "float32"}
    teachers = {"features": NamedTeacher(name="timm", options=options), "nuclei": NamedTeacher(name="stain")}
    job = job_of(tmp_path, manifest, teacher=None, teachers=teachers, cache=cache_in(tmp_path))
    assert decides_to_keep(job, manifest) and [number for number, _ in asked] == [1]
    features, nuclei = kept_costs(job, manifest, is_kept=True)
    assert (nuclei.read_s, features) == (SLOW.read_s, None)
    kept = with_cache(job, manifest).stream
    assert [(each.name, each.cache is not None) for each in kept.teachers] == [("nuclei", True), ("features", False)]
    assert "features answers in every epoch" in caplog.text
    alone = {"teacher": None, "teachers": {"features": teachers["features"]}, "cache": cache_in(tmp_path)}
    with pytest.raises(ConfigError, match=r"another view \(flip and rotation\) in every epoch"):
        keeping.check_can_keep(job_of(tmp_path, manifest, **alone))


def test_a_plan_is_told_what_keeping_takes(tmp_path, manifest, asked, monkeypatch):
    """As it was measured, or by the size of the responses; and what is complete is not asked for again."""
    monkeypatch.setattr(keeping.cluster, "check_is_shared", lambda *_, **__: None)
    job = job_of(tmp_path, manifest, cache=cache_in(tmp_path))
    assert kept_costs(job, manifest, is_kept=False) == [None]
    (guess,) = kept_costs(job, manifest, is_kept=True)
    (asked_of,) = job.stream.teachers
    num_bytes = projected_bytes(keeping._kept_of(job, asked_of), 1, 64)
    assert guess == KeptCosts(keep_s=8e-9 * num_bytes, read_s=19e-9 * num_bytes) and num_bytes > 64 * 64
    assert guessed_costs(job, is_kept=True) == [guess]
    decides_to_keep(job, manifest)
    assert kept_costs(job, manifest, is_kept=True) == [KeptCosts(keep_s=SLOW.keep_s, read_s=SLOW.read_s)]
    for each in with_cache(job, manifest).stream.teachers:
        each.cache.mark_complete()
    assert kept_costs(job, manifest, is_kept=True)[0].is_complete


def test_the_runs_own_stages_are_measured(tmp_path, manifest):
    job = job_of(tmp_path, manifest, cache=cache_in(tmp_path))
    (asked,) = job.stream.teachers
    key, responses = keeping._key_of(job, asked, manifest)
    probe = ResponseCache(str(tmp_path / "cache"), {**key, "probe": True}, responses)
    found = measure(job.stream, keeping.sample_rows(manifest, 8), 0, probe)
    assert found.answer_s > 0 and found.read_s > 0 and not list((tmp_path / "cache").glob("*"))
