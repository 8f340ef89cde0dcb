"""What is left in the output when all slides are done: accounts, the quarantine, rates, a row for each slide, the page."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from csat.evaluation.reports.prediction import write_prediction_report
from csat.prediction.summary import write_summary
from csat.runs.accounts import attempts_of
from csat.runs.folder import RunFolder
from csat.runs.quarantine import PARQUET_OPTIONS, QUARANTINE_SCHEMA, read_quarantine
from csat.storage import files
from csat.words import printable
from workflows.prediction.flow import waited
from workflows.prediction.job import PredictJob
from workflows.prediction.pictures import show_fields
from workflows.prediction.slide_files import BAD_TILES, FATES, NOT_WRITTEN
from workflows.shell import output

logger = logging.getLogger("predict")


def finish(job: PredictJob, folder: RunFolder) -> dict[str, Any]:
    """Everything after the last slide. Can be repeated: a rerun starts here if it was killed here.

    Returns:
        throughput.json.
    """
    records = list(job.layout.records().values())
    accounts = write_accounts(job, folder, records)
    throughput = write_throughput(folder, records)
    rows = [record["summary"] for record in records]
    files.insist(lambda: write_summary(folder.path("summary.parquet"), rows))
    write_prediction_report(
        folder,
        model={**job.model.about, "mpp": job.model.mpp, "tile_px": job.model.tile_px, "classes": list(job.model.classes)},
        accounts=accounts,
        throughput=throughput,
        records=records,
        pictures=show_fields(job, records),
    )
    return throughput


def tell_result(folder: RunFolder, *, first: str | None = None) -> None:
    """How fast it was, who waited for whom, and where a user finds the files.

    Args:
        first: Said before that.
    """
    rates, places = folder.read_json("throughput.json") or {}, (folder.path("slides"), folder.path("report.html"))
    lines = [first] if first else []
    if rates.get("tiles_per_s"):
        lines.append(
            f"{rates['mm2_per_s']:.3g} mm²/s, {rates['tiles_per_s']:.1f} tiles/s, {rates['slides_per_hour']:.1f} slides/h, "
            f"with the writing of the files ({rates['wall_s']:.0f} s)"
        )
        lines.append(waited(rates["stages"]))
    lines += [f"files:  {places[0]}", f"report: {places[1]}"]
    output.result("\n".join(lines), output=folder.uri, files=places[0], report=places[1], figures=rates)


def write_accounts(job: PredictJob, folder: RunFolder, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """accounting.json and quarantine.parquet: what became of every slide and tile. The sums are checked, and said."""
    manifest = job.manifest
    total = Counter({name: sum(record[name] for record in records) for name in ("tiles", *FATES.values())})
    for record in records:
        assert record["tiles"] == sum(record[fate] for fate in FATES.values()), record
    assert len(records) == len(job.slides) and total["tiles"] == manifest.num_tiles, (len(records), total, manifest.num_tiles)
    said = ", ".join(f"{total[fate]:,} {fate}" for fate in FATES.values())
    logger.info(f"{manifest.num_tiles:,} tiles in the manifest of {len(records):,} slides: {said}")
    reasons = Counter(f"quarantined: {reason}" for reason in manifest.quarantine()["reason"].to_pylist())
    for record in records:
        reasons.update(record["reasons"])
    num_rows = _write_quarantine(job, folder, records)
    if num_rows:
        logger.info(f"{num_rows:,} slides, rows and tiles were not used: quarantine.parquet says why")
    failed = [record["slide"] for record in records if "failed" in record]
    slides = {**manifest.slides, "done": len(records), "failed": len(failed)}
    accounts = {"slides": slides, "tiles": {"manifest": manifest.num_tiles, **{fate: total[fate] for fate in FATES.values()}}}
    accounts["not_used"] = [{"reason": reason, "count": count} for reason, count in sorted(reasons.items())]
    folder.write_json("accounting.json", accounts)
    return accounts


def write_throughput(folder: RunFolder, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """throughput.json: rates of all attempts together, the writing of the files included, and who waited for whom."""
    attempts = attempts_of(folder)
    seconds = sum(each["wall_s"] for each in attempts)
    tiles, mm2 = sum(each["tiles"] for each in attempts), sum(each["mm2"] for each in attempts)
    slides = sum(each["slides"] for each in attempts)
    longest = max(attempts, key=lambda each: each["tiles"], default=None)
    throughput = {
        "tiles": tiles,
        "slides": slides,
        "mm2": mm2,
        "tiles_per_s": tiles / seconds if seconds else None,
        "mm2_per_s": mm2 / seconds if seconds else None,
        "slides_per_hour": 3600 * slides / seconds if seconds else None,
        "wall_s": seconds,
        "attempts": len(attempts),
        "start_s": longest and longest["start_s"],  # from the first wish to the first part: actors, the model
        "steady_tiles_per_s": longest and longest["steady_tiles_per_s"],  # after that, to the last file
        "stages": longest["stages"] if longest else {},
        "object_store_peak_bytes": max((each["object_store_peak_bytes"] for each in attempts), default=None),
        "spilled_bytes": sum(each["spilled_bytes"] or 0 for each in attempts),
    }
    folder.write_json("throughput.json", throughput)
    return throughput


def _write_quarantine(job: PredictJob, folder: RunFolder, records: Sequence[Mapping[str, Any]]) -> int:
    """One table of slides, rows and tiles, slide after slide. Returns its rows."""
    num_rows = 0
    place = folder.path("quarantine.parquet")
    with files.open_output(place) as file, pq.ParquetWriter(file, QUARANTINE_SCHEMA, **PARQUET_OPTIONS) as writer:
        for table in _quarantined(job, records):
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows


def _quarantined(job: PredictJob, records: Sequence[Mapping[str, Any]]) -> Iterator[pa.Table]:
    yield job.manifest.quarantine()
    for record in records:
        if "failed" in record:
            row = {"slide": printable(record["slide"]), "status": "quarantined", "reason": NOT_WRITTEN}
            yield pa.Table.from_pylist([row | {"message": record["failed"]}], schema=QUARANTINE_SCHEMA)
        elif record["reasons"]:
            uri = files.join(job.layout.slide_folder(record["name"]), BAD_TILES)
            yield read_quarantine(files.insist(lambda uri=uri: files.read_bytes(uri)))
