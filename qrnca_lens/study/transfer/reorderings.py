"""The prompts of a question with its options in other orders and under other symbols.

Only prompts of the templates of `data.templates` can be rendered anew: the text must hold what the template makes of the
question and its options, once (in a chat without its last line, which the chat's lead stands for). What stands around it
stays as it is: the marks of a chat, solved examples.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.data import LETTERS, Prompt, Query
from qrnca_lens.data.chat import without_cue
from qrnca_lens.data.templates import TEMPLATES, Template
from qrnca_lens.models import HookedModel, ModelError, OptionTokens, reader_of

SYMBOLS = (("1", "2", "3", "4"), ("P", "Q", "R", "S"))
"""What options are called instead of A to D: the first that can follow in the form that the letters have."""
_LABEL = re.compile(r"(?<![A-Z])([A-D])(?=[.)] \{[abcd]\})")
_LABELLED = re.compile(r"(?m)^\(?[A-D][.)] ")


@dataclass(frozen=True)
class Asked:
    """A text that ends where one of four symbols is to follow; `right` is the index of the right one."""

    text: str
    ids: tuple[int, ...]
    right: int


@dataclass(frozen=True)
class Reordered:
    """A prompt in other forms. `orders`: one for each letter, under which the right option then stands; that of the letter
    `found` is the prompt itself. `renamed`: the prompt with other symbols, None where no symbols can follow."""

    orders: tuple[Asked, Asked, Asked, Asked]
    found: int
    renamed: Asked | None


def reordered(model: HookedModel, query: Query, prompt: Prompt) -> Reordered | None:
    """The prompt with its options in other orders, rotated so that all four move, and under other symbols.

    None for a prompt whose template is not known, whose text is not the template's, or that the model cannot take so.
    """
    template = _template(query.language, prompt.template)
    if template is None or not (query.question and prompt.shown):
        return None
    if prompt.text.count(_part(prompt, query, template, prompt.shown)) != 1:
        return None
    form, names = option_tokens(model, prompt), prompt.names
    try:
        orders = [
            _asked(model, _anew(prompt, query, template, _rotated(prompt, to)), names, to, form) for to in range(len(names))
        ]
    except ModelError:
        return None
    first, second, third, fourth = orders
    if not (first and second and third and fourth):
        return None
    return Reordered((first, second, third, fourth), prompt.right, _renamed(model, query, prompt, template, form))


def _template(language: str, key: str) -> Template | None:
    known = TEMPLATES.get(language)
    return next((one for one in (*known.detection, known.held_out) if one.key == key), None) if known else None


def _part(prompt: Prompt, query: Query, template: Template, options: tuple[str, ...]) -> str:
    """What the template makes of the question, as it stands in such a prompt."""
    text = template.render(query.question, options)
    return without_cue(text, f"query {query.id!r}").strip() if prompt.rendering == "chat" else text


def _anew(prompt: Prompt, query: Query, template: Template, options: tuple[str, ...]) -> str:
    return prompt.text.replace(_part(prompt, query, template, prompt.shown), _part(prompt, query, template, options))


def _rotated(prompt: Prompt, to: int) -> tuple[str, ...]:
    """The options in the order in which the right one is number `to`."""
    shift = (prompt.right - to) % len(prompt.names)
    return prompt.shown[shift:] + prompt.shown[:shift]


def _renamed(model: HookedModel, query: Query, prompt: Prompt, template: Template, form: OptionTokens) -> Asked | None:
    base = _part(prompt, query, template, prompt.shown)
    if _LABELLED.search(prompt.text.replace(base, "")):
        return None  # solved examples with letters around it
    for symbols in SYMBOLS:
        text = prompt.text.replace(base, _part(prompt, query, renamed_template(template, symbols), prompt.shown))
        try:
            asked = _asked(model, text, symbols, prompt.right, form)
        except ModelError:
            continue
        if asked:
            return asked
    return None


def renamed_template(template: Template, symbols: tuple[str, ...]) -> Template:
    """The template with other symbols before its options."""
    named: dict[str, str] = dict(zip(LETTERS, symbols, strict=True))
    text = _LABEL.sub(lambda found: named[found[1]], template.text)
    return Template(template.key, text)


def _asked(model: HookedModel, text: str, symbols: tuple[str, ...], right: int, form: OptionTokens) -> Asked | None:
    """The text with the tokens of its symbols, in the form (with a space or without) that the letters have after a prompt.

    ModelError for a text that the model cannot take, None where the symbols have no such form.
    """
    reader = reader_of(model)
    reader.tokens(text)
    forms = [one for one in reader.options(text, symbols) if one.leading_space == form.leading_space]
    return Asked(text, forms[0].ids, right) if forms else None
