"""Train the small teacher that ships with the package, from procedural pictures alone.

Pretext [ours]: every picture is a patchwork of a few procedural materials out of many, under light, contrast
and colours that say nothing of them; from the features at strides 4, 8 and 16, linear heads must name the
material of every cell. No photograph and no label made by people is used. One thread draws the next pictures
while the network learns from these. Interrupt it at will: the same command goes on from the last checkpoint.

    python tools/train_embedded_teacher.py
"""

import argparse
import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor, nn
from torchvision.transforms.v2 import functional as tvf

from dmdd_lite.device import autocast, resolve_device
from dmdd_lite.files import Progress, write_atomically
from dmdd_lite.synthesis import random_perlin, step_generator
from dmdd_lite.teacher import EMBEDDED
from dmdd_lite.weights import load_plain

SIZE, BATCH, MATERIALS, PIECES = 64, 32, 384, 4
CHANGED = 0.5  # share of pictures whose light, contrast and colours are not to be relied on
EVERY = 500  # iterations between two checkpoints
TARGET = Path(__file__).parent.parent / "dmdd_lite" / EMBEDDED["file"]


def material_parameters(count: int, seed: int) -> dict[str, Tensor]:
    """What defines each material: two colours, two gratings, and the weights of waves, dots, coarse and fine
    noise, lines and blobs."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(count, *shape, generator=rng)

    grey, tint = uniform(2, 1, 1, 1), uniform(2, 1, 1, 1)
    return {
        "colours": torch.lerp(grey, uniform(2, 3, 1, 1), tint),
        "angle": uniform(1, 1, high=math.pi),
        "cycles": 2 ** uniform(1, 1, low=1.0, high=4.5),
        "aspect": 2 ** uniform(1, 1, low=-1.0, high=1.0),
        "bend": uniform(1, 1, high=1.5),
        "sharp": uniform(1, 1, low=1.0, high=6.0),
        "thin": 2 ** uniform(1, 1, low=1.0, high=4.0),
        "level": uniform(1, 1, low=-0.6, high=0.6),
        "mix": torch.softmax(5 * uniform(6, 1, 1), dim=1),
        "grain": uniform(1, 1, 1, high=0.12),
    }


def render_materials(parameters: dict[str, Tensor], kinds: Tensor, size: int, rng: Generator) -> Tensor:
    """One picture (B, 3, size, size) in [0, 1] of each material in `kinds` (B,), never the same twice."""
    p = {name: values[kinds] for name, values in parameters.items()}
    batch = len(kinds)

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(batch, *shape, generator=rng)

    coarse = random_perlin(batch, (size, size), (1, 3), 180, rng)
    fine = random_perlin(batch, (size, size), (3, 5), 180, rng)
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    angle = p["angle"] + uniform(1, 1, low=-0.15, high=0.15)
    cycles = p["cycles"] * torch.exp(uniform(1, 1, low=-0.25, high=0.25))
    u = (torch.cos(angle) * x + torch.sin(angle) * y) * cycles + uniform(1, 1) + p["bend"] * coarse / 3
    v = (torch.cos(angle) * y - torch.sin(angle) * x) * cycles * p["aspect"] + uniform(1, 1)
    waves = torch.tanh(p["sharp"] * torch.sin(2 * math.pi * u))
    dots = torch.tanh(p["sharp"] * (torch.sin(2 * math.pi * u) * torch.sin(2 * math.pi * v) - 0.3))
    lines = 1 - 2 * torch.tanh((p["thin"] * coarse).abs())
    blobs = torch.tanh(4 * p["sharp"] * (fine - p["level"]))
    shares = p["mix"].unbind(1)
    drawn = (waves / 2, dots / 2, coarse, fine, lines / 2, blobs / 2)
    level = 0.5 + sum(share * one for share, one in zip(shares, drawn, strict=True))
    picture = torch.lerp(p["colours"][:, 0], p["colours"][:, 1], level[:, None])
    picture = picture + p["grain"] * torch.randn(batch, 1, size, size, generator=rng)
    return picture.clamp(0, 1)


def patchwork(parameters: dict[str, Tensor], batch: int, size: int, rng: Generator):
    """Pictures (B, 3, size, size) of PIECES materials each, under uneven light; the materials (B, PIECES);
    and which of them every pixel shows, as 0 and 1 (B, PIECES, size, size)."""
    count = len(parameters["angle"])
    kinds = torch.randint(count, (batch, PIECES), generator=rng)
    pictures = render_materials(parameters, kinds.flatten(), size, rng).unflatten(0, (batch, PIECES))
    noise = random_perlin(batch * PIECES, (size, size), (0, 4), 180, rng).unflatten(0, (batch, PIECES))
    height = noise + 0.4 * torch.rand(batch, PIECES, 1, 1, generator=rng)
    winner = height.argmax(1)  # B, size, size
    picture = pictures.gather(1, winner[:, None, None].expand(-1, 1, 3, -1, -1))[:, 0]
    light = 1 + 0.25 * random_perlin(batch, (size, size), (0, 2), 180, rng)[:, None]
    lit = picture * light * (0.85 + 0.3 * torch.rand(batch, 1, 1, 1, generator=rng))
    changed = torch.rand(batch, 1, 1, 1, generator=rng) < CHANGED
    picture = torch.where(changed, photometric(picture, rng), lit)
    picture = picture + 0.02 * torch.randn(batch, 3, size, size, generator=rng)
    shown = F.one_hot(winner, PIECES).permute(0, 3, 1, 2).float()
    return picture.clamp(0, 1), kinds, shown


def photometric(pictures: Tensor, rng: Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with another gamma, contrast, balance of colours, saturation (a third
    is grey), brightness and uneven light each, two fifths of them blurred; no longer bounded."""
    batch = len(pictures)

    def uniform(*shape, low=0.0, high=1.0):
        return low + (high - low) * torch.rand(batch, *shape, generator=rng)

    pictures = pictures.clamp_min(1e-3) ** torch.exp(uniform(1, 1, 1, low=-0.7, high=0.7))
    mean = pictures.mean((2, 3), keepdim=True)
    pictures = mean + (pictures - mean) * torch.exp(uniform(1, 1, 1, low=-1.2, high=0.4))
    pictures = pictures * torch.exp(uniform(3, 1, 1, low=-0.25, high=0.25))
    grey = pictures.mean(1, keepdim=True)
    saturation = uniform(1, 1, 1, high=1.2) * (uniform(1, 1, 1) > 0.3)
    pictures = grey + (pictures - grey) * saturation + uniform(1, 1, 1, low=-0.25, high=0.25)
    pictures = pictures * (1 + 0.4 * random_perlin(batch, pictures.shape[2:], (0, 2), 180, rng)[:, None])
    blurred = tvf.gaussian_blur(pictures, [5, 5], [0.8, 0.8])
    return torch.where(uniform(1, 1, 1) < 0.4, blurred, pictures)


def dense_loss(logits: Tensor, kinds: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of every cell's materials (B, M, h, w) against the shares of those in the picture."""
    shares = F.adaptive_avg_pool2d(shown, logits.shape[2:])  # B, PIECES, h, w
    index = kinds[:, :, None, None].expand_as(shares)
    return ((logits.logsumexp(1, keepdim=True) - logits.gather(1, index)) * shares).sum(1).mean()


def train(options: argparse.Namespace):
    """Train, from the checkpoint if there is one, and write the teacher."""
    device = resolve_device(options.device)
    torch.manual_seed(options.seed)
    network = timm.create_model(
        EMBEDDED["name"], features_only=True, out_indices=(1, 2, 3), **EMBEDDED["options"]
    ).to(device, memory_format=torch.channels_last)
    heads = nn.ModuleList(nn.Conv2d(c, MATERIALS, 1) for c in network.feature_info.channels()).to(device)
    weights = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.iterations, pct_start=0.1)
    parts = {"network": network, "heads": heads, "optimizer": optimizer, "schedule": schedule}
    start, earlier = resume(parts, options)
    parameters = material_parameters(MATERIALS, options.seed)
    mean, std = (torch.tensor(EMBEDDED[k]).view(1, 3, 1, 1) for k in ("mean", "std"))

    def draw(iteration):
        rng = step_generator(options.seed, "patchwork", iteration)
        pictures, kinds, shown = patchwork(parameters, BATCH, SIZE, rng)
        return ((pictures - mean) / std).contiguous(memory_format=torch.channels_last), kinds, shown

    began, smoothed = time.monotonic() - earlier, 0.0
    with Progress(options.iterations, "embedded teacher", start) as bar, single_thread() as pool:
        coming = pool.submit(draw, start)
        for iteration in range(start, options.iterations):
            images, kinds, shown = (part.to(device) for part in coming.result())
            coming = pool.submit(draw, iteration + 1)
            with autocast(device):
                logits = [head(f) for head, f in zip(heads, network(images), strict=True)]
            loss = sum(dense_loss(scores.float(), kinds, shown) for scores in logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            smoothed = loss.item() if not smoothed else 0.98 * smoothed + 0.02 * loss.item()
            bar.update(iteration + 1, f"loss {smoothed:.2f} of {3 * math.log(MATERIALS):.2f} at chance")
            if (iteration + 1) % EVERY == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                state |= {"iteration": iteration + 1, "seconds": time.monotonic() - began, **run_of(options)}
                write_atomically(options.checkpoint, lambda path, state=state: torch.save(state, path))
    save_teacher(network, options, (time.monotonic() - began) / 60)


@contextlib.contextmanager
def single_thread() -> Iterator[ThreadPoolExecutor]:
    """A pool of one thread beside this one, each of which then computes alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def run_of(options: argparse.Namespace) -> dict[str, int]:
    """What a checkpoint must agree in."""
    return {"seed": options.seed, "iterations": options.iterations}


def resume(parts: dict, options: argparse.Namespace) -> tuple[int, float]:
    """The iteration to go on from and the seconds until then, everything as it was; ends the program for a
    checkpoint of another run or an unusable one."""
    if not options.checkpoint.exists():
        return 0, 0.0
    try:
        state = load_plain(options.checkpoint)
        other = {name: state[name] for name, value in run_of(options).items() if state[name] != value}
        if not other:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            return int(state["iteration"]), float(state["seconds"])
    except Exception as error:  # PyTorch raises a dozen types
        raise SystemExit(f"{options.checkpoint} is no checkpoint of this tool ({error})") from error
    raise SystemExit(f"{options.checkpoint} is of another run ({other}); delete it or name another")


def save_teacher(network: nn.Module, options: argparse.Namespace, minutes: float):
    """Write the weights in half precision, their origin as the file's metadata."""
    halves = {k: v.half().contiguous() for k, v in network.state_dict().items() if v.is_floating_point()}
    metadata = {
        "network": f"{EMBEDDED['name']} {EMBEDDED['options']}",
        "training data": f"procedural patchworks of {MATERIALS} materials, {SIZE} px, no photographs",
        "pretext": "the material of every cell, under changing light, contrast and colours",
        "iterations": str(options.iterations),
        "batch": str(BATCH),
        "seed": str(options.seed),
        "minutes": f"{minutes:.0f}",
        "licence": "Apache-2.0",
    }
    write_atomically(options.out, lambda path: save_file(halves, path, metadata))
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the network; pictures are drawn on the CPU")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/embedded_teacher.pt"))
    train(parser.parse_args(arguments))


if __name__ == "__main__":
    main()
