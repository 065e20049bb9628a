"""Train the small teacher that ships with the package, from procedural pictures alone.

Pretext [ours]: every picture is a patchwork of a few procedural materials out of many; from the features at
strides 4, 8 and 16, linear heads must name the material of every cell. No photograph and no label made by
people is used. Interrupt it at will: the same command goes on from the last checkpoint.

    python tools/train_embedded_teacher.py
"""

import argparse
import math
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from dmdd_lite.files import Progress, write_atomically
from dmdd_lite.synthesis import random_perlin, step_generator
from dmdd_lite.teacher import EMBEDDED

SIZE, BATCH, MATERIALS, PIECES = 64, 32, 384, 4
TARGET = Path(__file__).parent.parent / "dmdd_lite" / EMBEDDED["file"]


def material_parameters(count: int, seed: int) -> dict[str, Tensor]:
    """What defines each material: two colours, two gratings, the weights of gratings, noise and dots."""
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
        "mix": torch.softmax(3 * uniform(4, 1, 1), dim=1),
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
    u = (torch.cos(angle) * x + torch.sin(angle) * y) * p["cycles"] + uniform(1, 1) + p["bend"] * coarse / 3
    v = (torch.cos(angle) * y - torch.sin(angle) * x) * p["cycles"] * p["aspect"] + uniform(1, 1)
    waves = torch.tanh(p["sharp"] * torch.sin(2 * math.pi * u))
    dots = torch.tanh(p["sharp"] * (torch.sin(2 * math.pi * u) * torch.sin(2 * math.pi * v) - 0.3))
    m = p["mix"]
    level = 0.5 + (m[:, 0] * waves + m[:, 1] * dots) / 2 + m[:, 2] * coarse + m[:, 3] * fine
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
    gain = 0.85 + 0.3 * torch.rand(batch, 1, 1, 1, generator=rng)
    noise = 0.02 * torch.randn(batch, 3, size, size, generator=rng)
    shown = F.one_hot(winner, PIECES).permute(0, 3, 1, 2).float()
    return (picture * light * gain + noise).clamp(0, 1), kinds, shown


def dense_loss(logits: Tensor, kinds: Tensor, shown: Tensor) -> Tensor:
    """Cross-entropy of every cell's materials (B, M, h, w) against the shares of those in the picture."""
    shares = F.adaptive_avg_pool2d(shown, logits.shape[2:])  # B, PIECES, h, w
    index = kinds[:, :, None, None].expand_as(shares)
    return ((logits.logsumexp(1, keepdim=True) - logits.gather(1, index)) * shares).sum(1).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=2600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/embedded_teacher.pt"))
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network = timm.create_model(
        EMBEDDED["name"], features_only=True, out_indices=(1, 2, 3), **EMBEDDED["options"]
    ).to(memory_format=torch.channels_last)
    heads = nn.ModuleList(nn.Conv2d(c, MATERIALS, 1) for c in network.feature_info.channels())
    weights = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.iterations, pct_start=0.1)
    parts = {"network": network, "heads": heads, "optimizer": optimizer, "schedule": schedule}
    start = resume(parts, options.checkpoint)
    parameters = material_parameters(MATERIALS, options.seed)
    mean, std = (torch.tensor(EMBEDDED[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    began, smoothed = time.monotonic(), 0.0
    with Progress(options.iterations, "embedded teacher", start) as bar:
        for iteration in range(start, options.iterations):
            rng = step_generator(options.seed, "patchwork", iteration)
            pictures, kinds, shown = patchwork(parameters, BATCH, SIZE, rng)
            images = ((pictures - mean) / std).contiguous(memory_format=torch.channels_last)
            logits = [head(f) for head, f in zip(heads, network(images), strict=True)]
            loss = sum(dense_loss(scores, kinds, shown) for scores in logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            smoothed = loss.item() if not smoothed else 0.98 * smoothed + 0.02 * loss.item()
            bar.update(iteration + 1, f"loss {smoothed:.2f} of {3 * math.log(MATERIALS):.2f} at chance")
            if (iteration + 1) % 500 == 0:
                state = {name: part.state_dict() for name, part in parts.items()}
                state["iteration"] = iteration + 1
                write_atomically(options.checkpoint, lambda path, state=state: torch.save(state, path))
    save_teacher(network, options, (time.monotonic() - began) / 60)


def resume(parts: dict, checkpoint: Path) -> int:
    """The iteration to go on from, everything as it was then; ends the program for an unusable checkpoint."""
    if not checkpoint.exists():
        return 0
    try:
        state = torch.load(checkpoint, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["iteration"])
    except Exception as error:  # pickle and PyTorch raise a dozen types
        raise SystemExit(f"{checkpoint} is no checkpoint of this tool ({type(error).__name__})") from error


def save_teacher(network: nn.Module, options: argparse.Namespace, minutes: float):
    """Write the weights in half precision, their origin as the file's metadata."""
    halves = {k: v.half().contiguous() for k, v in network.state_dict().items() if v.is_floating_point()}
    metadata = {
        "network": f"{EMBEDDED['name']} {EMBEDDED['options']}",
        "training data": f"procedural patchworks of {MATERIALS} materials, {SIZE} px, no photographs",
        "iterations": str(options.iterations),
        "batch": str(BATCH),
        "seed": str(options.seed),
        "minutes": f"{minutes:.0f}",
        "licence": "Apache-2.0",
    }
    write_atomically(TARGET, lambda path: save_file(halves, path, metadata))
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
