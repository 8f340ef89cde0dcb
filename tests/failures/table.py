"""The failure lab as tables: fault, promise, runs, tiles lost, tiles doubled, seconds.

    python -m tests.failures.table --seeds 4 --results runs.jsonl

Each run takes a minute or two. Runs that the results hold already are not made again, so the command may be interrupted.
The full disk needs the right to mount a file system.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

from tests.failures import hazards, kills, sweeps
from tests.failures.lab import Lab, Outcome, write_outcome

SWEEP = "sweep"
PROMISES = {**kills.PROMISES, SWEEP: sweeps.PROMISE, **{name: promise for name, (promise, _) in hazards.HAZARDS.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="runs of each fault")
    parser.add_argument("--faults", nargs="+", choices=PROMISES, default=list(PROMISES), help="what goes wrong")
    parser.add_argument("--results", type=Path, required=True, help="a .jsonl file: a line per run")
    options = parser.parse_args()
    made = {(row["fault"], row["seed"]) for row in read_outcomes(options.results)}
    with Lab() as lab:
        for fault in options.faults:  # one after the other, since some need a cluster of their own
            for seed in range(options.seeds):
                if (fault, seed) not in made:
                    started = time.monotonic()
                    outcome = run(lab, fault, seed)
                    write_outcome(outcome, options.results)
                    print(f"{outcome}: {time.monotonic() - started:.0f} s", flush=True)
    print(as_markdown(read_outcomes(options.results)))


def run(lab: Lab, fault: str, seed: int) -> Outcome:
    """One run with that fault."""
    if fault in kills.PROMISES:
        return kills.kill(lab, fault, seed)
    return sweeps.kill_sweep(lab, fault, seed) if fault == SWEEP else hazards.meet(lab, fault, seed)


def read_outcomes(path: Path) -> list[dict]:
    """The lines of a results file; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def as_markdown(rows: list[dict]) -> str:
    """A row per fault: kills, then what goes wrong without one. Seconds are median and most."""
    lines = [
        "| fault | promised | runs | tiles | lost | doubled | quarantined | seconds to its end | to recover |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for fault, promise in PROMISES.items():
        if of_fault := [row for row in rows if row["fault"] == fault]:
            sums = [sum(row[name] for row in of_fault) for name in ("tiles", "lost", "doubled", "quarantined")]
            figures = [str(len(of_fault)), *(f"{value:,}" for value in sums)]
            figures += [_spread([row[name] for row in of_fault if row[name] is not None]) for name in ("end_s", "recovery_s")]
            lines.append(f"| {fault} | {promise} | {' | '.join(figures)} |")
    return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    return f"{median(seconds):.0f}, {max(seconds):.0f}" if seconds else ""


if __name__ == "__main__":
    main()
