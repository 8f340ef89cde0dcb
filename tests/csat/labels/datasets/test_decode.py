import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from csat.errors import DatasetError, SlideError
from csat.labels.datasets.decode import (
    find_images,
    first_folder,
    missing_layout,
    read_binary,
    read_classes,
    read_instances,
    read_label_image,
    relative_key,
    stem_of,
)

LABELS = np.array([[0, 1, 2], [7, 200, 0]], np.uint8)


def saved(tmp_path, name, image):
    image.save(tmp_path / name)
    return str(tmp_path / name)


def test_a_palette_gives_its_indices_not_its_colours(tmp_path):
    image = Image.fromarray(LABELS)
    palette = image.convert("P")
    palette.putdata(LABELS.ravel().tolist())
    palette.putpalette([255 - i // 3 for i in range(768)])
    assert (read_label_image(saved(tmp_path, "a.png", palette)) == LABELS).all()


def test_sixteen_bits_stay(tmp_path):
    labels = LABELS.astype(np.uint16) * 300
    assert (read_label_image(saved(tmp_path, "a.png", Image.fromarray(labels))) == labels).all()
    tifffile.imwrite(tmp_path / "a.tif", labels)
    found = read_label_image(str(tmp_path / "a.tif"))
    assert found.dtype == np.uint16 and (found == labels).all()


def test_one_bit_is_0_and_1(tmp_path):
    found = read_label_image(saved(tmp_path, "a.png", Image.fromarray(LABELS > 0)))
    assert found.dtype == np.uint8 and (found == (LABELS > 0)).all()


def test_grey_saved_as_colour_is_taken_and_colours_are_not(tmp_path):
    grey = np.stack([LABELS] * 3, 2)
    assert (read_label_image(saved(tmp_path, "a.png", Image.fromarray(grey))) == LABELS).all()
    with_alpha = np.dstack([grey, np.full(LABELS.shape, 255, np.uint8)])
    assert (read_label_image(saved(tmp_path, "b.png", Image.fromarray(with_alpha))) == LABELS).all()
    grey[0, 0, 1] = 9
    with pytest.raises(SlideError, match="one whole number per pixel, and this is uint8 2 x 3 x 3"):
        read_label_image(saved(tmp_path, "c.png", Image.fromarray(grey)))


def test_floats_are_no_labels(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", LABELS.astype(np.float32))
    with pytest.raises(SlideError, match="this is float32 2 x 3"):
        read_label_image(str(tmp_path / "a.tif"))


def test_broken_empty_and_missing_masks(tmp_path):
    for name, data, reason in (("a.png", b"", "unreadable"), ("b.png", b"no image", "unreadable"), ("c.png", None, "missing")):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(SlideError, match=name) as caught:
            read_label_image(str(tmp_path / name))
        assert caught.value.reason == reason


def test_classes_and_instances_have_their_ranges(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 300]], np.uint16))
    tifffile.imwrite(tmp_path / "b.tif", np.array([[0, -1]], np.int16))
    with pytest.raises(DatasetError, match="a.tif: classes are numbers from 0 to 255, found 0 to 300"):
        read_classes(str(tmp_path / "a.tif"))
    with pytest.raises(DatasetError, match="b.tif: objects are numbered from 1, 0 is background, found -1 to 0"):
        read_instances(str(tmp_path / "b.tif"))
    instances = read_instances(str(tmp_path / "a.tif"))
    assert instances.dtype == np.int32 and instances.tolist() == [[0, 300]]


def test_names(tmp_path):
    assert stem_of("/data/a.b/train_1.final.png") == "train_1.final"
    assert relative_key("/data/set/a/b.png", "/data/set/") == "a/b.png"
    assert relative_key("s3://bucket/set/a.h5", "s3://bucket/set", 7) == "a.h5#7"
    assert relative_key("/elsewhere/b.png", "/data/set") == "/elsewhere/b.png"
    assert relative_key("/data/settle/b.png", "/data/set") == "/data/settle/b.png"


def test_folders_and_images(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name in ("b/z.PNG", "b/deep/a.tif", "b/notes.txt", "b/._z.png"):
        (tmp_path / name).write_bytes(b"")
    assert find_images(str(tmp_path)) == [str(tmp_path / "b/deep/a.tif"), str(tmp_path / "b/z.PNG")]
    assert first_folder(str(tmp_path), "a", "b") == str(tmp_path / "b")
    assert first_folder(str(tmp_path), "a", "") == str(tmp_path)
    assert first_folder(str(tmp_path), "a") is None


def test_a_misfit_lists_some_of_what_is_there(tmp_path):
    for number in range(9):
        (tmp_path / f"file{number}.txt").write_bytes(b"")
    message = str(missing_layout("glas", str(tmp_path), looked_for="Grade.csv", advice="Look elsewhere"))
    assert message == (
        f"data set 'glas': {tmp_path} does not fit: looked for Grade.csv; found file0.txt, file1.txt, file2.txt, file3.txt, "
        "file4.txt, file5.txt and 3 more. Look elsewhere"
    )
    message = str(missing_layout("glas", str(tmp_path / "file0.txt"), looked_for="Grade.csv", advice="Look elsewhere"))
    assert "that is a file" in message


def test_a_huge_mask_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("csat.slides.raster.MAX_IMAGE_PX", 5)
    data = io.BytesIO()
    Image.fromarray(LABELS).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue())
    with pytest.raises(SlideError, match="3 x 2 px in one level are more than the 5"):
        read_label_image(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.jpg", {"quality": 95}),
        ("a.png", {"format": "JPEG", "quality": 95}),  # by its content, not by its name
        ("a.tif", {"compression": "jpeg"}),
        ("a.webp", {"quality": 95}),
    ],
)
def test_masks_with_loss_are_refused(tmp_path, name, options):
    mask = Image.fromarray(np.kron(LABELS > 0, np.full((8, 8), 255, np.uint8)))
    with pytest.raises(DatasetError, match=f"{name}: is stored with loss"):
        read_label_image(_with(tmp_path, name, mask, options))


def test_formats_that_can_lose_and_did_not(tmp_path):
    assert (read_label_image(_with(tmp_path, "a.webp", Image.fromarray(LABELS), {"lossless": True})) == LABELS).all()
    assert (read_label_image(_with(tmp_path, "a.tif", Image.fromarray(LABELS), {"compression": "tiff_lzw"})) == LABELS).all()


def test_yes_or_no(tmp_path):
    for foreground in (1, 255):
        mask = np.where(LABELS > 0, foreground, 0).astype(np.uint8)
        found = read_binary(saved(tmp_path, "a.png", Image.fromarray(mask)), advice="")
        assert found.dtype == bool and (found == (LABELS > 0)).all()
    with pytest.raises(DatasetError, match="holds 0 and 1, or 0 and 255; found 0, 1, 2, 7, 200. Do so"):
        read_binary(saved(tmp_path, "a.png", Image.fromarray(LABELS)), advice="Do so")


def _with(tmp_path, name, image, options):
    image.save(tmp_path / name, **options)
    return str(tmp_path / name)
