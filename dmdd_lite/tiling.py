"""Prediction of large images tile by tile, with blended seams, in the memory of a few tiles. [ours]

A tile is an image to the detector: it must have been trained on images that show as much as a tile does.
Parts of the method that depend on positions (the student's prior, DMDD+'s statistics) suit tiles of textures,
not of objects."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .data.images import read_image


def tiled_maps(detector, image: Tensor, tile: int, overlap: int, batch_size: int) -> dict[str, Tensor]:
    """Maps (H, W) by name of an image, uint8 (3, H, W) of any size, from tiles in the proportions of the
    network's input, `tile` pixels along the shorter side, whose neighbours share `overlap` pixels or more;
    there the maps are blended linearly. An image smaller than a tile is continued by reflection."""
    height, width = image.shape[1:]
    size = detector.config.size
    rows, columns = (round(tile * side / min(size)) for side in size)
    missing = ((0, 0), (0, max(0, rows - height)), (0, max(0, columns - width)))
    pixels = np.pad(image.numpy(), missing, mode="symmetric")
    window = torch.outer(edge_ramp(rows, overlap), edge_ramp(columns, overlap))
    sums, weights = {}, torch.zeros(pixels.shape[1:])
    for corners in _batches(pixels.shape[1:], (rows, columns), overlap, batch_size):
        places = [(slice(y, y + rows), slice(x, x + columns)) for y, x in corners]
        tiles = [np.moveaxis(pixels[:, y, x], 0, 2) for y, x in places]
        maps = detector.maps(torch.stack([read_image(part, size) for part in tiles]))[0]
        for name, values in maps.items():
            total = sums.setdefault(name, torch.zeros(pixels.shape[1:]))
            resized = F.interpolate(values[:, None], (rows, columns), mode="bilinear")[:, 0]
            for place, found in zip(places, resized, strict=True):
                total[place] += window * found
        for place in places:
            weights[place] += window
    return {name: (total / weights)[:height, :width] for name, total in sums.items()}


def edge_ramp(tile: int, overlap: int) -> Tensor:
    """Weights (tile,) in (0, 1]: 1 inside, falling linearly over the overlap at both ends."""
    distance = torch.arange(tile).minimum(torch.arange(tile).flip(0)) + 1.0
    return (distance / (overlap + 1)).clamp(max=1)


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """The first pixels of as few tiles as cover the length, at equal distances."""
    count = 1 + -(-(length - tile) // (tile - overlap))
    return [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]


def _batches(size, shape, overlap: int, batch_size: int) -> Iterator[list[tuple[int, int]]]:
    rows, columns = (tile_starts(*lengths, overlap) for lengths in zip(size, shape, strict=True))
    corners = [(y, x) for y in rows for x in columns]
    return (corners[start : start + batch_size] for start in range(0, len(corners), batch_size))
