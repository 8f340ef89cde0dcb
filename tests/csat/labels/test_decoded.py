"""Samples are decoded at the working resolution and travel as Arrow rows without a copy; those that cannot be are rows too."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.contract import Decoded, Sample
from csat.labels.datasets.registry import read_dataset
from csat.labels.decoded import ARRAYS, SCHEMA, DecodedTables, SampleDecoder, to_row
from csat.tasks import Task
from tests.support.labelled_toy import ListSource, draw_nuclei


@pytest.fixture
def pairs(tmp_path):
    """A folder of images and numbered nuclei, as `pairs` has it; (samples, what was written)."""
    written = {}
    for index, size in enumerate(((40, 60), (33, 47), (64, 64))):
        drawn = written[f"{index}.png"] = draw_nuclei(np.random.default_rng(index), size)
        for folder, pixels in (("images", drawn.image), ("masks", drawn.instances.astype(np.uint16))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / folder / f"{index}.png")
    samples = read_dataset("pairs", str(tmp_path), task=Task.NUCLEI, options={"mpp": 0.25}).samples
    return list(samples), [written[sample.key.rsplit("/", 1)[1]] for sample in samples]


def tables_of(rows, sizes=(1, 2)) -> list[pa.Table]:
    """The rows in several tables, as several tasks make them."""
    cuts = np.cumsum(sizes)
    parts = [rows[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    return [pa.Table.from_pylist(part, schema=SCHEMA) for part in parts if part]


def test_decoded_as_they_are(pairs):
    samples, written = pairs
    decoder = SampleDecoder(samples, mpp=None, whole_px=None)
    for index, drawn in enumerate(written):
        decoded = decoder.get(index)
        assert np.array_equal(decoded.image, drawn.image)
        assert np.array_equal(decoded.instances, drawn.instances)


def test_brought_to_a_coarser_resolution(pairs):
    samples, written = pairs
    decoded = SampleDecoder(samples, mpp=0.5, whole_px=None).get(0)
    height, width = written[0].image.shape[:2]
    assert decoded.image.shape == (height // 2, width // 2, 3)
    assert decoded.instances.shape == (height // 2, width // 2)
    blocks = written[0].image.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    np.testing.assert_allclose(decoded.image, blocks, atol=0.5)
    assert np.array_equal(decoded.instances, written[0].instances[1::2, 1::2])
    assert decoded.scale == 0.5


def test_a_sample_of_another_resolution_is_scaled_by_its_own(pairs):
    samples, _ = pairs
    decoder = SampleDecoder([samples[2], replace(samples[2], mpp=0.6)], mpp=0.5, whole_px=None)
    assert decoder.get(0).image.shape[:2] == (32, 32)
    assert decoder.get(1).image.shape[:2] == (77, 77), "a little larger: 64 * 0.6 / 0.5"
    assert (decoder.get(0).scale, decoder.get(1).scale) == (0.5, 1.2)


def test_images_seen_whole_are_kept_no_larger_than_that_needs(pairs):
    samples, _ = pairs
    decoder = SampleDecoder(samples, mpp=None, whole_px=16)
    assert decoder.get(0).image.shape[:2] == (24, 36), "the shorter edge at 1.5 tiles, the shape kept"
    assert SampleDecoder(samples, mpp=None, whole_px=100).get(0).image.shape[:2] == (40, 60), "never enlarged"
    assert SampleDecoder(samples, mpp=1.0, whole_px=16).get(0).image.shape[:2] == (10, 15), "both: the smaller"
    assert [SampleDecoder(samples, mpp=mpp, whole_px=16).get(0).scale for mpp in (None, 1.0)] == [0.6, 0.25]


@pytest.mark.parametrize("whole_px", [None, 16])
def test_rows_and_back_without_a_copy(pairs, whole_px):
    samples, written = pairs
    decoder = SampleDecoder(samples, mpp=None, whole_px=whole_px)
    tables = tables_of([to_row(index, decoder) for index in range(3)])
    source = DecodedTables(tables)
    for index in (2, 0, 1):
        there, here = source.get(index), decoder.get(index)
        assert there.scale == here.scale == (1.0 if whole_px is None else 24 / min(written[index].image.shape[:2]))
        for name in ARRAYS:
            one, other = getattr(there, name), getattr(here, name)
            assert (one is None) == (other is None)
            if one is not None:
                assert np.array_equal(one, other)
                assert one.dtype == other.dtype
                assert not one.flags.owndata and not one.flags.writeable
    assert source.unreadable() == {}


def test_what_cannot_be_read_is_a_row_with_its_reason(pairs, tmp_path):
    samples, _ = pairs
    (tmp_path / "images" / "1.png").write_bytes(b"not a picture")
    (tmp_path / "images" / "2.png").unlink()
    decoder = SampleDecoder(samples, mpp=None, whole_px=None)
    source = DecodedTables(tables_of([to_row(index, decoder) for index in range(3)]))
    assert source.get(0).image.shape == (40, 60, 3)
    reasons = source.unreadable()
    assert reasons.keys() == {1, 2}
    assert reasons[1].startswith("unreadable: ")
    assert reasons[2].startswith("missing: ")
    for index in (1, 2):
        with pytest.raises(SlideError) as caught:
            source.get(index)
        assert f"{caught.value.reason}: {caught.value}" == reasons[index]


def test_a_mask_of_another_size_is_not_a_row_but_an_error(pairs, tmp_path):
    samples, _ = pairs
    Image.fromarray(np.zeros((40, 59), np.uint8)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(DatasetError, match="60 x 40 px and its mask 59 x 40 px"):
        to_row(0, SampleDecoder(samples, mpp=None, whole_px=None))


def test_bytes_are_counted():
    drawn = draw_nuclei(np.random.default_rng(0), (10, 20))
    assert drawn.num_bytes == 200 * (3 + 1 + 4 + 1)
    assert Decoded(image=drawn.image).num_bytes == 600


def test_a_source_is_anything_with_get():
    row = to_row(1, ListSource([Decoded(image=np.zeros((2, 3, 3), np.uint8)), None]))
    assert (row["index"], row["reason"], row["image"]) == (1, "unreadable: sample 1 is broken on purpose", None)


def test_samples_are_small_and_hashable():
    assert len({Sample(key="a", layout="folder", image="a.png", group="a")}) == 1
