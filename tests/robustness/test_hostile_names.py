"""Names of files and folders that hold markup, formulas, control characters or no text at all: they are shown
as they are, with marks for what cannot be shown, and never become part of a page."""

import io
import json
import os
from html import escape

import ipywidgets
import numpy as np
import pytest
from builders import save_image

from dmdd_lite.explorer import Explorer, ExplorerView, static_figure
from dmdd_lite.explorer.items import shown

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "-->]]>\"'><svg onload=alert(1)>",
    "&lt;b&gt;&#60;i&#62;",
    "$\\frac{1}{2}$",
    "$\\frac{$",  # no formula
    "{{7*7}}${7*7}{0.__class__}%s%n",
    "a\nb\rc",
    "\x1b[2J\x1b]0;x\x07",
    "\u202egnp",  # turns the direction of text
    os.fsdecode(b"\xff\xfe\x80"),
    "n" * 200,
]
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # of a font that has not all of Unicode
MARKUP = [name for name in HOSTILE if set(name) & set('<>"&')]


def assert_harmless(html: str):
    """No name is markup or ends an attribute: those that could are escaped. All is text that can be sent."""
    assert not [name for name in MARKUP if name in html]
    html.encode("utf-8")


def html_of(widget):
    if isinstance(widget, ipywidgets.HTML):
        yield widget.value
    for child in getattr(widget, "children", ()):
        yield from html_of(child)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image of each name, half of them in folders of such names too."""
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(HOSTILE):
        parent = folder / name if number % 2 else folder
        save_image(parent / f"{name}.png", np.full((32, 32, 3), 10 * number, np.uint8))
    return folder


@pytest.fixture(scope="module")
def explorer(detector, folder):
    return Explorer(detector, folder, progress=False)


def test_every_name_can_be_drawn(explorer):
    assert len(explorer.items) == len(HOSTILE)
    for index, item in enumerate(explorer.items):
        item.name.encode("utf-8")
        assert not set(item.name) & set("\n\r\x1b\x07\u202e\u200b\u2028")
        figure = static_figure(explorer, index)
        assert any(text.get_text().startswith(f"{item.name} · ") for text in figure.texts)
        figure.savefig(io.BytesIO(), dpi=20)


@pytest.fixture(scope="module")
def view(explorer):
    return ExplorerView(explorer, 0)


def test_no_name_becomes_markup(view, explorer):
    for index in range(len(explorer.items)):
        view.image.value = index
        for html in html_of(view.widget):
            assert_harmless(html)
    json.dumps(view._repr_mimebundle_()).encode("utf-8")
    labels = [label.rpartition(" · ")[0] for label, _ in view.image.options]
    assert sorted(labels) == sorted(item.name for item in explorer.items)  # text, not markup


def test_uploads_of_any_name(view, monkeypatch):
    for name in HOSTILE:
        monkeypatch.setattr("dmdd_lite.explorer.view.uploaded_files", lambda _, name=name: [(name, b"none")])
        view._on_upload()
        assert_harmless(view.message.value)
        assert escape(shown(name)) in view.message.value
