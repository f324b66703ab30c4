"""The paper's tables from measured results, with the paper's number beside ours. Pure functions over frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from qrnca_lens.core.intervals import normal_interval, with_interval
from qrnca_lens.editing.effects import BOOST, SUPPRESS
from qrnca_lens.editing.statistics import PCR, edit_success, probability_change_ratio
from qrnca_lens.localization import overlap_rates
from qrnca_lens.methods import METHODS
from qrnca_lens.study import paper
from qrnca_lens.study.reproduction import Results

_FACTORS = {"boost": BOOST, "suppress": SUPPRESS}
Measured = Mapping[str, Results]
Tests = Mapping[str, pd.DataFrame]


def method_name(key: str) -> str:
    """The name of a method in tables; its key, if it was registered when it was measured and is not now."""
    return METHODS[key].name if key in METHODS else key


def table3(results: Measured) -> pd.DataFrame:
    """Mean number of QR neurons a query, by group."""
    rows = []
    for name, found in results.items():
        per_query = found.located.per_query()
        for group in found.located.groups:
            counts = per_query.loc[per_query["group"] == group, "qr"]
            low, high = normal_interval(counts)
            rows.append(
                (name, group, len(counts), float(counts.mean()), low, high, paper.TABLE3.get(paper.group(group) or ""))
            )
    return pd.DataFrame(rows, columns=["data set", "group", "queries", "QR neurons", "low", "high", "paper"])


def table4(results: Measured, *, extended: bool = False) -> pd.DataFrame:
    """PCR by method, data set and direction; `extended` gives the methods that the paper does not have, on their sample."""
    rows = []
    for (method, name, direction), pcr in pcr_of(results, extended=extended).items():
        ours = with_interval(pcr.pcr, pcr.ci) if pcr.pcr is not None and pcr.ci else _untold(pcr)
        rows.append(
            {
                "method": method_name(method),
                "data set": name,
                "direction": direction,
                "PCR": ours,
                "own query, %": with_interval(pcr.related, pcr.related_ci),
                "unrelated, %": with_interval(pcr.unrelated, pcr.unrelated_ci),
                "own query, points": f"{pcr.points:.1f}",
                "queries": pcr.queries,
                "paper": _paper(paper.TABLE4, method, results[name], direction),
            }
        )
    return pd.DataFrame(rows)


def pcr_of(results: Measured, *, extended: bool = False) -> dict[tuple[str, str, str], PCR]:
    """PCR by (method key, data set, "boost" or "suppress")."""
    parts = _edits(results, extended=extended)
    return {key: probability_change_ratio(rows.reset_index(drop=True)) for key, rows in parts.items()}


def _edits(results: Measured, *, extended: bool) -> dict[tuple[str, str, str], pd.DataFrame]:
    """The effects by (method key, data set, "boost" or "suppress")."""
    tables = {name: result.extended if extended else result.effects for name, result in results.items()}
    return {
        (method, name, direction): effects[(effects["method"] == method) & (effects["factor"] == factor)]
        for name, effects in tables.items()
        for method in dict.fromkeys(effects["method"])
        for direction, factor in _FACTORS.items()
    }


def table6(results: Measured, *, extended: bool = False) -> pd.DataFrame:
    """Edit success by method, data set and direction: the share of predictions turned, with counts and intervals."""
    rows = []
    for (method, name, direction), part in _edits(results, extended=extended).items():
        flips = edit_success(part, boost=direction == "boost")
        rows.append(
            {
                "method": method_name(method),
                "data set": name,
                "direction": "wrong to right (boost)" if direction == "boost" else "right to wrong (suppress)",
                "flipped": f"{flips.count} / {flips.of}",
                "%": flips.share,
                "low": flips.ci[0],
                "high": flips.ci[1],
                "paper, %": _paper(paper.TABLE6, method, results[name], direction),
            }
        )
    return pd.DataFrame(rows)


def table7(results: Measured) -> pd.DataFrame:
    """Neuron-based prediction by group, beside the prompted model, chance and the paper."""
    rows = []
    for name, result in results.items():
        for row in result.prediction.to_dict("records"):
            prompted, neurons = paper.TABLE7.get(paper.group(str(row["group"])) or "", (None, None))
            known = {"the prompted model": prompted, "QR neurons": neurons}
            rows.append({"data set": name, **row, "chance": 0.25, "paper": known.get(str(row["neurons"]))})
    return pd.DataFrame(rows)


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


def as_json(results: Measured, about: dict[str, Any], tests: Mapping[str, Tests]) -> dict[str, Any]:
    """Everything as one machine-readable record: table3 to table7, figure2a, with intervals and counts; NaN is None.

    `tests`: the permutation tests of each data set, by name.
    """
    table4_json: dict[str, dict[str, dict[str, Any]]] = {}
    for extended in (True, False):
        for (method, name, direction), pcr in pcr_of(results, extended=extended).items():
            table4_json.setdefault(method, {}).setdefault(name, {})[direction] = asdict(pcr)
    frames = {
        "table3": table3(results),
        "table5": _by_set(results, "tokens"),
        "table6": pd.concat([table6(results), table6(results, extended=True)], ignore_index=True).drop_duplicates(
            ["method", "data set", "direction"]
        ),
        "table7": table7(results),
        "figure2a": figure2a(results),
        "collateral": pd.concat([_by_set(results, "others"), _by_set(results, "loss")], ignore_index=True),
        "failed": failed(results),
    }
    significance = {name: {key: frame.to_dict("records") for key, frame in of_set.items()} for name, of_set in tests.items()}
    records = {key: frame.to_dict("records") for key, frame in frames.items()}
    return _plain({"about": about, "table4": table4_json, **records, "significance": significance})


def failed(results: Measured) -> pd.DataFrame:
    """The queries that failed: query, group, prompt, reason, data set."""
    parts = [result.located.failed.assign(**{"data set": name}) for name, result in results.items()]
    return pd.concat(parts, ignore_index=True)


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


def _untold(pcr: PCR) -> str:
    return f"unrelated change not told from 0 (ratio at least {pcr.at_least:.1f})"
