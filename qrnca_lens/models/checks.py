"""What a model must be so that its numbers mean what they say; checked before anything is computed."""

from __future__ import annotations

from weakref import WeakSet

import torch

from qrnca_lens.core.values import WrongKindError
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HOOKED_CLASSES, HookedModel, as_bridge, device_of, dtype_of, is_hooked_transformer
from qrnca_lens.models.sites import site_hook, sites_of

_TESTED: WeakSet[HookedModel] = WeakSet()  # the models whose neurons were tested; they do not change


def check_hooked(model: HookedModel) -> None:
    """Refuse what cannot be attributed or edited rightly.

    TypeError for anything but a hooked model with a tokenizer. ModelError for one without a dense MLP in every layer
    (mixture of experts, attention only, state space), one in training mode with dropout, and one whose weights were made
    under `torch.inference_mode`.
    """
    if not isinstance(model, HOOKED_CLASSES):
        names = " or ".join(c.__name__ for c in HOOKED_CLASSES)
        raise WrongKindError(f"expected a {names}, found {type(model).__name__}; load it with qrnca_lens.load_model")
    if model.tokenizer is None:
        raise WrongKindError("this model has no tokenizer; load it with qrnca_lens.load_model")
    if _drops_out(model):
        raise ModelError(
            f"{model.cfg.model_name} is in training mode, where dropout changes every run; call model.eval() first"
        )
    if any(weight.is_inference() for weight in model.parameters()):
        raise ModelError(
            f"the weights of {model.cfg.model_name} were made under torch.inference_mode, where nothing takes gradients; "
            "load the model outside of it"
        )
    if model not in _TESTED:
        _check_neurons(model)


def _drops_out(model: HookedModel) -> bool:
    """Whether some part of a bridge is in training mode and dropout is on; HookedTransformers have none."""
    if is_hooked_transformer(model) or not any(module.training for module in model.modules()):
        return False
    settings = as_bridge(model).original_model.config.to_dict()
    named = any("drop" in key and isinstance(value, (int, float)) and value > 0 for key, value in settings.items())
    return named or any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _check_neurons(model: HookedModel) -> None:
    cfg = model.cfg
    why = None
    if getattr(cfg, "num_experts", None):
        why = "it is a mixture of experts, whose neurons lie in several MLPs a layer"
    elif getattr(cfg, "attn_only", False):
        why = "it has attention only, no MLPs"
    elif getattr(cfg, "attention_dir", "causal") != "causal":
        raise ModelError(f"{cfg.model_name} reads the tokens that follow, too; QRNCA needs a causal model")
    else:
        points = model.hook_dict
        wanted = (site_hook(model, layer, site) for layer in range(cfg.n_layers) for site in sites_of(model))
        lacking = next((name for name in wanted if name not in points), None)
        why = f"it has no hook point {lacking}" if lacking else None
        if not why and _testable(model):
            why = _neurons_elsewhere(model)
            if not why:
                _TESTED.add(model)
    if why:
        raise ModelError(
            f"{cfg.model_name} has no dense MLP with neurons in every layer: {why}; such models are not supported"
        )


def _testable(model: HookedModel) -> bool:
    """Whether the model can be run to test its neurons: hooks of others, and dtypes that nothing is computed in, wait."""
    hooked = any(point.fwd_hooks for point in model.hook_dict.values())
    return not hooked and dtype_of(model) in (torch.float32, torch.float64, torch.bfloat16)


@torch.no_grad()
def _neurons_elsewhere(model: HookedModel) -> str | None:
    """Why a model's "neurons" are none: what their hook point holds is not what W_out multiplies. None where it is.

    Widths are compared in every layer. In the first and the last one the neurons are changed, and the MLP's output must
    change by W_out times that: the output itself may hold more (the residual stream, in Bloom and MPT).
    """
    layers = range(model.cfg.n_layers)
    names = [site_hook(model, layer, "post") for layer in layers]
    tokens = torch.zeros(1, 2, dtype=torch.long, device=device_of(model))
    _, cache = model.run_with_cache(tokens)
    for layer, name in zip(layers, names, strict=True):
        weights = getattr(model.blocks[layer].mlp, "W_out", None)
        if name not in cache or weights is None or cache[name].shape[-1] != weights.shape[0]:
            return f"what its hook point {name} holds is not what a W_out multiplies"
    limit = 1e-2 if dtype_of(model) in (torch.float32, torch.float64) else 0.2
    for layer in {0, model.cfg.n_layers - 1}:
        post = cache[names[layer]]
        generator = torch.Generator().manual_seed(layer)
        change = post.abs().max() * torch.randn(post.shape, generator=generator, dtype=torch.float32).to(post)
        before, after = (_mlp_output(model, layer, tokens, values) for values in (torch.zeros_like(change), change))
        wanted = change.float() @ model.blocks[layer].mlp.W_out.float()
        if before is None or after is None or not _is_close(after.float() - before.float(), wanted, limit):
            return f"what its hook point {names[layer]} holds is not what its W_out multiplies"
    return None


def _mlp_output(model: HookedModel, layer: int, tokens: torch.Tensor, change: torch.Tensor) -> torch.Tensor | None:
    """What the MLP of a layer gives with `change` added to its neurons; None where it is not seen to give anything."""
    mlp, seen = model.blocks[layer].mlp, []
    # the bridges of OPT and XGLM have no MLP that is run, only its parts; elsewhere the MLP itself is seen last
    parts = [part for part in (mlp, getattr(mlp, "out", None)) if isinstance(part, torch.nn.Module)]
    handles = [part.register_forward_hook(lambda _module, _args, output: seen.append(output)) for part in parts]
    try:
        with model.hooks(fwd_hooks=[(site_hook(model, layer, "post"), lambda post, hook: post + change)]):
            model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    output = seen[-1] if seen else None
    return output[0] if isinstance(output, tuple) else output


def _is_close(found: torch.Tensor, wanted: torch.Tensor, limit: float) -> bool:
    """Whether tensors of some rows agree within `limit` of the largest number found."""
    found = found.reshape(-1, found.shape[-1])
    wanted = wanted.reshape(-1, wanted.shape[-1])
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= limit * found.abs().max())
