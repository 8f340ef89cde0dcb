"""What the layouts share: where files are, what is in them, and how a misfit is put into words.

Everything takes URIs, local or remote, and nothing is read before it is asked for.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skimage.measure import label

from csat.errors import DatasetError
from csat.labels.datasets.contract import Sample
from csat.slides.pixels import decode_image, decode_labels
from csat.storage import files
from csat.storage.node_cache import SlideCache, fetch_bytes
from csat.storage.uris import suffix_of
from csat.words import counted, some

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
REMOTE_CONTAINER_CACHE_BYTES = 64 * 2**30  # of downloaded h5, npy and mat files kept on a node
MOST_LISTED = 6  # names that an error shows of a folder, and values of a mask
MOST_PIECES = 2  # of one nucleus: in two where another one lies across it
SPECK_SHARE = 0.1  # of the largest piece: a smaller one is no piece
# How people call the splits of a set → how we do. Compared in lower case.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """Options of a layout that has none."""


def read_image(uri: str, name: str) -> np.ndarray:
    """An image whole.

    Args:
        uri: Of the file.
        name: Named in the errors, such as the sample's key.

    Returns:
        uint8 `[H, W, 3]`, RGB.

    Raises:
        SlideError: "missing" or "unreadable".
        StorageError: the fault is not the file's (no credentials, no network).
    """
    return decode_image(fetch_bytes(uri), name)[0]


def read_label_image(uri: str) -> np.ndarray:
    """The numbers of a mask, of a png, bmp, tif or lossless webp: see `csat.slides.pixels.decode_labels`.

    Raises:
        SlideError: "missing" or "unreadable" (also: colours, floats, too large).
        DatasetError: a lossy format.
        StorageError: the fault is not the file's.
    """
    return decode_labels(fetch_bytes(uri), uri)


def read_classes(uri: str) -> np.ndarray:
    """A mask of classes or types: uint8 `[H, W]`. Raises as `read_label_image`, and DatasetError outside 0 to 255."""
    labels = read_label_image(uri)
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise DatasetError(f"{uri}: classes are numbers from 0 to 255, found {labels.min()} to {labels.max()}")
    return labels.astype(np.uint8)


def read_binary(uri: str, *, advice: str) -> np.ndarray:
    """A mask that says yes or no: bool `[H, W]`. Raises as `read_label_image`.

    Args:
        uri: Of the mask: 0 and 1, or 0 and 255.
        advice: What to try with another one, one sentence without its full stop.

    Raises:
        DatasetError: it holds other numbers.
    """
    labels = read_label_image(uri)
    values = np.unique(labels).tolist()
    if not any(set(values) <= {0, foreground} for foreground in (1, 255)):
        found = some(values, MOST_LISTED)
        raise DatasetError(f"{uri}: a mask that says yes or no holds 0 and 1, or 0 and 255; found {found}. {advice}")
    return labels > 0


def read_instances(uri: str) -> np.ndarray:
    """A mask of numbered objects: int32 `[H, W]`, 0 background. Raises as `read_label_image`, and DatasetError below 0."""
    labels = read_label_image(uri)
    if labels.size and not 0 <= labels.min() <= labels.max() < 2**31:
        raise DatasetError(f"{uri}: objects are numbered from 1, 0 is background, found {labels.min()} to {labels.max()}")
    return labels.astype(np.int32)


def local_container(uri: str) -> AbstractContextManager[Path]:
    """A local path to an h5, npy or mat file, for the context; a remote one is downloaded once per node and kept for a while.

    Raises:
        SlideError: "missing", or "unreadable" (the download keeps failing).
        StorageError: the fault is not the file's (disk full, no credentials).
    """
    return SlideCache(Path(tempfile.gettempdir()) / "csat-containers", REMOTE_CONTAINER_CACHE_BYTES).path(uri)


def find_images(folder_uri: str, passed_over: Counter[str] | None = None) -> list[str]:
    """Image files below a folder, at any depth, as sorted URIs. Empty where there is no such folder.

    Args:
        folder_uri: The folder.
        passed_over: Counts what is below it besides: files by their ending, leftovers (`uris.is_leftover`) by their name.
    """
    paths, leftovers = files.scan(folder_uri)
    images = [uri for uri in paths if uri.lower().endswith(IMAGE_SUFFIXES)]
    if passed_over is not None:
        others = set(paths).difference(images)
        passed_over.update(suffix_of(uri) or "no ending" for uri in others)
        passed_over.update(leftovers)
    return images


def log_passed_over(name: str, root: str, counts: Mapping[str, int]) -> None:
    """One line about what a layout of one's own found and did not take; none where it took everything."""
    if counts:
        logger.info("data set %r: %s: passed over %s", name, root, counted(counts))


def first_folder(root: str, *paths: str) -> str | None:
    """The first of these folders below `root` that exists ("" is `root` itself): downloads unpack one level deeper or not."""
    for path in paths:
        folder = files.join(root, path) if path else root
        if files.is_dir(folder):
            return files.normalise(folder)
    return None


def stem_of(uri: str) -> str:
    """A file's name without its ending."""
    return files.base_name(uri).rpartition(".")[0]


def relative_key(uri: str, root: str, index: int | None = None) -> str:
    """A sample's key: its path below `root`, with `#index` for a part of a file. A file elsewhere keeps its whole URI."""
    uri, root = files.normalise(uri), files.normalise(root).rstrip("/")
    key = uri[len(root) + 1 :] if uri.startswith(f"{root}/") else uri
    return key if index is None else f"{key}#{index}"


def missing_layout(name: str, root: str, *, looked_for: str, advice: str) -> DatasetError:
    """The error of a folder that does not fit its layout: what it looked for, what is there, what to try.

    Args:
        name: Of the data set.
        root: The folder that was given.
        looked_for: What belongs into it, such as "camelyonpatch_level_2_split_{train,valid,test}_{x,y}.h5".
        advice: The next thing to try, one sentence without its full stop.
    """
    if files.info(root) is not None:
        found = "that is a file"
    else:
        children = files.list_dir(root)
        nothing = "the folder is empty" if files.is_dir(root) else "there is no such folder"
        found = f"found {some(map(files.base_name, children), MOST_LISTED)}" if children else nothing
    return DatasetError(f"data set {name!r}: {root} does not fit: looked for {looked_for}; {found}. {advice}")


def check_same_size(image: np.ndarray, mask: np.ndarray, sample: Sample) -> None:
    """Refuse a mask of another size than its image. Done for every sample by `registry.load_sample`.

    Args:
        image: `[H, W, 3]`.
        mask: `[H, W]`.
        sample: Both are of.

    Raises:
        DatasetError: naming both sizes and files.
    """
    if image.shape[:2] != mask.shape[:2]:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape[:2]
        raise DatasetError(
            f"sample {sample.key}: the image is {width} x {height} px and its mask {mask_width} x {mask_height} px "
            f"({sample.image}; {sample.mask or 'mask within it'}). They must agree pixel by pixel: is it another image's "
            "mask, or was one of them resized?"
        )


def check_numbered(instances: np.ndarray, sample: Sample) -> None:
    """Refuse a mask that does not number its objects: a binary one, of classes, or with loss. Done by `registry.load_sample`.

    There a number stands in many separate pieces; a nucleus is one, or two where another one lies across it. Specks, of less
    than SPECK_SHARE of a number's largest piece, are no pieces. (Of 763 masks of CoNSeP and DSB 2018 none has a number in more
    than two; of binary masks nearly all objects are of such a number.)

    Args:
        instances: int `[H, W]`, 0 background.
        sample: It is of.

    Raises:
        DatasetError: most of the objects' area has a number that stands in more than MOST_PIECES pieces.
    """
    pieces = label(instances, background=0, connectivity=2)
    areas = np.bincount(pieces.ravel())[1:]
    if len(areas) <= MOST_PIECES:
        return
    number_of = np.zeros(len(areas) + 1, instances.dtype)
    number_of[pieces.ravel()] = instances.ravel()
    numbers, of = np.unique(number_of[1:], return_inverse=True)
    largest = np.zeros(len(numbers), areas.dtype)
    np.maximum.at(largest, of, areas)
    num_pieces = np.bincount(of[areas >= SPECK_SHARE * largest[of]], minlength=len(numbers))
    scattered = num_pieces > MOST_PIECES
    if areas[scattered[of]].sum() > areas.sum() / 2:
        most = num_pieces.argmax()
        raise DatasetError(
            f"sample {sample.key}: the nuclei of {sample.mask or sample.image} are not numbered: {numbers[most]} stands in "
            f"{num_pieces[most]} separate pieces. Expected 0 for background and a number for each nucleus; masks that "
            "say nucleus or not are for the layout 'pairs' with `instances: components`"
        )
