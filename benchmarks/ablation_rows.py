"""The rows of the ablation: named changes of a base configuration, each with what it is to show.

A new row is one more line in ROWS. A row whose changes are all named in SCORING trains nothing: it is scored
from the detector of the row `full`; and one whose changes leave the student as it is (`student_differences`)
trains an MSN alone, for the one of that detector.
"""

from typing import NamedTuple

from refit import student_differences

from dmdd_lite.config import Config
from dmdd_lite.options import differences

#: fields that only the maps of a trained detector depend on
SCORING = ("smoothing_sigma", "plain_weight")

FULL = "full"  # the row that all others are compared with


class Row(NamedTuple):
    """changes: Config fields with their value, or with a function of the base and the field's name."""

    name: str
    why: str
    changes: dict = {}  # noqa: RUF012 read only

    def config(self, base: Config, seed: int) -> Config:
        """Raises ValueError or TypeError for a change that Config does not take."""
        changes = {k: v(base, k) if callable(v) else v for k, v in self.changes.items()}
        return base.replace(**changes, seed=seed)

    def trained(self, base: Config) -> str:
        """The row whose student it has: full or itself."""
        return self.name if student_differences(self.config(base, base.seed), base) else FULL

    def same_as_full(self, base: Config) -> bool:
        """Whether the row changes nothing of this base."""
        return not differences(self.config(base, 0), base.replace(seed=0))


def is_scored(trained: Config, config: Config) -> bool:
    """Whether a detector that was trained as `trained` needs no training to become one of `config`."""
    return {text.split(":")[0] for text in differences(trained, config)} <= set(SCORING)


# one branch, trained as long as the student, its maps summed
PLAIN = {
    "branches": ("normality",),
    "msn_iterations": 0,
    "iterations": lambda base, field: base.student_iterations,
    "plain_weight": 1.0,
    "plus": None,
}

ROWS = (
    # the parts, one after the other
    Row(
        "plain",
        "reverse distillation: good images alone, one branch of a decoder, nothing else",
        {**PLAIN, "pairs": False, "student": "decoder", "prior": False},
    ),
    Row("good", "the student's normality branch on good images alone", {**PLAIN, "pairs": False}),
    Row("pairs", "the same branch fitted on pairs: NGM, its maps summed", PLAIN),
    Row("ngm", "NGM alone with an MSN", {"branches": ("normality",)}),
    Row("aim", "AIM alone with an MSN", {"branches": ("abnormality",)}),
    Row("summed", "NGM and AIM without the MSN: the plain mean of all maps", {"plain_weight": 1.0}),
    Row("no_attention", "an MSN without attention", {"msn_attention": ()}),
    Row("channel", "channel attention alone", {"msn_attention": ("channel",)}),
    Row("spatial", "spatial attention alone", {"msn_attention": ("spatial",)}),
    Row("coordinate", "coordinate attention alone", {"msn_attention": ("coordinate",)}),
    Row("self", "self-attention alone", {"msn_attention": ("self",)}),
    Row("msn_alone", "the MSN without a share of the plain mean", {"plain_weight": 0.0}),
    Row(FULL, "the configuration as it is"),
    # student
    Row("decoder", "reverse distillation's student", {"student": "decoder"}),
    # pairs
    Row("opaque", "textures that hide what is below", {"opacity": (1.0, 1.0)}),
    # scoring
    Row("sigma_2", "less smoothing", {"smoothing_sigma": 2.0}),
)

BY_NAME = {row.name: row for row in ROWS}
