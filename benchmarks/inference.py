"""Latency and throughput of a detector, smoothing and scores included, at several batch sizes, with memory.

    python benchmarks/inference.py                                          # WideResNet-50-2, 256 px
    python benchmarks/inference.py --teacher mobilenetv2_100 --batches 1 8

Random weights and images. Where anomalib is installed, its ReverseDistillation with the same backbone and
input, the nearest peer, takes turns with ours; it is imported here only. Medians of `--repeat` calls.
"""

import argparse
import json
import statistics
import time

import torch

from dmdd_lite.config import Config
from dmdd_lite.cost import convolution_rate, pair_operations
from dmdd_lite.detector import Detector
from dmdd_lite.device import autocast, describe, peak_memory_mb, resolve_device
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher


def ours(config: Config, device: torch.device):
    """A call from uint8 images on the device to full-size maps and scores on the CPU."""
    teacher = build_teacher(config.teacher, "random")
    detector = Detector(build_model(config, teacher).to(device))
    return detector.maps


def anomalib_peer(config: Config, device: torch.device):
    """The same from anomalib, or None where it is not installed or has not this backbone."""
    try:
        from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
        from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel
    except ImportError:
        return None
    model = ReverseDistillationModel(
        backbone=config.teacher,
        input_size=(config.image_size, config.image_size),
        layers=("layer1", "layer2", "layer3"),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )
    model = model.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def call(images):
        scaled = (images.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        with autocast(device, config.precision):
            answer = model(scaled)
        return answer.anomaly_map.float().cpu(), answer.pred_score.cpu()

    return call


def median_seconds(ways: dict, images: torch.Tensor, repeat: int) -> dict[str, float]:
    """Seconds of each way, taking turns; results end on the CPU, so nothing is left running."""
    taken = {name: [] for name in ways}
    for _ in range(repeat + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way(images)
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", default="wide_resnet50_2")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "float32"))
    options = parser.parse_args()
    torch.manual_seed(0)
    device = resolve_device(options.device)
    config = Config(
        teacher=options.teacher,
        teacher_weights="random",
        image_size=options.size,
        precision=options.precision,
    )
    ways = {"dmdd-lite": ours(config, device)}
    peer = anomalib_peer(config, device) if "resnet" in options.teacher else None
    if peer is not None:
        ways["anomalib ReverseDistillation"] = peer
    pair = pair_operations(config)
    image = pair.teacher / 2 + (pair.student + pair.fusion) / 6  # two views; forward is a third of a step
    rate = convolution_rate(device, precision=config.precision)
    print(json.dumps(describe(device)))
    for batch in options.batches:
        images = torch.randint(0, 256, (batch, 3, options.size, options.size), dtype=torch.uint8).to(device)
        for name, seconds in median_seconds(ways, images, options.repeat).items():
            print(
                f"batch {batch:3}  {name:30} {1000 * seconds:9.1f} ms  {batch / seconds:8.1f} images/s",
                end="",
            )
            print(f"  {seconds * rate / batch / image:5.2f} x our floor" if name == "dmdd-lite" else "")
    print(f"peak memory {peak_memory_mb(device) / 1000:.2f} GB, all ways together")


if __name__ == "__main__":
    main()
