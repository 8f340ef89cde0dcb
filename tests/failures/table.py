"""The kill matrix as a table: fault, promise, runs, tiles lost, tiles doubled, seconds to recover.

    python -m tests.failures.table --seeds 4 --results runs.jsonl

Each run takes about a minute. Runs that the results hold already are not made again, so the command may be interrupted.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

from tests.failures.lab import PROMISES, Lab, write_outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="runs of each fault")
    parser.add_argument("--faults", nargs="+", choices=PROMISES, default=list(PROMISES), help="what is killed")
    parser.add_argument("--results", type=Path, required=True, help="a .jsonl file: a line per run")
    options = parser.parse_args()
    rows = read_outcomes(options.results)
    made = {(row["fault"], row["seed"]) for row in rows}
    with Lab() as lab:
        for seed in range(options.seeds):
            for fault in options.faults:
                if (fault, seed) not in made:
                    started = time.monotonic()
                    outcome = lab.run(fault, seed)
                    write_outcome(outcome, options.results)
                    print(f"{outcome}: {time.monotonic() - started:.0f} s", flush=True)
    print(as_markdown(read_outcomes(options.results)))


def read_outcomes(path: Path) -> list[dict]:
    """The lines of a results file; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def as_markdown(rows: list[dict]) -> str:
    """A row per fault."""
    lines = [
        "| killed (SIGKILL) | promised | runs | tiles | lost | doubled | seconds to the next checkpoint: median, most |",
        "|---|---|---|---|---|---|---|",
    ]
    for fault, promise in PROMISES.items():
        if of_fault := [row for row in rows if row["fault"] == fault]:
            seconds = [row["recovery_s"] for row in of_fault]
            tiles, lost, doubled = (sum(row[name] for row in of_fault) for name in ("tiles", "lost", "doubled"))
            figures = f"{len(of_fault)} | {tiles:,} | {lost} | {doubled} | {median(seconds):.0f}, {max(seconds):.0f}"
            lines.append(f"| {fault} | {promise} | {figures} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
