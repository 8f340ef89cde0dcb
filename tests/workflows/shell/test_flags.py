"""Messages name settings; the page that shows them spells its flags."""

import pytest

from workflows.comparison.config import EvaluateConfig
from workflows.finetuning.config import FinetuneConfig
from workflows.pretraining.config import PretrainConfig
from workflows.shell.flags import with_flags
from workflows.sweep.config import HOLDS, SweepConfig


@pytest.mark.parametrize(
    ("page", "message", "shown"),
    [
        (PretrainConfig, "data.tile_px must be at least 32", "--data.tile_px must be at least 32"),
        (PretrainConfig, "lower data.min_tissue, or raise data.mpp.", "lower --data.min_tissue, or raise --data.mpp."),
        (PretrainConfig, "choose another run_folder, or overwrite=true", "choose another --run_folder, or --overwrite=true"),
        (PretrainConfig, "the data of a run or its teacher", "the data of a run or its teacher"),
        (PretrainConfig, "a run of fanet with teacher.options.taps true", "a run of fanet with --teacher.options.taps true"),
        (PretrainConfig, "finetune.py with model.options.layer", "finetune.py with model.options.layer"),
        (PretrainConfig, "see /runs/data.mpp, data.json and 'data.mpp'", "see /runs/data.mpp, data.json and 'data.mpp'"),
        (PretrainConfig, "--data.mpp and --teacher hovernet", "--data.mpp and --teacher hovernet"),
        (FinetuneConfig, "(teacher=null method.name=supervised)", "(--teacher=null --method.name=supervised)"),
        (FinetuneConfig, "say data.sets.glas '{path: x}'", "say --data.sets.glas '{path: x}'"),
        (FinetuneConfig, "set teacher.accept_any_mpp true", "set --teacher.accept_any_mpp true"),
        (FinetuneConfig, "data.json, teacher.json", "data.json, teacher.json"),
        (EvaluateConfig, "or say accept_leakage true", "or say --accept_leakage true"),
        (EvaluateConfig, "data.mpp 1 and train.epochs", "--data.mpp 1 and train.epochs"),
    ],
    ids=str,
)
def test_a_setting_of_the_page_becomes_its_flag_and_nothing_else_does(page, message, shown):
    assert with_flags(message, page) == shown


def test_a_sweep_spells_settings_of_its_runs_below_base():
    message = "a x rckd: data.tile_px, method.options.cells 4 or test_time_views; data_sets.a, max_concurrent, run_folder"
    assert with_flags(message, SweepConfig, HOLDS) == (
        "a x rckd: --base.data.tile_px, --base.method.options.cells 4 or --base.test_time_views; --data_sets.a, "
        "--max_concurrent, --run_folder"
    )
