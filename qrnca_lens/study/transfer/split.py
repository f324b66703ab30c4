"""Does a neuron that was found by letter follow the letter, or what the letter stands for?

Each prompt is put with its options in four orders, so that the right one stands once under each letter, and once with other
symbols than A to D (`reorderings`). What suppressing neurons does is read from the four options' log P less its mean over
the four, so that the probability they hold together does not matter. Let e[r, k] be how much that of letter k falls where
the right option stands under r, and f the letter under which it stood when the neuron was found:

- `original`: e[f, f] less the mean of e[f, k] over the other letters; what the neuron was found by.
- `content`: over the other three orders r, e[r, r] less the mean of e[r', r] over the two others of them: how much more a
  letter falls where it is right than the same letter where it is wrong.
- `letter`: over these orders, e[r, f] less the mean of e[r, k] over the other two wrong letters: how much more the letter
  falls that was right once.
- `symbols`: as `original`, with other symbols in the place of the letters.
- `elsewhere`: as `original`, in a prompt of an unrelated question with another right letter.

A neuron that raises the letter f by x and the right option by y gives original = x + y, letter = x and content = y, exactly
where the two add up. What is left of `original` is particular to that order of the options. All are in nats, above 0 where
suppressing lowers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from qrnca_lens.attribution.letters import option_tokens
from qrnca_lens.core.neurons import NeuronSet
from qrnca_lens.data import Query, QuerySet
from qrnca_lens.editing.effects import SUPPRESS
from qrnca_lens.editing.partners import partners_of
from qrnca_lens.engine.edits import Edit, read_edited
from qrnca_lens.models import HookedModel
from qrnca_lens.study.transfer.reorderings import Asked, Reordered, reordered

FOUND, RANDOM, FOUND_TOGETHER, RANDOM_TOGETHER = "found", "random", "found together", "random together"
PARTS = ("original", "content", "letter", "symbols", "elsewhere")
SPLIT_COLUMNS = [
    *["query", "group", "unit", "template", "neurons", "layer", "neuron", *PARTS, "right_reordered", "right_symbols"]
]
_NOBODY = -1  # the layer and neuron of a set that is suppressed as a whole
Sets = Mapping[str, NeuronSet]


def split_rows(
    model: HookedModel,
    queries: QuerySet,
    found: Sets,
    beside: Sets,
    *,
    seed: int = 0,
    begin: int = 0,
) -> Iterator[pd.DataFrame]:
    """For each query in turn, from number `begin` on, its rows with SPLIT_COLUMNS, one a (prompt, neuron or set).

    `found` are the neurons of each query and `beside` the random ones that they are compared with; each is suppressed on its
    own, and each set together (then layer and neuron are -1). right_reordered is the share of the three other orders in
    which the untouched model chooses the right option, right_symbols tells the same of the other symbols. symbols and
    right_symbols are NaN where no symbols can follow, elsewhere where no question is unrelated. Prompts that cannot be
    rendered anew are left out.
    """
    partners, by_id = partners_of(queries, seed), {query.id: query for query in queries}
    for query in queries.queries[begin:]:
        others = [by_id[place[0]].prompts[place[1]] if place else None for place in partners[query.id].other]
        elsewhere = [p and Asked(p.text, option_tokens(model, p).ids, p.right) for p in others]
        yield _of_query(model, query, elsewhere, found[query.id], beside[query.id])


def _of_query(
    model: HookedModel, query: Query, elsewhere: Sequence[Asked | None], found: NeuronSet, beside: NeuronSet
) -> pd.DataFrame:
    names, edits = _edits(found, beside)
    forms = [
        (prompt, reordered(model, query, prompt), other) for prompt, other in zip(query.prompts, elsewhere, strict=True)
    ]
    usable = [(prompt, form, other) for prompt, form, other in forms if form]
    asked = [text for _, form, other in usable for text in (*form.orders, form.renamed, other) if text]
    logs = dict(zip(asked, _read(model, asked, edits), strict=True))
    tables = []
    for prompt, form, other in usable:
        rows = pd.DataFrame(names, columns=["neurons", "layer", "neuron"])
        rows = rows.assign(**_parts(form, other, logs)).assign(template=prompt.template)
        tables.append(rows.assign(query=query.id, group=query.group, unit=query.unit)[SPLIT_COLUMNS])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=SPLIT_COLUMNS)


def _edits(found: NeuronSet, beside: NeuronSet) -> tuple[list[tuple[str, int, int]], list[Edit]]:
    names, edits = [], []
    for alone, together, neurons in ((FOUND, FOUND_TOGETHER, found), (RANDOM, RANDOM_TOGETHER, beside)):
        names += [(alone, neuron.layer, neuron.index) for neuron in neurons]
        edits += [(NeuronSet((neuron,)), SUPPRESS) for neuron in neurons]
        names.append((together, _NOBODY, _NOBODY))
        edits.append((neurons, SUPPRESS))
    return names, edits


def _read(model: HookedModel, asked: Sequence[Asked], edits: Sequence[Edit]) -> list[Float[np.ndarray, "row option"]]:
    """log P of the four options less its mean over them: row 0 untouched, then a row for each edit."""
    found = read_edited(model, [one.text for one in asked], [edits] * len(asked), [_centred(one.ids) for one in asked])
    return [one.double().numpy() for one in found]


def _centred(ids: Sequence[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    chosen = list(ids)

    def read(logits: torch.Tensor) -> torch.Tensor:
        options = logits[:, -1, chosen].float().cpu()
        return options - options.mean(-1, keepdim=True)

    return read


def _parts(form: Reordered, other: Asked | None, logs: Mapping[Asked, np.ndarray]) -> dict[str, np.ndarray | float]:
    falls = np.stack([logs[one][:1] - logs[one][1:] for one in form.orders], axis=1)  # [edit, order, letter]
    rest = [to for to in range(4) if to != form.found]
    chosen = [int(logs[form.orders[to]][0].argmax()) == to for to in rest]
    renamed = form.renamed
    return {
        **three_parts(falls, form.found),
        "symbols": _against_others(logs[renamed], renamed.right) if renamed else np.nan,
        "elsewhere": _against_others(logs[other], other.right) if other else np.nan,
        "right_reordered": sum(chosen) / len(chosen),
        "right_symbols": float(logs[renamed][0].argmax() == renamed.right) if renamed else np.nan,
    }


def three_parts(falls: Float[np.ndarray, "edit order letter"], found: int) -> dict[str, Float[np.ndarray, " edit"]]:
    """`original`, `content` and `letter` as the module defines them; order r has the right option under letter r."""
    rest = [to for to in range(4) if to != found]
    original = falls[:, found, found] - falls[:, found, rest].mean(1)
    content = [falls[:, r, r] - falls[:, [q for q in rest if q != r], r].mean(1) for r in rest]
    letter = [falls[:, r, found] - falls[:, r, [k for k in rest if k != r]].mean(1) for r in rest]
    return {"original": original, "content": np.mean(content, axis=0), "letter": np.mean(letter, axis=0)}


def _against_others(logs: Float[np.ndarray, "row option"], right: int) -> Float[np.ndarray, " edit"]:
    falls = logs[:1] - logs[1:]
    others = [k for k in range(4) if k != right]
    return falls[:, right] - falls[:, others].mean(1)
