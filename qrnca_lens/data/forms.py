"""The form of an option: what can be seen of it without knowing its meaning, and which right options it gives away."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import pandas as pd

from qrnca_lens.data.query import ALL_GROUPS, Query, QuerySet, check_query_set

FORMS = ("number", "formula", "symbol", "name", "term", "phrase", "sentence")
"""From the most formal to the most wordy; the nearest forms are those the fewest places away."""

COLUMNS = ["group", "questions", "options known", "given away", "share"]

_TERM, _NAME, _SENTENCE = 3, 5, 12  # the most words of a term and a name; a text of more words than the last is a sentence
_PARTICLE = 3  # the most letters of a word such as "the" or "de" before a name
_UNSPACED = (  # letters of scripts without spaces: Thai to Lao, Burmese, Khmer, kana, Han
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_MIDDLE_DOT = "\u30fb"  # between the words of a name in kana
_UNSPACED_LETTER = re.compile(f"[{_UNSPACED}]")
_LETTERS_A_WORD = 4  # of a script without spaces
_NUMBER = re.compile(  # a word such as "about", a sign or currency, digits, a power of ten
    rf"(?:(?P<about>[^\W\d_]{{2,}}) |[{_UNSPACED}]{{1,2}})?[^\w\s(=]{{0,2}} ?\d[\d.,:/'\u2044\u2013-]*(?: \d{{3}})*"
    r"(?: ?[x\u00d7*] ?10\^?[-\u2212]?\d+)?"
)
_WORD = rf"(?: [^\W\d_]+| ?[^\W\d_]{{2,}}|[{_UNSPACED}])\.?"  # a single letter at the digits is no unit: 2x
_UNITS = re.compile(rf" ?[%\u2030\u00b0][^\W\d_]?| [^\W\d_]+(?:/|\^?[-\u2212])\S+|(?:{_WORD}| \d+){{0,2}}")
_SYMBOL = re.compile(r"(?:[A-Z][a-z]?\d*[+-]?|[()\[\]]\d*)+")  # as of an element or a compound
_MATHS = re.compile(
    r"[=^<>|\\_\u00ac\u00b1\u00d7\u00f7\u2190-\u22ff]|\S[+*/]|[+*/]\S| [-+*/\u2212\u2013] "
    r"|(?<![^\W\d_])[^\W\d_]!|\)!|\b[^\W_]{1,3}'?\("  # a factorial, a function of its argument
)
_PROSE = re.compile(r"[^\W\d_]{4,}")
_SENTENCE_END = tuple(".!?\u3002\u061f\u06d4\u0964\u2026")


@lru_cache(maxsize=8192)
def form(text: str) -> str:
    """One of FORMS, by signs, digits, capitals and length alone, so that it can be told in every language.

    number: a number, with a word before it and a unit after it or not; a date in digits. symbol: one word of capitals, or
    symbols of elements. formula: signs of mathematics and at most one word of four letters, or digits and no such word.
    name: at most five words, of which the first, or the second after one of at most three letters, begins with a capital.
    sentence: four words or more that end in a full stop or its like, or more than twelve words. term: of the rest what has
    at most three words. phrase: what has more. In scripts without spaces four letters count as a word; in scripts without
    capitals a name is a term or a phrase.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).replace(_MIDDLE_DOT, " ").split())
    words, count = text.split(), _word_count(text)
    if _is_number(text):
        return "number"
    if len(words) == 1 and (_SYMBOL.fullmatch(text) or (text.isupper() and text.isalpha() and count <= _TERM)):
        return "symbol"
    prose = len(_PROSE.findall(text))
    if (prose <= 1 and _MATHS.search(text)) or (prose == 0 and any(letter.isdigit() for letter in text)):
        return "formula"
    if (count > _TERM and text.endswith(_SENTENCE_END)) or count > _SENTENCE:
        return "sentence"
    if count <= _NAME and _begins_with_a_capital(words):
        return "name"
    return "term" if count <= _TERM else "phrase"


def by_form(text: str, others: Iterable[str]) -> list[list[str]]:
    """`others` in their order, those of the form of `text` first, then those of the nearest forms, and so on."""
    place = FORMS.index(form(text))
    tiers: dict[int, list[str]] = {}
    for other in others:
        tiers.setdefault(abs(FORMS.index(form(other)) - place), []).append(other)
    return [tiers[steps] for steps in sorted(tiers)]


def given_away(queries: QuerySet) -> tuple[str, ...]:
    """The ids of the queries whose right option is the only one of its form among the four, in at least one prompt."""
    check_query_set(queries)
    return tuple(query.id for query in queries if _gives_away(query))


def form_shares(queries: QuerySet) -> pd.DataFrame:
    """How many questions the form of the right option gives away, by group and, last, in all: COLUMNS.

    `options known`: the questions with a prompt whose options are known; `share` is that of `given away` among them, NaN for
    none. Where the options change with the template, as in the authors' files, a question counts if one prompt does.
    """
    check_query_set(queries)
    told = pd.DataFrame(
        [(query.group, any(prompt.shown for prompt in query.prompts), _gives_away(query)) for query in queries],
        columns=["group", "known", "away"],
    )
    parts = [*told.groupby("group", sort=False), (ALL_GROUPS, told)]
    rows = [(group, len(part), int(part["known"].sum()), int(part["away"].sum())) for group, part in parts]
    shares = [(*row, row[3] / row[2] if row[2] else math.nan) for row in rows]
    return pd.DataFrame(shares, columns=COLUMNS)


def _gives_away(query: Query) -> bool:
    """Whether one of the prompts shows no other option of the right one's form."""
    forms = [(prompt.right, [form(text) for text in prompt.shown]) for prompt in query.prompts if prompt.shown]
    return any(shown.count(shown[right]) == 1 for right, shown in forms)


def _is_number(text: str) -> bool:
    found = _NUMBER.match(text)
    if not found or (found["about"] or "")[:1].isupper():
        return False
    return _UNITS.fullmatch(text, found.end()) is not None


def _word_count(text: str) -> int:
    letters = len(_UNSPACED_LETTER.findall(text))
    spaced = _UNSPACED_LETTER.sub("", text).split()
    return sum(any(map(str.isalnum, word)) for word in spaced) + math.ceil(letters / _LETTERS_A_WORD)


def _begins_with_a_capital(words: list[str]) -> bool:
    after_particle = len(words) > 1 and len(words[0]) <= _PARTICLE and words[0].islower()
    return words[after_particle].lstrip("\"'([\u201c\u00ab")[:1].isupper()
