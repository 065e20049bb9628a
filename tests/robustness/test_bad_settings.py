"""Wrong settings of configurations and notebooks: refused by name before any work."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import IPython
import nbformat
import pytest
from builders import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from papermill.translators import PythonTranslator

from dmdd_lite.config import Config
from dmdd_lite.reproduce.notebook import NOTEBOOKS, check_injected, check_parameters, notebook_parameters
from dmdd_lite.training import train

FIELDS = {item.name: item for item in dataclasses.fields(Config)}
CHAPTERS = sorted(NOTEBOOKS.glob("0*.ipynb"))
REFUSED = (ValueError, TypeError)

# ---- configurations -----------------------------------------------------------------------------------

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, 2**63, -(2**63), float("nan"), 1j])
SCALARS = (
    st.none() | st.booleans() | NUMBERS | st.binary(max_size=3) | st.text(max_size=5) | st.builds(object)
)


def nested(part):
    lists = st.lists(part, max_size=3)
    return lists | lists.map(tuple) | st.dictionaries(SCALARS, part, max_size=2)


JUNK = st.recursive(SCALARS, nested, max_leaves=5)
NUMBER = {int: st.integers, float: st.floats}


def proper(kind: type, checks: dict):
    """Values of one field, or of one part of it, that its own checks let pass."""
    if "choices" in checks:
        return st.sampled_from(checks["choices"])
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(max_size=8)
    return NUMBER[kind](checks.get("low", 0), checks.get("high", 10_000))


def pair(part, **options):
    return st.lists(part, min_size=2, max_size=2, **options).map(sorted).map(tuple)


PROPER = {
    name: proper(item.type, item.metadata) for name, item in FIELDS.items() if item.type not in (tuple, dict)
} | {
    "image_size": st.integers(2, 64).map(lambda n: 64 * n),
    "teacher_options": st.dictionaries(st.text(), st.floats(-9, 9) | st.tuples(st.text()), max_size=3),
    "student_blocks": st.just(()) | st.tuples(*[st.integers(1, 100)] * 3),
    "branches": st.permutations(["normality", "abnormality"]).map(tuple),
    "position_pool": st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3),
    "fusion_perceptions": st.lists(st.integers(1, 64), min_size=1, max_size=16),
    "fusion_attention": st.lists(st.sampled_from(["channel", "spatial", "coordinate", "self"]), unique=True),
    "perlin_scales": pair(st.integers(0, 8), unique=True),
    "opacity": pair(st.floats(0, 1)),
    "betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    "pairs": st.just(True),
}  # fmt: skip


def test_every_field_has_values_to_try():
    assert set(PROPER) == set(FIELDS)


@given(values=st.fixed_dictionaries({}, optional=PROPER))
def test_any_valid_configuration_survives_json(values, tally):
    config = Config(**values)
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = Config.from_dict(json.loads(text))
    assert again == config == config.replace()
    assert json.dumps(again.to_dict()) == text
    tally("valid configurations")


@pytest.mark.parametrize("kind", [str, int, float, bool, tuple, dict])
@given(value=JUNK, choice=st.data())
def test_junk_is_refused_by_the_name_of_its_field_or_survives_json(kind, value, choice, tally):
    name = choice.draw(st.sampled_from([name for name, item in FIELDS.items() if item.type is kind]))
    try:
        config, told = Config(**{name: value}), ""
    except REFUSED as error:
        config, told = None, str(error)
    if config is None:
        assert name in told
        assert len(told) < 600
    else:
        assert Config.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config
    tally("values of configuration fields")


WRONG = {
    int: [None, True, 1.0, "5", [5], float("nan"), 10**400, -(10**5000), -1],
    float: [None, True, "0.5", [0.5], float("nan"), float("inf"), -0.1, 10**400],
    bool: [None, 1, 0, "yes", []],
    str: [None, 5, True, b"x", ["x"], ["x" * 10_000], 10**5000],
    tuple: [
        None,
        5,
        "normality",
        {},
        [None],
        [[1]],
        ["1", "2", "3"],
        [True] * 3,
        [math.nan] * 2,
        [10**400] * 2,
    ],
    dict: [None, [], "{}", {1: 2}, {"a": object()}, {"a": math.nan}, {"a": {1}}],
}


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_types_and_ranges_are_refused(name, tally):
    item, checks = FIELDS[name], FIELDS[name].metadata
    wrong = WRONG[item.type] + ["nonsense"] * ("choices" in checks)
    if item.type in (int, float):
        wrong = wrong + [
            checks[bound] + step for bound, step in (("low", -1), ("high", 1)) if bound in checks
        ]
    for value in wrong:
        with pytest.raises(REFUSED, match=name):
            Config(**{name: value})
        with pytest.raises(REFUSED, match=name):
            Config().replace(**{name: value})
    tally("values of configuration fields", 2 * len(wrong))


@pytest.mark.parametrize("changes, message", [
    ({"image_size": 129}, "image_size must be a multiple of 32, got 129; try 128"),
    ({"image_size": 10**9}, "image_size must be at most 4096, got 1000000000"),
    ({"student_blocks": (1, 1)}, r"student_blocks must be \(\) or three numbers from 1, got \(1, 1\)"),
    ({"student_blocks": (1, 0, 1)}, "student_blocks must be at least 1, got 0"),
    ({"student_blocks": (1, 10**6, 1)}, "student_blocks must be at most 100"),
    ({"position_pool": (3, True, 5)}, r"each part of position_pool must be int, got True \(bool\)"),
    ({"position_pool": (3, 3.0, 5)}, r"each part of position_pool must be int, got 3.0 \(float\)"),
    ({"fusion_perceptions": ()}, r"fusion_perceptions must be one to sixteen dilations, got \(\)"),
    ({"fusion_perceptions": (0,)}, "fusion_perceptions must be at least 1, got 0"),
    ({"betas": (0.5, 1.0)}, r"betas must be two numbers from 0 and below 1, got \(0.5, 1.0\)"),
    ({"betas": (0.5,)}, "betas must be two numbers"),
    ({"opacity": (0.9, 0.2)}, "opacity must be an increasing pair"),
    ({"perlin_scales": (0.5, 2)}, "each part of perlin_scales must be int"),
    ({"smoothing_sigma": 64.0}, "smoothing_sigma must be at most 60.0, got 64.0"),
    ({"fusion_attention": [["channel"]]}, "each part of fusion_attention must be str"),
    ({"seed": 2**63}, "seed must be at most 9223372036854775807, got 9223372036854775808"),
    ({"teacher_options": {"a": {1}}}, "teacher_options must hold plain JSON values, got"),
    ({"pairs": False}, "pairs=False leaves nothing"),
])  # fmt: skip
def test_what_does_not_go_together(changes, message, tally):
    with pytest.raises(REFUSED, match=message):
        Config(**changes)
    tally("values of configuration fields")


def test_options_of_the_teacher_are_copied_and_compare_after_json():
    options = {"out_indices": (1, 2, 3), "mean": [0.5] * 3}
    config = Config(teacher_options=options)
    options["mean"].append(9)
    assert config.teacher_options == {"out_indices": [1, 2, 3], "mean": [0.5] * 3}
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "values", [None, [], "x", 5, {1: 2}, {None: 1, "seed": 0}, {"seed": 0, "lambda_": 1}, {"": 1}]
)
def test_from_dict_takes_known_fields_alone(values, tally):
    message = "unknown configuration field" if isinstance(values, dict) else "a configuration must be a dict"
    with pytest.raises(REFUSED, match=message):
        Config.from_dict(values)
    tally("values of configuration fields")


def test_the_largest_values_work(root):
    most = 2**63 - 1
    counts = {"seed": most, "score_top": most, "texture_limit": most, "position_channels": most}
    shares = {"smoothing_sigma": 60.0, "perlin_rotation": 360.0}
    shares |= {"perlin_threshold": 1.0, "feature_memory": 1e300, "warmup": 0.9, "clip_norm": 1e30}
    parts = {"fusion_perceptions": (64,), "opacity": (0, 0), "perlin_scales": (7, 8)}
    config = tiny_config(iterations=2, score_rule="top", **counts, **shares, **parts)
    found = train(config, root, "lever", root / "lever/train", device="cpu", progress=False)
    assert math.isfinite(found.detector.threshold)


# ---- parameters of notebooks --------------------------------------------------------------------------

VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
VALUES |= st.lists(st.integers(), max_size=2) | st.dictionaries(
    st.text(max_size=3), st.integers(), max_size=2
)


defaults = functools.cache(notebook_parameters)


@functools.cache
def parameters_cell(notebook: Path) -> str:
    cells = nbformat.read(notebook, 4).cells
    return next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ()))


def inject(notebook: Path, given: dict):
    """What `check_injected` sees in a notebook into which papermill wrote these parameters."""
    cells = [parameters_cell(notebook), "# Parameters\n" + PythonTranslator.codify(given).split("\n", 1)[1]]
    names = {"In": ["", *cells, "check_injected()"]}
    for cell in cells:
        exec(cell, names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(user_ns=names))
        check_injected()


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem[:2])
@given(choice=st.data())
def test_a_parameter_of_another_type_is_refused_in_the_check(notebook, choice, tally):
    known = defaults(notebook)
    name, value = choice.draw(st.sampled_from(sorted(known))), choice.draw(VALUES)
    kind = type(known[name])
    if type(value) is kind or (kind is float and type(value) is int):
        inject(notebook, {name: value})
    else:
        with pytest.raises(TypeError, match=f"parameter {name} must be {kind.__name__}, got"):
            inject(notebook, {name: value})
    tally("parameters of notebooks")


@pytest.mark.parametrize("value", [None, True, 5, 0.5, "5", [5], {"a": 5}])
def test_a_parameter_of_another_type_starts_no_notebook(value, tally):
    notebook = CHAPTERS[2]
    for name, default in defaults(notebook).items():
        if type(value) is type(default) or (name in ("fpr", "zone_width") and value == 5):
            check_parameters(notebook, {name: value})
        else:
            with pytest.raises(TypeError, match=f"parameter {name} of 03_dual.*ipynb must be "):
                check_parameters(notebook, {name: value})
        tally("parameters of notebooks")


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem[:2])
def test_unknown_parameters_are_refused_in_the_check(notebook, tally):
    for unknown in ("itterations", "Seed", "seed_", "größe", "check_injected", "x" * 200):
        for check in (check_parameters, inject):
            with pytest.raises(ValueError, match=f"has no parameter {unknown}; it has .*seed"):
                check(notebook, {"seed": 1, unknown: 1})
            tally("parameters of notebooks")


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem[:2])
def test_hints_say_how_papermill_takes_them(notebook):
    for parameters, message in (
        ({"category": 7}, r"must be str, got 7 \(papermill's -r passes text as it is\)$"),
        ({"teacher_options": "{}"}, r"must be dict, got '\{\}' \(papermill's -y takes a dict: "),
        ({"image_size": "large"}, r"must be int, got 'large'$"),
    ):
        with pytest.raises(TypeError, match=message):
            inject(notebook, parameters)


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem[:2])
def test_the_check_stands_before_all_work(notebook):
    code = [cell.source for cell in nbformat.read(notebook, 4).cells if cell.cell_type == "code"]
    after = code[code.index(parameters_cell(notebook)) + 1]
    before, _, _ = after.partition(
        "check_injected()\n" if "check_injected()\n" in after else "check_injected()"
    )
    assert "check_injected" in before
    lines = [line for line in before.splitlines() if line and not line.startswith((" ", ")"))]
    assert all(line.startswith(("import ", "from ")) for line in lines), lines
