"""Wrong settings of configurations and notebooks: refused by name before any work."""

import dataclasses

import pytest

from dmdd_lite.config import Config, PlusConfig
from dmdd_lite.reproduce.notebook import NOTEBOOKS, check_parameters, notebook_parameters

FIELDS = {item.name: item for item in dataclasses.fields(Config) if item.name != "plus"}
OF_PLUS = {item.name: item for item in dataclasses.fields(PlusConfig)}
CHAPTERS = sorted(NOTEBOOKS.glob("0*.ipynb"))
REFUSED = (ValueError, TypeError)


NAN = float("nan")
WRONG = {
    int: [None, True, 1.0, "5", [5], NAN, 10**400, -(10**5000), -1],
    int | tuple: [None, True, 1.0, "64", {}, 32, 4128, [64], [64] * 3, [64, 4128], [64, True], [64, 64.0]],
    float: [None, True, "0.5", [0.5], NAN, float("inf"), -0.1, 10**400],
    bool: [None, 1, 0, "yes", []],
    str: [None, 5, True, b"x", ["x"], ["x" * 10_000], 10**5000],
    tuple: [None, 5, "normality", {}, [None], [[1]], ["1", "2", "3"], [True] * 3, [NAN] * 2, [10**400] * 2],
    dict: [None, [], "{}", {1: 2}, {"a": object()}, {"a": NAN}, {"a": {1}}],
}


@pytest.mark.parametrize("name", [*FIELDS, *OF_PLUS])
def test_wrong_types_and_ranges_are_refused(name):
    item = FIELDS.get(name) or OF_PLUS[name]
    checks = item.metadata
    makes = [Config, Config().replace]
    if name in OF_PLUS:
        makes = [PlusConfig, PlusConfig().replace, lambda **given: Config(plus=given)]
    wrong = WRONG[item.type] + ["nonsense"] * ("choices" in checks)
    if item.type in (int, float):
        steps = (("low", -1), ("high", 1))
        wrong = wrong + [checks[bound] + step for bound, step in steps if bound in checks]
    for value in wrong:
        for make in makes:
            with pytest.raises(REFUSED, match=name):
                make(**{name: value})


@pytest.mark.parametrize("changes", [
    {"image_size": 129}, {"image_size": 10**9},
    {"branches": ()}, {"branches": ("normality",) * 2}, {"msn_attention": [["channel"]]},
    {"opacity": (0.9, 0.2)}, {"opacity": (0.5,)}, {"perlin_scales": (0.5, 2)}, {"perlin_scales": (3, 3)},
    {"smoothing_sigma": 64.0}, {"seed": 2**63}, {"pairs": False},
], ids=str)  # fmt: skip
def test_what_does_not_go_together_is_refused_by_name(changes):
    with pytest.raises(REFUSED, match=next(iter(changes))):
        Config(**changes)


def test_a_refusal_says_what_would_do():
    with pytest.raises(ValueError, match="image_size must be a multiple of 32, got 100; try 96"):
        Config(image_size=100)
    with pytest.raises(ValueError, match=r"a multiple of 32, got \(100, 320\); try \(96, 320\)"):
        Config(image_size=(100, 320))
    with pytest.raises(ValueError, match=r"use it with branches=\('normality',\) and msn_iterations=0"):
        Config(pairs=False)


@pytest.mark.parametrize("plus", [True, 5, "plus", [], {"pool": (3, True, 5)}, {"pool": (3, 4, 5)}, {1: 2}])
def test_wrong_choices_of_dmdd_plus_are_refused(plus):
    with pytest.raises(REFUSED, match=r"plus|pool|configuration"):
        Config(plus=plus)


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
