"""The rows of the ablation: named changes of a base configuration, each with what it is to show.

A new row is one more line in ROWS. A row whose changes are all named in SCORING trains nothing: it is scored
from the detector of the row `full`; and one whose changes leave the student as it is (`student_differences`)
trains a fusion alone, for the one of that detector.
"""

from collections.abc import Callable
from typing import NamedTuple

from dmdd_lite.config import Config, differences, student_differences

#: fields that the training never reads
SCORING = ("smoothing_sigma", "score_rule", "score_top", "msn_skip", "threshold_quantile")

FULL = "full"  # the row that all others are compared with


class Row(NamedTuple):
    """changes: Config fields with their value, or with a function of the base and the field's name; textures:
    a "folder" of any pictures, "none" (procedural ones), the category's "own" training images, or "mixed"."""

    name: str
    why: str
    changes: dict = {}  # noqa: RUF012 read only
    textures: str = "folder"

    def is_refit(self, base: Config) -> bool:
        """Whether the row has the student of the full row."""
        if self.textures != "folder" or self.name == FULL:
            return False
        return not student_differences(self.config(base, base.seed), base)

    def config(self, base: Config, seed: int) -> Config:
        """Raises ValueError or TypeError for a change that Config does not take."""
        changes = {k: v(base, k) if callable(v) else v for k, v in self.changes.items()}
        return base.replace(**changes, seed=seed)

    def same_as_full(self, base: Config) -> bool:
        """Whether the row changes nothing of this base."""
        return self.textures == "folder" and not differences(self.config(base, 0), base.replace(seed=0))


def times(factor: float) -> Callable:
    """The base's value so many times, whole where it is whole."""
    return lambda base, field: type(value := getattr(base, field))(value * factor)


# one branch, its maps summed
PLAIN = {
    "branches": ("normality",),
    "msn_start": 1.0,
    "iterations": lambda base, field: base.student_iterations,
}

REVERSE = {**PLAIN, "pairs": False, "student": "decoder", "position_prior": False, "position_maps": False}

ROWS = (
    # the parts, one after the other
    Row("plain", "reverse distillation: good images alone, one branch of a decoder, nothing else", REVERSE),
    Row("good", "the student's normality branch on good images alone", {**PLAIN, "pairs": False}),
    Row("pairs", "the same branch fitted on pairs: NGM, its maps summed", PLAIN),
    Row("ngm", "NGM alone with an MSN", {"branches": ("normality",)}),
    Row("aim", "AIM alone with an MSN", {"branches": ("abnormality",)}),
    Row("summed", "NGM and AIM without the MSN: the sum of all maps", {"msn_skip": 1.0}),
    Row("no_attention", "an MSN without attention", {"msn_attention": ()}),
    Row("channel", "channel attention alone", {"msn_attention": ("channel",)}),
    Row("spatial", "spatial attention alone", {"msn_attention": ("spatial",)}),
    Row("coordinate", "coordinate attention alone", {"msn_attention": ("coordinate",)}),
    Row("self", "self-attention alone", {"msn_attention": ("self",)}),
    Row(FULL, "the configuration as it is"),
    # student and teacher
    Row("decoder", "reverse distillation's student", {"student": "decoder"}),
    Row("standardise_always", "teacher channels centred and scaled", {"standardise": "always"}),
    Row("standardise_never", "teacher channels as they are", {"standardise": "never"}),
    # statistics of positions
    Row("no_prior", "a student whose outputs begin at zero", {"position_prior": False}),
    Row("no_position", "DMDD alone, without DMDD+", {"position_maps": False}),
    Row("pool_1", "position maps of single cells", {"position_pool": (1, 1, 1)}),
    Row("pool_3", "no more averaging at the coarsest scale than elsewhere", {"position_pool": (3, 3, 3)}),
    Row("no_context", "the same means for images of any look", {"position_context": 0}),
    # losses
    Row("ngm_pixel", "cosine per pixel instead of over the flattened map", {"ngm_form": "pixel"}),
    # pairs
    Row("illumination", "brightness and contrast varied by a fifth", {"illumination": 0.2}),
    Row("textures_procedural", "procedural anomaly textures", textures="none"),
    Row("textures_own", "the category's own training images as textures", textures="own"),
    Row("textures_mixed", "the folder's and its own images as textures", textures="mixed"),
    Row("foreground_none", "synthetic anomalies anywhere", {"foreground": "none"}),
    # fusion
    Row("weighted", "one learned weight a map instead of the MSN", {"msn": "weighted"}),
    Row("skip_0", "the MSN alone, without a share of the plain mean", {"msn_skip": 0.0}),
    Row("msn_dice", "focal and Dice loss instead of focal and L1", {"msn_loss": "focal+dice"}),
    # schedule
    Row("constant", "a learning rate that does not decay", {"schedule": "constant"}),
    Row("iterations_double", "twice the iterations", {"iterations": times(2)}),
    Row("rate_half", "half the learning rate", {"learning_rate": times(0.5)}),
    Row("rate_double", "twice the learning rate", {"learning_rate": times(2)}),
    # scoring
    Row("sigma_2", "less smoothing", {"smoothing_sigma": 2.0}),
    Row("sigma_4", "as the authors smooth", {"smoothing_sigma": 4.0}),
    Row("score_top", "image score: the mean of the highest pixels", {"score_rule": "top"}),
)

BY_NAME = {row.name: row for row in ROWS}
