"""One of two teachers loops for ever on a tile: the run ends with an error that names it, and its tiles are safe."""

import json
import re
import time

import pytest

from csat.runs.checkpoints import Checkpoints
from tests.failures.scripted import Hangs, save_teacher
from tests.support.verbs import arguments

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

STALL_TIMEOUT_S = 10


@pytest.fixture
def hanging_teacher(tmp_path):
    return save_teacher(Hangs(), tmp_path / "hangs.pt")


@pytest.fixture
def images(tmp_path):
    """Images of one tile each; one of them hangs the teacher."""
    import cv2
    import numpy as np

    rng, folder = np.random.default_rng(0), tmp_path / "images"
    folder.mkdir()
    for index in range(48):
        image = rng.integers(1, 255, (64, 64, 3), dtype=np.uint8)
        image[:, :, 0] = 120  # tissue, to whoever looks for it
        if index == 7:
            image[0, 0] = 0
        cv2.imwrite(str(folder / f"{index:02d}.png"), image)
    return folder


def test_a_teacher_that_hangs_ends_in_an_error_within_the_stall_timeout(hanging_teacher, images, tmp_path, run_alone):
    folder, log = tmp_path / "run", tmp_path / "log"
    settings = dict(teachers__nuclei="stain", teachers__stuck="torchscript", teachers__stuck__weights=hanging_teacher)
    settings |= {f"teachers__{name}__pool__cpus_per_actor": 0.25 for name in ("nuclei", "stuck")}
    settings |= dict(teachers__stuck__pool__max_actors=1, teachers__stuck__pool__batch_size=16)
    settings |= dict(data__source_mpp=0.5, workers__max_failures=0, train__checkpoint_every_steps=1)
    settings |= dict(ray__stall_timeout_s=STALL_TIMEOUT_S)
    started = time.monotonic()
    process = run_alone(arguments([images], folder, **settings), log)
    code = process.wait(timeout=280)
    said = log.read_text(errors="replace")
    assert code == 1, said[-3000:]
    assert "training failed" in said and "What was committed is safe" in said, said[-3000:]
    told = said.rsplit("training failed", 1)[1]
    # Where the machine is slow a second batch waits at the actor by then.
    assert re.search(r"waited for TeacherStage_stuck \([12] at work\)\. Raise --ray\.stall_timeout_s", told), said[-3000:]
    assert "execution_no_progress" not in told and "RAY_DATA" not in told, "not Ray's own setting"
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    total = json.loads((folder / "manifest" / "index.json").read_text())["num_tiles"]
    assert len(Checkpoints(str(folder / "checkpoints")).latest_cursor().done) < total
    print(f"ended after {time.monotonic() - started:.0f} s")
