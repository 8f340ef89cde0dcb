"""What goes wrong without a kill: a store that fails, files that are none, a teacher that errs, a disk or memory that is full.

Each run meets its hazard from its first minute or at a moment drawn from the seed; all of it is real: requests are refused by
a proxy, the disk is a small file system, and Ray spills.
"""

import random
import shutil
import signal
import struct
import subprocess
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from csat.slides.synthetic import make_slides
from tests.failures.cluster import Cluster
from tests.failures.fuzz import mutate
from tests.failures.lab import LONGER, NUM_EPOCHS, Lab, Outcome, SmallRun
from tests.failures.proxy import Fault
from tests.failures.scripted import Errs, save_teacher
from tests.support.verbs import SMALL

TILE_PX = SMALL["data.tile_px"]
DISK_BYTES = 48 * 2**20
SPILL_GB = 0.05
SPILLS = {"RAY_object_spilling_threshold": "0.001", "RAY_min_spilling_size": "1"}


def meet(lab: Lab, hazard: str, seed: int) -> Outcome:
    """One run with one hazard.

    Raises:
        AssertionError: the run took longer than it may, or ended otherwise than promised; with the log's end.
    """
    meets = MERGED[hazard] if hazard in MERGED else HAZARDS[hazard][1]
    run, details = meets(lab, f"{hazard}-{seed}", random.Random(f"{hazard}-{seed}"))
    return Outcome(fault=hazard, seed=seed, **run.count(), **details)


# ----------------------------------------------------------------------------------------------------------------- the store


def busy_store(lab: Lab, name: str, rng: random.Random, **settings: Any) -> tuple[SmallRun, dict]:
    """Slides and run folder in a bucket of which every tenth answer is a 503, a 500, broken off, or late."""
    bucket, spoiled, lock = lab.bucket(), Counter(), threading.Lock()
    faults = {"503": Fault(status=503), "500": Fault(status=500), "cut": Fault(cut_after=200), "late": Fault(pause_s=1.0)}

    def decide(method: str, path: str) -> Fault | None:
        with lock:
            if rng.random() > 0.1:
                return None
            kind = rng.choice(list(faults))
            spoiled[kind] += 1
            return faults[kind]

    slides = [bucket.put(f"{name}/{path.name}", path.read_bytes()) for path in lab.slides]
    run = lab.run_in_bucket(name, slides=slides, **settings)
    cluster = lab.cluster(**bucket.variables, **(SPILLS if settings else {}))
    first, bucket.proxy.faults = len(bucket.proxy.requests), decide
    try:
        run.start(cluster, num_workers=rng.choice([1, 2]))
        run.wait_until_counted()
    finally:
        bucket.proxy.faults = lambda method, path: None
    assert not run.quarantine() and min(spoiled[kind] for kind in faults) > 0, spoiled
    return run, dict(note=f"{spoiled.total()} of {len(bucket.proxy.requests) - first:,} requests spoiled")


def changing_objects(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """During the run one slide vanishes from the bucket and another one is replaced; the cache has room for one slide."""
    bucket = lab.bucket()
    paths = make_slides(lab.folder / name, num_slides=3, size_px=512, seed=rng.randrange(1000))
    (other,) = make_slides(lab.folder / f"{name}-other", num_slides=1, size_px=512, seed=rng.randrange(1000, 2000))
    slides = [bucket.put(f"{name}/{path.name}", path.read_bytes()) for path in paths]
    largest = max(path.stat().st_size for path in [*paths, other])
    run = lab.run_in_bucket(name, slides=slides, readers__cache_gb=1.2 * largest / 1e9, **LONGER)
    first = len(bucket.proxy.requests)
    run.start(lab.cluster(**bucket.variables), num_workers=rng.choice([1, 2]))
    run.wait_until_done(rng.uniform(0.02, 0.3))
    vanishing, replaced = rng.sample([path.name for path in paths], 2)
    bucket.delete(f"{name}/{vanishing}")
    bucket.put(f"{name}/{replaced}", other.read_bytes())
    share = run.committed()[1]
    run.wait_until_counted()
    rows = run.quarantine()
    assert rows and {row["slide"].rsplit("/", 1)[1] for row in rows} == {vanishing}, rows[:3]
    assert {row["reason"] for row in rows} == {"missing"}, rows[:3]
    fetched = sum(method == "GET" and ".svs" in path for method, path in bucket.proxy.requests[first:])
    return run, dict(note=f"{fetched} downloads of slides", done_at_kill=round(share, 3))


def store_outage(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """From some moment on no checkpoint can be written; later the store is well and the command is given again."""
    bucket = lab.bucket()
    slides = [bucket.put(f"{name}/{path.name}", path.read_bytes()) for path in lab.slides]
    run = lab.run_in_bucket(name, slides=slides, workers__max_failures=0)
    cluster, num_workers = lab.cluster(**bucket.variables), rng.choice([1, 2])
    run.start(cluster, num_workers=num_workers)
    run.wait_until_done(rng.uniform(0.02, 0.5))
    refused = Fault(status=503)
    bucket.proxy.faults = lambda method, path: refused if method in ("PUT", "POST") and "checkpoints" in path else None
    share, broken_at = run.committed()[1], time.monotonic()
    try:
        assert run.wait_until_ended() == 1, run.said()
    finally:
        bucket.proxy.faults = lambda method, path: None
    end_s = round(time.monotonic() - broken_at, 1)
    said = run.said(num_chars=10**6)
    assert "training failed: " in said and "cannot write" in said.rpartition("training failed: ")[2], run.said()
    return run, _again(run, cluster, 3 - num_workers, share) | dict(end_s=end_s, note="one error, which names the file")


# ----------------------------------------------------------------------------------------------------- disk and memory


def full_disk(lab: Lab, name: str, rng: random.Random, **given: Any) -> tuple[SmallRun, dict]:
    """Others fill the disk that the run folder is on; once there is room the command is given again.

    Args:
        given: Slides and settings of the run; those of the lab where there are none.
    """
    disk = lab.folder / f"{name}-disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        run = lab.run(name, folder=disk / "run", workers__max_failures=0, **given)
        cluster, num_workers = lab.cluster(), rng.choice([1, 2])
        run.start(cluster, num_workers=num_workers)
        run.wait_until_done(rng.uniform(0.02, 0.5))
        share, filled_at = run.committed()[1], time.monotonic()
        ballast = disk / "ballast"
        while not run.has_ended():  # what the run frees, others take
            _fill(ballast)
            assert time.monotonic() < filled_at + 120, run.said()
            time.sleep(0.05)
        end_s = round(time.monotonic() - filled_at, 1)
        assert run.wait_until_ended() in (1, 2) and "No space left" in run.said(num_chars=10**6), run.said()
        ballast.unlink()
        details = _again(run, cluster, 3 - num_workers, share) | dict(end_s=end_s, note="one error, which says so")
        kept = lab.folder / name
        shutil.copytree(disk / "run", kept)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
    return lab.run(name, folder=kept), details


def spilling(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """Memory for objects is short, so that Ray moves tiles on their way to the disk and back."""
    run = lab.run(name, ray__stream_gb=SPILL_GB, train__checkpoint_every_steps=8)
    run.start(lab.cluster(**SPILLS), num_workers=rng.choice([1, 2]))
    run.wait_until_counted()
    return run, dict(note=_spilled(run))


def busy_store_and_spilling(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """Both in one run."""
    run, details = busy_store(lab, name, rng, ray__stream_gb=SPILL_GB)
    return run, dict(note=f"{details['note']}; {_spilled(run)}")


def _spilled(run: SmallRun) -> str:
    spilled = run.read_json("attempt-001.json")["spilled_bytes"]
    assert spilled, "nothing was spilled"
    return f"{spilled / 1e6:.0f} MB spilled"


# ---------------------------------------------------------------------------------------------------------------- machines


def warned_node(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """A node with a trainer gets SIGTERM, as of a spot machine or a pod. But for this nothing is committed before the end."""
    cluster = lab.cluster()
    never = {"train__checkpoint_every_steps": None, "train__checkpoint_every_s": None}
    run = lab.run(name, train__epochs=60, train__log_every_steps=1, **never)
    run.start(cluster, num_workers=rng.choice([1, 2]))
    run.wait_until_it_trains()
    time.sleep(rng.uniform(0, 5))
    node = cluster.node_of_a_trainer()
    warned_at = time.monotonic()
    node.send_signal(signal.SIGTERM)
    run.wait_until_done(1e-9)
    committed_s, share = round(time.monotonic() - warned_at, 1), run.committed()[1]
    assert node.poll() is None, "the node was gone before anything was committed"
    node.wait(timeout=90)
    cluster.kill_node(node)
    cluster.add_node()
    gone_at = time.monotonic()
    run.wait_until_it_trains()
    recovery_s = round(time.monotonic() - gone_at, 1)
    run.wait_until_counted()
    return run, dict(note=f"committed {committed_s} s after the word", done_at_kill=round(share, 3), recovery_s=recovery_s)


# ------------------------------------------------------------------------------------------- files and teachers that are bad


def bad_files(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """Images of odd modes, files that are no images, and a teacher that raises on some tiles and is NaN on others."""
    given, check = _bad_input(lab, name, rng)
    run = lab.run(name + "-run", **given)
    run.start(lab.cluster(), num_workers=rng.choice([1, 2]))
    run.wait_until_counted()
    return run, dict(note=check(run))


def bad_files_on_a_full_disk(lab: Lab, name: str, rng: random.Random) -> tuple[SmallRun, dict]:
    """Both in one run: what is quarantined is told once, also by a run that ended in the middle and was given again."""
    given, check = _bad_input(lab, name, rng)
    run, details = full_disk(lab, name + "-run", rng, **given)
    return run, details | dict(note=f"{details['note']}; {check(run)}")


def _bad_input(lab: Lab, name: str, rng: random.Random) -> tuple[dict[str, Any], Callable[[SmallRun], str]]:
    """Slides and settings of a run, and what checks its quarantine and says how many files that has."""
    folder = lab.folder / name
    folder.mkdir()
    noise = np.random.default_rng(rng.randrange(2**32))
    good = _write_images(folder, noise)
    broken = _write_broken(folder, noise, lab.slides[0])
    raising, nan = rng.sample(range(100, 140), 5), rng.sample(range(200, 240), 7)
    for numbers, first in ((raising, (0, 0, 0)), (nan, (0, 0, 255))):  # blue comes first in cv2
        for number in numbers:
            image = _noise(noise)
            image[0, 0] = first
            cv2.imwrite(str(folder / f"{number}.png"), image)
    damaged = folder / "damaged.svs"  # may give tiles, some of them unreadable, or none
    damaged.write_bytes(mutate(lab.slides[1].read_bytes(), noise))

    settings = dict(teacher__name="torchscript", teacher__weights=save_teacher(Errs(), lab.folder / f"{name}.pt"))
    settings |= dict(data__source_mpp=0.5, data__min_tissue=0, manifest__holdout_fraction=0)

    def check(run: SmallRun) -> str:
        slides = run.read_json("manifest/index.json")["slides"]
        assert slides["given"] == good + len(broken) + len(raising) + len(nan) + 1, slides
        assert len(broken) <= slides["quarantined"] <= len(broken) + 1, slides
        rows = run.quarantine()
        reasons = Counter(row["reason"] for row in rows if row["slide"] != str(damaged))
        assert reasons == {"teacher_error": len(raising) * NUM_EPOCHS, "teacher_nonfinite": len(nan) * NUM_EPOCHS}, reasons
        assert {row["reason"] for row in rows if row["slide"] == str(damaged)} <= {"unreadable"}, rows
        return f"{slides['quarantined']} files quarantined before the start"

    return dict(slides=[folder], **settings), check


def _write_images(folder: Path, noise: np.random.Generator) -> int:
    """Images that can be read, of every mode; how many."""
    for number in range(24):
        cv2.imwrite(str(folder / f"{number}.png"), _noise(noise))
    pixels = _noise(noise)
    Image.fromarray(pixels).convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels).convert("L").save(folder / "grey.png")
    Image.fromarray(pixels).convert("P").save(folder / "palette.png")
    Image.fromarray(pixels).convert("RGBA").save(folder / "rgba.png")
    cv2.imwrite(str(folder / "16bit.png"), pixels.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "16bit-grey.png"), pixels[..., 0].astype(np.uint16) * 257)
    (folder / "really-a-jpeg.png").write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())
    return 31


def _write_broken(folder: Path, noise: np.random.Generator, slide: Path) -> list[str]:
    """Files that no tile can come from; their names."""
    png = cv2.imencode(".png", _noise(noise))[1].tobytes()
    files = {
        "empty-image.png": b"",
        "empty.svs": b"",
        "text.jpg": b"this is no image",
        "truncated-image.png": png[: len(png) // 3],
        "wrong-extension.svs": png,
        "truncated.svs": slide.read_bytes()[: slide.stat().st_size // 3],
        "bomb.png": _png_of(60_000, 60_000, png),
        "huge.png": _png_of(2**31 - 1, 1, png),
        "too-small.png": cv2.imencode(".png", _noise(noise)[:16, :16])[1].tobytes(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return list(files)


def _png_of(width_px: int, height_px: int, png: bytes) -> bytes:
    """That png, with a header that says it is of this size."""
    header = b"IHDR" + struct.pack(">II", width_px, height_px) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def _noise(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(60, 200, (TILE_PX, TILE_PX, 3), dtype=np.uint8)


def _again(run: SmallRun, cluster: Cluster, num_workers: int, share: float) -> dict:
    """The same command again, to its end."""
    assert run.committed()[1] >= share, "a committed checkpoint is gone"
    started = time.monotonic()
    run.start(cluster, num_workers=num_workers)
    run.wait_until_it_commits()
    recovery_s = round(time.monotonic() - started, 1)
    run.wait_until_counted()
    return dict(done_at_kill=round(share, 3), recovery_s=recovery_s)


def _fill(path: Path) -> None:
    """Append to the file until the disk is full."""
    try:
        with path.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        pass


# What goes wrong: what is promised, and the run that meets it. Neighbours share a cluster where they can.
HAZARDS: dict[str, tuple[str, Callable[[Lab, str, random.Random], tuple[SmallRun, dict]]]] = {
    "bad files": ("what can be read is trained; every other file and tile is quarantined with its reason", bad_files),
    "full disk": ("one error; once there is room the same command resumes", full_disk),
    "busy store": ("the run continues: requests are retried", busy_store),
    "changing objects": (
        "a vanished slide is quarantined as missing, a replaced one is read again",
        changing_objects,
    ),
    "store outage": ("one error; the same command, with another number of workers, resumes", store_outage),
    "spilling": ("the run continues", spilling),
    "warned node": ("the trainers commit before the node goes; the run continues once another node has come", warned_node),
}
# Two at once, in runs that have time for both.
MERGED: dict[str, Callable[[Lab, str, random.Random], tuple[SmallRun, dict]]] = {
    "bad files, full disk": bad_files_on_a_full_disk,
    "busy store, spilling": busy_store_and_spilling,
}
