"""The explorer in a real browser: JupyterLab in headless Chromium runs a notebook and moves its slider."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest

from dmdd_lite.reproduce.notebook import NOTEBOOKS

driver = pytest.importorskip("playwright.sync_api", reason="no playwright (pip install playwright)")

NOTEBOOK = NOTEBOOKS / "04_attention_fusion.ipynb"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 180  # seconds: two busy cores; nothing waits longer than it must
SOON = 10  # seconds for a click that may be in vain; it is tried again
DIED = "appears to have died"  # in JupyterLab's dialog on a kernel
SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # every cell is in the page, seen or not
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="no chromium or chrome in PATH (Debian: apt install chromium)"
    ),
]


# ---- a server, a browser, a notebook ------------------------------------------------------------------


def mocked(notebook: Path, folder: Path) -> Path:
    """A copy without outputs in `folder`, its parameters those that nbmake's mock gives."""
    copy = nbformat.read(notebook, 4)
    for cell in copy.cells:
        if cell.cell_type == "code":
            mock = cell.metadata.get("nbmake", {}).get("mock", {})
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in mock.items())
            cell.outputs, cell.execution_count = [], None
    path = folder / "explored.ipynb"
    nbformat.write(copy, path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def jupyter_lab(folder: Path):
    """A JupyterLab of its own over `folder`, untouched by the user's settings; yields URL and token."""
    home, port, token = folder / "jupyter", free_port(), secrets.token_hex(16)
    for name, text in SETTINGS.items():
        file = home / f"settings/@jupyterlab/{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    places = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    places |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(home / place) for name, place in places.items()}
    environment |= {"HF_HUB_OFFLINE": "1", "JUPYTER_TOKEN": token}
    options = ["--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    options += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    with open(folder / "server.log", "wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            wait_for(f"http://127.0.0.1:{port}/api?token={token}", server, folder / "server.log")
            yield f"http://127.0.0.1:{port}", token
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
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 1500})
            page.set_default_timeout(1000 * SLOW)
            yield page
        except BaseException:
            page.screenshot(path=folder / "failure.png")
            raise
        finally:
            browser.close()


def answer_dialogs(page) -> list[str]:
    """From now on a dialog that lies over what is to be clicked is answered: the kernel that it proposes is
    taken, all else declined where it can be; but for DIED. Returns their texts, a list that grows."""
    asked = []

    def answer(dialog):
        asked.append(dialog.inner_text())
        accept, decline = (dialog.locator(f"button.jp-mod-{kind}") for kind in ("accept", "reject"))
        offers_kernels = dialog.locator("select").count() > 0
        (accept if offers_kernels or not decline.count() else decline).first.click()

    over = page.locator("dialog.jp-Dialog").filter(has_not_text=DIED).last
    page.add_locator_handler(over, answer, no_wait_after=True)  # behind one dialog there may be another
    return asked


def start_kernel(url: str, token: str, notebook: Path) -> None:
    """Before the notebook is opened: a busy machine has JupyterLab ask for one while cells wait to run, and
    of those that wait only the last is run then."""
    session = {"path": notebook.name, "name": "", "type": "notebook", "kernel": {"name": "python3"}}
    request = urllib.request.Request(
        f"{url}/api/sessions?token={token}",
        json.dumps(session).encode(),
        {"Content-Type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=SLOW).close()


def run_all(page, url: str, token: str, notebook: Path) -> None:
    """Open the notebook, run all of its cells and wait for the explorer; fails with a cell's own error, or
    with what JupyterLab asked."""
    asked = answer_dialogs(page)
    start_kernel(url, token, notebook)
    page.goto(f"{url}/lab/tree/{notebook.name}?token={token}")
    idle = page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status='idle']")
    begun = page.locator(".jp-CodeCell .jp-InputPrompt").filter(has_text=re.compile(r"[*\d]"))
    end = time.monotonic() + SLOW
    died = page.locator("dialog.jp-Dialog").filter(has_text=DIED)
    while not begun.or_(died).count():  # the menu is there before it acts
        if time.monotonic() > end:
            pytest.fail(f"no cell has begun to run; JupyterLab asked {asked}")
        with suppress(driver.TimeoutError):
            idle.wait_for(timeout=1000 * SOON)
            page.get_by_role("menuitem", name="Run", exact=True).click(timeout=1000 * SOON)
            page.locator("[data-command='runmenu:run-all']").click(timeout=1000 * SOON)
            page.wait_for_timeout(2000)
    explorer = page.locator(".dmdd-explorer")
    error = page.locator(".jp-OutputArea-output").filter(has_text="Traceback (most recent call last)")
    explorer.or_(error).or_(died).first.wait_for(state="attached")
    for found in (error, died):
        if found.count():
            pytest.fail(found.first.inner_text())
    explorer.locator(".dmdd-threshold .noUi-handle").wait_for()
    explorer.scroll_into_view_if_needed()


def pixels(page, name: str) -> bytes:
    """What the browser shows in the explorer's picture of that name: the bytes of its PNG."""
    read = "async el => Array.from(new Uint8Array(await (await fetch(el.src)).arrayBuffer()))"
    return bytes(page.locator(f".dmdd-explorer img.dmdd-{name}").evaluate(read))


def go_dark(page) -> None:
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.locator(".lm-Menu-itemLabel").get_by_text("Theme", exact=True).hover()
    page.locator(".lm-Menu-itemLabel").get_by_text("JupyterLab Dark", exact=True).click()
    page.locator("body[data-jp-theme-light='false']").wait_for(state="attached")
    page.locator("#jupyterlab-splash").wait_for(state="detached")


def take(page, path: Path) -> Path:
    page.locator(".dmdd-explorer").screenshot(path=path)
    return path


# ---- the test -----------------------------------------------------------------------------------------


def test_explorer_in_jupyterlab(tmp_path):
    """Screenshots go to the folder that DMDD_SCREENSHOTS names, if any."""
    pictures = Path(os.environ.get("DMDD_SCREENSHOTS", tmp_path))
    notebook = mocked(NOTEBOOK, tmp_path)
    with jupyter_lab(tmp_path) as (url, token), chromium(pictures) as page:
        run_all(page, url, token, notebook)
        explorer = page.locator(".dmdd-explorer")
        beside = page.locator(".jp-OutputArea", has=explorer).locator(".jp-RenderedImage")
        assert beside.count() == 0, "the static twin is shown beside the controls"
        assert explorer.get_by_text("javascript error").count() == 0
        before, reading = pixels(page, "picture"), explorer.locator(".dmdd-reading").inner_text()
        assert before.startswith(b"\x89PNG")

        handle = explorer.locator(".dmdd-threshold .noUi-handle")
        handle.focus()
        key = "ArrowRight" if "anomalous" in reading else "ArrowLeft"
        for _ in range(20):
            page.keyboard.press(key)
        changed = "([el, text]) => el.innerText !== text"
        panel = explorer.locator(".dmdd-reading").element_handle()
        page.wait_for_function(changed, arg=[panel, reading])
        page.wait_for_timeout(1000)  # until the last of the twenty is drawn and its address stays
        assert pixels(page, "picture") != before
        take(page, pictures / "explorer_light.png")

        (tmp_path / "broken.png").write_text("no image")
        with page.expect_file_chooser() as chooser:
            explorer.get_by_role("button", name="Upload").click()
        chooser.value.set_files(tmp_path / "broken.png")
        explorer.get_by_text("broken.png: not a readable PNG").wait_for()

        go_dark(page)
        assert take(page, pictures / "explorer_dark.png").stat().st_size > 10_000
