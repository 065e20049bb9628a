"""Names of files and folders that hold markup, formulas, control characters or no text at all: they are shown
as they are, with marks for what cannot be shown, and never become part of a page."""

import io
import json
import os
from html.parser import HTMLParser

import ipywidgets
import numpy as np
import pytest
from builders import disc, save_image, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dmdd_lite.data import open_category
from dmdd_lite.detector import Detector
from dmdd_lite.evaluation import evaluate
from dmdd_lite.explorer import Explorer, ExplorerView, static_figure
from dmdd_lite.explorer.items import shown
from dmdd_lite.explorer.readouts import thumbnail
from dmdd_lite.figures import image_grid
from dmdd_lite.model import build_model
from dmdd_lite.teacher import build_teacher

HOSTILE = {
    "image": "<img src=x onerror=alert(1)>",
    "script": "<script>alert(1)<script>",
    "attribute": '" onmouseover="alert(1)',
    "quote": "' onload='alert(1)",
    "closed": "-->]]>\"'><svg onload=alert(1)>",
    "entity": "&lt;b&gt;&#60;i&#62;",
    "style": "<style>*{display:none}<style>",
    "formula": "$\\frac{1}{2}$",
    "broken formula": "$\\frac{$",
    "one dollar": "5$",
    "template": "{{7*7}}${7*7}{0.__class__}%s%n",
    "markdown": "[x](javascript:alert(1))|`a`|![y](z)",
    "shell": "$(touch x);`id`&&-rf",
    "line break": "a\nb\rc",
    "escape sequence": "\x1b[2J\x1b]0;x\x07",
    "direction": "\u202egnp",
    "invisible": "a\u200bb\ufeffc\u2028d",
    "no text": os.fsdecode(b"\xff\xfe\x80"),
    "picture": "\U0001f642",
    "space": " ",
    "underscore": "_hidden",
    "long": "n" * 200,
}
pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # of a font that has not all of Unicode
ALLOWED = {"div", "span", "table", "tr", "th", "td", "img", "style"}


class Page(HTMLParser):
    """What a browser would make of a piece of HTML."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.texts, self.attributes = set(), [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.texts.append(data)

    def assert_harmless(self):
        assert self.tags <= ALLOWED
        for name, value in self.attributes:
            assert name in {"class", "style", "src", "alt", "title", "role"}, name
            assert name != "src" or value.startswith("data:image/png;base64,")


def all_widgets(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_widgets(child)


@pytest.fixture(scope="module")
def detector():
    return Detector(build_model(tiny_config(position_maps=False), build_teacher("test_resnet", "random")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One image of each name, half of them in folders of such names too."""
    folder = tmp_path_factory.mktemp("names")
    for number, name in enumerate(HOSTILE.values()):
        parent = folder / name if number % 2 else folder
        save_image(parent / f"{name}.png", np.full((32, 32, 3), 10 * number, np.uint8))
    return folder


@pytest.fixture(scope="module")
def explorer(detector, folder):
    return Explorer(detector, folder, progress=False)


def png() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (32, 32)).save(written, "PNG")
    return written.getvalue()


def test_every_name_can_be_sent_to_a_page_and_drawn(explorer, tally):
    assert len(explorer.items) == len(HOSTILE)
    for index, item in enumerate(explorer.items):
        item.name.encode("utf-8")
        assert not set(item.name) & set("\n\r\x1b\x07\u202e\u200b\u2028")
        figure = static_figure(explorer, index)
        assert any(text.get_text().startswith(f"{item.name} · ") for text in figure.texts)
        tally("hostile names")


@pytest.fixture(scope="module")
def view(explorer):
    return ExplorerView(explorer, 0)


def test_no_name_becomes_markup(view, explorer, tally):
    for index in range(len(explorer.items)):
        view.image.value = index
        for widget in all_widgets(view.widget):
            if isinstance(widget, ipywidgets.HTML):
                Page(widget.value).assert_harmless()
            else:
                json.dumps(widget.get_state(), default=str).encode("utf-8")
        assert explorer.items[index].name in repr(view)
        tally("hostile names")
    json.dumps(view._repr_mimebundle_()).encode("utf-8")
    labels = [label.rpartition(" · ")[0] for label, _ in view.image.options]
    assert sorted(labels) == sorted(item.name for item in explorer.items)  # text, not markup


@pytest.mark.parametrize("content", [png(), b"no image"], ids=["image", "no image"])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_uploads_of_any_name(detector, folder, view, monkeypatch, tally, name, content):
    monkeypatch.setattr("dmdd_lite.explorer.view.uploaded_files", lambda value: [(name, content)])
    view._on_upload()
    page = Page(view.message.value)
    page.assert_harmless()
    assert shown(name) in "".join(page.texts)
    view.message.value.encode("utf-8")
    tally("hostile names")


@given(name=st.text(max_size=40) | st.text("<>\"'&;$\\{}=/ onerrscipt", max_size=40))
def test_any_name_beside_a_thumbnail(name, tally):
    page = Page(thumbnail(b"", shown(name), "score 0.5"))
    page.assert_harmless()
    assert page.tags == {"img", "div"}
    assert page.texts == [part for part in (shown(name), "score 0.5") if part]
    shown(name).encode("utf-8")
    tally("hostile names")


@given(name=st.text(max_size=30) | st.text("$\\{}_^frac", max_size=30))
def test_any_name_above_a_row_of_a_figure(name, tally):
    figure, _, _ = image_grid((1, 8, 8), ["image"], [shown(name)], width=2.0)
    figure.savefig(io.BytesIO(), dpi=20)
    tally("hostile names")


def test_categories_and_defects_of_any_name(detector, tmp_path, depth, tally):
    names = sorted(HOSTILE.values())
    for name in names[:: depth(9, 1)]:
        folder = tmp_path / name
        for part in ("train/good", "test/good", f"test/{name}", f"ground_truth/{name}"):
            save_image(folder / part / f"{name}.png", disc())
        category = open_category(tmp_path, name)
        assert [image.defect for image in category.test] == sorted(["good", name])
        scored = evaluate(detector, category, progress=False)
        explorer = Explorer(detector, scored, progress=False)
        for index in range(2):
            static_figure(explorer, index).savefig(io.BytesIO(), dpi=20)
        tally("hostile names")
