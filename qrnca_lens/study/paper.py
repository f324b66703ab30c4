"""The paper's numbers (Chen, Dejl, Toni, AAAI 2025), Llama-2-7B-chat, and which belong beside a measured group or set.

The keys of the tables are names of groups as `group` gives them, and of data sets as `data_set` gives them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from qrnca_lens.data.texts import normalise

DataSet = Literal["domains", "languages"]

GROUPS: dict[DataSet, tuple[str, ...]] = {
    "domains": ("biology", "physics", "chemistry", "mathematics", "computer science", "geography"),
    "languages": ("arabic", "english", "french", "japanese", "russian", "chinese"),
}
"""The groups of the paper's two data sets."""

_CODES = {"ar": "arabic", "en": "english", "fr": "french", "ja": "japanese", "ru": "russian", "zh": "chinese"}
_SET_OF: dict[str, DataSet] = {name: kind for kind, names in GROUPS.items() for name in names}
_MMLU = "high school "


def group(name: str) -> str | None:
    """The paper's group that a group is called after, or None.

    Besides the names in GROUPS those of the authors' files ("ar", "computer_science") and of MMLU
    ("high_school_biology") are known; case does not matter.
    """
    plain = normalise(name.replace("_", " ")).removeprefix(_MMLU)
    plain = _CODES.get(plain, plain)
    return plain if plain in _SET_OF else None


def data_set(groups: Iterable[str]) -> DataSet | None:
    """The paper's data set of which all of these groups are, or some of its groups; None for others and for no group."""
    kinds: set[DataSet | None] = {_SET_OF.get(group(name) or "") for name in groups}
    return kinds.pop() if len(kinds) == 1 else None


TABLE3 = {
    "biology": 13.1,
    "physics": 13.3,
    "chemistry": 12.8,
    "mathematics": 11.1,
    "computer science": 14.3,
    "geography": 12.7,
    "arabic": 12.4,
    "english": 14.4,
    "french": 12.7,
    "japanese": 16.6,
    "russian": 15.8,
    "chinese": 15.0,
}
"""Mean QR neurons a query."""

TABLE4 = {
    ("random", "domains"): (1.0, 0.55),
    ("activation", "domains"): (1.0, 1.0),
    ("knowledge-neuron", "domains"): (1.0, 1.0),
    ("without-ica", "domains"): (2.5, 1.1),
    ("with-common", "domains"): (2.8, 1.8),
    ("qrnca", "domains"): (4.4, 5.6),
    ("random", "languages"): (2.0, 1.0),
    ("activation", "languages"): (1.1, 1.1),
    ("knowledge-neuron", "languages"): (6.7, 1.8),
    ("without-ica", "languages"): (6.5, 2.2),
    ("with-common", "languages"): (10.4, 8.5),
    ("qrnca", "languages"): (41.2, 36.0),
}
"""PCR after boosting and after suppressing, by (method, data set)."""

TABLE6 = {
    ("random", "domains"): (0.0, 0.3),
    ("activation", "domains"): (0.0, 0.1),
    ("knowledge-neuron", "domains"): (1.4, 3.8),
    ("qrnca", "domains"): (12.6, 18.2),
    ("random", "languages"): (0.2, 0.3),
    ("activation", "languages"): (0.0, 0.3),
    ("knowledge-neuron", "languages"): (14.3, 16.0),
    ("qrnca", "languages"): (16.6, 24.8),
}
"""% of predictions flipped: wrong to right after boosting, right to wrong after suppressing."""

TABLE7 = {"biology": (0.96, 0.96), "chemistry": (0.71, 0.67), "geography": (0.89, 0.89)}
"""Accuracy of the prompted model, and from the activity of the domain's QR neurons alone."""
