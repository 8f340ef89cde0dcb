"""LC25000: 25,000 tiles of lung and colon, made of about 1,250 by turning and mirroring (Borkowski et al. 2019).

    <root>/lung_colon_image_set/{colon,lung}_image_sets/{colon_aca,colon_n,lung_aca,lung_n,lung_scc}/lungaca1352.jpeg

Root may be any of these folders above the classes. Which tiles come of one image the set does not say; LC25000-clean does
(Batchkala et al. 2024), in either of two forms that option `groups` takes:

    kaggle/lc25000_image_groups.csv                           columns filename and group_id
    annotations/<class>/UNI/resize_only/final_clusters.csv    columns img_path and cluster_label; give the folder annotations
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csat.errors import ConfigError, DatasetError
from csat.labels.datasets.contract import Decoded, LabelledSet, Sample
from csat.labels.datasets.decode import find_images, missing_layout, read_image, relative_key
from csat.settings import Place, read_settings
from csat.storage import files
from csat.storage.tables import read_rows
from csat.tasks import DatasetInfo, Task
from csat.words import text

TASKS = (Task.CLASSIFICATION,)
CLASSES = {"colon": ("colon_aca", "colon_n"), "lung": ("lung_aca", "lung_n", "lung_scc")}
GROUPS_FILE = "lc25000_image_groups.csv"
CLUSTERS_FILE = "final_clusters.csv"
LEAK = (
    "WITHOUT GROUPS THIS SET LEAKS: about twenty turned copies of every image fall into training and test alike, and any "
    "model looks perfect. Put lc25000_image_groups.csv of https://github.com/GeorgeBatch/LC25000-clean into the folder, or "
    "name it in options groups"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What this set lets one choose."""

    organ: str | None = None  # lung (3 classes) or colon (2); None: both
    # clusters of LC25000-clean, its csv or its folder annotations; None: the csv in root where it is there
    groups: Place | None = None

    def __post_init__(self):
        if self.organ is not None and self.organ not in CLASSES:
            raise ConfigError(f"organ is one of {', '.join(CLASSES)}, not {self.organ!r}")


def read(root: str, *, task: Task, options: Mapping[str, Any]) -> LabelledSet:
    """See `contract`. With groups, an image without one is an error."""
    chosen = read_settings(Options, options, what="data set 'lc25000'")
    root = files.normalise(root)
    classes = tuple(name for organ, names in CLASSES.items() if chosen.organ in (None, organ) for name in names)
    images = [(uri, name) for uri in find_images(root) if (name := files.base_name(files.parent(uri))) in classes]
    if missing := [name for name in classes if name not in {name for _, name in images}]:
        raise missing_layout(
            "lc25000",
            root,
            looked_for=f"lung_colon_image_set/{{colon,lung}}_image_sets with folders {', '.join(classes)}; no images in "
            f"{', '.join(missing)}",
            advice="Unpack LC25000.zip there, or choose options organ: lung or colon",
        )
    beside = files.join(root, GROUPS_FILE)
    groups_uri = chosen.groups or (beside if files.info(beside) is not None else None)
    groups = None if groups_uri is None else _read_groups(groups_uri)
    samples = (
        Sample(
            key=(key := relative_key(uri, root)),
            layout="lc25000",
            image=uri,
            group=key if groups is None else _group(uri, groups, groups_uri),
            label=classes.index(name),
        )
        for uri, name in images
    )
    info = DatasetInfo(
        name="lc25000",
        task=task,
        classes=classes,
        mpp=None,
        licence="not stated",
        source="Borkowski et al., arXiv:1912.12142; https://github.com/tampapath/lung_colon_image_set; groups: Batchkala et "
        "al., DEMI at MICCAI 2024",
        group="image (no grouping known)" if groups is None else "source image",
        note=LEAK if groups is None else "groups are images, not patients: images of one patient may be in several",
    )
    return LabelledSet(info, tuple(sorted(samples, key=lambda sample: sample.key)))


def load(sample: Sample) -> Decoded:
    """The image."""
    return Decoded(image=read_image(sample.image, sample.key))


def _read_groups(uri: str) -> dict[str, str]:
    """File name (its stem is unique in the set) → group."""
    if not files.is_dir(uri):
        return _groups_of(uri)
    paths = [file for file in files.list_files(uri) if files.base_name(file) == CLUSTERS_FILE]
    if not paths:
        raise missing_layout(
            "lc25000 (groups)",
            uri,
            looked_for=f"<class>/UNI/resize_only/{CLUSTERS_FILE}",
            advice=f"Give the folder annotations of LC25000-clean, or its kaggle/{GROUPS_FILE}",
        )
    return {stem: group for file in paths for stem, group in _groups_of(file).items()}


def _groups_of(uri: str) -> dict[str, str]:
    rows = read_rows(uri)
    columns = rows[0] if rows else {}
    if "img_path" in columns and "cluster_label" in columns:  # numbered anew in every class: the class's folder is part of it
        paths = [(text(row["img_path"]), text(row["cluster_label"])) for row in rows]
        return {_stem(path): f"{files.base_name(path.rpartition('/')[0])}/{cluster}" for path, cluster in paths}
    if "filename" in columns and "group_id" in columns:
        return {_stem(text(row["filename"])): text(row["group_id"]) for row in rows}
    raise DatasetError(
        f"{uri}: looked for columns filename and group_id, or img_path and cluster_label; its columns are: "
        f"{', '.join(columns) or 'none'}"
    )


def _group(uri: str, groups: Mapping[str, str], groups_uri: str) -> str:
    stem = _stem(uri)
    if stem not in groups:
        raise DatasetError(f"{groups_uri}: has no group for {uri}, looked for {stem!r} among {len(groups):,}")
    return groups[stem]


def _stem(path: str) -> str:
    return files.base_name(path).rpartition(".")[0]
