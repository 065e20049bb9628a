"""Memory stays where it is however long a training, a stream of predictions or a test set is."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_config

from dmdd_lite import evaluation, metrics, room
from dmdd_lite.data import Category, TestImage
from dmdd_lite.detector import Detector
from dmdd_lite.model import build_model, map_names
from dmdd_lite.teacher import build_teacher
from dmdd_lite.trainer import Trainer
from dmdd_lite.training import run
from dmdd_lite.training_data import TrainingData

HERE = Path(__file__).parent
PEAK = Path("/proc/self/clear_refs")  # where Linux forgets the peak of a process that writes 5 there

pytestmark = pytest.mark.skipif(not os.access(PEAK, os.W_OK), reason="measures memory as Linux tells it")


def peak_mb(work) -> float:
    """Most memory of this process while it works, in MB."""
    PEAK.write_text("5")
    work()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def own_peak_mb(work) -> float:
    """Most memory of this process that the system cannot take back, in MB, looked at all the time."""
    seen, done = [0], threading.Event()

    def look():
        while not done.is_set():
            lines = Path("/proc/self/status").read_text().splitlines()
            seen.append(int(next(line for line in lines if line.startswith("RssAnon")).split()[1]))
            time.sleep(0.001)

    watcher = threading.Thread(target=look)
    watcher.start()
    work()
    done.set()
    watcher.join()
    return max(seen) * 1024 / 1e6


def images(count: int, size: int = 64) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), generator=rng, dtype=torch.uint8)


def of_training(iterations: int) -> float:
    config = tiny_config(iterations=iterations, batch_size=1)
    model = build_model(config, build_teacher("test_resnet", "random"))
    trainer = Trainer(config, model, TrainingData(images(6), images(1), None, None, ""))
    return peak_mb(lambda: run(trainer, progress=False))


def of_stream(count: int) -> float:
    detector = Detector(build_model(tiny_config(), build_teacher("test_resnet", "random")))
    source = [images(1, 512)[0].permute(1, 2, 0).numpy()] * count
    return peak_mb(lambda: [None for _ in detector.stream(source)])


class Drawn:
    """Of a detector, what an evaluation needs; its maps are random numbers."""

    config, device, model = tiny_config(), torch.device("cpu"), torch.nn.Identity()

    def device_maps(self, batch):
        maps = {name: torch.rand(len(batch), 64, 64) for name in map_names(self.config)}
        return maps, {name: values.amax((1, 2)) for name, values in maps.items()}, None


def work_of_evaluation(count: int, held: float):
    """Of `count` images of 64 px, every second one with a square; few normal pixels are sorted at a time."""
    test = tuple(TestImage(Path(str(i)), ("good", "hole")[i % 2], None) for i in range(count))
    category = Category(Path(), "nut", (), test)

    def shown(shape, dtype, on_disk):
        values = room.zeros(shape, dtype, on_disk)
        for part in values.split(100):
            if dtype == torch.bool:
                part[1::2, 10:14, 10:14] = True
            else:
                part.random_(0, 256)
        return values

    evaluation.load_images = lambda *_, on_disk: shown((count, 3, 64, 64), torch.uint8, on_disk)
    evaluation.load_masks = lambda *_, on_disk: shown((count, 64, 64), torch.bool, on_disk)
    evaluation.HELD, metrics.SLICE = held, 2**18
    return lambda: evaluation.evaluate(Drawn(), category, 100, progress=False)


def of_evaluation(count: int) -> float:
    return peak_mb(work_of_evaluation(count, 1e12))


def of_large_evaluation(count: int) -> float:
    return own_peak_mb(work_of_evaluation(count, 1e3))


@pytest.fixture(scope="module")
def peaks(depth):
    """Counts, the lesser and the larger, and the peaks at them by kind of work; in a process of its own.

    What goes before them, at the lesser count, fills what is kept for ever. Training comes last, for it lets
    the process keep what it frees.
    """
    counts = {
        "of_evaluation": (depth(100, 1000), depth(700, 10_000)),
        "of_large_evaluation": (depth(700, 1000), depth(2000, 10_000)),
        "of_stream": (depth(8, 40), depth(40, 2000)),
        "of_training": (depth(6, 30), depth(26, 300)),
    }
    code = (
        "import json, torch, test_memory as t; torch.set_num_threads(1)\n"
        f"for name, (few, many) in {counts}.items():\n"
        "    work = getattr(t, name); work(few)\n"
        "    print('PEAKS', json.dumps([name, work(few), work(many)]))"
    )
    paths = os.pathsep.join(map(str, (HERE, HERE.parent, HERE.parent.parent)))
    given_back = {f"MALLOC_{name}_THRESHOLD_": "65536" for name in ("MMAP", "TRIM")}  # what is freed
    environment = {**os.environ, **given_back, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("PEAKS")]
    return {name: (*counts[name], *found) for name, *found in lines}


def test_training_longer_takes_no_more_memory(peaks, tally):
    _, many, short, long = peaks["of_training"]
    assert long - short < 32, peaks  # one step of the allocator is 21 MB, one iteration's graph some MB
    tally("training iterations in flat memory", many)


def test_a_longer_stream_takes_no_more_memory(peaks, tally):
    _, many, short, long = peaks["of_stream"]
    assert long - short < 12, peaks  # predictions that were kept would be 1 MB each
    tally("streamed predictions in flat memory", many)


def test_an_evaluation_takes_what_its_documentation_says(peaks, tally):
    """28 bytes a pixel, and little for the anomalous ones, of which there are 8 an image here."""
    few, many, short, long = peaks["of_evaluation"]
    bytes_each = 1e6 * (long - short) / ((many - few) * 64 * 64)
    assert 26 < bytes_each < 32, peaks
    tally("evaluated images in linear memory", many)


def test_a_large_evaluation_takes_no_more_memory(peaks, tally):
    """24 bytes a pixel lie in files; what stays is that of the anomalous pixels, 1 in 512 here."""
    few, many, short, long = peaks["of_large_evaluation"]
    bytes_each = 1e6 * (long - short) / ((many - few) * 64 * 64)
    assert bytes_each < 1, peaks
    tally("evaluated images in bounded memory", many)


def test_the_losses_of_a_run_are_six_numbers_an_iteration():
    config = tiny_config(iterations=4, batch_size=1)
    model = build_model(config, build_teacher("test_resnet", "random"))
    trainer = Trainer(config, model, TrainingData(images(6), images(1), None, None, ""))
    run(trainer, progress=False)
    assert np.shape(trainer.history) == (4, 6)
    assert {type(value) for row in trainer.history for value in row} == {int, float}
