"""Execute notebooks in place and keep their outputs: `make docs`.

What a saved notebook does not need is left out: timings, the state of widgets, and the script of CircuitsVis (1.3 MB; without
it token views show their static rendering, on GitHub too).
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from qrnca_lens.views.components import library


_PLACE = re.compile(r"^/\S+:\d+: (\w+Warning: .*\n).*\n", re.MULTILINE)


def execute(path: Path) -> None:
    """Run one notebook in an empty folder and write it back with its outputs."""
    notebook = nbformat.read(path, 4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=3600, resources=resources, store_widget_state=False).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":  # a warning without the place in this machine's files, and the line there
                output["text"] = _PLACE.sub(r"\1", output["text"])
            page = output.get("data", {}).get("text/html")
            if page:
                output["data"]["text/html"] = page.replace(f"<script>{library()}</script>", "")
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        execute(Path(name))
