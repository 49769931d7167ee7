"""JupyterLab or Notebook 7, serving a folder on loopback, and a real Chromium on its pages."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import nbformat

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium on this machine (Debian: apt-get install chromium)"
ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 600_000
"""Milliseconds for what takes a second on a machine that has nothing else to do."""
PAGES = {"jupyterlab": "lab/tree", "notebook": "notebooks"}
SETTINGS = {"@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # every cell is in the page
            "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False}}


@contextmanager
def jupyter(folder: Path, app: str = "jupyterlab", packages: Path | None = None, settings: dict | None = None):
    """The app, serving a folder; yields the address of a notebook in it, by name.

    `packages` is a folder that `get` filled, whose packages and extensions stand before this Python's, in server and kernel;
    `settings` are JupyterLab's, by plugin.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    first = [str(packages)] if packages else []
    for plugin, values in (SETTINGS | (settings or {})).items():
        _write(folder / ".settings" / f"{plugin}.jupyterlab-settings", values)
    server = subprocess.Popen(
        [sys.executable, "-m", app, "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
         f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--expose-app-in-browser"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*first, str(ROOT)]), "HAPO_LAB_RUNS": str(folder / "runs"),
                          "JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_DATA_DIR": str(folder / ".data"),
                          "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
                          "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"),
                          **({"JUPYTERLAB_DIR": f"{packages}/share/jupyter/lab"} if app == "notebook" else {}),
                          "JUPYTER_PATH": os.pathsep.join(f"{path}/share/jupyter" for path in first)})
    try:
        for _ in range(240):
            try:
                urlopen(f"http://127.0.0.1:{port}/api?token={token}").close()
                break
            except OSError:
                assert server.poll() is None, f"{app} ended with {server.returncode}"
                time.sleep(0.5)
        yield lambda name: f"http://127.0.0.1:{port}/{PAGES[app]}/{name}?reset&token={token}"
    finally:
        server.terminate()
        server.wait(30)


def get(folder: Path, *wanted: str) -> Path:
    """A folder with these packages, as pip gets them, without what they need; for `jupyter`."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", folder,
                    *wanted], check=True)
    ours = Path(sys.prefix) / "share" / "jupyter" / "lab"  # Notebook wants it, and its own schemas in it
    for path in (*(ours / "schemas").iterdir(), ours / "static", ours / "themes"):
        link = folder / "share" / "jupyter" / "lab" / path.relative_to(ours)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return folder


def _write(path: Path, values: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@contextmanager
def chromium():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def write_cells(path: Path, sources: Iterable[str]) -> None:
    """A notebook of these cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}  # or JupyterLab asks for one
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def without_outputs(source: Path, target: Path, keep=lambda cell: True) -> nbformat.NotebookNode:
    """Nothing that a test finds was there before: a copy of a notebook, its outputs cleared."""
    notebook = nbformat.read(source, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if keep(cell)]
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, target)
    return notebook


def open_notebook(browser, address: str, watch=lambda page: None):
    """Its page; `watch` is given it before anything is loaded."""
    page = browser.new_page(viewport={"width": 1280, "height": 3000})
    watch(page)
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    return page


READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget, session = panel?.sessionContext;
    return panel?.context.isReady && session?.isReady && session.session?.kernel?.status === 'idle'
        && session.session.kernel.connectionStatus === 'connected' }"""


def run_all(page) -> None:
    """When the kernel listens: JupyterLab drops widgets that are made before it does."""
    page.wait_for_function(READY)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")


def run_through(page) -> None:
    """All cells, to the last one's end."""
    page.wait_for_function(READY)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function(READY)


def cell(page, source: str):
    return page.locator(".jp-CodeCell").filter(has=page.locator(".jp-InputArea", has_text=source)).first
