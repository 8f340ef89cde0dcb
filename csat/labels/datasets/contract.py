"""What a labelled data set is, whatever its layout on disk: samples with a group, and one function that decodes a sample.

A layout is one file with

    TASKS: tuple[Task, ...]  # the first is the default
    def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet  # metadata only: no image is decoded
    def load(sample: Sample) -> Decoded  # one sample's pixels and targets
    class Options  # config of what it lets one choose, a `Place` where that is a path or URI; not there where it is nothing

and one line in `registry.py`. `read` raises DatasetError for a layout that does not fit (what it looked for, what it found,
what to try); `load` raises SlideError for one sample that cannot be used. Everybody else calls `registry.read_dataset` and
`registry.load_sample`, which check what holds for all layouts, such as that image and mask have one size.
"""

from dataclasses import dataclass, field

import numpy as np

from csat.tasks import DatasetInfo, Task


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One labelled image. Small: it travels instead of pixels."""

    key: str  # unique in the set and stable between machines: the path below the root, with #index for a part of a file
    layout: str  # key of the registry: whose `load` decodes it
    image: str  # URI of the image, or of the file that contains it
    group: str  # patient, slide or source image: a split never cuts one
    split: str | None = None  # official part: "train", "val", "test"; None: the set has none
    label: int | None = None  # class index (classification)
    mask: str | None = None  # URI of the class mask or of the instances
    types: str | None = None  # URI of the nuclei's types, where they are in a file of their own
    index: int | None = None  # position within `image`, for containers (h5, npy)
    window: tuple[int, int, int] | None = None  # left, top and edge (px) of the square of `image` that it is; None: all of it
    form: str | None = None  # what the label files hold, where a layout reads several forms: its own word
    mpp: float | None = None  # micrometres per pixel; None: not stated
    # Who says so (csat.slides.mpp): GIVEN in this sample's row of the user's table, STATED by its own file; None: it is what
    # is known of the set as a whole, which the user may correct.
    mpp_source: str | None = None
    # Stamped by `registry.read_dataset`, so that `load` needs nothing but the sample:
    task: Task = Task.CLASSIFICATION  # whether `load` gives pixels alone, a class mask or instances
    num_classes: int = 0  # of the set: a class mask holds less, types hold at most this


@dataclass(frozen=True)
class LabelledSet:
    """A data set's samples, sorted by key."""

    info: DatasetInfo
    samples: tuple[Sample, ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One sample's pixels. Arrays share height and width."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    mask: np.ndarray | None = None  # uint8 [H, W], class index or IGNORE (segmentation)
    instances: np.ndarray | None = None  # int32 [H, W], 0 background (nuclei)
    types: np.ndarray | None = None  # uint8 [H, W], 0 background, 1 … the types (nuclei, where known)
    scale: float = 1.0  # edge of a pixel of the file, in these pixels: 0.5 where the file was shrunk to half

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in (self.image, self.mask, self.instances, self.types) if array is not None)
