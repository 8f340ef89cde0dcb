"""How fast all of it is on this machine, and beside others: stages that are measured one after the other.

    python workflows/benchmark.py --device cpu --threads 2             # student, teacher and reader, each by itself
    python workflows/benchmark.py --stages peers --images tiles/ --rounds 3 --lightly_python lightly/bin/python
    python workflows/benchmark.py --stages all --output figures.json   # every stage
    python workflows/benchmark.py --stages all --quick true            # every stage, small: does it work

Machines are noisy: every figure is the median of several rounds with the least and the most, the candidates of a stage take
turns within a round, and ratios are of one round. docs/performance.md explains the stages and their figures. What a whole run
of yours reaches stands in its throughput.json.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the script runs from a checkout, installed or not

from workflows.shell import interruption

if __name__ == "__main__":
    interruption.listen()  # before the imports, which take seconds

from csat.errors import ConfigError
from csat.settings import resolve
from workflows.rates.config import BenchmarkConfig
from workflows.shell import command_line, output

# name → function: what is measured is loaded when its turn comes, so that stages which run commands leave them the memory.
STAGES = {
    "peers": "workflows.rates.peers:measure_peers",
    "ceiling": "workflows.rates.ceiling:measure_ceiling",
    "actors": "workflows.rates.actors:measure_actors",
    "startup": "workflows.rates.startup:measure_startup",
    "memory": "workflows.rates.memory:measure_memory",
    "student": "workflows.rates.students:measure_students",
    "reader": "workflows.rates.readers:measure_readers",
    "sweep": "workflows.rates.sweep:measure_sweep",
    "teacher": "workflows.rates.stages:measure_teachers",
    "model": "workflows.rates.stages:measure_models",
    "forecast": "workflows.rates.forecast:measure_forecasts",
    "precision": "workflows.rates.precision:measure_precision",
    "plan": "workflows.rates.metadata:measure_plan",
    "manifest": "workflows.rates.metadata:measure_manifest",
}
ALL = "all"


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`."""
    return command_line.run(benchmark, BenchmarkConfig, __doc__, argv)


def benchmark(config: BenchmarkConfig) -> int:
    """All of it, top to bottom."""
    from workflows.rates import machine  # not above: `--help` or a refused setting needs none of it

    config = config.as_asked()
    stages = list(STAGES) if ALL in config.stages else list(config.stages)
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ConfigError(f"there is no stage {', '.join(unknown)}; there are: {', '.join(STAGES)}, and {ALL}")
    config.check()
    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    figures = {
        "machine": machine.describe_machine(config.device),
        "versions": machine.describe_versions(),
        "command": machine.command_line(),
        "seed": config.seed,
    }
    about = figures["machine"]
    output.result(f"{about['device']}, {about['cores']} cores, load {about['load'][0]}", **figures)
    for stage in stages:
        figures[stage] = resolve(STAGES[stage])(config)
        if config.output:  # after each: what was measured is not lost with what follows
            Path(config.output).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
