"""Pairs: Perlin noise against a loop, exact blending, seeds, textures, foregrounds."""

import math

import numpy as np
import pytest
import torch
from builders import random_images

from dmdd_lite import pairs as synthesis
from dmdd_lite.config import Config
from dmdd_lite.data.foreground import foreground_mask, foreground_masks
from dmdd_lite.data.textures import procedural_textures
from dmdd_lite.pairs import PairSource, PairSynthesizer, augment_textures, perlin_noise, step_generator


def loop_perlin(gradients, cells, angle, shift, size):
    """Perlin's definition, a pixel and a corner at a time."""
    out = np.zeros(size)
    fade = lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3  # noqa: E731
    for i, j in np.ndindex(size):
        y, x = i / size[0], j / size[0]
        u = (math.cos(angle) * x - math.sin(angle) * y) * cells + shift[0]
        v = (math.sin(angle) * x + math.cos(angle) * y) * cells + shift[1]
        for du, dv in np.ndindex(2, 2):
            cu, cv = math.floor(u) + du, math.floor(v) + dv
            g = gradients[cv % len(gradients)][cu % len(gradients)]
            dot = math.cos(g) * (u - cu) + math.sin(g) * (v - cv)
            out[i, j] += math.sqrt(2) * dot * fade(1 - abs(u - cu)) * fade(1 - abs(v - cv))
    return out


@pytest.mark.parametrize("size", [(12, 12), (9, 14)])
def test_perlin_noise_equals_the_loop(size):
    rng = torch.Generator().manual_seed(0)
    gradients = 6.28 * torch.rand(2, synthesis.LATTICE, synthesis.LATTICE, generator=rng)
    cells, angles = torch.tensor([3.0, 1.0]), torch.tensor([-0.7, 1.2])
    shift = torch.tensor([[0.2, 5.1], [63.4, 40.0]])
    found = perlin_noise(gradients, cells, angles, shift, size)
    for i in range(2):
        args = gradients[i].tolist(), float(cells[i]), float(angles[i]), shift[i].tolist(), size
        np.testing.assert_allclose(found[i].numpy(), loop_perlin(*args), atol=2e-4)


def test_oblong_noise_is_that_of_a_square_continued():
    square, wide, high = (
        synthesis.random_perlin(4, size, (0, 6), torch.Generator().manual_seed(0))
        for size in ((48, 48), (48, 80), (80, 48))
    )
    torch.testing.assert_close(wide[:, :, :48], square, atol=1e-4, rtol=0)
    torch.testing.assert_close(high[:, :48], square, atol=1e-4, rtol=0)
    assert [procedural_textures(size, 0, 2).shape[2:] for size in (48, (48, 80))] == [(48, 48), (48, 80)]


@pytest.fixture
def synthesizer():
    return PairSynthesizer(Config(), random_images(3, 48, seed=1))


def normal_images(count=6, size=48):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def make(synthesizer, seed=0, step=0, foreground=None):
    return synthesizer(normal_images(), foreground, step_generator(seed, "pairs", step))


def test_outside_the_mask_a_pair_is_identical(synthesizer):
    for step in range(5):
        pairs = make(synthesizer, step=step)
        inside = pairs.mask[:, None].expand_as(pairs.normal) > 0
        assert torch.equal(pairs.normal[~inside], pairs.anomalous[~inside])
        assert (pairs.normal[inside] != pairs.anomalous[inside]).float().mean() > 0.95
        assert pairs.mask.unique().tolist() == [0, 1]
        assert pairs.mask.flatten(1).any(1).all()
        assert 0 <= pairs.anomalous.min() <= pairs.anomalous.max() <= 1


def test_pairs_depend_on_seed_and_step_alone(synthesizer):
    before = torch.random.get_rng_state()
    first, again = make(synthesizer, step=3), make(synthesizer, step=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.mask, make(synthesizer, step=4).mask)
    assert not torch.equal(first.mask, make(synthesizer, 1, 3).mask)
    assert torch.equal(before, torch.random.get_rng_state())


def test_pairs_of_a_source_are_those_of_its_step():
    """The images in the order of their epochs, each with its own foreground."""
    images, textures = random_images(5, 48), random_images(3, 48, seed=1)
    foreground = torch.rand(5, 48, 48, generator=torch.Generator().manual_seed(3)) > 0.4
    config = Config(batch_size=4, seed=7)
    source, index = PairSource(config, images, foreground, textures), []
    for step in range(5):
        index.append(source.indices(step))
        rng = step_generator(7, "pairs", step)
        made = PairSynthesizer(config, textures)(images[index[-1]].float() / 255, foreground[index[-1]], rng)
        for one, other in zip(source.batch(step), made, strict=True):
            assert torch.equal(one, other)
    assert [sorted(epoch.tolist()) for epoch in torch.cat(index).split(5)] == [list(range(5))] * 4


# ---- textures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (10, 16)])
def test_textures_change_by_shape_and_colour_and_stay_in_range(size):
    textures = torch.rand(40, 3, *size, generator=torch.Generator().manual_seed(0))
    found = augment_textures(textures, torch.Generator().manual_seed(0))
    assert found.shape == textures.shape
    assert 0 <= found.min() < found.max() <= 1
    assert torch.equal(found, augment_textures(textures, torch.Generator().manual_seed(0)))
    for one, other in zip(found, textures, strict=True):
        assert not torch.equal(one, other)


def test_procedural_textures_are_the_same_for_the_same_seed():
    before = torch.random.get_rng_state()
    first, again, other = (procedural_textures(48, seed, 12) for seed in (3, 3, 4))
    assert (first.shape, first.dtype) == ((12, 3, 48, 48), torch.uint8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())
    flat = first.float().flatten(1)
    assert flat.std(1).min() > 3
    assert torch.cdist(flat, flat).add(1e9 * torch.eye(12)).min() > 100  # no two are alike


# ---- pairs --------------------------------------------------------------------------------------------


def test_anomalies_stay_on_the_foreground_even_a_small_one(synthesizer):
    foreground = torch.zeros(6, 48, 48, dtype=torch.bool)
    foreground[:, 20:24, 30:33] = True
    for step in range(5):
        mask = make(synthesizer, step=step, foreground=foreground).mask > 0
        assert not (mask & ~foreground).any()
        assert mask.flatten(1).any(1).all()


def test_opacity_bounds_the_blend():
    """At opacity 1 the damage is the texture alone, whatever lies below it; at 0 there is none."""
    texture = torch.full((1, 3, 48, 48), 77, dtype=torch.uint8)
    opaque, clear = (PairSynthesizer(Config(opacity=(o, o)), texture) for o in (1.0, 0.0))
    below = [opaque(v * normal_images(), None, step_generator(0, "pairs", 0)) for v in (0.1, 0.9)]
    mask = below[0].mask[:, None].expand(-1, 3, -1, -1) > 0
    torch.testing.assert_close(below[0].anomalous[mask], below[1].anomalous[mask])
    pairs = make(clear)
    torch.testing.assert_close(pairs.anomalous, pairs.normal)


def disc_image(size=96, radius=30, contrast=120):
    y, x = np.mgrid[:size, :size] - size / 2
    disc = np.hypot(x, y) < radius
    noise = np.random.default_rng(0).normal(0, 3, (size, size, 1))
    return np.uint8(np.clip(60 + contrast * disc[..., None] + noise, 0, 255).repeat(3, 2)), disc


def test_foreground_of_a_disc():
    image, disc = disc_image()
    found = foreground_mask(image)
    assert (found & disc).sum() / (found | disc).sum() > 0.85
    assert (found | ~disc).all()  # no part of the object is lost
    for radius, contrast in ((30, 0), (4, 120)):  # no object stands out
        assert foreground_mask(disc_image(radius=radius, contrast=contrast)[0]) is None


def test_foregrounds_of_a_category():
    objects = torch.from_numpy(disc_image()[0]).permute(2, 0, 1).repeat(5, 1, 1, 1)
    assert foreground_masks(objects, "nut").shape == (5, 96, 96)
    assert foreground_masks(objects, "nut", "none") is None
    assert foreground_masks(objects, "leather") is None
    objects[0] = 60  # one in five without an object: trust none
    assert foreground_masks(objects, "nut") is None
