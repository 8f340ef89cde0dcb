"""Which slides there are: files, folders, globs, lists and parquet, local or in a bucket, as sorted `SlideRow`s.

Nothing is opened here but lists and the footers of parquet files: a million slides cost a million names.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from csat.errors import ConfigError, DatasetError, StorageError
from csat.slides.mpp import check_mpp
from csat.slides.parquet import describe_parquet, lists_slides
from csat.storage import dicom, files
from csat.storage.tables import Row, read_rows
from csat.storage.uris import has_magic, suffix_of
from csat.words import counted, is_empty, number, some, text

logger = logging.getLogger(__name__)

# What OpenSlide reads by name. Only opening tells a pyramid from a plain tif, so every tif counts as a slide until then.
WSI_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm", ".tif", ".tiff")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx")
LIST_SUFFIXES = (*TABLE_SUFFIXES, ".txt")
KNOWN = (
    f"{' '.join(WSI_SUFFIXES)} (slides), {' '.join(IMAGE_SUFFIXES)} (images), .parquet (encoded tiles), "
    f"{' '.join(LIST_SUFFIXES)} (lists)"
)
BELONGING = "file that belongs to a slide"  # in the line that says what is passed over
NUM_FOOTER_THREADS = 16  # parquet footers are waited for, not computed


@dataclass(frozen=True, kw_only=True, slots=True)
class SlideRow:
    """One slide, image or parquet file, known by name only: nothing has been opened yet."""

    slide: str  # absolute local path, or URI
    kind: str  # "wsi", "image" (png, jpg, ...) or "parquet" (one row per encoded tile); a tif is "wsi" until it is opened
    patient: str | None = None  # for splits that must not leak
    mpp: float | None = None  # um/px of level 0 as the user gave it for this very slide: it wins over what the file says
    num_tiles: int | None = None  # rows of a parquet; not known (None) for the others
    source_mpp: float | None = None  # um/px that the user gave for whatever states none


def list_slides(slides: Sequence[str], *, source_mpp: float | None = None) -> list[SlideRow]:
    """Every slide that the given places name, sorted by URI, each once.

    A place is a file; a folder (searched at any depth); a pattern (`*`, `?`, `[…]`, `**`); a .csv, .tsv, .xlsx or .parquet
    with a column `slide` and perhaps `patient` and `mpp`, read as the tables of labelled sets are; a .txt with a name per line
    (a line that begins with `#` is a comment); or a .parquet with a column `image` of encoded tiles. Names in a list are
    relative to the list. A slide named in a list is not looked for here: where it is missing it becomes a quarantine row, not
    the end of the run.

    In a folder or a pattern, files of other kinds are passed over, and so are files that belong to a slide: `a.jpg` or
    `a.nuclei.png` beside `a.svs` (thumbnails, masks, truth), the jpegs of a .vms, the folder of a .mrxs. The log counts them.
    The .dcm files of one folder and one series, each a level, are one slide, named by the first of them.

    Args:
        slides: Local paths or URIs.
        source_mpp: um/px of slides and rows that state none: passed on, for only their files know.

    Raises:
        ConfigError: nothing was given or found, an unknown kind of file, a list that cannot be understood.
        StorageError: a scheme that is not supported, a place that does not exist or may not be read.
    """
    places = [slides] if isinstance(slides, str) else list(slides)
    if not places:
        raise ConfigError("no slides given: name a file, a folder, a pattern such as 's3://bucket/**/*.svs', or a .csv")
    check_mpp(source_mpp, "data.source_mpp")
    rows: dict[str, SlideRow] = {}
    for place in places:
        for row in _expand(str(place)):
            before = rows.get(row.slide)
            rows[row.slide] = row if before is None else _merge(before, row)
    rows = _one_per_dicom_slide(rows)
    with ThreadPoolExecutor(NUM_FOOTER_THREADS) as pool:
        complete = pool.map(_with_parquet_facts, (rows[uri] for uri in sorted(rows)))
    return [replace(row, source_mpp=source_mpp) for row in complete]


def _expand(place: str) -> list[SlideRow]:
    """The rows of one place that the user named."""
    uri = files.normalise(place)
    suffix = suffix_of(uri)
    if has_magic(place) and not files.exists(uri):  # a real name may hold a bracket
        matches = files.glob(place)
        if not matches:
            raise ConfigError(f"no file matches {place!r}; {_nearest(uri)}")
        if suffix in LIST_SUFFIXES:
            return [row for match in matches for row in _expand(match)]
        folders = {match for match in matches if _kind(match) is None and files.is_dir(match)}
        below = [files.scan(folder) for folder in sorted(folders)]
        paths = [match for match in matches if match not in folders]
        paths += [file for listing in below for file in listing.files]
        return _rows_of(paths, f"pattern {place!r}", sum((listing.leftovers for listing in below), Counter()))
    if files.info(uri) is not None:
        if suffix in LIST_SUFFIXES or (suffix == ".parquet" and lists_slides(uri)):
            return _read_list(uri)
        if _kind(uri) is None:
            raise ConfigError(f"{place!r} is no kind of file that can be read here: {KNOWN}")
        return [SlideRow(slide=uri, kind=_kind(uri))]
    if files.is_dir(uri):
        listing = files.scan(uri)
        return _rows_of(listing.files, f"folder {place!r}", listing.leftovers)
    raise StorageError(f"there is no file or folder {place!r}; {_nearest(uri)}")


def _rows_of(paths: Sequence[str], where: str, leftovers: Counter[str]) -> list[SlideRow]:
    """Rows of those files that are slides, images or parquet, without what belongs to a slide. Says what is passed over."""
    kinds = {file: kind for file in paths if (kind := _kind(file)) is not None}
    stems = {file.rpartition(".")[0] for file, kind in kinds.items() if kind == "wsi"}
    vms_stems = tuple(file.rpartition(".")[0] for file in kinds if suffix_of(file) in (".vms", ".vmu"))
    rows, passed_over = [], Counter()
    for file in paths:
        kind = kinds.get(file)
        belongs = file.startswith(vms_stems) or f"{file.rpartition('/')[0]}.mrxs" in kinds
        if kind == "image":
            belongs = belongs or any(stem in stems for stem in _possible_stems(file))
        if kind in (None, "image") and belongs:
            passed_over[BELONGING] += 1
        elif kind is None:
            passed_over[suffix_of(file) or "no ending"] += 1
        else:
            rows.append(SlideRow(slide=files.normalise(file), kind=kind))
    if not rows:
        found = counted(passed_over + leftovers) or "nothing at all"
        raise ConfigError(f"{where} holds no slides: found {found}; expected {KNOWN}")
    if passed_over or leftovers:
        logger.info("%s: passed over %s", where, counted(passed_over + leftovers))
    return rows


def _possible_stems(file: str) -> Iterable[str]:
    """ "d/a.b.png" → "d/a.b", "d/a"."""
    folder, slash, name = file.rpartition("/")
    while "." in name:
        name = name.rpartition(".")[0]
        yield f"{folder}{slash}{name}"


def _read_list(uri: str) -> list[SlideRow]:
    rows = _read_txt(uri) if suffix_of(uri) == ".txt" else _read_table(uri)
    if not rows:
        raise ConfigError(f"{uri}: the list names no slides")
    return rows


def _read_table(uri: str) -> list[SlideRow]:
    try:
        rows = read_rows(uri, needs=["slide"])
    except DatasetError as error:
        raise ConfigError(f"{error}. A list of slides has a column `slide`, and may have `patient` and `mpp`") from error
    return [_of_table_row(row, uri) for row in rows]


def _of_table_row(row: Row, uri: str) -> SlideRow:
    where = f"{uri}, line {row.line}"
    slide, patient, given = (None if is_empty(cell := row.get(name)) else text(cell) for name in ("slide", "patient", "mpp"))
    if slide is None:
        raise ConfigError(f"{where}: the cell `slide` is empty")
    try:
        mpp = None if given is None else number(given)
    except ValueError:
        raise ConfigError(f"{where}: mpp must be a number of micrometres per pixel, not {given!r}") from None
    check_mpp(mpp, f"{where}: mpp")
    return _listed(uri, slide, where, patient=patient, mpp=mpp)


def _read_txt(uri: str) -> list[SlideRow]:
    """Names as they stand; a byte that is not UTF-8 is the name's own, as `ls` writes it."""
    content = files.read_bytes(uri).decode("utf-8-sig", "surrogateescape")
    lines = [(at, line.strip()) for at, line in enumerate(content.splitlines(), 1)]
    return [_listed(uri, name, f"{uri}, line {at}") for at, name in lines if name and not name.startswith("#")]


def _listed(list_uri: str, name: str, where: str, *, patient: str | None = None, mpp: float | None = None) -> SlideRow:
    kind = _kind(name)
    if kind is None:
        raise ConfigError(f"{where}: {name!r} is no slide, image or parquet: expected {KNOWN}")
    uri = files.normalise(name if name.startswith("~") else files.join(files.parent(list_uri), name))
    return SlideRow(slide=uri, kind=kind, patient=patient, mpp=mpp)


def _merge(first: SlideRow, second: SlideRow) -> SlideRow:
    """One slide named twice: what only one of them says holds; what both say must agree."""
    merged = {}
    for name in ("patient", "mpp"):
        one, other = getattr(first, name), getattr(second, name)
        if one is not None and other is not None and one != other:
            raise ConfigError(f"{first.slide} is named twice, with {name} {one!r} and {other!r}: keep one of them")
        merged[name] = other if one is None else one
    return replace(first, **merged)


def _one_per_dicom_slide(rows: Mapping[str, SlideRow]) -> dict[str, SlideRow]:
    """The same rows with the files of one DICOM slide, each a level of it, as one row."""
    merged = dict(rows)
    for first, *others in dicom.same_slide(uri for uri in rows if suffix_of(uri) == dicom.SUFFIX):
        for other in others:
            merged[first] = _merge(merged[first], merged.pop(other))
    return merged


def _with_parquet_facts(row: SlideRow) -> SlideRow:
    if row.kind != "parquet":
        return row
    facts = describe_parquet(row.slide)
    return replace(row, num_tiles=facts.num_rows, patient=row.patient or facts.patient)


def _kind(uri: str) -> str | None:
    suffix = suffix_of(uri)
    if suffix in WSI_SUFFIXES:
        return "wsi"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "parquet" if suffix == ".parquet" else None


def _nearest(uri: str) -> str:
    """What there is in the nearest folder that exists, for an error message."""
    folder = files.parent(uri)
    while not (has_magic(folder) is False and files.is_dir(folder)):
        above = files.parent(folder)
        if above == folder or above.endswith(":/"):
            return "nor does any folder above it exist"
        folder = above
    return f"the nearest folder that exists, {folder}, holds {some(map(files.base_name, files.list_dir(folder)))}"
