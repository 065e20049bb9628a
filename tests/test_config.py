"""The configuration refuses what is out of range, and docs/provenance.md lists it as it is."""

import dataclasses
import json
from pathlib import Path

import pytest

from dmdd_lite.config import Config, PlusConfig
from dmdd_lite.options import LABELS, differences, provenance_table, read_setting

PROVENANCE = Path(__file__).parent.parent / "docs/provenance.md"


def test_json_round_trip_and_unknown_fields():
    changes = {"aim_weight": 2, "opacity": (0.1, 0.5), "teacher_options": {"mean": [0.5] * 3}}
    for plus in (None, {}, {"pool": [1, 1, 3], "weight": 1}):
        config = Config(**changes, plus=plus)
        assert Config.from_dict(config.to_dict()) == config
        assert isinstance(config.plus, type(None) if plus is None else PlusConfig)
    assert differences(config, config.replace(seed=3)) == ["seed: 0 -> 3"]
    with pytest.raises(ValueError, match="unknown configuration field lambda_"):
        Config.from_dict({**config.to_dict(), "lambda_": 1})
    with pytest.raises(ValueError, match=r"unknown configuration field wieght.*pool, channels"):
        Config(plus={"wieght": 1.0})


def test_both_forms_of_the_image_size():
    """A square is one number in either form, so that its runs and results are the same."""
    oblong = Config.from_dict(dict([read_setting("image_size=[192, 320]")]))
    assert oblong.image_size == oblong.size == (192, 320)
    assert Config.from_dict(json.loads(json.dumps(oblong.to_dict()))) == oblong
    assert Config(image_size=[256, 256]) == Config() != oblong
    assert Config().size == (256, 256)


@pytest.mark.parametrize("options", [Config, PlusConfig])
def test_every_field_has_its_origin_and_readme_lists_them(options):
    fields = dataclasses.fields(options)
    assert all(item.metadata["label"] in LABELS and item.metadata["text"] for item in fields)
    assert provenance_table(options) in PROVENANCE.read_text(encoding="utf-8")
    assert len(fields) <= 30


@pytest.mark.parametrize("changes, student", [
    ({"iterations": 300}, 225), ({"iterations": 5000}, 4800),
    ({"iterations": 5000, "msn_iterations": 5000}, 3750),
    ({"iterations": 300, "msn_iterations": 50}, 250), ({"iterations": 5000, "msn_iterations": 0}, 5000),
    ({"iterations": 3}, 3),
])  # fmt: skip
def test_iterations_of_the_student_are_those_that_the_msn_leaves(changes, student):
    assert Config(**changes).student_iterations == student
