"""Slides that crash the process that reads them: given up after two crashes, and only those."""

import faulthandler
import multiprocessing
import os
import signal

import numpy as np
import pytest

from csat.columns import OK, QUARANTINED, REASON, STATUS
from csat.slides.crashes import CrashLog
from csat.slides.synthetic import make_slides
from csat.tiles import reader as tile_reader
from csat.tiles.reader import TileReader


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    return [str(path) for path in make_slides(tmp_path_factory.mktemp("slides"), num_slides=2, size_px=256, seed=1)]


def rows(slides):
    """Two tiles of each slide."""
    count = 2 * len(slides)
    zeros = np.zeros(count, np.int64)
    columns = dict(slide=np.repeat(slides, 2), kind=np.array(["wsi"] * count), x_px=np.tile([0, 64], len(slides)), y_px=zeros)
    return columns | dict(level=zeros, read_px=zeros + 64, row=zeros, aspect=zeros + 1)


def read_in_a_process(slides, folder, die, results):
    """Reads all rows; `die` is called in the midst of the first slide, as a C library would."""
    read_tile = tile_reader.read_tile

    def spoiled(reader, **where):
        if reader._uri == slides[0]:
            die()
        return read_tile(reader, **where)

    tile_reader.read_tile = spoiled
    reader = TileReader(tile_px=64, crashes=CrashLog("run", folder))
    answer = reader(rows(slides))
    results.put((answer[STATUS].tolist(), answer[REASON].tolist()))


def again(slides, folder, die):
    """(exit code, what came of it) of one more process."""
    context = multiprocessing.get_context("fork")  # starts in milliseconds
    results = context.SimpleQueue()
    process = context.Process(target=read_in_a_process, args=(slides, str(folder), die, results))
    process.start()
    process.join(60)
    return process.exitcode, None if results.empty() else results.get()


def test_a_slide_that_crashes_its_reader_is_given_up_and_the_others_are_read(slides, tmp_path):
    codes = [again(slides, tmp_path, faulthandler._sigsegv)[0] for _ in range(2)]
    assert codes == [-signal.SIGSEGV] * 2
    code, (status, reasons) = again(slides, tmp_path, faulthandler._sigsegv)
    assert code == 0 and status == [QUARANTINED, QUARANTINED, OK, OK]
    assert reasons[0].startswith("unreadable: ") and "crashed 2 processes" in reasons[0]


def test_a_process_that_is_killed_blames_nobody(slides, tmp_path):
    for _ in range(4):
        code, _ = again(slides, tmp_path, lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert code == -signal.SIGKILL
    code, (status, _) = again(slides, tmp_path, lambda: None)
    assert code == 0 and status == [OK] * 4


def test_a_crash_between_two_batches_blames_nobody(slides, tmp_path):
    def read_and_crash():
        TileReader(tile_px=64, crashes=CrashLog("run", str(tmp_path)))(rows(slides))
        faulthandler._sigsegv()

    for _ in range(2):
        process = multiprocessing.get_context("fork").Process(target=read_and_crash)
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGSEGV
    assert again(slides, tmp_path, lambda: None)[1][0] == [OK] * 4


def test_another_run_tries_again(slides, tmp_path):
    for _ in range(2):
        again(slides, tmp_path, faulthandler._sigsegv)
    other = TileReader(tile_px=64, crashes=CrashLog("another run", str(tmp_path)))(rows(slides))
    assert other[STATUS].tolist() == [OK] * 4
    faulthandler.enable()  # this process's own reader has turned the handler to its file
