"""The views and the widget in a real JupyterLab, its kernel and a headless Chromium (make test-browser)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from browsing import Watched, letters, set_factor
from nbformat import v4

from qrnca_lens.data import load_queries
from qrnca_lens.runs.pipeline import locate

pytestmark = pytest.mark.browser
CELLS = (
    "import qrnca_lens as ql\nmodel, located = ql.load_model('atlas'), ql.QRNeurons.load('run')\n"
    "query = located.table.nlargest(1, 'naica')['query'].item()\nn = next(iter(located.for_query(query)))",
    "ql.neuron(model, n.layer, n.index, located=located)",
    "ql.show(model, located, query)",
    "ql.circuit(model, located, query)",
    "explorer = ql.Explorer(model, located.asked, located)\nexplorer",
    "import json\nprint(json.dumps([explorer.selected, explorer.letters]))",
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, atlas: Any) -> Iterator[str]:
    """The address of a JupyterLab with a notebook try.ipynb and a run; it keeps its settings to itself."""
    home = tmp_path_factory.mktemp("lab")
    locate(atlas, load_queries("atlas/domains").sample(2), out=home / "run", progress=False)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [v4.new_code_cell(cell) for cell in CELLS]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), home / "try.ipynb")
    settings = home / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={home}", "--LabApp.extension_manager=readonly"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=home, env=os.environ | folders, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}/"
    try:
        _wait_for(address + "api", server, home / "log")
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            urlopen(address).close()
            return
        except URLError:
            time.sleep(0.5)
    pytest.fail(f"JupyterLab does not answer: {log.read_text()}")


def test_the_views_and_the_widget_in_jupyterlab(lab: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 5000})  # JupyterLab renders the cells in view alone
    context.set_default_timeout(60_000)
    page = context.new_page()
    watched = Watched(page, lab)
    page.goto(f"{lab}lab/tree/try.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.get_by_text("| Idle").wait_for()  # a kernel that is not there yet runs nothing
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.wait_for_selector('.jp-OutputArea [data-part="card"] h2')
    cells = page.locator(".jp-CodeCell")
    assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
    # token views in the card, the query's circuit and the widget are live: the first view brought the script along
    page.wait_for_function("document.querySelectorAll('[data-component]').length > 10")
    page.wait_for_function("!document.querySelector('[data-component]:not([data-mounted])')")

    explorer = cells.nth(4)
    other = explorer.locator('[data-part="query"] button[data-neuron]').nth(1)
    name = other.inner_text()
    assert explorer.locator('[data-part="card"] h2').inner_text() != name
    other.click()
    explorer.locator(f'[data-part="card"] h2:text-is("{name}")').wait_for()
    set_factor(explorer, 0.0)
    shown = letters(explorer)
    cells.nth(5).locator(".jp-InputArea-editor").click()
    page.keyboard.press("Shift+Enter")
    told = cells.nth(5).locator(f'.jp-OutputArea-output:has-text("{name[1]}")')
    page.wait_for_function("text => document.body.innerText.includes(text)", arg='"factor": 0')
    selected, p = json.loads(told.inner_text())
    assert f"L{selected['layer']}.N{selected['neuron']}" == name
    assert shown == pytest.approx({letter: round(value, 4) for letter, value in p.items()}, abs=1.5e-4)
    assert watched.complaints == []
    assert watched.requests == []
    context.close()
