"""What a model has seen before: pretrainings, fine-tunings, teachers, and chains of them, on folders of a few files."""

import csv
import io
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import yaml

from csat.errors import DatasetError
from csat.evaluation.leakage import _is_unique, check_leakage, seen_by
from csat.labels.datasets.contract import Sample
from csat.labels.sets import LabelledData
from csat.storage import files
from csat.tasks import DatasetInfo, Task
from csat.tiles.grid import TILE_SCHEMA, TilingConfig
from csat.tiles.manifest import ManifestConfig
from csat.tiles.manifest_writer import ManifestWriter
from csat.tiles.sources import SlideRow

HEADER = ["image", "part", "sample", "group", "label", "mpp", "reason"]
INFO = DatasetInfo(
    name="wards", task=Task.CLASSIFICATION, classes=("a", "b"), mpp=None, licence="", source="", group="patient"
)


def sample(image: str, group: str, index: int | None = None) -> Sample:
    key = image.rpartition("/data/")[2] + ("" if index is None else f"#{index}")
    return Sample(key=key, layout="folder", image=image, group=group, label=0, index=index)


def data(*, train=(), val=(), test=()) -> LabelledData:
    return LabelledData(INFO, (INFO,), {"train": tuple(train), "val": tuple(val), "test": tuple(test)})


def write_config(folder, **config) -> str:
    files.write_bytes(files.join(str(folder), "config.yaml"), yaml.safe_dump(config).encode())
    return str(folder)


def pretraining(folder, slides, *, teacher=None, teachers=None, holdout=0.0) -> str:
    """The run folder of a pretraining over (slide, patient) pairs, one tile of each."""
    rows = [SlideRow(slide=slide, kind="image", patient=patient) for slide, patient in slides]
    config = ManifestConfig(slides_per_window=2, holdout_fraction=holdout)
    writer = ManifestWriter(files.join(str(folder), "manifest"), config, "f" * 64, TilingConfig(), rows)
    for row in rows:
        values = {"slide": row.slide, "kind": row.kind, "patient": row.patient, "read_px": 256, "footprint_px": 256}
        values |= {"width_px": 256, "height_px": 256, "aspect": 1.0, "mpp_source": "stated"}
        columns = {field.name: pa.array([values.get(field.name, 0)]).cast(field.type) for field in TILE_SCHEMA}
        writer.add(row, pa.table(columns))
    writer.close()
    if teachers:
        return write_config(folder, slides=[], teacher=None, teachers=teachers)
    return write_config(folder, slides=[], teacher=teacher or {"name": "stain", "weights": None})


def finetuning(folder, *, train=(), test=(), unreadable=(), model=None) -> str:
    """The run folder of a fine-tuning, with samples.csv as finetune.py writes it."""
    lines = [
        [each.image, part, each.key, each.group, "a", "", ""] for part, s in (("train", train), ("test", test)) for each in s
    ]
    lines += [[each.image, "train", each.key, each.group, "a", "", "unreadable: line 1\nline 2"] for each in unreadable]
    table = io.StringIO()
    csv.writer(table).writerows([HEADER, *lines])
    files.write_bytes(files.join(str(folder), "samples.csv"), table.getvalue().encode())
    return write_config(folder, data={"sets": {}}, model=model or {"name": "csat", "from_run": None})


def refusal(model, labelled, **options) -> str:
    with pytest.raises(DatasetError) as caught:
        check_leakage(model, labelled, **options)
    return str(caught.value)


SEEN, NEW = sample("/data/wards/a/001.png", "patient 1"), sample("/data/wards/a/002.png", "patient 2")


def test_a_model_from_scratch_has_seen_nothing():
    check_leakage(None, data(test=[SEEN]))


class TestPretraining:
    def test_images_of_the_test_part(self, tmp_path):
        run = pretraining(tmp_path, [(SEEN.image, None), ("/slides/x.svs", None)])
        message = refusal(str(run), data(train=[NEW], val=[NEW], test=[SEEN]))
        assert f"1 images were in the pretraining {run}: {SEEN.image}" in message
        assert "pretrain.csv" in message and "accept_leakage true" in message
        check_leakage(str(run), data(train=[SEEN], test=[NEW]))  # it may be trained on again

    def test_the_validation_part_counts_too(self, tmp_path):
        run = pretraining(tmp_path, [(SEEN.image, None)])
        assert SEEN.image in refusal(str(run), data(val=[SEEN], test=[NEW]))

    def test_a_set_that_moved_is_recognised(self, tmp_path):
        run = pretraining(tmp_path, [(f"s3://bucket/copies{SEEN.image.removeprefix('/data')}", None)])
        assert "1 images were" in refusal(str(run), data(test=[SEEN]))

    def test_a_point_of_an_image_is_that_image(self, tmp_path):
        """The layout manifest with `window_px` calls its samples so."""
        run = pretraining(tmp_path, [(SEEN.image, None)])
        assert "1 images were" in refusal(str(run), data(test=[replace(SEEN, key=f"{SEEN.key}@00003")]))

    def test_a_file_of_the_same_name_elsewhere_is_another(self, tmp_path):
        run = pretraining(tmp_path, [("/data/wards/b/001.png", None), ("/data/others/a/001.png", None)])
        check_leakage(str(run), data(test=[SEEN]))

    def test_another_image_of_the_same_patient(self, tmp_path):
        run = pretraining(tmp_path, [("/data/wards/a/777.png", "patient 1"), ("/data/wards/a/778.png", "patient 9")])
        message = refusal(str(run), data(test=[SEEN, NEW]))
        assert f"other images of 1 groups were in the pretraining {run}: patient 1." in message

    def test_every_set_has_a_patient_1(self, tmp_path):
        run = pretraining(tmp_path, [("/slides/lung/777.svs", "patient 1")])
        check_leakage(str(run), data(test=[SEEN]))

    def test_a_barcode_is_nobody_elses(self, tmp_path):
        run = pretraining(tmp_path, [("s3://slides/lung/777.svs", "TCGA-V5-A7RE")])
        judged = sample("/data/wards/a/001.png", "TCGA-V5-A7RE")
        assert "other images of 1 groups" in refusal(str(run), data(test=[judged]))

    def test_groups_that_carry_their_set(self, tmp_path):
        """pretrain.csv of several sets together names its groups with the set."""
        run = pretraining(tmp_path, [("/data/wards/a/777.png", "wards/patient 1")])
        assert "patient 1" in refusal(str(run), data(test=[SEEN]))
        run = pretraining(tmp_path / "b", [("/data/wards/a/777.png", "patient 1")])
        judged = sample(SEEN.image, "wards/patient 1")
        assert "wards/patient 1" in refusal(str(run), data(test=[judged]))

    def test_held_out_tiles_were_not_trained_on(self, tmp_path):
        slides = [(f"/data/wards/a/{index:03}.png", f"patient {index}") for index in range(8)]
        run = pretraining(tmp_path, slides, holdout=0.5)
        trained = next(iter(seen_by(run)))
        assert 0 < len(trained.images) < 8
        held = [sample(image, group) for image, group in slides if f"wards/a/{image[-7:]}" not in trained.images]
        check_leakage(str(run), data(test=held))


class TestFineTuning:
    def test_its_training_part(self, tmp_path):
        run = finetuning(tmp_path, train=[SEEN], test=[NEW])
        message = refusal(str(run), data(test=[SEEN, NEW]))
        assert f"1 images were in the training part of the fine-tuning {run}: {SEEN.image}." in message
        assert NEW.image not in message and "data.split" in message
        check_leakage(str(run), data(test=[NEW]))

    def test_its_exported_folder_is_the_run(self, tmp_path):
        run = finetuning(tmp_path, train=[SEEN])
        assert f"fine-tuning {run}:" in refusal(str(f"{run}/exported"), data(test=[SEEN]))

    def test_what_could_not_be_read_was_not_seen(self, tmp_path):
        run = finetuning(tmp_path, train=[NEW], unreadable=[SEEN])
        check_leakage(str(run), data(test=[SEEN]))

    def test_images_in_one_file_are_told_apart(self, tmp_path):
        first, second = (sample("/data/pcam/tiles.h5", f"slide {index}", index) for index in (0, 1))
        run = finetuning(tmp_path, train=[first])
        check_leakage(str(run), data(test=[second]))
        assert "1 images" in refusal(str(run), data(test=[first, second]))

    def test_what_it_str(self, tmp_path):
        before = pretraining(tmp_path / "before", [(SEEN.image, None)])
        run = finetuning(tmp_path / "run", train=[NEW], model={"name": "csat", "from_run": before})
        message = refusal(str(run), data(test=[SEEN]))
        assert f"in the pretraining {before}, from which started {run}:" in message

    def test_samples_of_an_earlier_version(self, tmp_path):
        (tmp_path / "samples.csv").write_text(f"image,part,sample,group\n{SEEN.image},train,{SEEN.key},{SEEN.group}\n")
        assert "1 images" in refusal(str(write_config(tmp_path)), data(test=[SEEN]))


class TestTeacher:
    @pytest.mark.parametrize(
        ("name", "weights"),
        [("run", "{}"), ("run", "{}/exported"), ("hovernet", "{}/exported/hovernet.safetensors")],
        ids=["folder", "exported", "published form"],
    )
    def test_images_that_taught_the_teacher(self, tmp_path, name, weights):
        teacher = finetuning(tmp_path / "teacher", train=[SEEN])
        taught = {"name": name, "weights": weights.format(teacher)}
        run = pretraining(tmp_path / "run", [(NEW.image, None)], teacher=taught)
        message = refusal(str(run), data(test=[SEEN]))
        assert (
            f"1 images were in the training part of the fine-tuning {teacher}, the teacher of {run}: {SEEN.image}" in message
        )

    def test_each_of_several_teachers_counts(self, tmp_path):
        taught = finetuning(tmp_path / "teacher", train=[SEEN])
        several = {"a": {"name": "stain"}, "b": {"name": "run", "weights": str(taught)}}
        run = pretraining(tmp_path / "run", [(NEW.image, None)], teachers=several)
        assert f"the teacher of {run}: {SEEN.image}" in refusal(str(run), data(test=[SEEN]))

    def test_all_three_are_named(self, tmp_path):
        third = sample("/data/wards/b/003.png", "patient 3")
        teacher = finetuning(tmp_path / "teacher", train=[SEEN])
        run = pretraining(tmp_path / "run", [(NEW.image, None)], teacher={"name": "run", "weights": teacher})
        tuned = finetuning(tmp_path / "tuned", train=[third], model={"from_run": run})
        message = refusal(str(tuned), data(test=[SEEN, NEW, third]))
        places = [
            message.index(words) for words in (f"fine-tuning {tuned}:", f"pretraining {run},", f"fine-tuning {teacher},")
        ]
        assert places == sorted(places) and message.count("1 images were") == 3

    def test_so_is_what_the_teacher_of_this_very_run_has_seen(self, tmp_path):
        teacher = finetuning(tmp_path / "teacher", train=[SEEN])
        message = refusal(None, data(test=[SEEN]), teacher=teacher)
        assert (
            f"1 images were in the training part of the fine-tuning {tmp_path}/teacher, the teacher: {SEEN.image}" in message
        )
        check_leakage(None, data(train=[SEEN], test=[NEW]), teacher=teacher)
        check_leakage(None, data(test=[SEEN]), teacher=None)

    def test_a_checkpoint_from_elsewhere_says_nothing(self, tmp_path):
        (tmp_path / "hovernet.pth").touch()
        taught = {"name": "hovernet", "weights": str(tmp_path / "hovernet.pth")}
        check_leakage(str(pretraining(tmp_path / "run", [(NEW.image, None)], teacher=taught)), data(test=[SEEN]))

    def test_a_teacher_that_is_gone_is_said(self, tmp_path, caplog):
        taught = {"name": "run", "weights": str(tmp_path / "gone")}
        run = pretraining(tmp_path / "run", [(NEW.image, None)], teacher=taught)
        check_leakage(str(run), data(test=[SEEN]))
        assert f"{tmp_path}/gone, the teacher of {run} is no run folder" in caplog.text

    def test_runs_that_name_each_other_end(self, tmp_path):
        one = finetuning(tmp_path / "one", train=[SEEN], model={"from_run": str(tmp_path / "two")})
        finetuning(tmp_path / "two", train=[NEW], model={"from_run": one})
        assert len(seen_by(one)) == 2


def test_a_model_without_its_run_is_said(tmp_path, caplog):
    check_leakage(str(tmp_path / "model"), data(test=[SEEN]))
    assert "cannot be compared" in caplog.text


def test_runs_in_a_bucket(s3):
    teacher = finetuning(f"{s3}/teacher", train=[SEEN])
    run = pretraining(f"{s3}/run", [(NEW.image, "patient 2")], teacher={"name": "run", "weights": teacher})
    message = refusal(str(run), data(test=[SEEN, NEW]))
    assert f"pretraining {run}:" in message and f"fine-tuning {teacher}, the teacher of {run}:" in message


@pytest.mark.parametrize(
    "name", ["TCGA-V5-A7RE", "TCGA-06-0125", "B14-22549", "SOB_B_A-14-22549AB", "0121d6759c5adb29", "4711881"]
)
def test_names_that_are_nobody_elses(name):
    assert _is_unique(name)


@pytest.mark.parametrize(
    "name", ["patient 4", "12", "block 0", "train_10", "lung_aca_163", "human bladder", "P12", "001.png", "A"]
)
def test_names_that_anybody_may_have(name):
    assert not _is_unique(name)


def test_ten_times_the_images_take_ten_times_as_long(tmp_path):
    """And not a hundred times, as comparing each with each would. By the processor's clock: a busy machine is no failure."""
    small, large = (_seconds_of(tmp_path / str(count), count) for count in (4000, 40_000))
    assert large < 30 * small, (small, large)


def _seconds_of(folder, count: int) -> float:
    groups = np.random.default_rng(0).integers(9000, size=count)
    run = finetuning(folder, train=[sample(f"/data/wards/{n % 9}/{n:06}.png", f"patient {g}") for n, g in enumerate(groups)])
    beds = data(test=[sample(f"/data/beds/{n}.png", f"P{n}") for n in range(count // 4)])
    start = time.process_time()
    check_leakage(str(run), beds)
    return time.process_time() - start
