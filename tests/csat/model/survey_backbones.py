"""Which timm backbones can be students, at which tile sizes: one architecture of each family, trained for a step.

    python -m tests.csat.model.survey_backbones            # renews tests/csat/model/backbones.tsv; half an hour on two cores
    python -m tests.csat.model.survey_backbones coatnet_nano_rw_224 resnet18      # only these, printed

Every architecture runs in a process of its own, so that a crash is a line of the table. In a cell: `ok` (checked as the driver
checks it, then a forward and a backward pass with a dense and a pooled head, finite gradients), `refused` (a ConfigError,
which the last column quotes), or what went wrong.
"""

import os
import signal
import sys
import time
import warnings
from pathlib import Path

import timm
import torch

from csat.errors import ConfigError
from csat.model.student import Student, StudentConfig
from csat.responses import Kind, ResponseSpec

TABLE = Path(__file__).with_name("backbones.tsv")
SIZES_PX = (128, 224, 256, 270)
COLUMNS = ("architecture", "family", "parameters_m", *(f"at_{size_px}_px" for size_px in SIZES_PX), "reason")
MOST_S = 900  # for one architecture, on a busy machine
NP = ResponseSpec(name="np", kind=Kind.PROBABILITY, channels=1)
LABEL = ResponseSpec(name="label", kind=Kind.LOGITS, channels=3, stride_px=None)


def survey(name: str) -> dict[str, str]:
    """The row of one architecture."""
    torch.manual_seed(0)
    row = dict.fromkeys(COLUMNS, "refused") | {
        "architecture": name,
        "family": family_of(name),
        "parameters_m": "",
        "reason": "",
    }
    config = StudentConfig(backbone=name, decoder_channels=16)
    note = first_refusal = ""
    try:
        try:
            student = Student(config, (NP, LABEL))
        except ConfigError as error:
            if "does not pool" not in str(error):
                raise
            note = "dense responses only: it does not pool"
            student = Student(config, (NP,))
    except ConfigError as error:
        return row | {"reason": str(error)}
    row["parameters_m"] = f"{sum(p.numel() for p in student.backbone.parameters()) / 1e6:.1f}"
    for size_px in SIZES_PX:
        try:
            student.check_tile(size_px)
        except ConfigError as error:
            first_refusal = first_refusal or str(error)  # those of one architecture are alike
            continue
        row[f"at_{size_px}_px"] = step(student, size_px)
    return row | {"reason": first_refusal or note}


def step(student: Student, size_px: int) -> str:
    """A step of training: "ok", or what is wrong with it."""
    try:
        student.train().zero_grad()
        predictions = student(torch.rand(2, 3, size_px, size_px))
        sum(prediction.square().mean() for prediction in predictions.values()).backward()
    except Exception as error:  # whatever it is, it is what the table is for
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:120]
    for parameter_name, parameter in student.named_parameters():
        if parameter.requires_grad != (parameter.grad is not None):
            return f"{parameter_name} wants a gradient and has none, or the reverse"
        if parameter.requires_grad and not parameter.grad.isfinite().all():
            return f"the gradient of {parameter_name} is not finite"
    return "ok"


def family_of(name: str) -> str:
    """timm's file, as it groups architectures."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def survey_alone(name: str) -> dict[str, str]:
    """As `survey`, in a process of its own: it may crash, or take too long."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(MOST_S)
        row = survey(name)
        os.write(writer, "\t".join(row[column] for column in COLUMNS).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        said = answer.read().decode()
    _, status = os.waitpid(child, 0)
    if said:
        return dict(zip(COLUMNS, said.split("\t"), strict=True))
    end = (
        f"signal {signal.Signals(os.WTERMSIG(status)).name}"
        if os.WIFSIGNALED(status)
        else f"exit {os.waitstatus_to_exitcode(status)}"
    )
    return dict.fromkeys(COLUMNS, "") | {"architecture": name, "family": family_of(name), "reason": f"process ended: {end}"}


def read_table(path: Path = TABLE) -> list[dict[str, str]]:
    """The rows of the committed table."""
    header, *lines = path.read_text().splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def main(names: list[str]) -> None:
    """The given architectures, printed; without any, those of the table, and the table is rewritten."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # a fork inherits no threads
    chosen = names or [row["architecture"] for row in read_table()]
    lines = ["\t".join(COLUMNS)]
    for name in chosen:
        began = time.monotonic()
        row = survey_alone(name)
        lines.append("\t".join(row[column] for column in COLUMNS))
        print(lines[-1], f"{time.monotonic() - began:.0f} s", sep="\t", flush=True)
    if not names:
        TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
