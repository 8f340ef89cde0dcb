"""Parts: what was said of tiles comes back once and in order, whatever batches it came in, and however often."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csat.columns import POSITION
from csat.errors import StorageError
from csat.prediction.parts import Parts
from csat.storage import files


def tables(positions):
    """A row a tile, and none, one or two nuclei for each."""
    nuclei = np.repeat(positions, positions % 3)
    return {
        "tiles": pa.table({POSITION: positions, "prob": positions / 7}),
        "nuclei": pa.table({POSITION: nuclei, "name": pa.array([f"n{position}" for position in nuclei], pa.string())}),
    }


def write(parts, first, stop, slide=3):
    positions = np.arange(first, stop)
    return parts.write(slide, tables(positions), positions=positions)


def read(parts, first, stop, slide=3):
    found = list(parts.read(slide, first=first, stop=stop))
    return {name: pa.concat_tables([part[name] for part in found]) for name in ("tiles", "nuclei")}


@settings(max_examples=15)  # each flushes dozens of files to the disk
@given(st.lists(st.tuples(st.integers(10, 49), st.integers(1, 15)), max_size=8), st.integers(1, 20))
def test_every_tile_comes_back_once_and_in_order(tmp_path_factory, again, size):
    """Answered in batches of one size, and some of them again in other batches."""
    parts = Parts(str(tmp_path_factory.mktemp("parts")))
    for first, count in again:
        write(parts, first, min(50, first + count))
    for first in range(10, 50, size):
        write(parts, first, min(50, first + size))
    assert read(parts, 10, 50) == tables(np.arange(10, 50))
    assert parts.done()[3].pairs() == [[10, 50]] and list(parts.done()) == [3]


def test_the_names_tell_what_is_answered(tmp_path):
    parts = Parts(str(tmp_path / "parts"))
    assert parts.done() == {} and list(parts.read(0, first=0, stop=0)) == []
    assert write(parts, 0, 4) > 0
    write(parts, 8, 12)
    write(parts, 12, 20, slide=4)
    (tmp_path / "parts" / "000003" / "notes.txt").write_text("not ours")
    assert {slide: done.pairs() for slide, done in parts.done().items()} == {3: [[0, 4], [8, 12]], 4: [[12, 20]]}
    with pytest.raises(StorageError, match="the tiles 4 to 7 is missing"):
        read(parts, 0, 12)
    with pytest.raises(StorageError, match="the tiles 12 to 15 is missing"):
        write(parts, 4, 8)
        read(parts, 0, 16)
    parts.delete(3)
    assert list(parts.done()) == [4]


def test_a_damaged_part_is_named(tmp_path):
    parts = Parts(str(tmp_path))
    write(parts, 0, 9)
    (file,) = tmp_path.glob("*/*.arrow")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(StorageError, match=f"{file.name} is damaged"):
        read(parts, 0, 9)


def test_the_same_tiles_give_the_same_bytes_in_a_bucket(s3):
    parts = Parts(f"{s3}/out/parts")
    write(parts, 0, 9)
    (file,) = files.list_files(f"{s3}/out/parts")
    before = files.read_bytes(file)
    write(parts, 0, 9)
    assert files.list_files(f"{s3}/out/parts") == [file] and files.read_bytes(file) == before
    assert read(parts, 0, 9) == tables(np.arange(9))
