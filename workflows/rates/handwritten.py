"""Distillation as one writes it by hand: a DataLoader, the teacher in the process that trains, DDP. One file, no framework.

    python workflows/rates/handwritten.py --images tiles/ --teacher vit_small_patch14_dinov2 --weights teacher.pt --out student

What this project is held against, see docs/performance.md; it imports nothing of ours. It is written for speed, as somebody
does who knows PyTorch: jpegs decoded by torchvision in worker processes, the teacher in inference mode and in batches that fit
the cache, the student in channels_last under autocast, one process with a thread for each core (or several under DDP).
It resumes nothing, counts nothing, and trusts every file.
"""

import argparse
import json
import os
import time
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".jpeg", ".jpg", ".png")


class Images(Dataset):
    """uint8 `[3, H, W]`, flipped at random."""

    def __init__(self, folder: str, edge_px: int):
        self.paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
        self.view = v2.Compose(
            [v2.RandomCrop(edge_px, pad_if_needed=True), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.view(decode_image(str(self.paths[index]), ImageReadMode.RGB))


class Student(nn.Module):
    """A timm net and a projection to the teacher's embedding."""

    def __init__(self, name: str, channels: int):
        super().__init__()
        self.net = timm.create_model(name, num_classes=0)
        self.head = nn.Linear(self.net.num_features, channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.net(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="folder, searched at any depth")
    parser.add_argument("--teacher", required=True, help="timm's name")
    parser.add_argument("--weights", required=True, help="the teacher's state_dict")
    parser.add_argument("--student", default="resnet18", help="timm's name")
    parser.add_argument("--out", required=True, help="folder for student.pt and steps.jsonl")
    parser.add_argument("--edge_px", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32, help="of all processes together")
    parser.add_argument("--teacher_batch", type=int, default=8, help="images that the teacher sees at once")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="of each process's DataLoader")
    parser.add_argument("--processes", type=int, default=1, help="that train")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    if arguments.processes == 1:
        train(0, arguments)
    else:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
        store = str(Path(arguments.out, "rendezvous").absolute())
        torch.multiprocessing.start_processes(train, (arguments, store), nprocs=arguments.processes, start_method="spawn")


def train(rank: int, arguments: argparse.Namespace, store: str | None = None) -> None:
    world = arguments.processes
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(max(1, os.cpu_count() // world))
    device = torch.device(arguments.device, rank) if arguments.device == "cuda" else torch.device("cpu")
    if store:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=world)

    images = Images(arguments.images, arguments.edge_px)
    sampler = DistributedSampler(images, world, rank, seed=arguments.seed)
    loader = DataLoader(
        images,
        arguments.batch_size // world,
        sampler=sampler,
        num_workers=arguments.workers,
        persistent_workers=bool(arguments.workers),
        pin_memory=device.type == "cuda",
    )
    teacher = timm.create_model(arguments.teacher, num_classes=0, img_size=arguments.edge_px).eval().to(device)
    teacher.load_state_dict(torch.load(arguments.weights, weights_only=True, map_location=device))
    teacher.to(dtype=getattr(torch, arguments.precision))  # as a whole: a ViT is faster so than under autocast
    student = Student(arguments.student, teacher.num_features).to(device, memory_format=torch.channels_last)
    model = DistributedDataParallel(student) if store else student
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    total = arguments.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=1e-3, total_steps=total, pct_start=0.05)
    jitter = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)
    mean, std = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (MEAN, STD))
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=arguments.precision == "bfloat16")

    seen = 0
    with Path(arguments.out, f"steps-{rank}.jsonl").open("w") as steps:
        for epoch in range(arguments.epochs):
            sampler.set_epoch(epoch)
            for tiles in loader:
                tiles = tiles.to(device, non_blocking=True).float().div_(255)
                with torch.inference_mode():
                    parts = ((tiles - mean) / std).to(next(teacher.parameters()).dtype).split(arguments.teacher_batch)
                    answers = torch.cat([teacher(part).float() for part in parts])
                views = ((jitter(tiles) - mean) / std).contiguous(memory_format=torch.channels_last)
                with autocast:
                    predictions = model(views)
                loss = (1 - F.cosine_similarity(predictions.float(), answers.clone())).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimiser.step()
                schedule.step()
                seen += len(tiles) * world
                steps.write(json.dumps({"images": seen, "time": time.time(), "loss": float(loss.detach())}) + "\n")
    if rank == 0:
        torch.save(student.state_dict(), Path(arguments.out, "student.pt"))
    if store:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
