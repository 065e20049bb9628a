"""Wrong settings of configurations and notebooks: refused by name before any work."""

import dataclasses

import pytest

from dmdd_lite.config import Config
from dmdd_lite.reproduce.notebook import NOTEBOOKS, check_parameters, notebook_parameters

FIELDS = {item.name: item for item in dataclasses.fields(Config)}
CHAPTERS = sorted(NOTEBOOKS.glob("0*.ipynb"))
REFUSED = (ValueError, TypeError)

# ---- configurations -----------------------------------------------------------------------------------


NAN = float("nan")
WRONG = {
    int: [None, True, 1.0, "5", [5], NAN, 10**400, -(10**5000), -1],
    float: [None, True, "0.5", [0.5], NAN, float("inf"), -0.1, 10**400],
    bool: [None, 1, 0, "yes", []],
    str: [None, 5, True, b"x", ["x"], ["x" * 10_000], 10**5000],
    tuple: [None, 5, "normality", {}, [None], [[1]], ["1", "2", "3"], [True] * 3, [NAN] * 2, [10**400] * 2],
    dict: [None, [], "{}", {1: 2}, {"a": object()}, {"a": NAN}, {"a": {1}}],
}


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_types_and_ranges_are_refused(name):
    item, checks = FIELDS[name], FIELDS[name].metadata
    wrong = WRONG[item.type] + ["nonsense"] * ("choices" in checks)
    if item.type in (int, float):
        steps = (("low", -1), ("high", 1))
        wrong = wrong + [checks[bound] + step for bound, step in steps if bound in checks]
    for value in wrong:
        for make in (Config, Config().replace):
            with pytest.raises(REFUSED, match=name):
                make(**{name: value})


@pytest.mark.parametrize("changes", [
    {"image_size": 129}, {"image_size": 10**9},
    {"student_blocks": (1, 1)}, {"student_blocks": (1, 0, 1)}, {"student_blocks": (1, 10**6, 1)},
    {"position_pool": (3, True, 5)}, {"position_pool": (3, 3.0, 5)},
    {"msn_perceptions": ()}, {"msn_perceptions": (0,)}, {"msn_attention": [["channel"]]},
    {"betas": (0.5, 1.0)}, {"betas": (0.5,)}, {"opacity": (0.9, 0.2)}, {"perlin_scales": (0.5, 2)},
    {"smoothing_sigma": 64.0}, {"seed": 2**63}, {"pairs": False},
], ids=str)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(changes):
    with pytest.raises(REFUSED, match=next(iter(changes))):
        Config(**changes)


def test_a_refusal_says_what_would_do():
    with pytest.raises(ValueError, match="image_size must be a multiple of 32, got 100; try 96"):
        Config(image_size=100)
    with pytest.raises(ValueError, match=r"goes with branches=\('normality',\) and msn_start=1"):
        Config(pairs=False)


# ---- parameters of notebooks --------------------------------------------------------------------------


VALUES = [None, True, 5, 0.5, "5", [5], {"a": 5}]


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem[:2])
def test_wrong_parameters_start_no_notebook(notebook):
    known = notebook_parameters(notebook)
    for name, default in known.items():
        for value in VALUES:
            if type(value) is type(default) or (type(default) is float and type(value) is int):
                check_parameters(notebook, {name: value})
            else:
                with pytest.raises(TypeError, match=f"parameter {name} of .*ipynb must be "):
                    check_parameters(notebook, {name: value})
    for unknown in ("itterations", "Seed", "größe", "check_injected"):
        with pytest.raises(ValueError, match=f"has no parameter {unknown}; it has .*seed"):
            check_parameters(notebook, {"seed": 1, unknown: 1})
