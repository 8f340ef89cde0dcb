"""The settings of pretrain.py."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from csat.errors import ConfigError
from csat.model.student import StudentConfig
from csat.runs.students import check_names
from csat.settings import Free, Often, Place, SettingsOf, merge, read_settings, unfold, with_places
from csat.storage import uris
from csat.tiles.grid import TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.training.config import TrainConfig
from teachers.response_cache import CacheConfig
from workflows.shell.config import (
    MethodConfig,
    NamedTeacher,
    PoolConfig,
    RayConfig,
    ReaderConfig,
    TeacherConfig,
    WorkerConfig,
)

DEMO = "demo"  # in the place of slides
DEMO_PICTURE = "nuclei.png"  # of the run folder: what its student sees on a held-out one of them
TEACHER_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
Students = dict[str, str | SettingsOf[StudentConfig]]  # name → backbone, or what more there is to say


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The synthetic slides of `--slides demo`."""

    num_slides: int = 4  # slides
    size_px: int = 2048  # edge of each, at 0.5 um/px
    seed: int = 0  # of the tissue


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of pretrain.py."""

    run_folder: Free[Place]  # local path or s3://…; the same folder and settings resume an interrupted run
    slides: list[str]  # files, folders, globs, .csv, .xlsx or .txt lists, parquet of tiles; local or s3://; or demo
    teacher: TeacherConfig | None = None  # the only teacher; its actors are those of pool
    teachers: Often[dict[str, NamedTeacher]] = field(default_factory=dict)  # several, each under a name of yours
    data: TilingConfig = field(default_factory=TilingConfig)  # how slides become tiles
    manifest: ManifestConfig = field(default_factory=lambda: ManifestConfig(holdout_fraction=0.1))  # order and held-out tiles
    student: StudentConfig = field(default_factory=StudentConfig)  # what is trained
    students: Often[Students] = field(default_factory=dict)  # several in its place, side by side: name → backbone, or settings
    method: MethodConfig = field(default_factory=MethodConfig)  # how it learns from the responses
    train: TrainConfig = field(default_factory=TrainConfig)  # for how long, at which rates
    demo: DemoConfig = field(default_factory=DemoConfig)  # synthetic slides
    readers: Free[ReaderConfig] = field(default_factory=ReaderConfig)  # actors that read tiles
    pool: Free[PoolConfig] = field(default_factory=PoolConfig)  # actors that hold the teacher
    cache: CacheConfig = field(default_factory=CacheConfig)  # keep the teacher's responses; off without a uri
    workers: Free[WorkerConfig] = field(default_factory=WorkerConfig)  # processes that train
    ray: Free[RayConfig] = field(default_factory=RayConfig)  # the cluster
    student_pixels: str = "tile"  # tile: the student sees the tile shrunk; pyramid: the slide's own lower level
    plan: Often[Free[bool]] = False  # only measure and say what the run would take, on which actors and threads; then stop
    report_tiles: Free[int] = 8  # held-out tiles shown in the report
    overwrite: Often[Free[bool]] = False  # delete a run of another configuration in run_folder

    def __post_init__(self):
        if self.teacher is None and not self.teachers:
            raise ConfigError("there is no teacher: name one, such as teacher=stain, or several with teachers.NAME")
        if self.teacher is not None and self.teachers:
            names = ", ".join(self.teachers)
            raise ConfigError(
                f"teacher is for the only teacher and teachers ({names}) for several: leave teacher out, also of the recipe, "
                "and call it by a name too, as teachers.NAME"
            )
        if self.teachers and self.pool != PoolConfig():
            raise ConfigError(
                f"pool is that of the only teacher; of several each has its own: teachers.{next(iter(self.teachers))}.pool"
            )
        for name in self.teachers:
            if not TEACHER_NAME.fullmatch(name) or name in {each.name for each in fields(NamedTeacher)}:
                raise ConfigError(
                    f"teachers.{name}: what a teacher is called is a word of small letters, digits and _, as nuclei, and "
                    "none of its settings"
                )
        check_names(map(str, self.students))
        if self.students and self.student != StudentConfig():
            names = ", ".join(map(str, self.students))
            raise ConfigError(
                f"student is for the only one and students ({names}) for several: leave student out, also of the recipe, and "
                "say it as students.NAME"
            )

    @property
    def asked(self) -> dict[str | None, NamedTeacher]:
        """Every teacher with its pool, by name; None is the name of the only one.

        In the order of their names, whatever order they were given in: the student's heads follow it, and with them what a
        checkpoint holds.
        """
        if self.teacher is None:
            return dict(sorted(self.teachers.items()))
        return {None: NamedTeacher(**vars(self.teacher), pool=self.pool)}

    def with_asked(self, asked: Mapping[str | None, NamedTeacher]) -> "PretrainConfig":
        """The settings with these teachers and pools in the place of `asked`, which has the same names."""
        if self.teacher is None:
            return replace(self, teachers=dict(asked))
        (only,) = asked.values()
        own = {each.name: getattr(only, each.name) for each in fields(TeacherConfig)}
        return replace(self, teacher=TeacherConfig(**own), pool=only.pool)

    def with_own_places(self) -> "PretrainConfig":
        """See `csat.settings.with_places`: slides are places, but for the word demo. Students are spelled out."""
        slides = [each if each == DEMO else uris.normalise(each) for each in self.slides]
        students = {str(name): asdict(with_places(_read_student(name, said))) for name, said in self.students.items()}
        return replace(self, slides=slides, students=students)

    def each_student(self) -> dict[str | None, StudentConfig]:
        """The only one (None), or several by name."""
        if not self.students:
            return {None: self.student}
        return {str(name): _read_student(name, said) for name, said in self.students.items()}


def named_teachers(said: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `--teachers.NAME TEACHER` and `--teachers.NAME.weights FILE` make of the teachers of a recipe.

    Args:
        said: Name → settings, as the recipe has them.
        changes: `NAME` → the teacher, its settings or None (leave it out), and `NAME.SETTING` → value; in their order.
    """
    teachers = {name: settings.as_dict() for name, settings in said.items()}
    for path, value in changes.items():
        name, _, setting = path.partition(".")
        if not setting and value is None:
            teachers.pop(name, None)
        elif not setting:
            teachers[name] = merge(teachers.get(name, {}), value if isinstance(value, Mapping) else {"name": value})
        else:
            teachers[name] = merge(teachers.get(name, {}), unfold({setting: value}))
    if nameless := [name for name, settings in teachers.items() if "name" not in settings]:
        raise ConfigError(f"teachers.{nameless[0]}: which teacher is it? Say teachers.{nameless[0]}=stain, or another one")
    return teachers


def merge_students(said: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The students of a recipe after `students.NAME value` and `students.NAME.SETTING value`; null leaves one out."""
    students = {str(name): _spelled(each) for name, each in said.items()}
    for path, value in changes.items():
        name, dot, setting = path.partition(".")
        students = merge(students, {name: unfold({setting: value}) if dot else _spelled(value)})
    return {name: student for name, student in students.items() if student is not None}


# Settings of which the command line may say a part, see `command_line.parse`.
NESTED = {"teachers": named_teachers, "students": merge_students}


def _read_student(name: str, said: Any) -> StudentConfig:
    if not isinstance(said, str | Mapping):
        raise ConfigError(f"students.{name} is a backbone, such as csat, or settings of a student, not {said!r}")
    return read_settings(StudentConfig, _spelled(said), what=f"students.{name}")


def _spelled(said: Any) -> Any:
    return {"backbone": said} if isinstance(said, str) else said
