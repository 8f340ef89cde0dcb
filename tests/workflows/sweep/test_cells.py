import pytest

from csat.errors import ConfigError
from csat.settings import read_settings
from csat.sweeps.space import read_space
from tests.support.labelled_folders import data_settings, sweep_settings
from workflows.sweep.cells import choose_cells, group_cells, make_cells
from workflows.sweep.config import SweepConfig


def cells_of(folder, **changes):
    settings = {"data_sets": {"a": data_settings("a")}, "data_root": str(folder), "run_folder": str(folder / "run")}
    config = read_settings(SweepConfig, {**sweep_settings(), **settings, **changes}, what="sweep")
    return make_cells(config, read_space(config.search))


def test_a_cell_is_base_then_data_set_then_start_then_what_is_searched(tmp_path):
    (cell,) = cells_of(
        tmp_path,
        base={"train": {"epochs": 4, "batch_size": 8}, "data.tile_px": 32},
        data_sets={"a": {**data_settings("a"), "train.batch_size": 16}},
        starts={"nano": {"model.name": "csat_nano", "train": {"optim": {"warmup": 0.2}}}},
    )
    run = cell.read({"train.optim.lr": 0.01})
    assert (run.train.epochs, run.train.batch_size, run.data.tile_px) == (4, 16, 32)
    assert (run.model.name, run.train.optim.warmup, run.train.optim.lr) == ("csat_nano", 0.2, 0.01)
    assert cell.folder == str(tmp_path / "run" / "cells" / "a" / "nano")


def test_cells_come_data_set_by_data_set(tmp_path):
    sets = {"a": data_settings("a"), "b": data_settings("/elsewhere/b")}
    cells = cells_of(tmp_path, data_sets=sets, starts={"one": {"model.name": "csat_nano"}, "two": {"model.name": "csat"}})
    assert [cell.name for cell in cells] == ["a x one", "a x two", "b x one", "b x two"]
    assert cells[0].config.data.sets["folder"]["path"] == str(tmp_path / "a")
    assert cells[2].config.data.sets["folder"]["path"] == "/elsewhere/b"


class TestWhatIsDoneThisTime:
    @pytest.fixture
    def cells(self, tmp_path):
        sets = {"tenth": data_settings("b"), "all": data_settings("a"), "other": data_settings("a")}
        return cells_of(tmp_path, data_sets=sets, settings_from={"tenth": "all"}, starts={"one": {}, "two": {}})

    def names(self, cells, *, done=(), only=()):
        return [cell.name for cell in choose_cells(cells, done=done, only=only)]

    def test_what_is_searched_for_others_comes_before_them(self, cells):
        assert self.names(cells) == ["all x one", "all x two", "other x one", "other x two", "tenth x one", "tenth x two"]
        assert self.names(cells, only=["all", "tenth"]) == ["all x one", "all x two", "tenth x one", "tenth x two"]

    def test_what_is_done_is_not_done_again(self, cells):
        assert self.names(cells, done=["all x one", "all x two"], only=["tenth"]) == ["tenth x one", "tenth x two"]
        assert self.names(cells, done=["other x one", "other x two"], only=["other"]) == []

    @pytest.mark.parametrize("done", [[], ["all x one"]])
    def test_nothing_comes_before_what_is_searched_for_it(self, cells, done):
        with pytest.raises(ConfigError, match="only asks for tenth, whose setting all is searched for.*: add all to only"):
            choose_cells(cells, done=done, only=["tenth", "other"])


def test_what_goes_side_by_side(tmp_path):
    sets = {"all": data_settings("a"), "tenth": data_settings("a"), "other": data_settings("b")}
    starts = {"one": {}, "two": {}, "wide": {"workers": {"num_workers": 2}}}
    cells = cells_of(tmp_path, data_sets=sets, settings_from={"tenth": "all"}, starts=starts)
    assert [[cell.name for cell in group] for group in group_cells(cells)] == [
        ["all x one", "all x two"],
        ["all x wide"],  # another kind of process
        ["tenth x one", "tenth x two"],  # the same images, after the search
        ["tenth x wide"],
        ["other x one", "other x two"],
        ["other x wide"],
    ]


def test_places_among_a_layouts_options_lie_in_the_same_folder(tmp_path):
    data = {"sets": {"points": {"path": "t.csv", "layout": "manifest", "options": {"image_root": "images", "path": "file"}}}}
    (cell,) = cells_of(tmp_path, data_sets={"a": {"data": {**data, "tile_px": 32}}})
    settings = cell.config.data.sets["points"]
    assert settings["path"] == str(tmp_path / "t.csv")
    assert settings["options"] == {"image_root": str(tmp_path / "images"), "path": "file"}


def test_what_is_decoded_alike_is_shared(tmp_path):
    sets = {"a": data_settings("a"), "tenth": data_settings("a", **{"split.label_fraction": 0.5})}
    starts = {"plain": {}, "balanced": {"data": {"sampling": "balanced"}}, "fine": {"data": {"tile_px": 64}}}
    plain, balanced, fine, tenth, *_ = cells_of(tmp_path, data_sets=sets, starts=starts)
    assert plain.data_key == balanced.data_key
    assert len({plain.data_key, fine.data_key, tenth.data_key}) == 3


def test_a_teacher_is_found_from_here_and_weights_of_losses_are_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "fanet").mkdir(parents=True)
    (cell,) = cells_of(
        tmp_path,
        base={"teacher": {"name": "runs/fanet", "options": {"taps": True}}, "method": {"name": "coco"}},
        search={"method.options.lambda_s": {"loguniform": [0.001, 0.1]}},
    )
    run = cell.read({"method.options.lambda_s": 0.02})
    assert (run.teacher.name, run.teacher.weights) == ("run", str(tmp_path / "runs" / "fanet"))
    assert run.teacher.options == {"taps": True} and run.method.options == {"lambda_s": 0.02}
    with pytest.raises(ConfigError, match="there is no teacher 'runs/gone'"):
        cells_of(tmp_path, base={"teacher": {"name": "runs/gone"}, "method": {"name": "coco"}})


def test_places_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (cell,) = cells_of(
        tmp_path, data_root=None, starts={"rckd": {"model": {"name": "csat_nano", "init": "run", "from_run": "runs/rckd"}}}
    )
    assert cell.config.model.from_run == str(tmp_path / "runs" / "rckd")
    assert cell.config.data.sets["folder"]["path"] == str(tmp_path / "a")
    coco = {"method": {"name": "coco", "options": {"paraphrasers": "runs/coco/paraphrasers"}}}
    (cell,) = cells_of(tmp_path, starts={"coco": coco})
    assert cell.config.method.options["paraphrasers"] == str(tmp_path / "runs" / "coco" / "paraphrasers")


def test_a_trial_uses_the_gpu_share_that_it_is_given(tmp_path):
    (cell,) = cells_of(tmp_path, gpus_per_trial=0.25, cpus_per_trial=0.5)
    assert (cell.config.workers.gpus_per_worker, cell.config.workers.cpus_per_worker) == (0.25, 0.5)
    (cell,) = cells_of(tmp_path, base={"workers": {"num_workers": 2, "cpus_per_worker": 2}, "data.tile_px": 32})
    assert (cell.config.workers.gpus_per_worker, cell.config.workers.cpus_per_worker) == (0, 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_sets": {}}, ["data_sets is empty"]),
        ({"starts": {}}, ["starts is empty"]),
        ({"starts": {"a b": {}}}, ["starts.a b", "letters"]),
        ({"starts": {"x": 3}}, ["starts.x is a mapping", "3"]),
        ({"base": {"run_folder": "x"}}, ["base.run_folder", "leave it out"]),
        ({"starts": {"x": {"model": {"nmae": "csat"}}}}, ["a x x", "no setting 'model.nmae'", "model.name"]),
        ({"starts": {"x": {"model": {"init": "run"}}}}, ["a x x", "model.init 'run'"]),
        ({"data_sets": {"a": {"data": {"sets": {}}}}}, ["a x nano", "data.sets is empty"]),
        ({"search": {"train.optim.lrr": {"uniform": [0.1, 1]}}}, ["no setting 'train.optim.lrr'", "train.optim.lr"]),
        ({"search": {"train.epochs": {"randint": [0, 4]}}}, ["train.epochs must be at least 1, not 0"]),
        ({"search": {"data.sampling": {"choice": ["natural", "blanced"]}}}, ["'blanced'"]),
        ({"base": {"workers": {"num_workers": 3}, "train": {"batch_size": 8}}}, ["8 does not divide"]),
    ],
    ids=lambda value: str(value)[:50],
)
def test_settings_that_cannot_work_name_the_cell(tmp_path, changes, words):
    with pytest.raises(ConfigError) as caught:
        cells_of(tmp_path, **changes)
    for word in words:
        assert word in str(caught.value)
