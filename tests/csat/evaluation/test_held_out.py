"""Fidelity on tiles whose answer is known: a student is exported, loaded again and compared."""

import io
import warnings

import numpy as np
import pytest
import torch

from csat.columns import OK, POSITION, QUARANTINED, RESPONSE_PREFIX, STATUS, TILE, UNANSWERED_PREFIX, of_arrays
from csat.evaluation.held_out import KNOWN, PICTURE, FidelityStage, FidelityStages, answered_column, rows_of
from csat.model.files import save_model
from csat.model.student import Student, StudentConfig
from csat.panel import on_tile
from csat.responses import Kind, ResponseSpec, Symmetry
from csat.slides.synthetic import make_slides, read_truth

TILE_PX = 64
NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
HV = ResponseSpec(name="hv", kind=Kind.REGRESSION, channels=2, symmetry=Symmetry.HV)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return make_slides(tmp_path_factory.mktemp("slide"), num_slides=1, size_px=512, seed=3)[0]


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("student")
    save_model(Student(StudentConfig(backbone="csat_nano", decoder_channels=8), (NP, HV)), str(folder), {})
    return folder


def rows(slide, places, *, status=None):
    """Tiles of a slide whose teacher answers with the truth itself."""
    truths = [read_truth(slide, x, y, TILE_PX) > 0 for x, y in places]
    count = len(places)
    return {
        "slide": np.array([str(slide)] * count, dtype=object),
        "x_px": np.array([x for x, _ in places]),
        "y_px": np.array([y for _, y in places]),
        "level": np.zeros(count, dtype=np.int8),
        "read_px": np.full(count, TILE_PX),
        POSITION: np.arange(count),
        STATUS: np.array(status or [OK] * count, dtype=np.uint8),
        TILE: np.full((count, TILE_PX, TILE_PX, 3), 200, dtype=np.uint8),
        RESPONSE_PREFIX + "np": np.stack(truths)[:, None].astype(np.float16),
        RESPONSE_PREFIX + "hv": np.zeros((count, 2, TILE_PX, TILE_PX), dtype=np.float16),
    }


def test_a_teacher_that_knows_the_truth_is_perfect(slide, student_folder):
    measured = FidelityStage(str(student_folder), tile_px=TILE_PX, num_pictures=1)(rows(slide, [(200, 200), (264, 200)]))
    teacher, student = measured[KNOWN["teacher"]], measured[KNOWN["student"]]
    assert teacher[:, 0].sum() > 100, "there are nuclei here"
    assert teacher[:, 1].sum() == teacher[:, 3].sum() == 0
    assert (student.sum(1) == TILE_PX**2).all()
    np.testing.assert_array_equal(measured["student_vs_teacher.np.counts"], student)


def test_pictures_come_for_the_first_positions_only(slide, student_folder):
    measured = FidelityStage(str(student_folder), tile_px=TILE_PX, num_pictures=1)(rows(slide, [(200, 200), (264, 200)]))
    assert measured[PICTURE][1] == b""
    with np.load(io.BytesIO(measured[PICTURE][0])) as picture:
        assert set(picture) == {"tile", "teacher.np", "student.np", "teacher.hv", "student.hv", "known"}
        assert 0 <= picture["student.np"].min() <= picture["student.np"].max() <= 1


def test_tiles_that_are_read_only_are_copied_and_torch_has_nothing_to_warn_of(slide, student_folder):
    columns = rows(slide, [(200, 200)])
    for column in columns.values():
        column.flags.writeable = False  # as they come out of an object store
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(action="error"):
            FidelityStage(str(student_folder), tile_px=TILE_PX, num_pictures=1)(columns)
    finally:
        torch.set_warn_always(False)


def test_tiles_without_an_answer_leave_no_row(slide, student_folder):
    stage = FidelityStage(str(student_folder), tile_px=TILE_PX, num_pictures=0)
    places = [(200, 200), (264, 200), (200, 264)]
    assert stage(rows(slide, places, status=[OK, QUARANTINED, OK]))[POSITION].tolist() == [0, 2]
    assert len(stage(rows(slide, places, status=[QUARANTINED] * 3))[POSITION]) == 0


def test_slides_without_truth_have_no_known_nuclei(slide, student_folder):
    columns = rows(slide, [(200, 200)])
    columns["slide"] = np.array(["/elsewhere/a.svs"], dtype=object)
    measured = FidelityStage(str(student_folder), tile_px=TILE_PX, num_pictures=0)(columns)
    assert (measured[KNOWN["student"]] == -1).all()


def test_whole_images_are_measured_each_at_its_own_size(tmp_path, slide):
    grid = ResponseSpec(name="tokens", kind=Kind.FEATURES, channels=4, stride_px=32, symmetry=Symmetry.NONE)
    logits = ResponseSpec(name="logits", kind=Kind.LOGITS, channels=3, stride_px=None)
    torch.manual_seed(0)
    student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), (grid, logits), last_map=["tokens"])
    save_model(student, str(tmp_path), {})
    student.eval()
    sizes = [(64, 96), (96, 64), (64, 96), (32, 32)]
    tiles = [np.full((*size, 3), 40 * index + 60, np.uint8) for index, size in enumerate(sizes)]
    columns = rows(slide, [(0, 0)] * 4, status=[OK, OK, OK, QUARANTINED])
    columns |= {TILE: of_arrays(tiles), RESPONSE_PREFIX + "logits": np.eye(3, dtype=np.float16)[[0, 1, 2, 0]]}
    columns[RESPONSE_PREFIX + "tokens"] = of_arrays([np.ones((4, h // 32, w // 32), np.float16) for h, w in sizes])
    stage = FidelityStage(str(tmp_path), tile_px=32, num_pictures=4)
    out = stage(columns)
    assert out[POSITION].tolist() == [0, 2, 1], "in groups of one size"
    for position, agreement in zip(out[POSITION], out["student_vs_teacher.logits.agreement"], strict=True):
        image = torch.from_numpy(tiles[position]).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            assert agreement == (student(image)["logits"].argmax() == columns[RESPONSE_PREFIX + "logits"][position].argmax())
    assert out["student_vs_teacher.tokens.cosine"].shape == (3,)
    with np.load(io.BytesIO(out[PICTURE][1])) as picture:
        assert picture["tile"].shape == (64, 96, 3)
    nothing = stage({**columns, STATUS: np.full(4, QUARANTINED, np.uint8)})
    assert all(len(column) == 0 for column in nothing.values())


def test_several_teachers_are_measured_each_where_it_has_answered(tmp_path, slide):
    """The first has nuclei, cropped and in cells of its own; the second lacks a tile, of which nothing of it is shown."""
    first = [on_tile(ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1, crop_px=8), "a", 2)]
    second = [on_tile(HV, "b")]
    torch.manual_seed(0)
    student = Student(StudentConfig(backbone="csat_nano", decoder_channels=8), (*first, *second))
    save_model(student, str(tmp_path), {})
    columns = rows(slide, [(200, 200), (264, 200), (200, 264)])
    truth = torch.from_numpy(columns.pop(RESPONSE_PREFIX + "np").astype(np.float32))[..., 16:-16, 16:-16]
    columns[RESPONSE_PREFIX + "a.np"] = torch.nn.functional.avg_pool2d(truth, 2).numpy().astype(np.float16)
    columns[RESPONSE_PREFIX + "b.hv"] = columns.pop(RESPONSE_PREFIX + "hv")
    columns[UNANSWERED_PREFIX + "a"] = np.array(["", "", "teacher_error: x"], object)
    columns[UNANSWERED_PREFIX + "b"] = np.array(["", "teacher_error: x", ""], object)
    measured = FidelityStage(str(tmp_path), tile_px=TILE_PX, num_pictures=3)(columns)
    assert measured[answered_column("a")].tolist() == [True, True, False]
    assert measured[answered_column("b")].tolist() == [True, False, True]
    known = measured[KNOWN["teacher"]]
    assert (known[:2, 1] == 0).all() and (known[:2, 3] == 0).all() and known[:2, 0].sum() > 20, "the crop is that of the tile"
    assert (known[2] == -1).all(), "without an answer nothing is compared"
    pictures = [set(np.load(io.BytesIO(data)).files) for data in measured[PICTURE]]
    assert pictures[0] >= {"teacher.a.np", "teacher.b.hv", "covered_px"}
    assert "teacher.b.hv" not in pictures[1] and "teacher.a.np" not in pictures[2] and "student.a.np" not in pictures[2]
    assert np.load(io.BytesIO(measured[PICTURE][0]))["covered_px"].tolist() == [[16, 48]]


def test_several_students_are_measured_as_each_alone(slide, student_folder, tmp_path):
    torch.manual_seed(1)
    save_model(Student(StudentConfig(backbone="csat_nano", decoder_channels=4), (NP, HV)), str(tmp_path), {})
    folders, options = {"a": str(student_folder), "b": str(tmp_path)}, {"tile_px": TILE_PX, "num_pictures": 1}
    tiles = rows(slide, [(200, 200), (264, 200), (264, 264)], status=[OK, QUARANTINED, OK])
    columns = FidelityStages(folders, **options)(tiles)
    together = [{name: values[index] for name, values in columns.items()} for index in range(2)]
    figures = []
    for name, folder in folders.items():
        alone = FidelityStage(folder, **options)(tiles)
        own = rows_of(together, name)
        assert own[0].keys() == alone.keys() and len(own) == 2
        for column, values in alone.items():
            for index in range(2):
                np.testing.assert_array_equal(own[index][column], values[index])
        figures.append(own[0]["student_vs_teacher.np.counts"].tolist())
    assert figures[0] != figures[1], "they are different students"
