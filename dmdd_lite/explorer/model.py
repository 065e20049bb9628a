"""What the explorer shows, without any widgets: images, their maps, regions, distances and neighbours.

`explorer.explore` puts controls in front of an `Explorer`; in a script it serves as well. All pixels of maps
and masks are those of the detector's input (h, w), as in `evaluate`; a picked pixel is the image's own.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from ..data.category import GOOD, Category
from ..data.images import read_image
from ..data.masks import read_mask
from ..detector import PIXEL_QUANTILE, Detector, decisive_map, map_names
from ..evaluation import Evaluation
from ..model import ModelOutput, full_size_maps, image_scores
from ..plus.fusion import PlusOutput, plus_maps
from ..utils import Progress, map_tensors
from .items import Item, find_items, read_bytes, shown

ALL_SCALES = 0
WHOLE = ("fused", "plus")  # maps that exist at all scales together only
CACHED, BATCH = 8, 8  # images whose maps are kept; images predicted at once
SIDE = 512  # longest side of a shown picture
STRIDE = 4  # of the pixels whose quantile is a scale's threshold; maps are smooth


class Seen(NamedTuple):
    """A predicted image: picture uint8 (rows, columns, 3) with a longest side of SIDE, the image's own
    (width, height), maps (h, w) and scores by (name, scale), the networks' outputs for one image, truth
    bool (h, w) or None."""

    picture: np.ndarray
    size: tuple[int, int]
    maps: dict[tuple[str, int], np.ndarray]
    scores: dict[tuple[str, int], float]
    output: ModelOutput
    plus: PlusOutput | None
    truth: np.ndarray | None


class Reading(NamedTuple):
    """An image's decision, and what a threshold of pixels makes of its map: share is the part of the image
    above it; precision and recall are None where there is no ground truth, or nothing to divide by."""

    score: float
    image_threshold: float
    pixel_threshold: float
    regions: int
    share: float
    precision: float | None
    recall: float | None

    @property
    def is_anomalous(self) -> bool:
        return self.score > self.image_threshold


class Distance(NamedTuple):
    """How far a pixel is from what is usual, at one scale: 1 - cosine of either branch to the teacher, in
    [0, 2]; position >= 0, near 1 where good. None for a kind of map that the model lacks."""

    scale: str
    normality: float | None
    abnormality: float | None
    position: float | None


class Explorer:
    """Images of a folder, a category's test split or an evaluation, seen through a detector.

    Of more than `limit` images that many are taken, evenly spaced (an evaluation is taken whole); all of them
    are scored at once. Raises DataError for a folder without images or an image that cannot be read.
    """

    def __init__(
        self,
        detector: Detector,
        source: str | Path | Category | Evaluation,
        limit: int = 200,
        progress: bool = True,
    ):
        self.detector, self.progress = detector, progress
        found = find_items(source)
        spaced = np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int)
        whole = isinstance(source, Evaluation)
        self.items: list[Item] = found if whole else [found[i] for i in spaced]
        self.left_out = len(found) - len(self.items)
        self.count = len(self.items)  # uploads come after these
        self.decisive = decisive_map(detector.config)
        # the deciding map first; all but fused and plus can be had at a single scale
        self.names = tuple(sorted(map_names(detector.config), key=lambda name: name != self.decisive))
        strides = detector.model.teacher.info.strides
        self.scales = ("all scales", *(f"stride {stride}" for stride in strides))
        self._seen: OrderedDict[int, Seen] = OrderedDict()
        self._thumbnails: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
        self._rows: dict[tuple[str, int], np.ndarray] = {}  # lowest, highest, image score of every image
        self._pixels: dict[tuple[str, int], np.ndarray] = {}  # some pixels of every image
        if whole:
            for name in self.names:
                maps, scores = source.maps[name], source.scores[name]
                rows = (maps.min(axis=(1, 2)), maps.max(axis=(1, 2)), scores)
                self._rows[name, ALL_SCALES] = np.stack(rows, axis=1)
        else:
            self._score_all()

    # ---- images ---------------------------------------------------------------------------------------

    def add(self, name: str, data: bytes) -> int:
        """Append an uploaded image file, scored, and return its index. Raises DataError if it is none."""
        read_bytes(data, name)
        self.items.append(Item(shown(name), data))
        index = len(self.items) - 1
        seen = self.see(index)
        for key, rows in self._rows.items():
            row = seen.maps[key].min(), seen.maps[key].max(), seen.scores[key]
            self._rows[key] = np.concatenate((rows, np.float32([row])))
        return index

    def see(self, index: int) -> Seen:
        """The image predicted, from the CACHED last ones or anew."""
        if index in self._seen:
            self._seen.move_to_end(index)
            return self._seen[index]
        item, size = self.items[index], self.detector.config.image_size
        original = self._read(item)
        maps, scores, (output, plus) = self._predict([original])
        truth = None
        if item.mask is not None:
            truth = read_mask(item.mask, size, item.mask_rule).numpy()
        elif item.defect == GOOD:  # a defective image without a mask has none
            truth = np.zeros(self.detector.config.size, dtype=bool)
        share = SIDE / max(original.shape[1:])  # small ones grow: lines drawn on them stay thin
        shown = [max(1, round(share * side)) for side in original.shape[:0:-1]]
        pixels = Image.fromarray(original.permute(1, 2, 0).numpy()).resize(shown, Image.Resampling.BILINEAR)
        own = {key: values[0].numpy() for key, values in maps.items()}
        scored = {key: float(values[0]) for key, values in scores.items()}
        own_size = original.shape[2], original.shape[1]
        self._seen[index] = Seen(np.asarray(pixels), own_size, own, scored, output, plus, truth)
        while len(self._seen) > CACHED:
            self._seen.popitem(last=False)
        return self._seen[index]

    def thumbnail(self, index: int, side: int = 128) -> tuple[np.ndarray, np.ndarray | None]:
        """A small picture uint8 (h, w, 3), and the ground truth of the same size where there is one; read,
        not predicted, and kept."""
        if index not in self._thumbnails:
            item = self.items[index]
            pixels = Image.fromarray(self._read(item).permute(1, 2, 0).numpy())
            pixels.thumbnail((side, side), Image.Resampling.BILINEAR)
            truth = None
            if item.mask is not None:
                mask = Image.fromarray(read_mask(item.mask, None, item.mask_rule).numpy())
                truth = np.asarray(mask.resize(pixels.size, Image.Resampling.NEAREST))
            self._thumbnails[index] = np.asarray(pixels), truth
        return self._thumbnails[index]

    def is_bad(self, index: int) -> bool:
        """Whether the image is anomalous: by its label, else by the detector's decision."""
        if (defect := self.items[index].defect) is not None:
            return defect != GOOD
        return bool(self.scores(self.decisive)[index] > self.detector.threshold)

    @property
    def is_labelled(self) -> bool:
        return any(item.defect is not None for item in self.items)

    # ---- maps and what a threshold makes of them ---------------------------------------------------------

    def anomaly_map(self, index: int, name: str = "", scale: int = ALL_SCALES) -> np.ndarray:
        """Smoothed map (h, w): one of `names`, over ALL_SCALES (0), or 1, 2, 3 from fine to coarse. Here and
        below '' is the map that decides."""
        return self.see(index).maps[name or self.decisive, scale]

    def scores(self, name: str = "", scale: int = ALL_SCALES) -> np.ndarray:
        """Image scores (N,) under the detector's rule; uploads at the end."""
        return self._statistics(name or self.decisive, scale)[:, 2]

    def limits(self, name: str = "", scale: int = ALL_SCALES) -> tuple[float, float]:
        """The map's range over all images, for colours and threshold; of fused and plus 0 to 1."""
        if (name := name or self.decisive) in WHOLE:
            return 0.0, 1.0
        rows = self._statistics(name, scale)
        low, high = float(rows[:, 0].min()), float(rows[:, 1].max())
        return (low, high) if high > low else (low, low + 1e-6)

    def threshold(self, name: str = "", scale: int = ALL_SCALES) -> float:
        """Of image scores, which decides: the detector's own for a map over all scales; for a single scale,
        by the same rule, the highest score of these good images. [ours]"""
        if scale == ALL_SCALES:
            return self.detector.thresholds[name or self.decisive]
        scores = self.scores(name, scale)[: self.count]
        return float(scores[self._good].max() if self._good else np.median(scores))

    def pixel_threshold(self, name: str = "", scale: int = ALL_SCALES) -> float:
        """Of pixels, where an outline starts: the detector's own for a map over all scales; for a single
        scale, by the same rule, the 99.9 % quantile of these good images' pixels. [ours]"""
        if scale == ALL_SCALES:
            return self.detector.pixel_thresholds[name or self.decisive]
        self._statistics(name, scale)  # which has them read
        pixels = self._pixels[name, scale][self._good or slice(self.count)]
        return float(np.quantile(pixels, PIXEL_QUANTILE))

    @property
    def _good(self) -> list[int]:
        return [index for index in range(self.count) if not self.is_bad(index)]

    def read(self, index: int, threshold: float, name: str = "", scale: int = ALL_SCALES) -> Reading:
        """The decision, and regions (8-connected), precision and recall of the pixels above the threshold."""
        above, truth = self.anomaly_map(index, name, scale) > threshold, self.see(index).truth
        regions = ndimage.label(above, structure=np.ones((3, 3)))[1]
        hits = None if truth is None else int((above & truth).sum())
        precision = hits / int(above.sum()) if hits is not None and above.any() else None
        recall = hits / int(truth.sum()) if hits is not None and truth.any() else None
        score, decides = float(self.scores(name, scale)[index]), self.threshold(name, scale)
        return Reading(score, decides, threshold, regions, float(above.mean()), precision, recall)

    def distances(self, index: int, x: int, y: int) -> list[Distance]:
        """The distances at a pixel of the image, 0 <= x < width, 0 <= y < height.

        They are those of the cell that covers it at every scale, neither resized nor smoothed. Raises
        IndexError outside the image.
        """
        seen = self.see(index)
        width, height = seen.size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"pixel ({x}, {y}) lies outside the image of {width} x {height} pixels")

        def value(maps: tuple[torch.Tensor, ...], k: int) -> float | None:
            if not maps:
                return None
            rows, columns = maps[k].shape[1:]
            return float(maps[k][0, y * rows // height, x * columns // width])

        position = () if seen.plus is None else seen.plus.position
        kinds = (seen.output.normality, seen.output.abnormality, position)
        return [Distance(scale, *(value(m, k) for m in kinds)) for k, scale in enumerate(self.scales[1:])]

    def neighbours(
        self, index: int, name: str = "", scale: int = ALL_SCALES, count: int = 3
    ) -> tuple[list[int], list[int]]:
        """The good and the anomalous images whose scores are nearest to this one's, the nearest first."""
        scores = self.scores(name, scale)
        near = np.argsort(np.abs(scores[: self.count] - scores[index]), kind="stable").tolist()
        good = [i for i in near if i != index and not self.is_bad(i)]
        bad = [i for i in near if i != index and self.is_bad(i)]
        return good[:count], bad[:count]

    # ---- prediction -------------------------------------------------------------------------------------

    def _read(self, item: Item) -> torch.Tensor:
        depth = self.detector.depth
        if isinstance(item.source, bytes):
            return read_bytes(item.source, item.name, depth)
        return read_image(item.source, depth=depth)

    def _predict(self, originals: Sequence[torch.Tensor]):
        """Images uint8 (3, H, W) -> maps (B, h, w) and scores (B,) by (name, scale), and the model's output,
        all on the CPU."""
        config = self.detector.config
        pixels = [image.permute(1, 2, 0).numpy() for image in originals]
        batch = torch.stack([read_image(image, config.image_size) for image in pixels])
        full, own, outputs = self.detector.maps(batch)
        maps, scores = ({(name, ALL_SCALES): part[name] for name in self.names} for part in (full, own))
        output, plus = (values and map_tensors(lambda m: m.float().cpu(), values) for values in outputs)
        for k in range(len(self.scales) - 1):
            one = {branch: getattr(output, branch)[k : k + 1] for branch in config.branches}
            full = full_size_maps(output._replace(**one), config)
            if plus is not None:
                full |= plus_maps(plus._replace(position=plus.position[k : k + 1]), config)
            single = {(name, k + 1): full[name] for name in self.names if name not in WHOLE}
            maps |= single
            scores |= {key: image_scores(values) for key, values in single.items()}
        return maps, scores, (output, plus)

    def _statistics(self, name: str, scale: int) -> np.ndarray:
        if (name, scale) not in self._rows:
            self._score_all()
        return self._rows[name, scale]

    def _score_all(self) -> None:
        """Lowest value, highest value and image score of every map of every image, a batch at a time."""
        parts, pixels = defaultdict(list), defaultdict(list)
        with Progress(len(self.items), "scoring images", enabled=self.progress) as bar:
            for start in range(0, len(self.items), BATCH):
                batch = self.items[start : start + BATCH]
                maps, scores, _ = self._predict([self._read(item) for item in batch])
                for key, values in maps.items():
                    rows = values.amin((1, 2)), values.amax((1, 2)), scores[key]
                    parts[key].append(torch.stack(rows, dim=1).numpy())
                    pixels[key].append(values[:, ::STRIDE, ::STRIDE].flatten(1).numpy().copy())
                bar.update(start + len(batch))
        self._rows = {key: np.concatenate(rows) for key, rows in parts.items()}
        self._pixels = {key: np.concatenate(rows) for key, rows in pixels.items()}
