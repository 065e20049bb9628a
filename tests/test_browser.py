"""The explorer in a real browser: JupyterLab in headless Chromium runs a cell and moves its slider."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
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
from builders import tiny_model
from dmdd_lite.detector import Detector
from dmdd_lite.widgets import explore
model, image = tiny_model(), {image!r}
threshold = float(np.median(Detector(model).predict(image).map))  # crosses the map: an outline
explore(Detector(model, threshold), {folder!r}, start=0, progress=False)
"""
SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell is in the page, seen or not
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}
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


@contextmanager
def jupyter_lab(folder: Path):
    """A JupyterLab of its own over `folder`, untouched by the user's settings; yields its address."""
    home, token = folder / "jupyter", secrets.token_hex(16)
    for name, text in SETTINGS.items():
        file = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(home / place) for name, place in places.items()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--expose-app-in-browser", f"--ServerApp.root_dir={folder}"]
    options += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    with open(folder / "server.log", "wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        environment |= {"HF_HUB_OFFLINE": "1", "JUPYTER_TOKEN": token}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, folder / "server.log")
            yield f"http://127.0.0.1:{port}/lab?reset&token={token}"
        finally:
            server.terminate()  # ends its kernels too
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for(url: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + SLOW
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def chromium(folder: Path):
    """A page 1280 pixels wide; where the test fails, a picture of it stays in `folder`."""
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(viewport={"width": 1280, "height": 1500})
        page.set_default_timeout(1000 * SLOW)
        try:
            yield page
        except BaseException:
            page.screenshot(path=folder / "failure.png")
            raise
        finally:
            browser.close()


def run_all(page, address: str, notebook: str):
    """Open the notebook and run it; returns the explorer, or fails with the cell's own error."""
    page.goto(address)
    page.wait_for_function("() => window.jupyterapp")
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


def test_explorer_in_jupyterlab(root, tmp_path):
    folder = root / "lever/test/good"
    code = CELL.format(tests=str(Path(__file__).parent), folder=str(folder), image=str(folder / "000.png"))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)]), tmp_path / "n.ipynb")
    with jupyter_lab(tmp_path) as address, chromium(tmp_path) as page:
        explorer = run_all(page, address, "n.ipynb")
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
