"""On a CUDA device: the answers of float32 on the CPU, under bf16 and compile. `pytest -m gpu -s` also prints img/s."""

import pytest
import timm
import torch

import csat.model  # noqa: F401  (registers the backbones)
from csat.model.networks.hovernet import HoVerNet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(600),
]

TOLERANCE = {"float32": 2e-3, "bfloat16": 3e-2}  # relative error of the whole tensor; float32 may use tf32


def relative_error(out, reference):
    out, reference = out.detach().double().cpu(), reference.detach().double()
    return float((out - reference).norm() / reference.norm())


def measure(step, images_per_step, name):
    """Median over 20 steps after 5, with events on the device. Fails on a result that cannot be."""
    times = []
    for index in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        if index >= 5:
            times.append(start.elapsed_time(end) / 1e3)
    rate = images_per_step / sorted(times)[len(times) // 2]
    assert rate > 1
    print(f"{name}: {rate:,.0f} img/s on {torch.cuda.get_device_name()}")


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_csat_forward_and_backward_agree_with_the_cpu(precision, compiled):
    torch.manual_seed(0)
    model = timm.create_model("csat", num_classes=10).eval()
    images = torch.randn(4, 3, 224, 224)
    reference = model(images)
    reference.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model = model.cuda().to(memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
        out = run(images.cuda())
    out.float().square().sum().backward()
    assert relative_error(out, reference) < TOLERANCE[precision]
    on_gpu = torch.cat([p.grad.flatten().cpu() for p in model.parameters()])
    on_cpu = torch.cat([gradients[name].flatten() for name, _ in model.named_parameters()])
    assert relative_error(on_gpu, on_cpu) < 2 * TOLERANCE[precision]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_hovernet_agrees_with_the_cpu(compiled):
    torch.manual_seed(0)
    model = HoVerNet(mode="fast", num_types=6).eval()
    images = torch.rand(1, 3, 256, 256) * 255
    with torch.inference_mode():
        reference = model(images)
    model = model.cuda().to(memory_format=torch.channels_last)
    run = torch.compile(model) if compiled else model
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        out = run(images.cuda())
    for name, expected in reference.items():
        assert relative_error(out[name], expected) < TOLERANCE["bfloat16"], name


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_images_per_second(compiled):
    """Speed is not asserted: the figures are for people, and only for this device."""
    student = timm.create_model("csat").cuda().to(memory_format=torch.channels_last)
    teacher = HoVerNet(mode="fast", num_types=6).eval().cuda().to(memory_format=torch.channels_last)
    images = torch.randn(256, 3, 224, 224, device="cuda").contiguous(memory_format=torch.channels_last)
    tiles = (torch.rand(32, 3, 256, 256, device="cuda") * 255).contiguous(memory_format=torch.channels_last)
    run_student, run_teacher = (torch.compile(m) if compiled else m for m in (student, teacher))
    how = "compiled" if compiled else "eager"

    def infer():
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            run_student(images)

    def train():
        with torch.autocast("cuda", torch.bfloat16):
            loss = run_student(images).float().square().mean()
        loss.backward()
        student.zero_grad(set_to_none=True)

    def teach():
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            run_teacher(tiles)

    measure(infer, len(images), f"csat inference, bf16, {how}, 224 px")
    measure(train, len(images), f"csat forward and backward, bf16, {how}, 224 px")
    measure(teach, len(tiles), f"HoVer-Net fast, bf16, {how}, 256 px")
