"""CircuitsVis without the network: its bundled script is put into a page once, its components are mounted where they stand.

CircuitsVis's own `_repr_html_` asks a web server whether there is a network and then loads a script from a CDN, or puts the
whole script (1.3 MB) into every view. Here a component is a `div` that holds its name, its properties as JSON and, inside,
a static rendering that needs no script; `MOUNT` turns all such `div`s of a page into live ones once the script is there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from qrnca_lens.core.packages import load
from qrnca_lens.core.shown import escaped, visible_lines

_CLOSE = "</script"
# one component at a time, so that a page with many stays responsive; until its turn a component shows its static rendering
MOUNT = """
window.qrncaMount ??= (root) => {
  const waiting = [...(root || document).querySelectorAll("[data-component]:not([data-mounted])")];
  const mount = (place) => {
    const component = window.CircuitsVis?.[place.dataset.component];
    if (!component || place.dataset.mounted || !document.contains(place)) return;
    place.id ||= "qrnca-" + Math.random().toString(36).slice(2);
    if (document.getElementById(place.id) !== place) return;  // inside a shadow root: the static rendering stays
    place.dataset.mounted = "yes";
    window.CircuitsVis.render(place.id, component, JSON.parse(place.dataset.props));
  };
  const next = () => {
    if (!waiting.length) return;
    mount(waiting.shift());
    setTimeout(next);
  };
  setTimeout(next);
};
"""


@lru_cache(maxsize=1)
def library() -> str:
    """The script of CircuitsVis as it ships in its Python package; it sets `window.CircuitsVis`, once in a page.

    ModuleNotFoundError that says what to install where that package is missing.
    """
    folder = Path(str(load("circuitsvis").__file__)).parent
    text = (folder / "dist" / "cdn" / "iife.js").read_text("utf-8")
    text = text.rsplit("//# sourceMappingURL", 1)[0].replace(_CLOSE, "<\\/script")
    return f"if (!window.CircuitsVis) {{\n{text}\nwindow.CircuitsVis = CircuitsVis; }}\n"


def script() -> str:
    """The explorer's own JavaScript: `mount` and `PageStore`."""
    return files("qrnca_lens.views").joinpath("explorer.js").read_text("utf-8")


def component(name: str, fallback: str, **props: object) -> str:
    """A component to be mounted; `fallback` is HTML that is shown until then, and for good where scripts do not run."""
    text = escaped(json.dumps(props, ensure_ascii=True, allow_nan=False))
    return f'<div class="qrnca-component" data-component="{name}" data-props="{text}">{fallback}</div>'


def coloured_tokens(tokens: Sequence[str], values: np.ndarray, highest: float | None = None) -> str:
    """Tokens on a ground as strong as their value: blue below zero, orange above. `highest` is full strength."""
    top = float(highest or np.abs(values).max(initial=0.0)) or 1.0
    spans = "".join(
        f'<span title="{value:.4g}" style="background:{ground(value / top)}">{escaped(_visible(token))}</span>'
        for token, value in zip(tokens, values.tolist(), strict=True)
    )
    return component(
        "ColoredTokens",
        f'<span class="qrnca-tokens">{spans}</span>',
        tokens=[escaped(token) for token in tokens],  # it makes HTML of them
        values=[round(value, 5) for value in values.tolist()],
        minValue=-top,
        maxValue=top,
        negativeColor="#56b4e9",
        positiveColor="#e69f00",
    )


def attention_patterns(tokens: list[str], patterns: np.ndarray, names: Sequence[str]) -> str:
    """CircuitsVis's attention view of some heads; `patterns` is [head, destination, source]."""
    lines = []
    for name, pattern in zip(names, patterns, strict=True):
        best: list[int] = np.argsort(-pattern[-1])[:6].tolist()
        shown = ", ".join(f"{escaped(_visible(tokens[i]))} {pattern[-1, i]:.2f}" for i in best)
        lines.append(f"<li><b>{escaped(name)}</b> from the last token: {shown}</li>")
    return component(
        "AttentionHeads",
        f"<ul>{''.join(lines)}</ul>",
        attention=np.round(patterns.astype(float), 2).tolist(),
        tokens=[visible_lines(token) for token in tokens],
        attentionHeadNames=list(names),
        maxValue=1,
        minValue=0,
        positiveColor="#d55e00",
        maskUpperTri=True,
    )


def ground(share: float) -> str:
    """A translucent colour for a value in [-1, 1] that leaves text readable in light and dark."""
    colour = "230,159,0" if share > 0 else "86,180,233"
    return f"rgba({colour},{min(1.0, abs(share)) * 0.75:.2f})"


def _visible(token: str) -> str:
    return token.replace("\n", "⏎")
