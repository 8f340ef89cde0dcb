"""Parquet files with one encoded tile per row: read a row group at a time, whatever the size of the file."""

from bisect import bisect_right
from collections import Counter, OrderedDict
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from csat.errors import ConfigError, SlideError, StorageError
from csat.slides.images import ImageReader, Level
from csat.slides.mpp import Mpp
from csat.slides.pixels import decode_image
from csat.storage import files
from csat.words import is_empty, text

IMAGE_COLUMN = "image"  # binary, or struct<bytes, path> as Hugging Face's datasets write it
MAX_ROW_GROUP_BYTES = 2**30  # a row group is the least that parquet reads
GROUP_CACHE_BYTES = 256 * 2**20  # encoded row groups kept by one reader; at least one is, whatever its size
NUM_ROWS_PROBED = 16  # tiles that are decoded to learn the size of all


class ParquetFacts(NamedTuple):
    """What the footer of a parquet file tells."""

    num_rows: int | None  # None: the footer cannot be read
    patient: str | None  # where the column `patient` holds one value throughout, as text


def describe_parquet(uri: str) -> ParquetFacts:
    """Rows of a parquet of encoded tiles, read from its footer alone.

    A file that is missing or damaged gives no facts: opening it will say why, and makes it a quarantine row.

    Raises:
        ConfigError: no column `image`, or row groups that are too large to read.
        StorageError: the store cannot be reached.
    """
    try:
        file = _open(uri)
    except SlideError:
        return ParquetFacts(None, None)
    with file:
        schema, footer = file.schema_arrow, file.metadata
        if _image_leaf(schema) is None:
            raise ConfigError(
                f"{uri}: needs a column `{IMAGE_COLUMN}` of encoded images (binary, or struct with `bytes`); it has: "
                f"{', '.join(f'{field.name} {field.type}' for field in schema)}"
            )
        largest = max((footer.row_group(group).total_byte_size for group in range(footer.num_row_groups)), default=0)
        if largest > MAX_ROW_GROUP_BYTES:
            raise ConfigError(
                f"{uri}: a row group holds {largest:,} bytes, more than the {MAX_ROW_GROUP_BYTES:,} that are read at once; "
                "write the file again with row_group_size=1000"
            )
        patient = _constant(footer, "patient")
        is_known = not is_empty(patient) and not isinstance(patient, float)  # statistics pass over NaN: of floats, rows tell
        return ParquetFacts(footer.num_rows, text(patient) if is_known else None)


def lists_slides(uri: str) -> bool:
    """Whether a parquet is a list of slides (a column `slide`, and no images) rather than a file of tiles."""
    try:
        with _open(uri) as file:
            return "slide" in file.schema_arrow.names and IMAGE_COLUMN not in file.schema_arrow.names
    except SlideError:
        return False


class ParquetReader:
    """Tiles of a parquet file behind the methods of `csat.slides.reader.SlideReader`; `row` says which tile.

    All tiles must have the size that most of the first ones have, for the manifest is made without decoding them all.
    """

    kind = "parquet"
    bounds = None

    def __init__(self, uri: str, resolution: Mpp | None):
        """
        Args:
            uri: The file; one in a bucket is read by ranges.
            resolution: What the user gave for the tiles, None where nothing; what each row states, `metadata` has.

        Raises:
            SlideError: "missing" or "unreadable".
            StorageError: the store cannot be reached.
        """
        self._uri = uri
        self._file = _open(uri)
        leaf = _image_leaf(self._file.schema_arrow)
        if leaf is None:
            raise SlideError("unreadable", f"{uri}: has no column `{IMAGE_COLUMN}` of encoded images")
        self._leaf = leaf
        footer = self._file.metadata
        self.num_rows = footer.num_rows
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        self._first_rows = [0, *accumulate(sizes)][:-1]
        self.row_groups = list(zip(self._first_rows, sizes, strict=True))  # (first row, rows), for who shuffles by group
        self._groups: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._decoded: tuple[int, ImageReader] | None = None
        self.resolution = resolution
        self.mpp = resolution and resolution.mean
        self.levels = [self._usual_size()]

    @property
    def num_bytes(self) -> int:
        return sum(group.nbytes for group in self._groups.values())

    def read(self, x_px: int, y_px: int, level: int, size_px: int | tuple[int, int], *, row: int = 0) -> np.ndarray:
        """See `SlideReader.read`; x_px and y_px count within the tile of that row."""
        image = self._image(row)
        if image.levels != self.levels:
            (width, height, _), (width_0, height_0, _) = image.levels[0], self.levels[0]
            raise SlideError(
                "unreadable",
                f"{self._name(row)}: {width} x {height} px, but most of the file's first tiles have {width_0} x {height_0}",
            )
        return image.read(x_px, y_px, level, size_px)

    def thumbnail(self, max_px: int, *, row: int = 0) -> np.ndarray:
        """See `SlideReader.thumbnail`; of one row's tile."""
        return self._image(row).thumbnail(max_px)

    def metadata(self) -> pa.Table:
        """Those of the columns `slide`, `patient` and `mpp` that the file has, for all rows; see `ids_of`."""
        have = [name for name in ("slide", "patient", "mpp") if name in self._file.schema_arrow.names]
        return self._file.read(columns=have)

    def close(self) -> None:
        """Close the file and let go of what was read."""
        self._groups.clear()
        self._decoded = None
        self._file.close()

    def _usual_size(self) -> Level:
        """Of the first rows that can be decoded, what most have: an odd one, wherever it stands, is an odd one."""
        sizes, error = Counter(), SlideError("unreadable", f"{self._uri}: has no rows")
        for row in range(min(self.num_rows, NUM_ROWS_PROBED)):
            try:
                sizes[self._image(row).levels[0]] += 1
            except SlideError as reason:
                error = reason
        if not sizes:
            raise error
        return sizes.most_common(1)[0][0]

    def _image(self, row: int) -> ImageReader:
        if self._decoded is None or self._decoded[0] != row:
            encoded = self._encoded(row)
            if encoded is None:
                raise SlideError("unreadable", f"{self._name(row)}: the cell holds no bytes")
            pixels, _ = decode_image(encoded, self._name(row))
            self._decoded = row, ImageReader(pixels, self.resolution)
        return self._decoded[1]

    def _name(self, row: int) -> str:
        return f"{self._uri}, row {row}, column {IMAGE_COLUMN}"

    def _encoded(self, row: int) -> bytes | None:
        if not 0 <= row < self.num_rows:
            raise SlideError("missing", f"{self._uri}: has {self.num_rows} rows, and so no row {row}; did the file change?")
        group = bisect_right(self._first_rows, row) - 1
        if group not in self._groups:
            try:
                column = self._file.read_row_group(group, columns=[self._leaf]).column(IMAGE_COLUMN)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                raise _translated(self._uri, error) from error
            self._groups[group] = column
            while len(self._groups) > 1 and self.num_bytes > GROUP_CACHE_BYTES:
                self._groups.popitem(last=False)
        self._groups.move_to_end(group)
        cell = self._groups[group][row - self._first_rows[group]].as_py()
        return cell.get("bytes") if isinstance(cell, dict) else cell


def _open(uri: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(files.open_native(uri))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise _translated(uri, error) from error


def _translated(uri: str, error: Exception) -> Exception:
    """A damaged file is this slide's fault; a store that does not answer is not."""
    if isinstance(error, FileNotFoundError):
        return SlideError("missing", f"{uri}: there is no such file")
    if files.is_local(uri) or isinstance(error, pa.ArrowInvalid | pa.ArrowNotImplementedError):
        return SlideError("unreadable", f"{uri}: cannot be read as parquet: {error}")
    return StorageError(f"cannot read {uri}: {error}; check the endpoint, region and credentials in the environment")


def _image_leaf(schema: pa.Schema) -> str | None:
    """The column to read: "image", or "image.bytes" of a struct."""
    if IMAGE_COLUMN not in schema.names:
        return None
    kind = schema.field(IMAGE_COLUMN).type
    if pa.types.is_struct(kind):
        return f"{IMAGE_COLUMN}.bytes" if kind.get_field_index("bytes") >= 0 else None
    return IMAGE_COLUMN if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) else None


def _constant(footer: pq.FileMetaData, column: str):
    """The one value of a column by the footer's statistics; None where there are several, or no telling."""
    values = set()
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            chunk = footer.row_group(group).column(index)
            if chunk.path_in_schema == column:
                known = chunk.statistics
                if known is None or not known.has_min_max or known.null_count:
                    return None
                # Of text the bytes: where it is not UTF-8, `min` raises.
                is_text = known.physical_type == "BYTE_ARRAY"
                values |= {known.min_raw, known.max_raw} if is_text else {known.min, known.max}
    return values.pop() if len(values) == 1 else None
