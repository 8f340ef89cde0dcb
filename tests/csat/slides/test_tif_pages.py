"""Of all the pages of a tif, the picture at full resolution counts; what is no single picture is refused."""

import io

import numpy as np
import pytest
import tifffile

from csat.errors import SlideError
from csat.slides.pixels import decode_image, decode_labels
from tests.support.slide_textures import textured

COLOUR = textured(96, 128)
GREY = np.ascontiguousarray(COLOUR[..., 1])
PLANES = np.ascontiguousarray(np.moveaxis(COLOUR, 2, 0))


def pages(*written, **options) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, **options) as writer:
        for pixels, how in written:
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            writer.write(pixels, **({"photometric": photometric, "metadata": None} | how))
    return buffer.getvalue()


def ome(planes, axes="CYX", **metadata) -> bytes:
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    return pages((planes, {"photometric": photometric, "metadata": {"axes": axes, **metadata}}), ome=True)


def pixels_of(data):
    return decode_image(data, "x")[0]


REDUCED, MASK = {"subfiletype": 1}, {"subfiletype": 4}


@pytest.mark.parametrize(
    "written",
    [
        [(COLOUR[::4, ::4], {}), (COLOUR, {})],  # a thumbnail before it
        [(COLOUR[::2, ::2], REDUCED), (COLOUR, {}), (COLOUR[::4, ::4], {})],
        [(COLOUR, {}), (COLOUR[::2, ::2], REDUCED), (COLOUR[::4, ::4], REDUCED)],  # a pyramid
        [(COLOUR, {}), (COLOUR[:20, :40], {}), (COLOUR[:90, :90], {"subfiletype": 9})],  # label, and an Aperio macro
        [(COLOUR, {}), (GREY > 9, MASK)],
        [(COLOUR, REDUCED)],  # a level that was saved alone
    ],
)
def test_the_full_resolution_counts(written):
    np.testing.assert_array_equal(pixels_of(pages(*written)), COLOUR)


def test_a_mask_with_a_thumbnail_before_it():
    np.testing.assert_array_equal(decode_labels(pages((GREY[::4, ::4], {}), (GREY, {})), "x"), GREY)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([(COLOUR, {}), (COLOUR[:90], {})], "several pictures, of 128 x 96 and 128 x 90 px"),
        ([(COLOUR, {}), (COLOUR[::-1], {})], "a stack of planes .2 along I."),
        ([(GREY, {})] * 3, "a stack of planes .3 along I."),
        (
            [(np.stack([GREY] * 5), {"metadata": {"axes": "ZYX"}, "photometric": "minisblack"})],
            "a stack of planes .5 along Z.",
        ),
    ],
)
def test_what_is_no_single_picture_is_refused(written, message):
    for decode in (decode_image, decode_labels):
        with pytest.raises(SlideError, match=message) as caught:
            decode(pages(*written), "x")
        assert caught.value.reason == "unreadable"


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_planes_that_are_named_red_green_and_blue_are_colours(order):
    names = [("Red", "Green", "Blue")[colour] for colour in order]
    planes = np.ascontiguousarray(PLANES[list(order)])
    np.testing.assert_array_equal(pixels_of(ome(planes, Channel={"Name": names})), COLOUR)
    labels = {"photometric": "minisblack", "metadata": {"axes": "CYX", "Labels": names}}
    np.testing.assert_array_equal(pixels_of(pages((planes, labels), imagej=True)), COLOUR)
    with pytest.raises(SlideError, match="a mask in three planes"):
        decode_labels(ome(planes, Channel={"Name": names}), "x")


def test_the_colours_of_a_microscope_are_one_picture_with_their_label_beside_it():
    written = [
        (PLANES, {"photometric": "minisblack", "metadata": {"axes": "CYX", "Channel": {"Name": ["R", "G", "B"]}}}),
        (COLOUR[:30, :40], {"metadata": {"axes": "YXS"}}),
    ]
    np.testing.assert_array_equal(pixels_of(pages(*written, ome=True)), COLOUR)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ome(PLANES, Channel={"Name": ["DAPI", "FITC", "Cy5"]}), "3 along C, named DAPI, FITC, Cy5"),
        (
            ome(PLANES, Channel={"Name": ["Red", "Green", "Blue"], "Fluor": ["TRITC", "FITC", "DAPI"]}),
            "named TRITC, FITC, DAPI",
        ),
        (ome(PLANES), "a stack of planes .3 along C.,"),
        (ome(PLANES[:2], Channel={"Name": ["Red", "Green"]}), "2 along C, named Red, Green"),
        (ome(np.stack([PLANES] * 2), "ZCYX", Channel={"Name": ["Red", "Green", "Blue"]}), "2 along Z, 3 along C"),
        (ome(np.stack([COLOUR] * 3), "TYXS"), "stack of planes .3 along T."),
    ],
)
def test_other_planes_are_no_colours(data, message):
    with pytest.raises(SlideError, match=message):
        decode_image(data, "x")


def test_colours_in_other_files_are_refused():
    whole = ome(PLANES, Channel={"Name": ["Red", "Green", "Blue"]})
    with tifffile.TiffFile(io.BytesIO(whole)) as file:
        xml = file.ome_metadata.replace("'", '"')
    first, elsewhere = '<TiffData IFD="0" FirstC="0" PlaneCount="1"/>', ""
    for plane in (1, 2):
        uuid = f'<UUID FileName="{plane}.ome.tif">urn:uuid:00000000-0000-0000-0000-00000000000{plane}</UUID>'
        elsewhere += f'<TiffData IFD="0" FirstC="{plane}" PlaneCount="1">{uuid}</TiffData>'
    xml = xml.replace('<TiffData IFD="0" PlaneCount="3"/>', first + elsewhere)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PLANES[0], photometric="minisblack", metadata=None, description=xml)
    with pytest.raises(SlideError, match="colours are in other files"):
        decode_image(buffer.getvalue(), "x")
