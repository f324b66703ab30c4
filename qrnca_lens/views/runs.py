"""What every view needs of a run: the model it was made with and its queries, checked before anything is computed."""

from __future__ import annotations

from functools import lru_cache
from weakref import WeakKeyDictionary

from qrnca_lens.clustering import QRNeurons
from qrnca_lens.core.store import RunError
from qrnca_lens.core.values import WrongKindError
from qrnca_lens.data import Query
from qrnca_lens.models import HookedModel, check_hooked, load_model
from qrnca_lens.models.fingerprint import Written, model_fingerprint, written

_KNOWN: WeakKeyDictionary[HookedModel, tuple[Written, str]] = WeakKeyDictionary()


def model_of(model: HookedModel | None, located: QRNeurons) -> HookedModel:
    """`model`, or for None the shipped model if the result names it. RunError if the weights are not those of the result."""
    check_run(located)
    if model is None:
        if located.model.name != "atlas":
            raise RunError(f"this run was made with {located.model.name!r}; load that model and give it as model=…")
        model = _atlas()
    check_hooked(model)
    if _fingerprint(model) != located.model.fingerprint:
        raise RunError(
            f"this run was made with {located.model.name!r} (weights {located.model.fingerprint}), not with "
            f"{model.cfg.model_name!r} (weights {_fingerprint(model)}); load that model, or locate anew"
        )
    return model


def asked_query(located: QRNeurons, query_id: str) -> Query:
    """The query with its prompts. KeyError with the nearest id for an unknown one, and what `check_run` raises."""
    check_run(located)
    located.check_query(query_id)
    return located.asked[query_id]


def check_run(located: QRNeurons) -> None:
    """TypeError for anything but a QRNeurons, RunError for one without prompts."""
    if not isinstance(located, QRNeurons):
        raise WrongKindError(
            f"expected a QRNeurons (what qrnca_lens.locate returns), found {type(located).__name__}; the order is "
            "show(model, located, query_id), circuit(model, located, query_id), Explorer(model, queries, located)"
        )
    if not len(located.asked):
        raise RunError("this result holds no prompts; make it with qrnca_lens.locate")


@lru_cache(maxsize=1)
def _atlas() -> HookedModel:
    return load_model("atlas")


def _fingerprint(model: HookedModel) -> str:
    """The model's fingerprint, computed anew only after its parameters were written to."""
    now = written(model)
    if _KNOWN.get(model, ((), ""))[0] != now:
        _KNOWN[model] = (now, model_fingerprint(model))
    return _KNOWN[model][1]
