"""The paper's tables from measured results, with the paper's number beside ours. Pure functions over frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

import pandas as pd

from qrnca_lens.core.intervals import normal_interval, with_interval
from qrnca_lens.data import WORDING, Read
from qrnca_lens.data.forms import form_shares
from qrnca_lens.editing.effects import BOOST, SUPPRESS
from qrnca_lens.editing.statistics import PCR, Estimate, Ratio, edit_success, probability_change_ratio
from qrnca_lens.localization import overlap_rates
from qrnca_lens.methods import METHODS
from qrnca_lens.study import paper
from qrnca_lens.study.prediction_table import table7
from qrnca_lens.study.reproduction import Results

_FACTORS = {"boost": BOOST, "suppress": SUPPRESS}
_TURNS = {"boost": "wrong to right (boost)", "suppress": "right to wrong (suppress)"}
_UNSEEN = ["method", "data set", "direction", "prompts", "queries", "own, points", "specific, points"]
_UNSEEN += ["flipped", "%", "low", "high"]
Measured = Mapping[str, Results]
Edits: TypeAlias = Literal["effects", "pairs", "extended"]
"""The methods of the paper and their kin at their own sizes, QRNCA beside each of them at equal counts, or the other methods
on their sample."""


def method_name(key: str) -> str:
    """The name of a method in tables; its key, if it was registered when it was measured and is not now."""
    return METHODS[key].name if key in METHODS else key


def table3(results: Measured) -> pd.DataFrame:
    """Mean number of QR neurons a query, by group."""
    rows = []
    for name, found in results.items():
        per_query = found.located.per_query().groupby("group", sort=False)["qr"]
        for group, counts in ((str(name), counts) for name, counts in per_query):
            low, high = normal_interval(counts)
            rows.append(
                (name, group, len(counts), float(counts.mean()), low, high, paper.TABLE3.get(paper.group(group) or ""))
            )
    return pd.DataFrame(rows, columns=["data set", "group", "queries", "QR neurons", "low", "high", "paper"])


def table4(results: Measured, edits: Edits = "effects") -> pd.DataFrame:
    """Probability changes by method, data set and direction.

    Columns: method, data set, direction, neurons (mean a query), queries; the mean change in % of P(right letter) on the own
    query and on unrelated ones with the same right letter and with another; the two PCRs; the specific change (own - same
    letter) in points; the letter's share of the own change in % (`PCR`); the paper's PCR. Intervals are 95 %.

    Where answers are read P is that of the right answer, a token, and the others are those of the same group and of another
    group, as the names of the columns say; two columns more have the change of log P a token and the specific one, in nats.

    "pairs" are in twos, a column "against" first: the method that QRNCA is compared with.
    """
    rows, words = [], WORDING[read_of(results)]
    for (rival, method, name, direction), part in _edits(results, edits).items():
        pcr = probability_change_ratio(part)
        rows.append(
            {
                **_against(rival),
                "method": method_name(method),
                "data set": name,
                "direction": direction,
                "neurons": float(part["neurons"].mean()),
                "queries": pcr.queries,
                "own %": _shown(pcr.own),
                f"{words.same} %": _shown(pcr.same_letter),
                f"{words.other} %": _shown(pcr.other_letter),
                f"PCR ({words.same})": _shown_ratio(pcr.ratio_same, pcr.same_letter),
                f"PCR ({words.other})": _shown_ratio(pcr.ratio_other, pcr.other_letter),
                "specific, points": _shown(pcr.specific),
                **(_nats(pcr) if words.explained else {}),
                f"{words.shared}'s share, %": _shown(pcr.letter_share) if pcr.letter_share else "",
                "paper": _paper(paper.TABLE4, method, results[name], direction),
            }
        )
    return pd.DataFrame(rows)


def read_of(results: Measured) -> Read:
    """What the answers were read from, which is the same in all data sets of a study."""
    reads: list[Read] = [result.read for result in results.values()]
    return reads[0] if reads else "letter"


def _nats(pcr: PCR) -> dict[str, str]:
    found = {"log P, nats": pcr.nats, "specific, nats": pcr.specific_nats}
    return {name: with_interval(of.mean, of.ci, 2) for name, of in found.items()}


def pcr_of(results: Measured, edits: Edits = "effects") -> dict[tuple[str, ...], PCR]:
    """PCR by (method key, data set, "boost" or "suppress"), with the rival's key first for "pairs"."""
    found = {key: probability_change_ratio(rows) for key, rows in _edits(results, edits).items()}
    return {key if key[0] else key[1:]: pcr for key, pcr in found.items()}


def letter_line(pcr: PCR, read: Read = "letter") -> str:
    """A sentence on how much of an edit's effect is one on the letter or, where answers are read, on the group."""
    shared, partners = WORDING[read].shared, WORDING[read].partners
    own = pcr.question.mean + pcr.letter.mean + pcr.general.mean
    if not pcr.question.queries:
        return f"No question has unrelated prompts to compare with, so nothing is known of an effect on the {shared}."
    if pcr.letter_share is None:
        return (
            f"The change on the own question ({own:.1f} points) cannot be told from 0, so no share of it is the {shared}'s."
        )
    same, other = (round(100 * part / own) for part in (pcr.letter.mean + pcr.general.mean, pcr.general.mean))
    return (
        f"Of the change on the own question ({own:.1f} points), {same} % is also seen {partners[0]} and {other} % "
        f"{partners[1]}: {_shown(pcr.letter_share)} % is specific to the {shared}, {100 - same} % to the question."
    )


def _edits(results: Measured, edits: Edits) -> dict[tuple[str, str, str, str], pd.DataFrame]:
    """The effects by (rival's key, method key, data set, "boost" or "suppress"); the rival is "" but for pairs."""
    tables: dict[str, pd.DataFrame] = {name: getattr(result, edits) for name, result in results.items()}
    found = {}
    for name, effects in tables.items():
        rivals = effects["rival"] if edits == "pairs" else pd.Series("", index=effects.index)
        for (rival, method), part in effects.groupby([rivals, "method"], sort=False):
            for direction, factor in _FACTORS.items():
                found[str(rival), str(method), name, direction] = part[part["factor"] == factor]
    return found


def _against(rival: str) -> dict[str, str]:
    return {"against": method_name(rival)} if rival else {}


def table6(results: Measured, edits: Edits = "effects") -> pd.DataFrame:
    """Edit success by method, data set and direction: the share of predictions turned, with counts and intervals."""
    rows = []
    for (rival, method, name, direction), part in _edits(results, edits).items():
        rows.append(
            {
                **_against(rival),
                "method": method_name(method),
                "data set": name,
                "direction": _TURNS[direction],
                "neurons": float(part["neurons"].mean()),
                **_flips(part, direction),
                "paper, %": _paper(paper.TABLE6, method, results[name], direction),
            }
        )
    return pd.DataFrame(rows)


def table_unseen(results: Measured) -> pd.DataFrame:
    """The same edits measured on the prompts of detection, on fresh ones and on the held-out template, for the same queries.

    Columns: method, data set, direction, prompts (which ones), queries; the change of P on the own query and the specific
    change, in points; the predictions turned, as in table 6. A data set whose questions are not known has no rows.
    """
    rows = []
    for name, result in results.items():
        for (method, factor, prompts), part in result.unseen.groupby(["method", "factor", "prompts_of"], sort=False):
            pcr, direction = probability_change_ratio(part), "boost" if factor == BOOST else "suppress"
            rows.append(
                {
                    "method": method_name(str(method)),
                    "data set": name,
                    "direction": direction,
                    "prompts": prompts,
                    "queries": pcr.queries,
                    "own, points": _shown(pcr.points),
                    "specific, points": _shown(pcr.specific),
                    **_flips(part, direction),
                }
            )
    return pd.DataFrame(rows, columns=_UNSEEN)


def _flips(part: pd.DataFrame, direction: str) -> dict[str, object]:
    flips = edit_success(part, boost=direction == "boost")
    return {"flipped": f"{flips.count} / {flips.of}", "%": flips.share, "low": flips.ci[0], "high": flips.ci[1]}


def figure2a(results: Measured) -> pd.DataFrame:
    """The symmetric overlap rate of two groups' sets at `queries` of each: lowest, mean, highest, mean of shuffled labels.

    The paper's range (figure 2a) does not stand beside it: it does not define its rate, whose matrix is symmetric although
    groups differ in size, so that it cannot be |A and B| / |A|.
    """
    rows = []
    for name, result in results.items():
        found = overlap_rates(result.located)
        pairs = found.to_frame()["rate"]
        rows.append((name, found.per_group, pairs.min(), found.mean, pairs.max(), found.permuted_mean))
    return pd.DataFrame(rows, columns=["data set", "queries", "lowest", "mean", "highest", "permuted mean"])


def as_json(results: Measured, about: dict[str, Any], statements: pd.DataFrame) -> dict[str, Any]:
    """Everything as one machine-readable record: table3 to table7, figure2a, with intervals and counts; NaN is None.

    table4 and table6 are at the methods' own sizes, table4_pairs and table6_pairs have QRNCA and each of the others at equal
    counts; unseen has the edits on prompts that had no part in detection. `statements`: those of `verdicts.statements`.
    Where answers are read `same_letter`, `other_letter` and `letter` stand for the same group, another group and the group
    (`PCR`).
    """
    frames = {
        "table3": table3(results),
        "table5": _by_set(results, "tokens"),
        "table6": pd.concat([table6(results), table6(results, "extended")], ignore_index=True).drop_duplicates(
            ["method", "data set", "direction"]
        ),
        "table6_pairs": table6(results, "pairs"),
        "unseen": table_unseen(results),
        "table7": table7(results),
        "figure2a": figure2a(results),
        "collateral": pd.concat([_by_set(results, "others"), _by_set(results, "loss")], ignore_index=True),
        "failed": failed(results),
        "kinds": _by_set(results, "kinds"),
        "given away": given_away(results),
        "statements": statements,
    }
    significance = {
        name: {str(key): rows.to_dict("records") for key, rows in result.tests.groupby("test", sort=False)}
        for name, result in results.items()
    }
    records = {key: frame.to_dict("records") for key, frame in frames.items()}
    ratios = {
        "table4": {**_nested(pcr_of(results, "extended")), **_nested(pcr_of(results))},
        "table4_pairs": _nested(pcr_of(results, "pairs")),
    }
    return _plain({"about": about, **ratios, **records, "significance": significance})


def _nested(ratios: Mapping[tuple[str, ...], PCR]) -> dict[str, Any]:
    """By each part of the keys in turn: (the rival,) method, data set, direction."""
    nested: dict[str, Any] = {}
    for (*parts, last), pcr in ratios.items():
        inner = nested
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = asdict(pcr)
    return nested


def failed(results: Measured) -> pd.DataFrame:
    """The queries that failed: query, group, prompt, reason, data set."""
    parts = [result.located.failed.assign(**{"data set": name}) for name, result in results.items()]
    return pd.concat(parts, ignore_index=True)


def given_away(results: Measured) -> pd.DataFrame:
    """How many questions of each group their right option's form gives away (`data.forms.form_shares`); no row for open
    prompts, which show no options."""
    shown = {name: result.located.asked for name, result in results.items() if result.read == "letter"}
    parts = [form_shares(asked).assign(**{"data set": name}) for name, asked in shown.items()]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _by_set(results: Measured, name: str) -> pd.DataFrame:
    parts = [getattr(result, name).assign(**{"data set": key}) for key, result in results.items()]
    return pd.concat(parts, ignore_index=True)


def _plain(value: Any) -> Any:
    """`value` for strict JSON: what is not a finite number becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def kind_of(result: Results) -> paper.DataSet | None:
    """Which of the paper's data sets the result's groups make up."""
    return paper.data_set(result.located.groups)


def _paper(
    table: Mapping[tuple[str, str], tuple[float, float]], method: str, result: Results, direction: str
) -> float | None:
    known = table.get((method, kind_of(result) or ""))
    return None if known is None else known[0 if direction == "boost" else 1]


def _shown(found: Estimate) -> str:
    return with_interval(found.mean, found.ci)


def _shown_ratio(ratio: Ratio, partner: Estimate) -> str:
    if ratio.value is not None and ratio.ci:
        return with_interval(ratio.value, ratio.ci)
    if not partner.queries:
        return "no partner"
    return "not told from 0" + (f" (ratio at least {ratio.at_least:.1f})" if ratio.at_least is not None else "")
