"""pretrain.py with a response cache: killed in the first epoch, gone on with; the teacher pool ends with that epoch."""

import json
import time
from pathlib import Path

import pytest

from csat.runs.checkpoints import Checkpoints
from csat.storage import files
from tests.stories.test_resolution import SETTINGS as RESOLUTION
from tests.support.verbs import arguments, kill_group
from workflows import pretrain

EPOCHS = 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("{}", "in another view"),
        ('{"flips_and_rotations": false}', "in another colours"),
    ],
)
def test_views_that_differ_by_epoch_are_refused(slides, tmp_path, capsys, options, words):
    settings = {**RESOLUTION, "method__options": options, "cache__uri": tmp_path / "cache"}
    assert pretrain.main(arguments(slides, tmp_path / "run", **settings)) == 2
    message = capsys.readouterr().err
    assert words in message and "leave --cache.uri out" in message
    assert not (tmp_path / "cache").exists()


def teachers_alive() -> set[int]:
    """Processes of this machine that hold the teacher stage of a run with a cache."""
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and b"CachedTeacherStage" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.ray
@pytest.mark.thorough
def test_a_killed_run_goes_on_and_the_pool_ends_with_the_first_epoch(slides, tmp_path, run_alone):
    folder, log = tmp_path / "run", tmp_path / "log"
    checkpoints = Checkpoints(str(folder / "checkpoints"))
    settings = dict(train__epochs=EPOCHS, train__checkpoint_every_steps=2, cache__uri=tmp_path / "cache", cache__budget_gb=0.1)
    first = run_alone(arguments(slides, folder, **settings), log)
    while not (folder / "checkpoints" / "latest.json").exists():
        assert first.poll() is None, log.read_text()[-3000:]
        time.sleep(0.2)
    kill_group(first)
    num_tiles = json.loads((folder / "manifest" / "index.json").read_text())["num_tiles"]
    assert 0 < len(checkpoints.latest_cursor().done) < num_tiles, "killed in the first epoch"

    second = run_alone(arguments(slides, folder, workers__num_workers=2, **settings), log)
    of_first_epoch, had_ended = set(), False
    while second.poll() is None:
        alive, num_done = teachers_alive(), len(checkpoints.latest_cursor().done)
        if num_done < num_tiles:
            of_first_epoch |= alive
        elif num_done < EPOCHS * num_tiles:
            had_ended |= not alive & of_first_epoch
        time.sleep(0.3)
    assert second.returncode == 0, log.read_text()[-3000:]
    assert of_first_epoch and had_ended, "the teacher's actors are gone while the later epochs are trained"

    cursor = checkpoints.latest_cursor()
    assert cursor.done.pairs() == [[0, EPOCHS * num_tiles]]
    assert cursor.counts == {epoch: [num_tiles, 0, 0] for epoch in range(EPOCHS)}
    assert cursor.meters["rows"] == EPOCHS * num_tiles
    assert 0 < cursor.meters["answered"] <= num_tiles, "no tile is answered twice, whatever was killed"
    share = json.loads((folder / "throughput.json").read_text())["stages"]["teacher"]["answered_share"]
    assert share <= 1 / EPOCHS
    (complete,) = [uri for uri in files.list_files(str(tmp_path / "cache")) if uri.endswith("complete.json")]
    assert "response cache" in log.read_text() and files.parent(complete) in log.read_text()
