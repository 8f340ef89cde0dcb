"""Rates and a plan, from the tiles of the slides that were opened."""

from dataclasses import replace
from typing import Any

from workflows.diagnosis.checks import Subject
from workflows.diagnosis.findings import Findings
from workflows.pretraining.calibration import calibrate
from workflows.pretraining.keeping import guessed_costs
from workflows.pretraining.plan import machines, plan_record, shares_of
from workflows.pretraining.precision import decide


def plan_from(subject: Subject, findings: Findings) -> dict[str, Any] | None:
    """What plan.json would hold, for all slides, if they are as those that were opened; None: the findings say why."""
    if subject.job is None or not subject.opened:
        return None
    job = replace(subject.job, stream=replace(subject.job.stream, manifest_uri=subject.scratch))
    mend = "look at the teacher's options and memory, and at what else the cluster is doing"
    with findings.check("precision", mend=mend) as finding:
        config, _, told = decide(job.config, job, lambda: subject.rows, {})
        finding.note(told)
        job = job.with_config(config)
    if findings.has_failed:
        return None
    with findings.check("plan", mend=mend) as finding:
        calibration = calibrate(job, subject.rows, node_cpus=int(machines().node_cpus))
        positions = subject.num_tiles * config.train.epochs
        is_kept = config.cache.uri is not None and config.cache.keep is not False
        costs = calibration.costs.with_kept(guessed_costs(job, is_kept=is_kept), epochs=job.num_epochs)
        record = {"calibration": calibration.as_record()}
        record |= plan_record(costs, shares_of(config), positions)
        plan = record["plan"]
        finding.note(f"{plan['tiles_per_s']:,.4g} tiles/s, limited by {plan['bottleneck']}")
        return record
    return None
