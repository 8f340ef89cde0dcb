"""timm knows our backbones once csat.model is imported, in whatever order, and csat.model loads no timm."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ORDERS = (
    "import csat.model, timm",
    "import timm, csat.model",
    "import csat.model.networks.csat_timm, timm",
    "import csat.model, timm.layers; import timm",
    "import csat.model, importlib.util; assert importlib.util.find_spec('timm'); import timm",
)
# Each in a fork of one process that has loaded what timm needs, and neither timm nor this project.
IN_FORKS = """
import os, sys, torchvision

assert not {"timm", "csat"} & sys.modules.keys()
for order in sys.argv[1:]:
    if not os.fork():
        exec(order)
        assert timm.is_model("csat") and timm.is_model("resnet10_gn"), "not registered"
        assert not any("csat" in type(finder).__module__ for finder in sys.meta_path)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"failed: {order}")
"""


def test_timm_knows_the_backbones():
    subprocess.run([sys.executable, "-c", IN_FORKS, *ORDERS], check=True, cwd=ROOT, timeout=120)


def test_a_student_around_csat_needs_no_timm():
    code = (
        "import sys; from csat.model.student import Student, StudentConfig; from csat.responses import Kind, ResponseSpec;"
        "spec = ResponseSpec(name='np', kind=Kind.PROBABILITY, channels=1);"
        "student = Student(StudentConfig(backbone='csat_nano'), (spec,)); student.check_tile(64);"
        "loaded = {'timm', 'torchvision', 'torch._dynamo', 'sympy'} & sys.modules.keys(); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def test_settings_of_models_load_neither_timm_nor_torchvision():
    code = (
        "import sys; from csat.model.registry import ModelConfig; from csat.model.student import StudentConfig;"
        "ModelConfig(name='hovernet'); StudentConfig(backbone='resnet18');"
        "loaded = {'timm', 'torchvision', 'torchmetrics'} & sys.modules.keys(); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
