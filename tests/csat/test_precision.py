import pytest
import torch

from csat import precision
from csat.errors import ConfigError
from csat.precision import VARIABLE, check_precision, has_bfloat16, resolve_precision


@pytest.fixture(autouse=True)
def of_the_hardware(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 clzero", "bfloat16"),
        ("flags : fpu amx_bf16 amx_tile amx_int8", "bfloat16"),
        ("flags : fpu avx512f avx512bw avx512_vnni", "float32"),
        ("flags : fpu avx512_bf16x amx_tile", "float32"),  # whole words, and a tile alone is not enough
        ("", "float32"),
    ],
)
def test_a_cpu_is_known_by_its_flags(monkeypatch, flags, expected):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert resolve_precision("best", "cpu") == expected
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"


def test_this_machine_is_told_as_its_cpuinfo_has_it():
    with open("/proc/cpuinfo") as file:
        words = set(file.read().split())
    assert has_bfloat16("cpu") == bool(words & {"avx512_bf16", "amx_bf16"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda_device_multiplies_nothing():
    assert resolve_precision("best", "cuda") == "float32"


def test_a_node_may_be_told(monkeypatch):
    monkeypatch.setenv(VARIABLE, "bfloat16")
    assert resolve_precision("best", "cpu") == "bfloat16"
    assert resolve_precision("float32", "cpu") == "float32"
    monkeypatch.setenv(VARIABLE, "float16")
    with pytest.raises(ConfigError, match="CSAT_BEST_PRECISION='float16': expected float32 or bfloat16"):
        resolve_precision("best", "cpu")


def test_other_words_are_refused_by_the_setting():
    check_precision("train.precision", "best")
    with pytest.raises(ConfigError, match="train.precision is best, float32 or bfloat16, not 'half'"):
        check_precision("train.precision", "half")
