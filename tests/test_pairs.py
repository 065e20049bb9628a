"""Pairs: Perlin noise against a loop, exact blending, seeds, foregrounds."""

import math

import numpy as np
import pytest
import torch
from builders import random_images

from dmdd_lite import pairs as synthesis
from dmdd_lite import textures
from dmdd_lite.config import Config
from dmdd_lite.pairs import (
    Pairs,
    PairSynthesizer,
    augment_texture,
    foreground_mask,
    foreground_masks,
    perlin_noise,
    step_generator,
)


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


def changed_one(picture, drawn, i):
    """One picture (3, H, W) in [0, 1], a change at a time."""
    picture = picture.flip(2) if drawn.mirror[i] else picture
    picture = picture.flip(1) if drawn.flip[i] else picture
    picture = picture.transpose(1, 2) if drawn.turn[i] else picture
    picture = picture[drawn.order[i]]
    picture = 1 - picture if drawn.invert[i] else picture
    picture = picture.clamp(1e-4, 1) ** drawn.gamma[i]
    return ((picture - 0.5) * drawn.contrast[i] + 0.5 + drawn.brightness[i]).clamp(0, 1)


@pytest.mark.parametrize("size", [(16, 16), (10, 16)])
def test_pictures_and_textures_change_as_one_at_a_time(size):
    """By 256 levels and at some pixels, by value and at all: the same change."""
    pictures = torch.randint(0, 256, (5, 3, *size), dtype=torch.uint8)
    chosen, rng = torch.arange(40) % 5, torch.Generator().manual_seed(0)
    drawn = textures.draw_change(40, size, rng)
    looped = torch.stack([changed_one(pictures[i % 5] / 255, drawn, i) for i in range(40)])
    whole = augment_texture(pictures[chosen] / 255, rng.manual_seed(0))
    torch.testing.assert_close(whole, looped)
    rows, columns = torch.tensor([[0, 9, 5]]), torch.tensor([[15, 0, 8]])
    found = textures.changed_picture(pictures, chosen, drawn, (rows, columns))
    torch.testing.assert_close(found[:, :, 0], looped[:, :, rows[0], columns[0]])


@pytest.fixture(params=["procedural", "folder"])
def synthesizer(request):
    return PairSynthesizer(Config(), random_images(3, 48, seed=1) if request.param == "folder" else None)


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


@pytest.mark.parametrize("foreground", [False, True])
def test_pixels_by_threads_are_the_batch_at_once(synthesizer, foreground):
    """A CPU makes textures at the mask's pixels alone; a GPU makes whole images."""
    normal = normal_images(2 * synthesis.CHUNK + 1)
    where = torch.rand(len(normal), 48, 48) > 0.4 if foreground else None
    found = synthesizer(normal, where, step_generator(0, "pairs", 7))
    rng, parts = step_generator(0, "pairs", 7), []
    for start in range(0, len(normal), synthesis.CHUNK):
        here = slice(start, start + synthesis.CHUNK)
        drawn = synthesizer.draw(len(normal[here]), (48, 48), rng)
        parts.append(synthesizer.at_once(normal[here], where[here] if foreground else None, drawn))
    expected = Pairs(*(torch.cat(part) for part in zip(*parts, strict=True)))
    torch.testing.assert_close(found, expected)


def test_pairs_of_a_seed_stay_what_they_were(synthesizer):
    """Pixels of the masks and means of the anomalous views: results were measured with these."""
    pairs = make(synthesizer)
    if synthesizer.textures is None:
        areas, means = [54, 58, 125, 139, 55, 130], [0.49649, 0.50194, 0.51577, 0.49126, 0.49944, 0.51637]
    else:
        areas, means = [54, 58, 125, 139, 118, 133], [0.49538, 0.50116, 0.50494, 0.49620, 0.50227, 0.50816]
    assert pairs.mask.sum((1, 2)).tolist() == pytest.approx(areas, abs=1)
    assert pairs.anomalous.mean((1, 2, 3)).tolist() == pytest.approx(means, abs=5e-4)


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
