"""Train the small teacher that ships with the package, from procedural pictures alone.

Pretext [ours]: two views of a patchwork, one of them turned, zoomed and shifted, each under light, contrast
and colours of its own; from the features at strides 4, 8 and 16, every cell must find the same place of the
other view among hundreds. Contrastive learning of places: Pinheiro et al., Unsupervised Learning of Dense
Visual Representations, NeurIPS 2020. No photograph and no label made by people is used. One thread draws the
next pictures while the network learns from these. Interrupt it at will: the same command goes on from the
last checkpoint.

    python tools/train_embedded_teacher.py
"""

import argparse
import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from patchworks import PIECES, patchworks, two_views
from safetensors.torch import save_file
from torch import Tensor, nn

from dmdd_lite.device import autocast, resolve_device
from dmdd_lite.files import Progress, write_atomically
from dmdd_lite.synthesis import step_generator
from dmdd_lite.teacher import EMBEDDED
from dmdd_lite.weights import load_plain

SIZE, BATCH = 64, 16  # pixels; patchworks, each of which is seen twice
CELLS, TEMPERATURE = 512, 0.1
EVERY = 500  # iterations between two checkpoints
TARGET = Path(__file__).parent.parent / "dmdd_lite" / EMBEDDED["file"]


def matched_loss(features: Tensor, maps: Tensor, order: Tensor) -> Tensor:
    """How well the cells of two views find each other among CELLS of the batch, by the cosine of `features`
    (2B, D, H, W): cross-entropy in both directions (InfoNCE, van den Oord et al. 2018), in nats.

    `maps` (B, 2, 3) lead from the second view to the first, whose features are interpolated there; cells that
    the first view does not show are left out. `order` is a permutation of at least B * H * W numbers: it
    chooses the cells.
    """
    first, second = F.normalize(features, dim=1).chunk(2)
    places = F.affine_grid(maps.to(first), list(first.shape), align_corners=False)
    first = F.normalize(F.grid_sample(first, places, padding_mode="border", align_corners=False), dim=1)
    first, second = (part.permute(0, 2, 3, 1).flatten(0, 2) for part in (first, second))
    shown = (places.abs() < 1).all(-1).flatten()
    order = order[order < len(shown)]
    chosen = order[shown[order]][:CELLS]
    logits = first[chosen] @ second[chosen].T / TEMPERATURE
    same = torch.arange(len(chosen), device=logits.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def head(channels: int) -> nn.Module:
    """What projects features for the comparison; not kept."""
    return nn.Sequential(nn.Conv2d(channels, 128, 1), nn.ReLU(), nn.Conv2d(128, 64, 1))


def train(options: argparse.Namespace):
    """Train, from the checkpoint if there is one, and write the teacher."""
    device = resolve_device(options.device)
    torch.manual_seed(options.seed)
    network = timm.create_model(
        EMBEDDED["name"], features_only=True, out_indices=(1, 2, 3), **EMBEDDED["options"]
    ).to(device, memory_format=torch.channels_last)
    heads = nn.ModuleList(head(c) for c in network.feature_info.channels()).to(device)
    weights = [*network.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.iterations, pct_start=0.1)
    parts = {"network": network, "heads": heads, "optimizer": optimizer, "schedule": schedule}
    start, earlier = resume(parts, options)
    mean, std = (torch.tensor(EMBEDDED[k]).view(1, 3, 1, 1) for k in ("mean", "std"))

    def draw(iteration):
        rng = step_generator(options.seed, "patchwork", iteration)
        images, maps = two_views(patchworks(BATCH, SIZE, rng), rng)
        order = torch.randperm(BATCH * (SIZE // 4) ** 2, generator=rng)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last), maps, order

    began, smoothed = time.monotonic() - earlier, 0.0
    with Progress(options.iterations, "embedded teacher", start) as bar, single_thread() as pool:
        coming = pool.submit(draw, start)
        for iteration in range(start, options.iterations):
            images, maps, order = (part.to(device) for part in coming.result())
            coming = pool.submit(draw, iteration + 1)
            with autocast(device):
                scales = [own(f) for own, f in zip(heads, network(images), strict=True)]
            loss = sum(matched_loss(features.float(), maps, order) for features in scales)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            smoothed = loss.item() if not smoothed else 0.98 * smoothed + 0.02 * loss.item()
            bar.update(iteration + 1, f"loss {smoothed:.2f}")
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
    write_atomically(options.out, lambda path: save_file(halves, path, origin(options, minutes)))
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.2f} MB")


def origin(options: argparse.Namespace, minutes: float) -> dict[str, str]:
    """Where weights come from."""
    return {
        "network": f"{EMBEDDED['name']} {EMBEDDED['options']}",
        "training data": f"procedural patchworks of {PIECES} materials, {SIZE} px, no photographs",
        "pretext": "the same place in another view: pose, light, contrast and colours differ",
        "iterations": str(options.iterations),
        "batch": f"{BATCH} patchworks, two views each",
        "seed": str(options.seed),
        "minutes": f"{minutes:.0f}",
        "licence": "Apache-2.0",
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--iterations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of the network; pictures are drawn on the CPU")
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/embedded_teacher.pt"))
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None):
    train(parse(arguments))


if __name__ == "__main__":
    main()
