"""Pairs: Perlin noise against a loop, exact blending, seeds, foregrounds."""

import math

import numpy as np
import pytest
import torch

from dmdd_lite import synthesis, textures
from dmdd_lite.config import Config
from dmdd_lite.synthesis import (
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
    height, width = size
    out = np.zeros(size)
    fade = lambda t: 6 * t**5 - 15 * t**4 + 10 * t**3  # noqa: E731
    for i in range(height):
        for j in range(width):
            y, x = i / height, j / height
            u = (math.cos(angle) * x - math.sin(angle) * y) * cells + shift[0]
            v = (math.sin(angle) * x + math.cos(angle) * y) * cells + shift[1]
            for du in (0, 1):
                for dv in (0, 1):
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


def test_perlin_noise_is_zero_at_lattice_points():
    gradients = torch.rand(1, synthesis.LATTICE, synthesis.LATTICE)
    noise = perlin_noise(gradients, torch.tensor([4.0]), torch.zeros(1), torch.zeros(1, 2), (16, 16))
    assert noise[0, ::4, ::4].abs().max() < 1e-6
    assert noise.abs().max() > 0.1


def test_perlin_noise_at_pixels_is_that_of_the_whole_image():
    noise, size = textures.draw_noise(3, (0, 6), 90, torch.Generator().manual_seed(4)), (40, 56)
    rows, columns = torch.tensor([[0, 7, 39, 11]]), torch.tensor([[55, 3, 0, 11]])
    whole = synthesis.perlin_noise(*noise, size)
    found = synthesis.perlin_noise(*noise, size, (rows, columns))
    torch.testing.assert_close(found, whole[:, rows, columns][:, 0][:, None])


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
    rng = torch.Generator().manual_seed(1)
    textures = torch.randint(0, 256, (3, 3, 48, 48), generator=rng, dtype=torch.uint8)
    return PairSynthesizer(Config(), textures if request.param == "folder" else None)


def normal_images(count=6, size=48):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_outside_the_mask_a_pair_is_identical(synthesizer):
    for step in range(5):
        pairs = synthesizer(normal_images(), None, step_generator(0, "pairs", step))
        inside = pairs.mask[:, None].expand_as(pairs.normal) > 0
        assert torch.equal(pairs.normal[~inside], pairs.anomalous[~inside])
        assert (pairs.normal[inside] != pairs.anomalous[inside]).float().mean() > 0.95
        assert pairs.mask.unique().tolist() == [0, 1]
        assert pairs.mask.flatten(1).any(1).all()
        assert 0 <= pairs.anomalous.min() <= pairs.anomalous.max() <= 1


def test_same_seed_same_pairs(synthesizer):
    def make(seed, step):
        return synthesizer(normal_images(), None, step_generator(seed, "pairs", step))

    first, again = make(0, 3), make(0, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.mask, make(0, 4).mask)
    assert not torch.equal(first.mask, make(1, 3).mask)


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


def test_threads_change_neither_pairs_nor_settings(synthesizer):
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode(threads == 2):
                made.append(synthesizer(normal_images(), None, step_generator(0, "pairs", 1)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for pairs in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], pairs, strict=True))


def test_an_error_in_a_thread_is_the_callers(synthesizer):
    with pytest.raises(RuntimeError, match="size"):
        synthesizer(normal_images(), torch.ones(6, 40, 40, dtype=torch.bool), step_generator(0, "pairs", 0))


def test_pairs_of_a_seed_stay_what_they_were(synthesizer):
    """Pixels of the masks and means of the anomalous views: results were measured with these."""
    pairs = synthesizer(normal_images(), None, step_generator(0, "pairs", 0))
    if synthesizer.textures is None:
        areas, means = [54, 58, 125, 139, 55, 130], [0.49649, 0.50194, 0.51577, 0.49126, 0.49944, 0.51637]
    else:
        areas, means = [54, 58, 125, 139, 118, 133], [0.49538, 0.50116, 0.50494, 0.49620, 0.50227, 0.50816]
    assert pairs.mask.sum((1, 2)).tolist() == pytest.approx(areas, abs=1)
    assert pairs.anomalous.mean((1, 2, 3)).tolist() == pytest.approx(means, abs=5e-4)


def test_synthesis_leaves_the_global_generator_alone(synthesizer):
    before = torch.random.get_rng_state()
    synthesizer(normal_images(), None, step_generator(0, "pairs", 0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_anomalies_stay_on_the_foreground_even_a_small_one(synthesizer):
    foreground = torch.zeros(6, 48, 48, dtype=torch.bool)
    foreground[:, 20:24, 30:33] = True
    for step in range(5):
        mask = synthesizer(normal_images(), foreground, step_generator(0, "pairs", step)).mask > 0
        assert not (mask & ~foreground).any()
        assert mask.flatten(1).any(1).all()


def test_opacity_bounds_the_blend():
    """At opacity 1 the damage is the texture alone, whatever lies below it."""
    texture = torch.full((1, 3, 48, 48), 77, dtype=torch.uint8)
    opaque = PairSynthesizer(Config(opacity=(1.0, 1.0)), texture)
    below = [opaque(v * normal_images(), None, step_generator(0, "pairs", 0)).anomalous for v in (0.1, 0.9)]
    mask = (
        opaque(normal_images(), None, step_generator(0, "pairs", 0)).mask[:, None].expand(-1, 3, -1, -1) > 0
    )
    torch.testing.assert_close(below[0][mask], below[1][mask])
    clear = PairSynthesizer(Config(opacity=(0.0, 0.0)), texture)
    pairs = clear(normal_images(), None, step_generator(0, "pairs", 0))
    torch.testing.assert_close(pairs.anomalous, pairs.normal)


def test_threshold_falls_only_where_noise_stays_below_it():
    noise = torch.tensor([[[0.9, 0.6, 0.1]], [[0.3, 0.25, 0.1]]])
    mask = synthesis.threshold_noise(noise, torch.ones_like(noise, dtype=torch.bool), 0.5)
    assert mask.tolist() == [[[1, 1, 0]], [[1, 1, 0]]]


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


@pytest.mark.parametrize("radius, contrast", [(30, 0), (4, 120)])
def test_no_foreground_where_no_object_stands_out(radius, contrast):
    assert foreground_mask(disc_image(radius=radius, contrast=contrast)[0]) is None


def test_foregrounds_of_a_category():
    image, _ = disc_image()
    objects = torch.from_numpy(image).permute(2, 0, 1).repeat(5, 1, 1, 1)
    assert foreground_masks(objects, "nut").shape == (5, 96, 96)
    assert foreground_masks(objects, "nut", "none") is None
    assert foreground_masks(objects, "leather") is None
    flat = objects.clone()
    flat[0] = 60  # one in five without an object: trust none
    assert foreground_masks(flat, "nut") is None


def test_otsu_splits_two_clusters():
    values = np.concatenate((np.full(50, 1.0), np.full(7, 9.0)))
    assert 1 < synthesis.otsu_threshold(values) < 9
