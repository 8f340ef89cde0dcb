"""A prediction that loses a node, and one whose disk is full: the files are those of a prediction that nobody disturbed."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from csat.prediction.layout import Layout
from csat.slides.synthetic import make_slides
from tests.cluster.nodes import BIN
from tests.failures.lab import Lab
from tests.support.predicting import arguments, check_accounts, contents
from tests.support.verbs import ROOT, kill_group

pytestmark = [pytest.mark.ray, pytest.mark.thorough]

DISK_BYTES = 8 * 2**20
LIMIT_S = 250.0


class Prediction:
    """`predict.py` on the lab's cluster."""

    def __init__(self, lab: Lab, slides: list[Path], folder: Path):
        settings = {"network__batch_size": 4, "data__min_tissue": 0.0, "ray__address": lab.cluster().address}
        self.argv = arguments(slides, folder, **settings)
        self.lab, self.folder, self.log = lab, folder, lab.folder / f"{folder.name}.log"
        self.layout = Layout(str(folder))
        self.driver: subprocess.Popen | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            self.driver = subprocess.Popen(
                [str(BIN / "python"), "workflows/predict.py", *self.argv],
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=self.lab.cluster().variables,
            )

    def num_answered(self) -> int:
        """Tiles of slides that are not done, and some more for each slide that is."""
        return sum(map(len, self.layout.parts.done().values())) + 1000 * len(self.layout.done())

    def wait_until_it_answers(self) -> None:
        """Until there are a few more answers than now."""
        before, deadline = self.num_answered(), time.monotonic() + LIMIT_S
        while self.num_answered() <= before + 12:
            assert self.driver.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def end(self) -> int:
        """Its exit code."""
        return self.driver.wait(timeout=LIMIT_S)

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def status(self) -> dict:
        return json.loads((self.folder / "status.json").read_text())


@pytest.fixture(scope="module")
def lab():
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def slides(lab):
    return make_slides(lab.folder / "many", num_slides=3, size_px=768, seed=8)


@pytest.fixture(scope="module")
def struck(lab, slides):
    """A prediction of which a node dies, not the driver's own; Ray's actor for statistics lies where the driver does."""
    prediction = Prediction(lab, slides, lab.folder / "struck")
    prediction.start()
    try:
        prediction.wait_until_it_answers()
        cluster = lab.cluster()
        titles = {node.pid: cluster.titles(node) for node in cluster.nodes}
        others = [node for node in cluster.nodes if "_StatsActor" not in titles[node.pid] and "MapWorker" in titles[node.pid]]
        assert others, titles
        cluster.kill_node(others[0])
        cluster.add_node()
        prediction.wait_until_it_answers()
        assert prediction.end() == 0, prediction.said()
    finally:
        kill_group(prediction.driver)
    return prediction


def test_a_prediction_outlives_a_node(struck, slides):
    assert struck.status() == {"state": "finished"} and len(struck.layout.done()) == len(slides)
    accounts = check_accounts(lambda name: json.loads((struck.folder / name).read_text()))
    assert accounts["tiles"]["predicted"] == accounts["tiles"]["manifest"] > 200


def test_a_full_disk_ends_it_with_a_sentence_and_with_room_it_resumes(lab, struck, slides):
    """And it ends with the bytes of the other prediction."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs the right to mount a small file system")
    disk = lab.folder / "small-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    prediction = Prediction(lab, slides, disk / "full")
    try:
        prediction.start()
        prediction.wait_until_it_answers()
        ballast, filled_at = disk / "ballast", time.monotonic()
        while prediction.driver.poll() is None:  # what the run frees, others take
            _fill(ballast)
            assert time.monotonic() < filled_at + 120, prediction.said()
            time.sleep(0.05)
        assert prediction.end() in (1, 2) and "No space left" in prediction.said(), prediction.said()
        ballast.unlink()
        answered = prediction.num_answered()
        assert answered > 12 and prediction.status()["state"] != "finished"
        prediction.start()
        assert prediction.end() == 0 and "INFO resuming: " in prediction.said(), prediction.said()
        assert contents(prediction.folder) == contents(struck.folder) and prediction.status() == {"state": "finished"}
    finally:
        kill_group(prediction.driver)
        subprocess.run(["umount", "-l", str(disk)], check=True)


def _fill(ballast: Path) -> None:
    """All of the disk that is free."""
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
