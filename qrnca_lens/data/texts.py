"""The texts of questions: which of them are the same, and which cannot be used. Each DataError names place and field."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.templates import LETTERS

_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_BREAK = re.compile("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_INVISIBLE = re.compile(  # control and annotation characters that are no white space, and Default_Ignorable_Code_Point
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_LABEL = re.compile(r"\s*(?:\(([A-D])\)|([A-D])\)|([A-D])\.)\s+(?=\S)")  # a group for each form of the templates
_WRITTEN_OTHERWISE = re.compile("<(wide|narrow|small|square|vertical|noBreak|compat|isolated|initial|medial|final)> ")

_READS_AS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        "\u2800": " ",  # the braille pattern without a dot
        "\u0640": None,  # kashida, which only makes an Arabic word longer
    }
)


@lru_cache(maxsize=8192)
def normalise(text: str) -> str:
    """Two options that are equal under this are the same option.

    Folded: case, white space, composed and decomposed letters, full and half width, ligatures, invisible characters
    (direction marks, zero-width joiners, soft hyphens), hyphens with the short dash and the minus sign, curly and straight
    quotation marks, kashida. What reads differently stays: superscripts, fractions, bold letters.
    """
    text = _INVISIBLE.sub("", text)
    if text.isascii():
        return " ".join(text.casefold().split())
    if not unicodedata.is_normalized("NFKC", text):
        text = "".join(_spelt_out(character) for character in text)
    folded = unicodedata.normalize("NFD", text.translate(_READS_AS)).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def _spelt_out(character: str) -> str:
    other = _WRITTEN_OTHERWISE.match(unicodedata.decomposition(character))
    return unicodedata.normalize("NFKC", character) if other else character


def check_text(value: object, field: str, where: str, *, empty: bool = False) -> str:
    """`value`, if it is a text of whole characters that shows something (`empty`: or is "")."""
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise DataError(f"{where}: field {field!r}: expected a text, found {found}")
    half = None if value.isascii() else _SURROGATE.search(value)
    if half:
        raise DataError(
            f"{where}: field {field!r}: half a character ({half[0]!r}, a lone surrogate) at position {half.start()}; "
            "write the whole character"
        )
    if not _shows(value) and not (empty and not value):
        raise DataError(f"{where}: field {field!r} is empty; expected a text")
    return value


def check_texts(value: object, field: str, where: str) -> tuple[str, ...]:
    """`value` as a tuple, if it is a list or tuple of texts that `check_text` lets pass."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: field {field!r}: expected a list of texts")
    if not all(_shows(text) for text in value):
        raise DataError(f"{where}: field {field!r} holds an empty text")
    return tuple(check_text(text, field, where) for text in value)


def _shows(text: str) -> bool:
    if "!" <= text[:1] <= "~":
        return True
    return bool(_INVISIBLE.sub("", text).translate(_READS_AS).strip())


def has_line_break(text: str) -> bool:
    """Whether the text stands on more than one line, by any of Unicode's line breaks."""
    return _LINE_BREAK.search(text) is not None


def check_one_line(text: str, field: str, where: str) -> None:
    """Refuse an option with a line break: what follows it would read as an option of its own."""
    if has_line_break(text):
        raise DataError(f"{where}: field {field!r}: {text!r} has a line break; an option stands on one line")


def space_before(prompt: str, answer: str) -> str:
    """The space that a writer puts between a prompt and its answer: none after white space or an opening bracket or quote,
    and none beside a character of a script that is written without spaces (Chinese, Japanese)."""
    last, first = prompt[-1:], answer[:1]
    if last.isspace() or unicodedata.category(last or " ") in ("Ps", "Pi"):
        return ""
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in (last, first) if character)
    return "" if wide or first.isspace() else " "


def check_distinct_options(options: Sequence[str], where: str) -> None:
    """Refuse options that are not four different single lines."""
    for option in options:
        check_one_line(option, "options", where)
    if len(options) != len(LETTERS):
        raise DataError(f"{where}: field 'options': expected {len(LETTERS)} texts, found {len(options)}")
    if len({normalise(option) for option in options}) < len(LETTERS):
        raise DataError(f"{where}: field 'options': fewer than {len(LETTERS)} distinct options in {list(options)!r}")


def check_options(options: Sequence[str], text: str, where: str) -> None:
    """Refuse options that are not four different single lines, in the order in which they stand in the prompt's `text`."""
    check_distinct_options(options, where)
    shown, position = normalise(text), 0
    for letter, option in zip(LETTERS, options, strict=True):
        position = shown.find(normalise(option), position)
        if position < 0:
            raise DataError(
                f"{where}: field 'options': {option!r} (option {letter}) does not stand in the prompt's text, "
                f"in the order {', '.join(LETTERS)}"
            )
        position += len(normalise(option))


def check_labels(options: Sequence[str], text: str, where: str) -> None:
    """Refuse a text that labels other options than these (if any are given), or that `labelled_options` refuses."""
    labelled = labelled_options(text, where)
    if not options:
        return
    for letter, option, shown in zip(LETTERS, options, labelled or options, strict=True):
        if normalise(option) != normalise(shown):
            raise DataError(
                f"{where}: field 'options': option {letter} is {option!r}, but the text shows {shown!r} under {letter}"
            )


def labelled_options(text: str, where: str) -> tuple[str, ...]:
    """The texts that stand under A to D in a prompt, read as far as they are labelled; () where no labels are seen.

    Labels are read at the starts of lines, as in the templates: "A. ", "(A) " or "A) ". Of several lists the last counts,
    since a question may hold one too. A single label is none ("A. Einstein"), nor are A and C alone (two options a line).
    Raises DataError for a list that does not end in A, B, C and D, in this order.
    """
    lists: dict[int, list[tuple[str, str]]] = {}
    for line in _INVISIBLE.sub("", text).splitlines():
        if found := _LABEL.match(line):
            form = found.lastindex or 0
            lists[form] = [
                *lists.pop(form, ()),
                (found[form], line[found.end() :].rstrip()),
            ]  # the form that was seen last is last
    for options in reversed(lists.values()):
        labels = [label for label, _ in options]
        if tuple(labels[-len(LETTERS) :]) == LETTERS:
            return tuple(option for _, option in options[-len(LETTERS) :])
        if len(set(labels)) > 1 and set(labels) != {"A", "C"}:
            raise DataError(
                f"{where}: field 'text': shows options labelled {', '.join(labels)}; expected {', '.join(LETTERS)}, "
                "each on a line of its own, in this order"
            )
    return ()


def begins_with_label(line: str) -> bool:
    """Whether a line is an option: it begins with a letter of A to D in a form that `labelled_options` reads."""
    return _LABEL.match(_INVISIBLE.sub("", line)) is not None


def suggests_space(text: str) -> bool:
    """Whether a writer puts a space after such an ending: a Latin word or a closing ASCII mark, but not "(" or "："."""
    return text[-1:] in ":.,;!?)]}" or (text[-1:].isalnum() and text[-1:].isascii())


def check_names(field: str, named: Iterable[tuple[str, str]]) -> None:
    """Refuse two names that look the same and are not; `named` holds pairs of a place and the name that stands there."""
    first: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    for where, name in named:
        if name in seen:
            continue
        seen.add(name)
        place, known = first.setdefault(normalise(name), (where, name))
        if known != name:
            raise DataError(
                f"{where}: field {field!r}: {name!r} differs from {known!r} ({place}) only in case, white space or the "
                "form of its characters; write it the same everywhere"
            )
