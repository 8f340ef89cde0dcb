"""The verbs as one command: `csat VERB …` where the project is installed, `python -m workflows VERB …` in a checkout.

A verb is the page of its name beside this file, run as `python workflows/VERB.py` runs it: same settings, same exit codes.
Only the standard library is loaded here, so that a list of the verbs or a wrong name is answered at once.
"""

import importlib
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from workflows.shell import interruption
from workflows.shell.interruption import COMMAND

# name → what `csat --help` says of it
VERBS = {
    "doctor": "say whether a pretraining would run here, how fast, and what mends it where not",
    "pretrain": "distil a teacher into a small student over unlabelled slides",
    "finetune": "train a model on labelled images",
    "tune": "search hyper-parameters on several data sets from several starts, and compare them in one table",
    "evaluate": "compare trained models: intervals, paired differences, costs, and where they are wrong",
    "predict": "nuclei, heatmaps, masks and embeddings of slides, as files for QuPath and tables, from any model",
    "export": "write a run's model as files for timm, onnxruntime, WSInfer and QuPath, with a model card",
    "benchmark": "measure how fast each stage is on this machine",
}
EXIT_CODE = 2  # of a command line that cannot work, as argparse has it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that the first argument names. Returns its exit code.

    Args:
        argv: Arguments; those of this process where None.
    """
    program = COMMAND if Path(sys.argv[0]).name == COMMAND else "python -m workflows"
    verb, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if verb in ("-h", "--help"):
        print(_help(program))
        return 0
    if verb not in VERBS:
        print(f"error: {_refusal(verb, program)}", file=sys.stderr)
        return EXIT_CODE
    sys.argv = [f"{program} {verb}", *rest]  # what the page calls itself, and where it looks for its arguments
    interruption.listen()  # before the imports, which take seconds
    return importlib.import_module(f"workflows.{verb}").main()


def _help(program: str) -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:{width}}  {what}" for verb, what in VERBS.items())
    how = f"`{program} VERB --help` says what a verb needs, and `--help all` lists every setting."
    return f"usage: {program} VERB [settings]\n\n{verbs}\n\n{how}"


def _refusal(verb: str, program: str) -> str:
    known = f"{', '.join(VERBS)}; `{program} --help` says what each does"
    if not verb:
        return f"say which verb: {known}"
    nearest = get_close_matches(verb, VERBS, n=1)
    return f"there is no verb {verb!r}{f' (did you mean {nearest[0]}?)' if nearest else ''}; there are: {known}"


if __name__ == "__main__":
    sys.exit(main())
