"""Where a model lies: on one device, or a HookedTransformer's layers spread over GPUs in TransformerLens's own order."""

from __future__ import annotations

import torch

from qrnca_lens.core.values import told
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel, is_hooked_transformer

_AT_THE_END = ("ln_final", "unembed")


def devices_of(name: str | None) -> list[torch.device]:
    """The devices of this name, "cuda:0,cuda:1" for two; None for CUDA where there is one, else the CPU.

    ModelError for one that is not there, and for several that are no GPUs in a row.
    """
    if name is None:
        return [torch.device("cuda" if torch.cuda.is_available() else "cpu")]
    if not isinstance(name, str):
        raise _unknown(name)
    places = [_device(part.strip()) for part in name.split(",")]
    in_a_row = [torch.device("cuda", (places[0].index or 0) + i) for i in range(len(places))]
    if len(places) > 1 and places != in_a_row:
        raise ModelError(f"the devices {name!r} are no GPUs in a row; name them as in 'cuda:0,cuda:1'")
    return places


def _device(name: str) -> torch.device:
    try:
        place = torch.device(name)
    except (RuntimeError, TypeError, ValueError):
        raise _unknown(name) from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (place.index or 0) >= counts.get(place.type, 0):
        there = ", ".join(f"{kind} ({count})" for kind, count in counts.items() if count)
        raise ModelError(f"the device {name!r} is not there; this machine has {there}")
    return place


def _unknown(name: object) -> ModelError:
    return ModelError(f"no device is called {told(name)}; use 'cpu', or 'cuda' on a machine that has a GPU")


def put_on(model: HookedModel, devices: list[torch.device]) -> HookedModel:
    """The model on a device; on several with as many layers on each, what comes before them on the first and what comes
    after them on the last: where a HookedTransformer that runs expects them. ModelError for a bridge on several."""
    if len(devices) == 1:
        return model.to(devices[0]) if devices[0].type != "cpu" else model
    if not is_hooked_transformer(model):
        raise ModelError(
            f"{model.cfg.model_name} is a bridge, which transformers itself spreads over GPUs: make it with "
            "TransformerBridge.boot_transformers(..., device_map='balanced')"
        )
    cfg, count = model.cfg, model.cfg.n_layers
    cfg.device, cfg.n_devices = str(devices[0]), len(devices)
    for name, module in model.named_children():
        if module is not model.blocks:
            module.to(devices[-1 if name in _AT_THE_END else 0])
    for layer, block in enumerate(model.blocks):
        block.to(devices[layer * len(devices) // count])
    return model
