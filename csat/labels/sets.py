"""Labelled data of a run: which sets, at which resolution, in which splits. Metadata only: nothing is decoded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from csat import nuclei
from csat.errors import ConfigError, DatasetError
from csat.labels.augment import JointConfig
from csat.labels.datasets.contract import LabelledSet, Sample
from csat.labels.datasets.registry import DATASETS, read_dataset, with_places
from csat.labels.splits import SPLITS, SplitConfig, check_classes, check_images, keep_fraction, renamed, split_set
from csat.settings import Free, Often, Place, SettingsOf, read_settings
from csat.slides.mpp import check_mpp
from csat.tasks import DatasetInfo, Task

MOST_ENLARGING = 1.5  # how many times finer than an image is its tiles may be asked for


@dataclass(frozen=True, kw_only=True)
class SetConfig:
    """One data set on disk."""

    path: Place  # folder or file, local or s3://
    layout: str | None = None  # how it is laid out, a name of csat.labels.datasets.registry; None: the name it stands under
    options: dict[str, Any] = field(default_factory=dict)  # what the layout lets one choose
    mpp: float | None = None  # of its images, um/px, but for those whose own row or file states theirs; None: the set's
    val_fraction: float | None = None  # of this set; None: data.split's
    test_fraction: float | None = None  # of this set; None: data.split's; 0: no test is drawn from it

    def __post_init__(self):
        check_mpp(self.mpp, f"the mpp of {self.path}")


@dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """Labelled images: where they are, what is learned from them, and what a model sees of them."""

    sets: Often[dict[str, Place | SettingsOf[SetConfig]]]  # name → folder, or {path, layout, options, mpp, …}
    task: str | None = None  # classification, segmentation or nuclei; None: the sets' own
    mpp: Often[float | None] = None  # resolution that images are brought to, um/px; None: as they are
    tile_px: Often[int] = 224  # edge of the square that the model sees
    fit: Often[str] = "resize"  # resize: a tile is (much of) the whole image; crop: a window at the image's own resolution
    split: SplitConfig = field(default_factory=SplitConfig)  # splits
    sampling: str = "natural"  # natural, balanced (classes equally often) or oversampled (samples of rare classes repeated)
    augment: JointConfig = field(default_factory=JointConfig)  # of training images and their masks together
    memory_gb: Free[float] = 4.0  # decoded images up to this size stay in the object store; larger sets are decoded each epoch
    max_unreadable: float = 0.05  # share of images that may be unreadable before the run refuses to start

    def __post_init__(self):
        if not self.sets:
            raise ConfigError(f"data.sets is empty: give NAME: FOLDER pairs; names of layouts: {', '.join(DATASETS)}")
        for name, allowed in (("fit", ("resize", "crop")), ("sampling", ("natural", "balanced", "oversampled"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"data.{name} is one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if self.tile_px < 16:
            raise ConfigError(f"data.tile_px must be at least 16 px, not {self.tile_px}")
        check_mpp(self.mpp, "data.mpp")
        if not self.memory_gb >= 0:
            raise ConfigError(f"data.memory_gb must be 0 or more, not {self.memory_gb}")
        if not 0 <= self.max_unreadable <= 1:
            raise ConfigError(f"data.max_unreadable is a share, in [0, 1], not {self.max_unreadable}")

    def with_own_places(self) -> "LabelledConfig":
        """See `csat.settings.with_places`: which options of a set are places, its layout says."""
        return replace(self, sets={name: _with_own_places(name, settings) for name, settings in self.sets.items()})


@dataclass(frozen=True)
class LabelledData:
    """Everything known before decoding.

    Attributes:
        info: The task, classes and licence of the sets together.
        sets: What each set is.
        splits: train, val, test → samples.
        unlabelled: Training samples that `label_fraction` leaves out: no label of theirs is used.
    """

    info: DatasetInfo
    sets: tuple[DatasetInfo, ...]
    splits: dict[str, tuple[Sample, ...]] = field(repr=False)
    unlabelled: tuple[Sample, ...] = field(default=(), repr=False)

    @property
    def samples(self) -> list[Sample]:
        """All samples that are decoded, in the order of their splits."""
        return [sample for split in SPLITS for sample in self.splits[split]]


def assemble(config: LabelledConfig) -> LabelledData:
    """Read the sets' metadata and divide them.

    Raises:
        ConfigError: settings that cannot work together, sets that do not fit each other.
        DatasetError: a layout that does not fit, a group or an image in two splits, a class that a split lacks.
    """
    splits: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    infos = []
    for name, chosen, found in _read_sets(config):
        infos.append(found.info)
        for split, samples in split_set(found, _split_config(chosen, config)).items():
            splits[split] += renamed(samples, name) if len(config.sets) > 1 else samples
    info = _merge(infos)
    if config.sampling != "natural" and info.task != Task.CLASSIFICATION:
        raise ConfigError(f"data.sampling {config.sampling} goes by the images' class, and those of a {info.task} have none")
    check_images(splits)
    kept = keep_fraction(splits["train"], config.split.label_fraction, config.split.seed)
    keys = {sample.key for sample in kept}
    unlabelled = tuple(sample for sample in splits["train"] if sample.key not in keys)
    splits["train"] = kept
    check_classes(splits, info.task, info.classes)
    return LabelledData(info, tuple(infos), {split: tuple(samples) for split, samples in splits.items()}, unlabelled)


def assemble_to_judge(config: LabelledConfig, split: str | None) -> LabelledData:
    """What finished models are judged on, as the test split: nothing has to be left to train on.

    Args:
        split: That is taken: the official one where every set has it, else what `assemble` draws; None: all samples.

    Raises:
        ConfigError, DatasetError: as `assemble`; or there is no sample in that split.
    """
    sets = list(_read_sets(config))
    info = _merge([found.info for _, _, found in sets])
    is_official = config.split.official and all(any(each.split == split for each in found.samples) for _, _, found in sets)
    if split is not None and not is_official:
        samples = assemble(config).splits[split]
    else:
        chosen = {name: [each for each in found.samples if split in (None, each.split)] for name, _, found in sets}
        samples = [each for name, mine in chosen.items() for each in (renamed(mine, name) if len(sets) > 1 else mine)]
    if not samples:
        raise DatasetError(f"there are no samples in the {split} part of {info.name}; say split=NAME of another, or split=all")
    test = tuple(sorted(samples, key=lambda sample: sample.key))
    return LabelledData(info, tuple(found.info for _, _, found in sets), {**dict.fromkeys(SPLITS, ()), "test": test})


def _read_sets(config: LabelledConfig) -> Iterator[tuple[str, SetConfig, LabelledSet]]:
    """Name, settings and metadata of each set."""
    for name, settings in config.sets.items():
        chosen = _set_config(name, settings)
        yield name, chosen, _read_set(name, chosen, config)


def _with_own_places(name: str, settings: Any) -> Any:
    """A set's settings, as far as they are of the form that `_set_config` checks."""
    options = settings.get("options") if isinstance(settings, Mapping) else None
    if not isinstance(options, Mapping) or not options:
        return settings  # no layout is loaded to find nothing
    return {**settings, "options": with_places(settings.get("layout") or name, options)}


def _set_config(name: str, settings: Any) -> SetConfig:
    settings = {"path": settings} if isinstance(settings, str) else settings
    if not isinstance(settings, Mapping) or "path" not in settings:
        raise ConfigError(f"data.sets.{name} is a folder, or a mapping with at least `path`, not {settings!r}")
    chosen = read_settings(SetConfig, settings, what=f"data.sets.{name}")
    layout = chosen.layout or name
    if layout not in DATASETS:
        raise ConfigError(f"data.sets.{name}: there is no layout {layout!r}; say `layout:` with one of: {', '.join(DATASETS)}")
    return replace(chosen, layout=layout)


def _split_config(chosen: SetConfig, config: LabelledConfig) -> SplitConfig:
    own = {name: getattr(chosen, name) for name in ("val_fraction", "test_fraction")}
    return replace(config.split, **{name: value for name, value in own.items() if value is not None})


def _read_set(name: str, chosen: SetConfig, config: LabelledConfig) -> LabelledSet:
    found = read_dataset(chosen.layout, chosen.path, task=config.task, options=chosen.options)
    if chosen.mpp is not None:
        samples = tuple(each if each.mpp_source else replace(each, mpp=chosen.mpp) for each in found.samples)
        mpps = {sample.mpp for sample in samples}
        found = LabelledSet(replace(found.info, mpp=mpps.pop() if len(mpps) == 1 else None), samples)
    _check_resolution(name, found.samples, config.mpp)
    return found


def _check_resolution(name: str, samples: Sequence[Sample], mpp: float | None) -> None:
    if mpp is None:
        return
    for sample in samples:
        if sample.mpp is None:
            raise ConfigError(
                f"data.mpp {mpp} was asked for and the set {name} does not state its resolution: say it beside "
                f"the path, data.sets.{name} '{{path: …, mpp: …}}', or leave data.mpp out to use images as they are"
            )
        if sample.mpp > MOST_ENLARGING * mpp:
            raise ConfigError(
                f"data.mpp {mpp} was asked for and {sample.key} of set {name} has {sample.mpp} um/px: enlarging it "
                f"{sample.mpp / mpp:.2g} times shows nothing new. Set data.mpp {sample.mpp} or coarser"
            )


def _merge(infos: Sequence[DatasetInfo]) -> DatasetInfo:
    """One description of several sets.

    Raises:
        ConfigError: they serve different tasks, or have different classes (nuclei without types are always one).
    """
    first = infos[0]
    if len({info.task for info in infos}) > 1:
        tasks = ", ".join(f"{info.name}: {info.task}" for info in infos)
        raise ConfigError(f"the sets serve different tasks ({tasks}): choose one that all of them have with data.task")
    same_classes = all(nuclei.are_same(info.classes, first.classes) for info in infos)
    if not same_classes and first.task != Task.NUCLEI:
        classes = "; ".join(f"{info.name}: {', '.join(info.classes)}" for info in infos)
        raise ConfigError(f"the sets have different classes ({classes}): train on them one by one")
    if len(infos) == 1:
        return first
    return replace(
        first,
        name="+".join(info.name for info in infos),
        classes=first.classes if same_classes else (),  # nuclei of all sets, types of none
        mpp=first.mpp if len({info.mpp for info in infos}) == 1 else None,
        licence="; ".join(f"{info.name}: {info.licence}" for info in infos),
        source="; ".join(f"{info.name}: {info.source}" for info in infos),
        group="; ".join(f"{info.name}: {info.group}" for info in infos),
        note="; ".join(f"{info.name}: {info.note}" for info in infos if info.note),
    )
