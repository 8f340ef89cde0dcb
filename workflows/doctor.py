r"""Look at a pretraining before it starts: would it run on this cluster, with these slides, and how long would it take.

    python workflows/doctor.py --config rckd --slides 's3://bucket/slides/*.svs' --teacher.weights hovernet_fast.pth \
        --run_folder s3://bucket/runs/csat-1
    python workflows/doctor.py --format json …     # for a program; the exit code is 1 where a check failed

The settings are those of pretrain.py, recipes too. Each check is PASS, WARN or FAIL, with the line that mends it. Where none
failed, reading, teacher and student are measured on the cluster for about a minute, and the run is planned: actors, threads,
the bottleneck, tiles/s, hours, and what one more GPU or node would change. Nothing is left behind.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from workflows.diagnosis.config import DoctorConfig
from workflows.pretraining.config import NESTED
from workflows.shell import command_line, output
from workflows.shell.flags import with_flags


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns 0, or 1 where a check failed; else see `command_line.run`."""
    return command_line.run(
        doctor, DoctorConfig, __doc__, argv, nested=NESTED, kept=lambda config: "nothing, a diagnosis leaves nothing"
    )


def doctor(config: DoctorConfig) -> int:
    """All of it, top to bottom."""
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    from workflows.diagnosis.checks import examine
    from workflows.diagnosis.findings import Findings
    from workflows.diagnosis.measuring import plan_from
    from workflows.pretraining.plan import in_words

    is_text = config.format == "text"
    spell = partial(with_flags, config_class=DoctorConfig)
    findings = Findings(say=output.result if is_text else None, spell=lambda text: command_line.as_called(spell(text)))
    with interruption.scratch_folder("csat-doctor-") as scratch:
        subject = examine(config, findings, scratch=str(scratch))
        plan = plan_from(subject, findings) if config.calibrate and not findings.has_failed else None
    if not is_text:
        output.result(findings.as_json(plan=plan))
    elif findings.has_failed:
        output.result("\nthe run would not work: see what mends it above")
    elif plan is not None:
        output.result(f"\n{spell(in_words(plan))}", plan=plan)
    return int(findings.has_failed)


if __name__ == "__main__":
    sys.exit(main())
