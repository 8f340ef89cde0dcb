"""Slides in, files for QuPath and tables out: the verb on a real local Ray cluster; killed, and from bucket to bucket."""

import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from csat.prediction.layout import Layout
from csat.slides.synthetic import make_slides
from csat.storage import files
from tests.support.predicting import arguments, check_accounts, contents
from tests.support.verbs import kill_group, wait_for
from workflows import predict

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def mixed(slides, tmp_path_factory):
    """Two good slides, one that is cut off, a text that says it is a slide, and an image of glass alone."""
    folder = tmp_path_factory.mktemp("mixed")
    for slide in slides:
        shutil.copy(slide, folder)
    (folder / "cut.svs").write_bytes(slides[0].read_bytes()[:40_000])
    (folder / "text.svs").write_text("this is no slide")
    return folder


@pytest.fixture(scope="module")
def finished(ray_cluster, mixed, tmp_path_factory):
    """One prediction, bad slides among the good."""
    folder = tmp_path_factory.mktemp("predicted") / "out"
    argv = arguments([mixed], folder, show=2, write='["nuclei", "heatmap"]')
    assert predict.main(argv) == 0
    return folder, argv


def test_every_slide_has_its_files_or_a_reason(finished, slides):
    folder, _ = finished
    names = {slide.stem for slide in slides}
    found = contents(folder)
    expected = {"nuclei.parquet", "nuclei.geojson.gz", "heatmap.ome.tif", "heatmap.png"}
    assert set(found) == {f"slides/{name}/{file}" for name in names for file in expected}
    assert all(found.values())
    read = lambda name: json.loads((folder / name).read_text())  # noqa: E731
    accounts = check_accounts(read)
    assert accounts["slides"] == {"given": 4, "tiled": 2, "quarantined": 2, "done": 2, "failed": 0}
    rows = pq.read_table(folder / "quarantine.parquet").to_pylist()
    assert {row["slide"].rsplit("/", 1)[-1]: row["reason"] for row in rows} == {
        "cut.svs": "unreadable",
        "text.svs": "unreadable",
    }
    summary = pq.read_table(folder / "summary.parquet").to_pylist()
    for row in summary:
        table = pq.read_table(folder / "slides" / Path(row["slide"]).stem / "nuclei.parquet")
        assert row["nuclei"] == len(table) > 20
    assert read("status.json") == {"state": "finished"} and not list((folder / "parts").rglob("*.arrow"))


def test_what_it_cost_and_who_waited_is_told(finished):
    folder, _ = finished
    throughput = json.loads((folder / "throughput.json").read_text())
    assert throughput["tiles"] == json.loads((folder / "manifest/index.json").read_text())["num_tiles"]
    assert throughput["slides"] == 2 and throughput["mm2_per_s"] > 0 and throughput["slides_per_hour"] > 0
    assert set(throughput["stages"]) == {"read", "network", "outlines", "files"}
    assert all(0 < stage["busy_share"] <= 1 for stage in throughput["stages"].values())
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4, "two typical fields and two odd"


def test_a_finished_prediction_is_left_alone_and_another_is_refused(finished, capsys):
    folder, argv = finished
    before = contents(folder)
    assert predict.main(argv) == 0
    assert "nothing to do" in capsys.readouterr().out and contents(folder) == before
    assert predict.main([*argv, "--data.min_tissue=0.5"]) == 2
    assert "data.min_tissue: was 0.05, is 0.5" in capsys.readouterr().err


class Broken(torch.nn.Module):
    """Answers the noise of a dry run, and fails on whatever has less contrast, as tissue has."""

    def forward(self, images):
        if float(images.std()) < 70:
            raise RuntimeError("cannot bear tissue")
        return images.mean((2, 3))


def test_a_model_that_fails_ends_the_run_with_a_reason(ray_cluster, slides, tmp_path, capsys):
    torch.jit.script(Broken()).save(tmp_path / "broken.pt")
    output = {"name": "colour", "kind": "features", "channels": 3, "stride_px": None}
    (tmp_path / "broken.json").write_text(json.dumps({"mpp": 0.5, "tile_px": 128, "outputs": [output]}))
    model = {"model__name": "torchscript", "model__weights": tmp_path / "broken.pt"}
    assert predict.main(arguments(slides, tmp_path / "out", **model)) == 1
    said = "model 'broken' has not answered one of its first"
    assert said in capsys.readouterr().err
    status = json.loads((tmp_path / "out" / "status.json").read_text())
    assert status["state"] == "failed" and said in status["error"] and "cannot bear tissue" in status["error"]


@pytest.mark.thorough
class TestWhoeverIsKilled:
    """The driver and then the actor with the model: files are those of a prediction that nobody disturbed."""

    @pytest.fixture(scope="class")
    def many(self, tmp_path_factory):
        return make_slides(tmp_path_factory.mktemp("many"), num_slides=3, size_px=768, seed=8)

    def test_the_same_command_gives_the_same_files(self, many, tmp_path, run_alone, ray_cluster):
        log, calm, struck = tmp_path / "log", tmp_path / "calm", tmp_path / "struck"
        settings = {"network__batch_size": 4, "data__min_tissue": 0.0}
        first = run_alone(arguments(many, struck, **settings), log, "predict")
        parts = Layout(str(struck)).parts
        wait_for(lambda: sum(map(len, parts.done().values())) > 20, first, log)
        kill_group(first)
        layout = Layout(str(struck))
        num_answered = sum(map(len, parts.done().values()))
        num_tiles = json.loads((struck / "manifest/index.json").read_text())["num_tiles"]
        assert num_answered < num_tiles and len(layout.done()) < len(many)

        second = run_alone(arguments(many, struck, **settings), log, "predict")
        wait_for(lambda: sum(map(len, parts.done().values())) > num_answered or len(layout.done()) > 1, second, log)
        victims = _actors(second.pid, "AnswerStage")
        assert victims, log.read_text()[-3000:]
        victims[0].kill()
        assert second.wait(timeout=200) == 0, log.read_text()[-3000:]
        assert "INFO resuming: " in log.read_text()

        assert predict.main(arguments(many, calm, **{**settings, "network__batch_size": 16})) == 0
        assert contents(struck) == contents(calm) and len(contents(calm)) == 2 * len(many)
        for folder in (struck, calm):
            accounts = check_accounts(lambda name, folder=folder: json.loads((folder / name).read_text()))
            assert accounts["tiles"]["predicted"] == num_tiles


@pytest.mark.thorough
def test_from_bucket_to_bucket(s3, slides, tmp_path, run_alone):
    for slide in slides:
        files.write_bytes(files.join(s3, "slides", slide.name), slide.read_bytes())
    folder, log = files.join(s3, "out", "a b"), tmp_path / "log"
    settings = {"readers__cache_folder": tmp_path / "cache", "write": '["nuclei", "heatmap"]', "show": 1}
    argv = arguments([f"{s3}/slides/*.svs"], folder, **settings)
    assert run_alone(argv, log, "predict").wait(timeout=200) == 0, log.read_text()[-3000:]
    accounts = check_accounts(lambda name: json.loads(files.read_bytes(files.join(folder, name))))
    assert accounts["slides"]["done"] == len(slides)
    for slide in slides:
        found = {files.base_name(uri) for uri in files.list_dir(files.join(folder, "slides", slide.stem))}
        assert found == {"nuclei.parquet", "nuclei.geojson.gz", "heatmap.ome.tif", "heatmap.png"}
    assert not files.list_files(files.join(folder, "parts"))
    assert b"data:image/jpeg" in files.read_bytes(files.join(folder, "report.html"))
    assert run_alone(argv, log, "predict").wait(timeout=120) == 0
    assert "nothing to do" in log.read_text()


def _actors(pid: int, title: str) -> list:
    """Processes below this one that Ray calls so."""
    import psutil

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(pid).children(recursive=True)
        if found := [child for child in children if title in " ".join(child.cmdline())]:
            return found
        time.sleep(0.1)
    return []
