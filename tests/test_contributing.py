"""The worked examples of docs/contributing.md run as they are printed."""

import re
from pathlib import Path

import pytest

TEXT = (Path(__file__).parent.parent / "docs/contributing.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", ["Add a loss", "Add a data set", "Add a teacher"])
def test_examples(title):
    exec(EXAMPLES[title], {"__name__": title})
