r"""Compare models: seeds pooled, intervals by patient, paired differences, costs, and where all of them are wrong.

    python workflows/evaluate.py --runs '{rckd: [runs/rckd-0, runs/rckd-1], scratch: [runs/scratch-0, runs/scratch-1]}' \
        --run_folder runs/comparison
    python workflows/evaluate.py --runs '{student: runs/rckd, teacher: {teacher: hovernet, weights: hovernet_fast.pth}}' \
        --data.sets.consep data/consep --run_folder runs/student-and-teacher

Runs under one name are seeds of one way to train, or the folds of a cross-validation; differences are against the first
name. Without `data` the predictions that runs of finetune.py left behind are compared. With `data.sets` whatever answers is
judged on labelled images: those runs, students straight from pretrain.py, exported folders, ONNX files and teachers. Each
sees windows at its own resolution, and what it says is compared on the pixels of the labels.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.runs.folder import RunFolder
from workflows.comparison.config import EvaluateConfig, name_runs
from workflows.shell import command_line, output


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`."""
    return command_line.run(evaluate, EvaluateConfig, __doc__, argv)


def evaluate(config: EvaluateConfig) -> int:
    """All of it, top to bottom."""
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    from csat.evaluation.comparison import check_groups, compare_runs, to_csv, to_text, worst_samples
    from csat.evaluation.folds import join_folds
    from csat.evaluation.reports.comparison import write_comparison_report
    from csat.evaluation.scores import check_metric
    from workflows.comparison.data import gather
    from workflows.comparison.judge import find_device, judge_on_other_data, make_pictures
    from workflows.comparison.judged import read_judged
    from workflows.shell import cluster
    from workflows.shell.status import under_way

    folder = RunFolder(config.run_folder)
    if config.data:
        cluster.start_meanwhile(config.ray, kept_gb=2 * config.data.memory_gb)
    device = find_device(config.device)
    split = None if config.data else config.split
    named = name_runs(config.runs)
    groups = {name: [read_judged(each, split, device=config.device) for each in members] for name, members in named.items()}
    check_groups(groups, of_same_classes=config.data is None)
    if not config.data:
        groups = {name: join_folds(members) for name, members in groups.items()}
    runs = [run for members in groups.values() for run in members]
    data = gather(runs, config.data, config.split, accept_leakage=config.accept_leakage) if config.data else None
    task, classes = runs[0].task, data.info.classes if data else runs[0].classes
    metric = check_metric(task, classes, config.metric or runs[0].evaluation["metric"])
    folder.open(config, overwrite=config.overwrite)
    with under_way(folder):
        seen = {}  # name → what was judged on
        if data:
            cluster.connect(config.ray, kept_gb=2 * config.data.memory_gb)
            groups, seen = judge_on_other_data(config.data, data, folder, groups, device)
        settings = {"split": config.split, "metric": metric, "num_bootstraps": config.num_bootstraps, "seed": config.seed}
        result = compare_runs(groups, **settings)
        result["worst"] = worst_samples(groups, config.report_samples)
        folder.write_json("evaluation.json", result)
        folder.write_text("evaluation.csv", to_csv(result))
        pictures, why_not = make_pictures(groups, seen, result["worst"], device)
        write_comparison_report(folder, result, pictures=pictures, why_no_pictures=why_not)
    table, report = folder.path("evaluation.csv"), folder.path("report.html")
    figures = {name: group["figures"] for name, group in result["groups"].items()}
    places = {"run_folder": folder.uri, "table": table, "report": report}
    output.result(f"{to_text(result)}\n\ntable:  {table}\nreport: {report}", **places, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
