"""Where a neuron is read and scaled. The only file that spells hook names.

| site | tensor | models |
|---|---|---|
| up | f = x W_in, the up projection (the paper's) | gated MLPs |
| gate | x W_gate, before the activation function | gated MLPs |
| pre | x W_in + b_in, before the activation function (the authors' code for GPT models) | plain MLPs |
| post | what W_out multiplies: act(x W_gate) * (x W_in), or act(x W_in + b_in) | all |
"""

from __future__ import annotations

from typing import Any

from qrnca_lens.core.neurons import Site
from qrnca_lens.models.errors import ModelError
from qrnca_lens.models.hooked import HookedModel

_GATED = {"up": "mlp.hook_pre_linear", "gate": "mlp.hook_pre", "post": "mlp.hook_post"}
_PLAIN = {"pre": "mlp.hook_pre", "post": "mlp.hook_post"}
RESID_PRE, RESID_MID, RESID_POST = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
ATTN_OUT, MLP_OUT = "hook_attn_out", "hook_mlp_out"
SCORES, PATTERN, VALUES, MIXED = "attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_v", "attn.hook_z"
UNEMBED = "unembed"


def sites_of(model: HookedModel) -> tuple[Site, ...]:
    """The sites that exist in this model, the default first: "up" (the paper's) in gated MLPs, "post" in plain ones."""
    return ("up", "gate", "post") if is_gated(model) else ("post", "pre")


def check_site(model: HookedModel, site: Site | None) -> Site:
    """`site`, or the model's default for None. ModelError names the sites there are."""
    there = sites_of(model)
    if site is not None and (not isinstance(site, str) or site not in there):
        kind = "gated" if is_gated(model) else "plain"
        raise ModelError(f"no site {site!r} in a model with {kind} MLPs; there are {', '.join(there)}")
    return site or there[0]


def site_hook(model: HookedModel, layer: int, site: Site) -> str:
    """The hook name of a site in one layer, such as "blocks.3.mlp.hook_pre_linear"."""
    return in_block(layer, (_GATED if is_gated(model) else _PLAIN)[site])


def in_block(layer: int, name: str) -> str:
    """The full name of a hook of one block."""
    return f"blocks.{layer}.{name}"


def query_hook(model: HookedModel) -> str:
    """The queries as attention uses them: rotated where the model rotates."""
    return "attn.hook_rot_q" if _rotates(model) else "attn.hook_q"


def key_hook(model: HookedModel) -> str:
    """The keys as attention uses them: rotated where the model rotates."""
    return "attn.hook_rot_k" if _rotates(model) else "attn.hook_k"


def is_gated(model: HookedModel) -> bool:
    """Whether the MLPs are gated (GLU)."""
    return bool(model.cfg.gated_mlp)


def norm_before_mlp(model: HookedModel, layer: int) -> Any | None:
    """The norm whose output the MLP reads; None where it reads the residual stream as it is (OLMo 2).

    Blocks in which attention and MLP share one norm (Phi, Cohere) have it as ln1.
    """
    block = model.blocks[layer]
    if getattr(block, "mlp_reads_resid_directly", False):
        return None
    return block.ln2 if hasattr(block, "ln2") else block.ln1


def norm_after_mlp(model: HookedModel, layer: int) -> Any | None:
    """The norm between W_out and the residual stream (Gemma 2 and 3, OLMo 2, Exaone 4, GLM 4); None in most models."""
    block = model.blocks[layer]
    behind = getattr(block, "ln2_post", None)
    # where the MLP reads the residual stream, TransformerLens 3.9 calls the norm behind it ln2
    return block.ln2 if behind is None and getattr(block, "mlp_reads_resid_directly", False) else behind


def residual_factor(model: HookedModel, layer: int) -> float:
    """What attention's and MLP's outputs are multiplied by on their way to the residual stream (Granite); else 1."""
    return float(getattr(model.blocks[layer], "residual_contribution_scale", 1.0))


def mlp_width(model: HookedModel) -> int:
    """The number of neurons of each MLP, from the weights: a bridge's configuration can name another number."""
    return model.blocks[0].mlp.W_out.shape[0]


def _rotates(model: HookedModel) -> bool:
    return model.cfg.positional_embedding_type == "rotary"
