"""What can be known of a pretraining before it starts: each check is one question, and says what mends a wrong answer."""

import tempfile
from dataclasses import dataclass, replace

import ray

from csat.errors import StorageError
from csat.panel import member_of
from csat.responses import TeacherSpec
from csat.runs.checkpoints import Checkpoints
from csat.runs.folder import RunFolder
from csat.storage import files
from csat.tiles.sample import Rows, joined
from csat.tiles.sources import SlideRow, list_slides
from csat.words import some
from teachers.hub import check_access, repository
from workflows.diagnosis.config import DoctorConfig
from workflows.diagnosis.findings import FAIL, Finding, Findings
from workflows.diagnosis.nodes import Node, ask_nodes, differences, free_bytes
from workflows.diagnosis.slides import Opened, demo_slide, open_in_process, spread_over
from workflows.pretraining.check import as_named, check_methods, describe, pools_of
from workflows.pretraining.config import DEMO
from workflows.pretraining.job import PretrainJob, make_job
from workflows.pretraining.keeping import check_can_keep
from workflows.pretraining.start import check_resources
from workflows.pretraining.students import Methods
from workflows.shell import cluster
from workflows.shell.config import check_counts

PROBE = "doctor.txt"  # written to the run folder, and deleted
STATE_COPIES = 4  # of the weights in a checkpoint: they, two moments and the average
SPARE_BYTES = 200e6  # of metrics, manifest and report, in a run folder
PROCESS_BYTES = 1.2e9  # of one with torch and a small model


@dataclass
class Subject:
    """What is known so far; None: a check that would have found it failed.

    Attributes:
        scratch: Folder on this machine for what is not to be kept.
    """

    config: DoctorConfig
    scratch: str
    teacher: TeacherSpec | None = None
    job: PretrainJob | None = None
    methods: Methods | None = None
    slides: list[SlideRow] | None = None
    opened: list[Opened] | None = None
    nodes: list[Node] | None = None

    @property
    def rows(self) -> Rows:
        """Some tiles of the slides that were opened, without pixels."""
        return joined([each.rows for each in self.opened])

    @property
    def num_tiles(self) -> int:
        """Of all slides, if the others are as those that were opened."""
        return round(sum(each.num_tiles for each in self.opened) / len(self.opened) * len(self.slides))


def examine(config: DoctorConfig, findings: Findings, *, scratch: str) -> Subject:
    """All checks, the quick ones first. What needs an answer that did not come is left out."""
    subject = Subject(config, scratch)
    _check_settings(subject, findings)
    _check_storage(subject, findings)
    _check_hub(subject, findings)
    _check_teacher(subject, findings)
    _check_slide_names(subject, findings)
    with findings.check("cluster", mend="start a cluster with `ray start --head`, or leave out ray.address") as finding:
        cluster.connect(config.ray)
        _check_nodes(subject, finding)
    if ray.is_initialized():
        _check_room(subject, findings)
        _check_slides(subject, findings)
    return subject


def _check_settings(subject: Subject, findings: Findings) -> None:
    config = subject.config
    with findings.check("settings", mend="change the setting that it names") as finding:
        check_counts(readers=config.readers, **pools_of(config))
        rows = config.train.rows_per_worker(config.workers.num_workers)
        finding.note(f"{config.workers.num_workers} workers take {rows} tiles each a step")


def _check_storage(subject: Subject, findings: Findings) -> None:
    """The run folder: can it be written and read, and is there room."""
    config, folder = subject.config, RunFolder(subject.config.run_folder)
    mend = "make room, give the bucket's rights and endpoint (AWS_…), or choose another run_folder"
    with findings.check("storage", mend=mend) as finding:
        place, is_new = folder.path(PROBE), not files.exists(folder.uri)
        left = folder.uri if is_new and files.is_local(folder.uri) else place
        try:
            files.write_bytes(place, b"csat")
            is_same = files.read_bytes(place) == b"csat"
        except StorageError:
            if left != place:
                files.delete(left)  # the folder that was made
            raise
        files.delete(left)
        if not is_same:
            finding.fail(f"{folder.uri} gives other bytes back than were written", mend)
        finding.note(f"{folder.uri} can be written and read")
        if state := (folder.read_json("status.json") or {}).get("state"):
            done = len(Checkpoints(folder.path("checkpoints")).latest_cursor().done)
            finding.note(f"it holds a run that is {state}, with {done:,} tiles done")
    with findings.check("cache", mend="choose another cache.uri") as finding:
        if config.cache.uri is None:
            finding.note("responses are not kept: cache.uri is not set")
        else:
            files.check_writable(config.cache.uri)
            finding.note(f"{config.cache.uri} can be written: at most {config.cache.budget_gb:g} GB")


def _check_hub(subject: Subject, findings: Findings) -> None:
    with findings.check(
        "hub", mend="get access and a token as it says, or give the weights as a file: teacher.weights"
    ) as finding:
        repos = [repository(each.name, each.options) for each in subject.config.asked.values()]
        for repo in dict.fromkeys(filter(None, repos)):
            finding.note(check_access(repo))
        if not any(repos):
            finding.note("no weights are fetched from the hub: no token is needed")


def _check_teacher(subject: Subject, findings: Findings) -> None:
    """Weights, their licence, and whether student and method can work with what the teacher gives."""
    config = subject.config
    if findings.state_of("hub") == FAIL:
        return  # there is nothing to load
    what = "the weights or options of the teacher that it names" if config.teachers else "teacher.weights or teacher.options"
    with findings.check("teacher", mend=f"correct {what}") as finding:
        spec = subject.teacher = describe(config)
        for name in config.asked:
            one, called = (spec, "") if name is None else (member_of(spec, name).spec, f"{name}: ")
            finding.note(f"{called}{one.name} from {one.source or 'its settings'}, sha256 {one.weights_sha256[:12]}")
            if one.licence == "unknown" or not one.licence:
                mend = as_named("look it up, and say it with teacher.options.licence", name)
                finding.warn(f"{called}the licence of its weights is not known", mend)
            else:
                finding.note(f"licence: {one.licence}")
    if subject.teacher is None:
        return
    with findings.check("student", mend="change the settings of student or method that it names") as finding:
        subject.job, methods = make_job(config, subject.teacher)
        check_methods(config, methods)
        check_can_keep(subject.job)
        subject.methods = methods
        named = ", ".join(spec.name for spec in subject.job.stream.responses)
        params = 0
        for (name, method), student in zip(methods.items(), config.each_student().values(), strict=True):
            own = sum(parameter.numel() for parameter in method.part("student").parameters())
            called = student.backbone if name is None else f"{name}: {student.backbone}"
            finding.note(f"{called}, {own / 1e6:.2f} million parameters, learns {named}")
            params += own
    if subject.methods is None or findings.state_of("storage") == FAIL:
        return
    with findings.check("disk", mend="choose another run_folder") as finding:
        Checkpoints(RunFolder(config.run_folder).path("checkpoints")).check_fits(subject.methods)
        needed = SPARE_BYTES + (config.train.keep_checkpoints + 1) * STATE_COPIES * 4 * params
        free = free_bytes(config.run_folder) if files.is_local(config.run_folder) else needed
        if free < needed:
            told = f"{config.run_folder} has {free / 1e6:,.0f} MB free, and checkpoints and report take {needed / 1e6:,.0f}"
            finding.fail(told, "make room, or choose another run_folder")
        else:
            finding.note(f"checkpoints and report take {needed / 1e6:,.0f} MB at most, and there is room")


def _check_slide_names(subject: Subject, findings: Findings) -> None:
    config = subject.config
    with findings.check("slide list", mend="give files, folders or lists that exist, and the rights to list them") as finding:
        given = [each for each in config.slides if each != DEMO]
        slides = list_slides(given, source_mpp=config.data.source_mpp) if given else []
        if len(given) < len(config.slides):
            slides += [demo_slide(config, subject.scratch)] * config.demo.num_slides
            finding.note(f"{config.demo.num_slides} synthetic ones")
        subject.slides = slides
        finding.note(f"{len(slides):,} slides")


def _check_nodes(subject: Subject, finding: Finding) -> None:
    """Versions, weights, disk and GPU of every node."""
    config = subject.config
    asks_gpus = config.workers.gpus_per_worker > 0 or any(pool.gpus_per_actor > 0 for pool in pools_of(config).values())
    weights = [each.weights for each in config.asked.values() if each.weights]
    paths = [files.local_path(each) for each in weights if files.is_local(each)]
    has_remote = any(not files.is_local(slide.slide) for slide in subject.slides or [])
    folders = [config.readers.cache_folder] if has_remote else []
    nodes = ask_nodes(folders=[*folders, tempfile.gettempdir()], paths=list(map(str, paths)), with_gpus=asks_gpus)
    subject.nodes = nodes
    has = ray.cluster_resources()
    finding.note(f"{len(nodes)} nodes, {has.get('CPU', 0):g} CPUs, {has.get('GPU', 0):g} GPUs")
    for told in differences(nodes):
        finding.fail(f"nodes differ in {told}", "install the same on all: one image, or one environment on a shared disk")
    for node in nodes:
        if missing := [path for path, is_there in node.has_files.items() if not is_there]:
            finding.fail(f"{node.address} has no {some(missing)}", "copy the weights to every node, or give an s3:// URI")
        if node.gpu_error:
            finding.fail(f"{node.address}: its GPU does not compute ({node.gpu_error})", "look at nvidia-smi and torch there")
        elif node.gpu:
            finding.note(f"{node.address}: {node.gpu}")
        for folder, free in node.disk_bytes.items():
            wanted = config.readers.cache_gb * 1e9 if folder in folders else SPARE_BYTES
            if free < wanted:
                told = f"{node.address}: {folder} has {free / 1e9:.1f} GB free of {wanted / 1e9:.1f} that it may take"
                finding.warn(told, "make room there, or lower readers.cache_gb")
    if len(nodes) > 1:
        folder = RunFolder(config.run_folder)
        try:
            files.write_bytes(folder.path(PROBE), b"csat")
            cluster.check_is_shared("run folder", folder.uri, file=PROBE)
        finally:
            files.delete(folder.path(PROBE))


def _check_room(subject: Subject, findings: Findings) -> None:
    """CPUs, GPUs, stream and memory that the run reserves at least."""
    if subject.job is None:
        return
    config = subject.config
    with findings.check("resources", mend="change the settings that it names, or use a larger cluster") as finding:
        check_resources(subject.job)
        finding.note(f"workers, pool and readers fit; at most {config.ray.stream_gb:g} GB are on their way")
        processes = config.workers.num_workers + config.readers.min_actors
        processes += sum(pool.min_actors for pool in pools_of(config).values())
        available = sum(node.memory_bytes for node in subject.nodes or [])
        finding.note(f"{available / 1e9:.1f} GB of memory available")
        if available < processes * PROCESS_BYTES:
            told = f"{processes} processes take some {processes * PROCESS_BYTES / 1e9:.1f} GB"
            finding.warn(told, "end what else runs there, or use fewer workers and actors")


def _check_slides(subject: Subject, findings: Findings) -> None:
    """Some of them are opened, cut and read, each by a process of its own."""
    if subject.job is None or not subject.slides:
        return
    config, stream = subject.config, replace(subject.job.stream, manifest_uri=subject.scratch)
    with findings.check("slides", mend="leave such slides out: a run does so by itself, and says why") as finding:
        chosen = spread_over(subject.slides, config.sample_slides)
        said = [(slide, open_in_process(slide, config.data, stream)) for slide in chosen]
        bad = [f"{slide.slide}: {told}" for slide, told in said if isinstance(told, str)]
        subject.opened = [told for _, told in said if not isinstance(told, str)] or None
        if bad:
            told = f"{len(bad)} of {len(chosen)} cannot be used:\n" + some(bad, between="\n")
            (finding.warn if subject.opened else finding.fail)(told, "see each; a run leaves such slides out and says why")
        if subject.opened:
            numbers = [each.num_tiles for each in subject.opened]
            finding.note(
                f"{len(numbers)} of {len(subject.slides):,} opened: {min(numbers):,} to {max(numbers):,} tiles, some "
                f"{subject.num_tiles:,} in all"
            )
