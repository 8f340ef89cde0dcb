"""Slides, response cache and run folder in a bucket, against a real S3 server on loopback; killed in the first epoch.

The same command then ends it, and the pool of teachers ends with the first epoch.
"""

import contextlib
import json
import subprocess
import time

import psutil
import pytest

from csat.errors import StorageError
from csat.model.files import load_exported
from csat.runs.checkpoints import Checkpoints
from csat.storage import files
from tests.support.verbs import arguments, kill_group, wait_for
from workflows import pretrain

EPOCHS = 3


def teachers_of(run: subprocess.Popen) -> set[int]:
    """Processes that a run has started and that hold the teacher stage of a run with a cache."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):  # the run ended meanwhile
        for process in psutil.Process(run.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "CachedTeacherStage" in " ".join(process.cmdline()):
                    found.add(process.pid)
    return found


@pytest.mark.ray
@pytest.mark.thorough
def test_a_killed_run_in_a_bucket_with_a_response_cache(s3, slides, tmp_path, run_alone, capsys):
    """S3 is reached through the environment, which the runs inherit."""
    for slide in slides:
        files.write_bytes(files.join(s3, "slides", slide.name), slide.read_bytes())
    folder, log = files.join(s3, "my runs", "a b"), tmp_path / "log"
    checkpoints = Checkpoints(files.join(folder, "checkpoints"))
    settings = dict(train__epochs=EPOCHS, train__checkpoint_every_steps=2, readers__cache_folder=tmp_path / "cache")
    settings |= dict(cache__uri=f"{s3}/cache", cache__keep="true", cache__budget_gb=0.1)
    # One teacher, and so little room on the way that the later epochs are read while they are trained.
    settings |= dict(pool__max_actors=1, ray__stream_gb=0.006)
    first = run_alone(arguments([f"{s3}/slides/*.svs"], folder, **settings), log)
    wait_for(lambda: files.exists(files.join(folder, "checkpoints", "latest.json")), first, log)
    kill_group(first)
    num_tiles = json.loads(files.read_bytes(files.join(folder, "manifest", "index.json")))["num_tiles"]
    assert 0 < len(checkpoints.latest_cursor().done) < num_tiles, "killed in the first epoch"

    argv = arguments([f"{s3}/slides/*.svs"], folder, workers__num_workers=2, **settings)
    second = run_alone(argv, log)
    pool, num_done, is_gone = set(), 0, False
    while second.poll() is None:
        alive = teachers_of(second)
        pool = pool or alive
        with contextlib.suppress(StorageError):  # the checkpoint may be replaced and deleted while it is read
            num_done = len(checkpoints.latest_cursor().done)
        is_gone |= bool(pool) and not alive & pool and num_done < 2 * num_tiles
        time.sleep(0.2)
    assert second.returncode == 0, log.read_text()[-3000:]
    assert is_gone, "the pool of the first epoch is gone while most of the later ones is still to be read"

    cursor = checkpoints.latest_cursor()
    assert cursor.done.pairs() == [[0, EPOCHS * num_tiles]] and num_tiles > 50
    assert cursor.counts == {epoch: [num_tiles, 0, 0] for epoch in range(EPOCHS)}
    assert cursor.meters["rows"] == EPOCHS * num_tiles
    assert 0 < cursor.meters["answered"] <= num_tiles, "no tile is answered twice, whatever was killed"
    throughput = json.loads(files.read_bytes(files.join(folder, "throughput.json")))
    assert throughput["stages"]["teacher"]["answered_share"] <= 1 / EPOCHS
    (complete,) = [uri for uri in files.list_files(f"{s3}/cache") if uri.endswith("complete.json")]
    assert "response cache" in log.read_text() and files.parent(complete) in log.read_text()

    accounts = json.loads(files.read_bytes(files.join(folder, "accounting.json")))["epochs"]
    assert [row["trained"] for row in accounts] == [row["manifest"] for row in accounts] == EPOCHS * [num_tiles]
    assert {spec.name for spec in load_exported(files.join(folder, "exported")).responses} == {"np", "hv"}
    assert b"data:image/png" in files.read_bytes(files.join(folder, "report.html"))
    assert files.read_bytes(files.join(folder, "metrics.jsonl")).count(b"\n") > 2
    assert any("events" in name for name in files.list_dir(files.join(folder, "tensorboard")))
    cached = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.svs"))
    assert cached == sum(slide.stat().st_size for slide in slides), "each slide was downloaded once"
    assert "test" not in files.read_bytes(files.join(folder, "config.yaml")).decode().split(), "no credentials in the config"

    assert pretrain.main(argv) == 0
    assert "nothing to do" in capsys.readouterr().out
