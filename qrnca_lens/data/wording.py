"""What tables, pages and statements call things, by what the answers of the prompts are read from."""

from __future__ import annotations

from dataclasses import dataclass

from qrnca_lens.data.query import Read


@dataclass(frozen=True)
class Wording:
    """The words for one way to read answers.

    `option`: what an option stands by. `right`: the probability of the right one; `explained`: what kind of probability,
    where it is no plain one; `also_at`: where neurons are scaled besides a prompt's last token. `same` and `other`: the two
    kinds of partners of an edited prompt (`editing.partners`), `partners` the same in a sentence; `shared`: what a prompt
    has in common with those of the first kind.
    """

    option: str
    right: str
    explained: str
    also_at: str
    same: str
    other: str
    partners: tuple[str, str]
    shared: str


WORDING: dict[Read, Wording] = {
    "letter": Wording(
        "letter",
        "P(right letter)",
        "",
        "",
        "same letter",
        "other letter",
        ("on unrelated questions with the same right letter", "on those with another"),
        "letter",
    ),
    "answer": Wording(
        "answer",
        "P(right answer)",
        "P is that of a token: the geometric mean over the tokens of an answer, each after those before it.",
        " (and at all tokens of an answer but its last)",
        "same group",
        "another group",
        ("on other questions of the same group", "on those of another group"),
        "group",
    ),
}
