"""The explorer in a real browser: JupyterLab in headless Chromium runs a cell and moves its slider."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest

driver = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 180  # seconds: two busy cores; nothing waits longer than it must
CELL = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from builders import tiny_detector
from dmdd_lite.explorer import explore
detector = tiny_detector()
detector.thresholds["plus"] = float(np.median(detector.predict({image!r}).map))  # crosses the map: an outline
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
    (quiet / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}'
    )
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
    explorer.locator(".dmdd-threshold .noUi-handle").wait_for()
    return explorer


def brightness(element) -> float:
    """Of its text, 0 to 255."""
    colour = element.evaluate("e => getComputedStyle(e).color")
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_explorer_in_jupyterlab(root, tmp_path, address, page):
    folder = root / "lever/test/good"
    code = CELL.format(tests=str(Path(__file__).parent), folder=str(folder), image=str(folder / "000.png"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "n.ipynb")
    open_lab(page, address, tmp_path / "server.log")
    explorer = run_all(page, "n.ipynb")
    beside = page.locator(".jp-OutputArea", has=explorer).locator(".jp-RenderedImage")
    assert beside.count() == 0, "the static twin is shown beside the controls"
    assert explorer.get_by_text("javascript error").count() == 0
    picture, reading = explorer.locator("img.dmdd-picture"), explorer.locator(".dmdd-reading")
    before, told = picture.get_attribute("src"), reading.inner_text()

    explorer.locator(".dmdd-threshold .noUi-handle").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("([e, text]) => e.innerText !== text", arg=[reading.element_handle(), told])
    page.wait_for_function("([e, src]) => e.src !== src", arg=[picture.element_handle(), before])

    (tmp_path / "broken.png").write_text("no image")
    with page.expect_file_chooser() as chooser:
        explorer.get_by_role("button", name="Upload").click()
    chooser.value.set_files(tmp_path / "broken.png")
    explorer.get_by_text("broken.png: not a readable PNG").wait_for()

    light = brightness(reading)
    page.evaluate(DARK)
    page.locator("body[data-jp-theme-light='false']").wait_for(state="attached")
    assert light < 128 < brightness(reading), "the text does not follow the theme"
