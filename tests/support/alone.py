"""A Python process that does not see this project: what a user of an exported file has."""

import json
import os
import subprocess
import sys
from pathlib import Path


def run_alone(code: str, *arguments: str, cwd: Path, python: str = sys.executable, timeout: int = 200) -> dict:
    """What the code's last printed line says, as JSON. It runs in `cwd` with `sys.argv[1:]` as given.

    The project's packages cannot be imported there: not from the folder, nor from an installation.
    """
    guard = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('csat', 'teachers', 'workflows'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, "-c", guard + code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
