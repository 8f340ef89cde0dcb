"""How fast each stage is on this machine, one stage at a time, in one process.

    python workflows/benchmark.py --device cpu --threads 2
    python workflows/benchmark.py --stages '["plan", "manifest"]'     # what ten thousand slides cost before pixels are read
    python workflows/benchmark.py --stages '["forecast"]'              # do plans keep their word, for five pairs
    python workflows/benchmark.py --stages '["startup"]'               # how long a user waits, how large the processes are

Machines are noisy: every figure is the median of several rounds, the candidates of a stage take turns within a round, and a
table shows each as a ratio to the first. What a whole run reaches, with everything at once, stands in its throughput.json.
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
from workflows.rates.config import BenchmarkConfig
from workflows.shell import command_line, output


def main(argv: list[str] | None = None) -> int:
    """Run the verb. Returns the exit code, see `command_line.run`."""
    return command_line.run(benchmark, BenchmarkConfig, __doc__, argv)


def benchmark(config: BenchmarkConfig) -> int:
    """All of it, top to bottom."""
    # Not above: they take seconds to load, and `--help` or a refused setting needs none of them.
    import torch

    from csat.tiles.sources import list_slides
    from workflows.rates.forecast import measure_forecasts
    from workflows.rates.metadata import measure_manifest, measure_plan
    from workflows.rates.precision import measure_precision
    from workflows.rates.stages import describe_device, measure_models, measure_readers, measure_students, measure_teachers
    from workflows.rates.startup import measure_startup

    stages = {
        "student": measure_students,
        "teacher": measure_teachers,
        "reader": measure_readers,
        "model": measure_models,
        "plan": lambda config: measure_plan(config.num_tiles),
        "startup": measure_startup,
        "forecast": measure_forecasts,
        "precision": measure_precision,
        "manifest": lambda config: measure_manifest(config.num_slides, config.num_tiles),
    }
    if unknown := [stage for stage in config.stages if stage not in stages]:
        raise ConfigError(f"there is no stage {', '.join(unknown)}; there are: {', '.join(stages)}")
    if min(config.num_slides - 1, config.num_tiles) < 1:
        raise ConfigError("num_slides must be at least 2 and num_tiles at least 1")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here")
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.slides:
        list_slides(config.slides)  # a wrong name is met before minutes of measuring
    figures = {stage: stages[stage](config) for stage in config.stages}
    figures["machine"] = {
        "device": describe_device(config.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    machine = figures["machine"]
    output.result(f"{machine['device']}, {machine['threads']} threads, torch {torch.__version__}", machine=machine)
    if config.output:
        Path(config.output).write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
