"""Are the teachers' responses kept, or answered again in every epoch: whichever is cheaper, unless a setting says it.

`cache.uri` names a place for them. Where `cache.keep` is left open, a run of several epochs measures on a few tiles what
either way takes, decides, and says so; keeping.json has the figures. A resumed run stays with what was decided. Without a
place the run keeps nothing; one that is planned says what keeping would save.
"""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from csat.columns import OK, POSITION, STATUS
from csat.errors import ConfigError
from csat.panel import member_of
from csat.responses import ResponseSpec, TeacherSpec
from csat.runs.folder import RunFolder
from csat.runs.forecast import KeptCosts
from csat.tiles.manifest import Manifest
from csat.tiles.sample import Rows, sample_rows
from teachers.keeping import Keeping, measure_keeping
from teachers.response_cache import KEY, ResponseCache, cache_key, check_budget, open_cache, projected_bytes
from workflows.pretraining.job import PretrainJob
from workflows.pretraining.plan import PLANNED_FROM, span
from workflows.pretraining.rehearsal import on_actor
from workflows.pretraining.stream import StreamConfig, StreamTeacher, make_reader, teacher_arguments
from workflows.shell import cluster, output

logger = logging.getLogger("pretrain")

RECORD = "keeping.json"
NUM_TILES = 32  # that are measured with
# Core-seconds of what is kept, where that was not measured: 1.6 and 0.7 ms for HoVer-Net's 87 kB of a tile of 224 px.
READ_S_PER_BYTE, KEEP_S_PER_BYTE = 19e-9, 8e-9


def check_can_keep(job: PretrainJob) -> None:
    """Whether there is anything to keep, where a place for it is named. Raises ConfigError."""
    if job.config.cache.uri is None or job.stream.keepable:
        return
    what = "colours" if job.stream.view_seed is None else "view (flip and rotation)"
    raise ConfigError(
        f"cache.uri: with method.name {job.config.method.name} and these options the teacher sees each tile in another {what} "
        "in every epoch, so that its earlier response is of no use: leave cache.uri out, or choose responses (maps) and "
        "options with which the tile stays as it was scanned until the trainer has it"
    )


def with_cache(job: PretrainJob, manifest: Manifest) -> PretrainJob:
    """The job with the response cache, of each teacher its own, where one is asked for. Says what it may take, or refuses."""
    settings, stream = job.config.cache, job.stream
    opened = []
    for asked in stream.keepable:
        size = {"num_tiles": manifest.num_tiles, "tile_px": _seen_px(stream, asked)}
        opened.append(open_cache(settings, *_key_of(job, asked, manifest), **size))
    for asked, (cache, num_bytes) in zip(stream.keepable, opened, strict=True):
        cluster.check_is_shared("response cache", cache.folder, file=KEY)
        is_filled, whose = cache.is_complete(), f" of {asked.name}" if asked.name else ""
        state = "complete, every epoch reads it" if is_filled else "filled in the first epoch, read in later ones"
        size = f"{num_bytes / 1e9:.4g} GB of {settings.budget_gb:g} GB"
        logger.info("response cache%s %s: at most %s, %s", whose, cache.folder, size, state)
    if others := [each.name for each in stream.teachers if each not in stream.keepable]:
        logger.info("%s answers in every epoch: what it says of a tile cannot be turned with it", ", ".join(others))
    return job.with_caches({asked.name: cache for asked, (cache, _) in zip(stream.keepable, opened, strict=True)})


def decides_to_keep(job: PretrainJob, manifest: Manifest) -> bool:
    """Whether responses are kept. Says why, where that was not settled.

    Raises:
        ConfigError: those of all teachers may come to more than `cache.budget_gb`.
    """
    settings, stream, folder = job.config.cache, job.stream, RunFolder(job.run_folder)
    is_open = settings.uri is not None and settings.keep is None
    if settings.uri is not None and settings.keep is not False:
        _check_budget(job, manifest)
    if not stream.keepable:
        return False
    if job.num_epochs == 1 or settings.keep is not None:
        return settings.uri is not None and settings.keep is not False
    if not is_open and not (job.config.plan or job.num_positions >= PLANNED_FROM):
        return False
    if record := folder.read_json(RECORD):
        return is_open and record["is_kept"]
    if folder.has_begun():
        return is_open  # by a version that did not ask
    place = settings.uri if is_open else folder.uri
    keys = [_key_of(job, asked, manifest) for asked in stream.keepable]
    if is_open and all(ResponseCache(place, *each).is_complete() for each in keys):
        return True
    probes = [ResponseCache(place, {**key, "probe": True}, responses) for key, responses in keys]
    rows, measured = sample_rows(manifest, NUM_TILES), {}
    for asked, probe in zip(stream.keepable, probes, strict=True):
        said = on_actor(asked, measure, stream, rows, stream.teachers.index(asked), probe)
        if isinstance(said, str):
            logger.warning("whether it is cheaper to keep responses than to answer again was not found out: %s", said)
            return is_open
        measured[asked.name or "teacher"] = said
    record = make_record(measured, num_tiles=manifest.num_tiles, epochs=job.num_epochs)
    told = in_words(record, uri=settings.uri)
    folder.write_json(RECORD, record)
    if job.config.plan:
        output.result(told, keeping=record)
    elif is_open and not record["has_room"]:
        logger.warning("%s", told)
    else:
        logger.info("%s", told)
    return is_open and record["is_kept"]


def kept_costs(job: PretrainJob, manifest: Manifest, *, is_kept: bool) -> list[KeptCosts | None]:
    """What keeping takes of each teacher of the stream, for a plan; None: it answers in every epoch."""
    measured = (RunFolder(job.run_folder).read_json(RECORD) or {}).get("teachers", {})
    costs = []
    for asked, guess in zip(job.stream.teachers, guessed_costs(job, is_kept=is_kept), strict=True):
        if guess is None:
            costs.append(None)
            continue
        took = measured.get(asked.name or "teacher", asdict(guess))
        is_complete = ResponseCache(job.config.cache.uri, *_key_of(job, asked, manifest)).is_complete()
        costs.append(KeptCosts(keep_s=took["keep_s"], read_s=took["read_s"], is_complete=is_complete))
    return costs


def guessed_costs(job: PretrainJob, *, is_kept: bool) -> list[KeptCosts | None]:
    """The same before there is a manifest, by the size of the responses; None: the teacher answers in every epoch."""
    costs = []
    for asked in job.stream.teachers:
        if not is_kept or asked not in job.stream.keepable:
            costs.append(None)
            continue
        num_bytes = projected_bytes(_kept_of(job, asked), 1, _seen_px(job.stream, asked))
        costs.append(KeptCosts(keep_s=KEEP_S_PER_BYTE * num_bytes, read_s=READ_S_PER_BYTE * num_bytes))
    return costs


def measure(stream: StreamConfig, rows: Rows, number: int, probe: ResponseCache) -> Keeping | str:
    """One of the stream's teachers, in this process; or why there are no figures.

    Args:
        rows: Of the manifest, without pixels.
        probe: Where responses are kept for the moment.
    """
    read = make_reader(stream)(rows)
    good = np.flatnonzero(read[STATUS] == OK)
    if len(good) < 2:
        return f"{len(good)} of the {len(read[STATUS])} tiles that were tried could be read"
    columns = {name: column[good] for name, column in read.items()} | {POSITION: np.arange(len(good))}
    # To its cache it is the only one, and a tile stays as it was scanned.
    arguments = teacher_arguments(stream, number) | {"label": None, "closes": [], "view_seed": None}
    return measure_keeping(probe, columns, batch_size=stream.teachers[number].pool.batch_size, **arguments)


def make_record(measured: dict[str, Keeping], *, num_tiles: int, epochs: int) -> dict[str, Any]:
    """The decision: whether all teachers together are cheaper so, and find the room. JSON-ready.

    Args:
        measured: By teacher.
    """
    kept, again = (num_tiles * sum(each.seconds(epochs, is_kept=way) for each in measured.values()) for way in (True, False))
    num_bytes = num_tiles * sum(each.num_bytes for each in measured.values())
    has_room = all(each.free_bytes is None or num_bytes <= each.free_bytes for each in measured.values())
    return {
        "is_kept": has_room and kept < again,
        "has_room": has_room,
        "epochs": epochs,
        "tiles": num_tiles,
        "actor_s_kept": kept,
        "actor_s_answered_again": again,
        "bytes": num_bytes,
        "teachers": {name: asdict(each) for name, each in measured.items()},
    }


def in_words(record: dict[str, Any], *, uri: str | None) -> str:
    """What was decided, and why.

    Args:
        uri: The place; None: there is none.
    """
    lines = []
    for name, each in record["teachers"].items():
        ms = {what: f"{1000 * each[f'{what}_s']:.3g} ms" for what in ("answer", "keep", "read")}
        lines.append(f"  {name:11} a tile takes {ms['answer']} to answer, {ms['keep']} to keep, {ms['read']} to read again")
    for name, key in {"kept": "actor_s_kept", "not kept": "actor_s_answered_again"}.items():
        size = f", {record['bytes'] / 1e9:.3g} GB" if name == "kept" else ""
        lines.append(f"  {name:11} {span(record[key] / 3600)} of one actor over {record['epochs']} epochs{size}")
    is_cheaper = record["actor_s_kept"] < record["actor_s_answered_again"]
    if uri is None:
        first = "responses are not kept: cache.uri names no place" + ("" if is_cheaper else ", nor would it pay")
    elif record["is_kept"]:
        first = f"responses are kept in {uri}: that is cheaper"
    elif not record["has_room"]:
        first = f"responses are not kept: {uri} has not the room; cache.keep true tries it all the same"
    else:
        first = "responses are not kept: to answer again is cheaper; cache.keep true keeps them all the same"
    return "\n".join([first, *lines])


def _key_of(job: PretrainJob, asked: StreamTeacher, manifest: Manifest) -> tuple[dict[str, Any], list[ResponseSpec]]:
    """Of one teacher's cache, and what it holds: by the teacher's own names, on its own pixels."""
    spec, responses = _spec_of(job, asked), _kept_of(job, asked)
    key = cache_key(
        spec,
        asked.teacher.options,
        responses,
        manifest_fingerprint=manifest.fingerprint,
        tile_px=job.stream.tile_px,
        mpp=job.config.data.mpp,
        shrink=asked.shrink,
    )
    return key, responses


def _spec_of(job: PretrainJob, asked: StreamTeacher) -> TeacherSpec:
    return job.teacher if asked.name is None else member_of(job.teacher, asked.name).spec


def _kept_of(job: PretrainJob, asked: StreamTeacher) -> list[ResponseSpec]:
    return [_spec_of(job, asked).response(name) for name in asked.own_names]


def _check_budget(job: PretrainJob, manifest: Manifest) -> None:
    num_bytes = 0
    for asked in job.stream.keepable:
        num_bytes += projected_bytes(_kept_of(job, asked), manifest.num_tiles, _seen_px(job.stream, asked))
    check_budget(job.config.cache, num_bytes, num_tiles=manifest.num_tiles)


def _seen_px(stream: StreamConfig, asked: StreamTeacher) -> tuple[int, int]:
    """Height and width of the largest tile, as the teacher sees it."""
    height, width = stream.largest_size()
    return height // asked.shrink, width // asked.shrink
