"""The explorer in a real browser: JupyterLab in headless Chromium runs a cell, whose pictures are clicked and
dragged."""

import base64
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import pytest
from builders import save_image

import dmdd_lite.explorer

driver = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 180  # seconds: two busy cores; nothing waits longer than it must
CELL = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from builders import tiny_detector
from dmdd_lite.explorer import explore
detector = tiny_detector(image_size=256)
middle = float(np.median(detector.predict({image!r}).map))
detector.pixel_thresholds["plus"] = middle  # crosses the map: an outline
explore(detector, {folder!r}, start=0, progress=False)
"""
# JupyterLab's own commands: what is clicked before its kernel is there opens a dialog that asks for one
RUN = """async path => {
  const kernel = {name: 'python3'}
  const {commands, restored} = window.jupyterapp
  await restored
  const panel = await commands.execute('docmanager:open', {path, factory: 'Notebook', kernel})
  await panel.context.ready
  await panel.sessionContext.ready
  await commands.execute('notebook:run-all-cells')
}"""
PICTURE = "canvas => canvas.toDataURL()"
LATENCY = """slider => {
  window.late = []  // the explorer's own listener came first
  slider.addEventListener('input', event => window.late.push(performance.now() - event.timeStamp))
}"""
SCRIPT = (Path(dmdd_lite.explorer.__file__).parent / "canvas.js").read_text("utf-8")
CHECKS = Path(__file__).with_name("browser.js").read_text("utf-8")
DARK = "() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium or chrome in PATH (Debian: apt install chromium)"),
]


@pytest.fixture
def address(tmp_path):
    """Of a JupyterLab of its own over tmp_path, untouched by the user's settings, which asks nothing."""
    quiet = tmp_path / ".jupyter/lab/user-settings/@jupyterlab/apputils-extension"
    quiet.mkdir(parents=True)
    asks = '{"fetchNews": "false", "checkForUpdates": false}'
    (quiet / "notification.jupyterlab-settings").write_text(asks)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "IPYTHON"))}
    environment = kept | {
        "HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_TOKEN": secrets.token_hex(16),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1"]
    options += [f"--ServerApp.root_dir={tmp_path}", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command = [sys.executable, "-m", "jupyterlab", *options]
    with open(tmp_path / "server.log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/lab?reset&token={environment['JUPYTER_TOKEN']}"
    finally:
        server.terminate()  # ends its kernels too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture
def page(tmp_path):
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(1000 * SLOW)
        yield page
        page.screenshot(path=tmp_path / "last.png")  # shows why it failed, if it did
        browser.close()


def open_lab(page, address: str, log: Path):
    end = time.monotonic() + SLOW
    while time.monotonic() < end:
        with suppress(driver.Error):  # until the server listens
            page.goto(address)
            page.wait_for_function("() => window.jupyterapp")
            return
        time.sleep(0.5)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def run_all(page, notebook: str):
    """Open the notebook and run it; returns the explorer, or fails with the cell's own error."""
    page.evaluate(RUN, notebook)
    explorer = page.locator(".dmdd-explorer")
    error = page.locator(".jp-OutputArea-output").filter(has_text="Traceback (most recent call last)")
    explorer.or_(error).first.wait_for(state="attached")
    if error.count():
        pytest.fail(error.first.inner_text())
    explorer.locator(".dmdd-panels figure").nth(5).wait_for()
    return explorer


def brightness(element) -> float:
    """Of its text, 0 to 255."""
    colour = element.evaluate("e => getComputedStyle(e).color")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_outlines_are_the_border_of_what_lies_above(page):
    """Pieces that close around regions whose area is theirs, of 8-connected pixels."""
    y, x = np.mgrid[:40, :60]
    values = np.uint16(np.clip(900 * (15 - np.hypot(x - 30, y - 20)) + 20000, 0, 65535))
    values[2:4, 2:4] = np.eye(2) * 40000  # two pixels that touch at a corner: one region
    raw = values.astype("<u2").tobytes()
    read, pieces = page.evaluate(f"{CHECKS}.contour", [SCRIPT, list(raw), [40, 60], 20000.5])
    assert read == values.ravel().tolist()
    ends = np.array(pieces).reshape(-1, 2, 2)
    counts = np.unique(ends.reshape(-1, 2).round(6), axis=0, return_counts=True)[1]
    assert (counts == 2).all(), "every line goes on"
    disc = ends[ends[:, 0, 0] > 10] - (30.5, 20.5)
    area = np.abs(disc[:, 0, 0] * disc[:, 1, 1] - disc[:, 0, 1] * disc[:, 1, 0]).sum() / 2
    assert area == pytest.approx(np.pi * 15**2, rel=0.01)
    between = ends[(np.abs(ends - 3) < 0.6).all(axis=(1, 2))].mean(axis=1) - 3
    assert len(between) == 2
    assert (between.prod(axis=1) < 0).all(), "cut where the two touch"


def test_the_order_of_messages_makes_no_difference(page, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    data = base64.b64encode(save_image(tmp_path / "a.png", image).read_bytes()).decode()
    names = ["image", "size", "shape", "names", "maps", "chosen", "threshold", "pixel", "truth", "opacity"]
    names.append("show_truth")
    told = [SCRIPT, names, {"image": f"data:image/png;base64,{data}"}]
    expected, again, open_ = page.evaluate(f"{CHECKS}.render", told)
    assert len(expected) == 5
    assert open_ == 0
    assert again == expected
    assert expected[-2:] == ["Pixel (50, 10) · a 0.732 · b 0.732", "0.250 · 68.75 % of the image above"]
    for seed in range(4):
        told[1] = np.random.default_rng(seed).permutation(names).tolist()
        assert page.evaluate(f"{CHECKS}.render", told)[0] == expected, told[1]


def drag(page, slider) -> float:
    """Move the slider's handle to and fro while it is held; returns the milliseconds from a movement of the
    mouse to the outline drawn, the median."""
    slider.evaluate(LATENCY)
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for k in range(24):
        page.mouse.move(box["x"] + box["width"] * (0.25 + 0.02 * k), box["y"] + box["height"] / 2)
    return statistics.median(page.evaluate("() => window.late"))


def changed(element, text: str):
    """Wait until it says something else."""
    element.page.wait_for_function("([e, t]) => e.innerText !== t", arg=[element.element_handle(), text])


def drawn_anew(canvas, picture: str):
    canvas.page.wait_for_function("([e, p]) => e.toDataURL() !== p", arg=[canvas.element_handle(), picture])


def canvas_of(explorer, name: str):
    return explorer.locator(f"figure[data-map={name}] canvas")


def at(canvas, x: float, y: float) -> dict:
    """A place by shares of its sides."""
    box = canvas.bounding_box()
    return {"x": x * box["width"], "y": y * box["height"]}


def check_pixels(explorer):
    """A click, the arrow keys and the mouse above a panel tell of a pixel, in all panels."""
    clicked, other = (canvas_of(explorer, name) for name in ("plus", "normality"))
    distances, hovered = explorer.locator(".dmdd-distances"), explorer.locator(".dmdd-values")
    told, picture = distances.inner_text(), other.evaluate(PICTURE)
    clicked.click(position=at(clicked, 0.1, 0.9))
    changed(distances, told)
    drawn_anew(other, picture)
    told = distances.inner_text()
    explorer.page.keyboard.press("ArrowRight")
    changed(distances, told)
    told = hovered.inner_text()
    clicked.hover(position=at(clicked, 0.6, 0.3))
    changed(hovered, told)


def check_threshold(explorer):
    """The outline moves while the threshold is dragged, the kernel hears of it at the end."""
    page, outlined, reading = explorer.page, canvas_of(explorer, "plus"), explorer.locator(".dmdd-reading")
    told, picture = reading.inner_text(), outlined.evaluate(PICTURE)
    decision = reading.locator(".dmdd-verdict").inner_text()
    late = drag(page, explorer.locator("input[type=range]"))
    assert outlined.evaluate(PICTURE) != picture
    assert reading.inner_text() == told
    assert late < 50, f"{late:.1f} ms"
    page.mouse.up()
    changed(reading, told)
    assert reading.locator(".dmdd-verdict").inner_text() == decision
    moved, told = outlined.evaluate(PICTURE), reading.inner_text()
    explorer.get_by_role("button", name="Reset").click()
    changed(reading, told)
    drawn_anew(outlined, moved)


def check_zoom(explorer):
    """The wheel zooms into all panels, a drag moves them, which chooses no pixel."""
    page, canvas, other = explorer.page, canvas_of(explorer, "plus"), canvas_of(explorer, "normality")
    distances = explorer.locator(".dmdd-distances")
    told, picture = distances.inner_text(), other.evaluate(PICTURE)
    canvas.hover(position=at(canvas, 0.5, 0.5))
    page.mouse.wheel(0, -700)
    drawn_anew(other, picture)
    picture = other.evaluate(PICTURE)
    page.mouse.down()
    canvas.hover(position=at(canvas, 0.8, 0.8))
    page.mouse.up()
    drawn_anew(other, picture)
    assert distances.inner_text() == told
    picture = other.evaluate(PICTURE)
    canvas.dblclick()
    drawn_anew(other, picture)


def check_theme(explorer):
    reading, hovered = explorer.locator(".dmdd-reading"), explorer.locator(".dmdd-values")
    light = brightness(reading)
    explorer.page.evaluate(DARK)
    explorer.page.locator("body[data-jp-theme-light='false']").wait_for(state="attached")
    assert canvas_of(explorer, "plus").evaluate("c => c.width") > 100, "the pictures are gone"
    for element in (reading, hovered):
        assert light < 128 < brightness(element), "the text does not follow the theme"


def test_explorer_in_jupyterlab(root, tmp_path, address, page):
    folder = root / "lever/test/good"
    code = CELL.format(tests=str(Path(__file__).parent), folder=str(folder), image=str(folder / "000.png"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "n.ipynb")
    open_lab(page, address, tmp_path / "server.log")
    explorer = run_all(page, "n.ipynb")
    beside = page.locator(".jp-OutputArea", has=explorer).locator(".jp-RenderedImage")
    assert beside.count() == 0, "the static twin is shown beside the controls"
    assert explorer.get_by_text("javascript error").count() == 0
    assert explorer.locator(".dmdd-panels figure").count() == 6
    check_pixels(explorer)
    check_threshold(explorer)
    check_zoom(explorer)
    (tmp_path / "broken.png").write_text("no image")
    with page.expect_file_chooser() as chooser:
        explorer.get_by_role("button", name="Upload").click()
    chooser.value.set_files(tmp_path / "broken.png")
    explorer.get_by_text("broken.png: not a readable PNG").wait_for()
    check_theme(explorer)
