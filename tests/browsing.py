"""A headless Chromium, and pages that are watched for complaints and requests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Watched:
    """A page of a browser with everything that it complained about or asked for (but for addresses under `home`)."""

    def __init__(self, page: Any, home: str = "data:") -> None:
        self.page, self.complaints, self.requests = page, [], []
        own = ("data:", "blob:", home)
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda r: self.requests.append(r.url) if not r.url.startswith(own) else None)

    def open(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        self.requests.remove(path.as_uri())
        return self.page

    def check(self) -> None:
        assert self.complaints == []
        assert self.requests == []
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 1, f"the page is {wide} pixels wider than the window"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, closed in the end."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.fail("no chromium on this machine; install Debian's package chromium (make test-browser does)")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=[*flags, "--disable-component-update"])
        yield opened
        opened.close()


def letters(page: Any) -> dict[str, float]:
    """P of every letter as the explorer in `page` shows it."""
    return {o.get_attribute("data-letter"): float(o.inner_text()) for o in page.locator("output[data-letter]").all()}


def set_factor(page: Any, factor: float) -> None:
    """Move the explorer's slider."""
    slider = page.locator('[data-role="factor"]')
    slider.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', {bubbles: true})); }", str(int(4 * factor)))
