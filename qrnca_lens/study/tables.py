"""The paper's tables from measured results, with the paper's number beside ours. Pure functions over frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from qrnca_lens.core.intervals import normal_interval, with_interval
from qrnca_lens.editing.effects import BOOST, SUPPRESS
from qrnca_lens.editing.statistics import PCR, edit_success, probability_change_ratio
from qrnca_lens.localization import mean_overlap, overlap
from qrnca_lens.methods import METHODS
from qrnca_lens.study import paper
from qrnca_lens.study.direct import ALL
from qrnca_lens.study.reproduction import Results

_FACTORS = {"boost": BOOST, "suppress": SUPPRESS}
LEVEL = 0.05
Measured = Mapping[str, Results]
Tests = tuple[pd.DataFrame, pd.DataFrame]


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
            rows.append((name, group, len(counts), float(counts.mean()), low, high, paper.TABLE3.get(group)))
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
                "paper": _paper(paper.TABLE4, method, name, direction),
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
                "paper, %": _paper(paper.TABLE6, method, name, direction),
            }
        )
    return pd.DataFrame(rows)


def table7(results: Measured) -> pd.DataFrame:
    """Neuron-based prediction by group, beside random neurons, the prompted model, chance and the paper.

    The columns of `prediction.COLUMNS`. The probe learns the letter from the neurons' activity; "direct" reads the letter
    that they write. `p` is over draws of random neurons, corrected for the number of groups within a reading and `layers`.
    """
    rows = []
    for name, result in results.items():
        for row in result.prediction.to_dict("records"):
            prompted, neurons = paper.TABLE7.get(str(row["group"]), (None, None))
            known = {"the prompted model": prompted, "QR neurons": neurons if row["layers"] == ALL else None}
            rows.append({"data set": name, **row, "chance": 0.25, "paper": known.get(str(row["neurons"]))})
    return pd.DataFrame(rows)


def table7_sentence(results: Measured) -> str:
    """What table 7 shows: a line for each data set and reading, with the numbers, and a line for the layers read alone.

    A group's QR neurons are more accurate than random neurons of the same layers if `p_corrected` is below 0.05. Of the
    other groups nothing is said but that they are not told apart; too few draws to tell any apart are named, and so are
    groups that have no random neurons to compare with.
    """
    lines = []
    for name, result in results.items():
        rows = result.prediction[result.prediction["neurons"] == "QR neurons"]
        together, alone = rows[rows["layers"] == ALL], rows[rows["layers"] != ALL]
        lines += [f"{name}, {reading}: {_compared(part)}" for reading, part in together.groupby("reading", sort=False)]
        layers = sorted(alone["layers"].unique(), key=int)
        if layers:
            each = "; ".join(f"of layer {layer} for {_told(alone[alone['layers'] == layer])}" for layer in layers)
            lines.append(
                f"{name}, direct, a layer alone (corrected for the groups, not for the layers): more accurate than random "
                f"neurons {each}."
            )
    return "\n".join(lines)


def _compared(rows: pd.DataFrame) -> str:
    """One reading of all layers together; each group with its accuracy and the mean and quantiles of the draws'."""
    said = [f"the QR neurons are more accurate than random neurons of the same layers for {_told(rows)}"]
    draws = rows.loc[rows["p"].notna(), "draws"]
    if len(draws) and len(draws) / (1 + draws.max()) >= LEVEL:
        needed = round(len(draws) / LEVEL)
        said[0] += f"; {draws.max()} draws cannot tell any of {len(draws)} groups, it takes {needed}"
    apart = rows["p_corrected"] < LEVEL
    for verdict, part in (("Told apart", rows[apart]), ("Not told apart", rows[~apart & rows["p"].notna()])):
        numbers = [
            f"{row['group']} {row['accuracy']:.2f} against {row['random_mean']:.2f} (95 % of {row['draws']} draws: "
            f"{row['random_low']:.2f} to {row['random_high']:.2f}), corrected p {row['p_corrected']:.3f}"
            for row in part.to_dict("records")
        ]
        if numbers:
            said.append(f"{verdict}: {'; '.join(numbers)}")
    return ". ".join(said) + "."


def _told(rows: pd.DataFrame) -> str:
    """For how many groups the QR neurons are told from random ones, of how many that have some to compare with."""
    known, without = rows[rows["p"].notna()], rows.loc[rows["p"].isna(), "group"]
    text = f"{(known['p_corrected'] < LEVEL).sum()} of {len(known)} groups"
    return f"{text} (no random neurons for {', '.join(without)}: too few others in a layer)" if len(without) else text


def figure2a(results: Measured) -> pd.DataFrame:
    """The range of the overlap rate between two groups' sets, ours and the paper's."""
    rows = []
    for name, result in results.items():
        rates = overlap(result.located)
        apart = rates.to_numpy(dtype=float)[~np.eye(len(rates), dtype=bool)]
        ours = (float(np.nanmin(apart)), mean_overlap(result.located), float(np.nanmax(apart)))
        rows.append((name, *ours, *paper.FIGURE2A.get(name, (None, None))))
    return pd.DataFrame(rows, columns=["data set", "lowest", "mean", "highest", "paper lowest", "paper highest"])


def as_json(results: Measured, about: dict[str, Any], tests: Mapping[str, Tests]) -> dict[str, Any]:
    """Everything as one machine-readable record: table3 to table7, figure2a, with intervals and counts; NaN is None.

    `tests`: the permutation tests of overlap and concentration by data set.
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
    significance = {
        name: {"overlap": first.to_dict("records"), "concentration": second.to_dict("records")}
        for name, (first, second) in tests.items()
    }
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


def _paper(table: Mapping[tuple[str, str], tuple[float, float]], method: str, name: str, direction: str) -> float | None:
    known = table.get((method, name))
    return None if known is None else known[0 if direction == "boost" else 1]


def _untold(pcr: PCR) -> str:
    return f"unrelated change not told from 0 (ratio at least {pcr.at_least:.1f})"
