"""The rows of a bridge: one pass of one token with a cache of keys and values, whose batch grows.

A TransformerBridge is a Hugging Face model whose parts carry hook points. So its rows are an ordinary pass of that model:
the prompt's last token after the cached prefix, of which copies join the batch before their block. The model itself computes
embedding, positions, masks, final norm, unembedding and whatever comes after it (scales, soft caps); bridge_cache.py makes
its attention share the prefix.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float

from qrnca_lens.core.neurons import Site
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.blocks import CannotCarryError
from qrnca_lens.engine.bridge_cache import Recorder, SharedPrefix, reading
from qrnca_lens.engine.hooks import Hook, carries_hooks, with_hooks
from qrnca_lens.engine.padding import passing_suffixes
from qrnca_lens.models import HookedModel, site_hook
from qrnca_lens.models.hooked import as_bridge


class BridgeTexts:
    """One cached prompt of a bridge, with the interface of `texts.Texts` for a single ask.

    A pass of the model goes on to the logits, so rows end there and `finish` does nothing. CannotCarryError for an ask about
    more than the last position, for a hook inside the attention, and for a model whose attention does not use the cache.
    """

    width = 1

    def __init__(self, model: HookedModel, asks: Sequence[Ask], site: Site) -> None:
        self.model, self.asks, (ask,) = model, asks, asks
        self.site: Site = site
        self.layers = range(model.cfg.n_layers)
        self._check(ask)
        self._tokens = ask.tokens
        self._values: dict[str, torch.Tensor] = {}
        recorder, edited = Recorder(), carries_hooks(model)
        keep = [(site_hook(model, layer, site), self._keep) for layer in self.layers]
        with torch.no_grad(), with_hooks(model, keep), reading(model, recorder):
            # hooks of others may expect every position at the end of the model
            logits = self._pass(ask.tokens, recorder, whole=edited)
        if sorted(recorder.seen) != list(self.layers):
            raise CannotCarryError("its attention does not keep keys and values in the cache of transformers")
        self.logits: list[Float[torch.Tensor, "read token"]] = [logits[0, -1:]]
        self._prefix = {layer: (keys[:, :, :-1], values[:, :, :-1]) for layer, (keys, values) in recorder.seen.items()}

    def _check(self, ask: Ask) -> None:
        if ask.start != len(ask.tokens) - 1:
            raise CannotCarryError(
                "rows of a TransformerBridge are single tokens, and more than the last position is asked for"
            )
        for layer in self.layers:
            attention = getattr(self.model.blocks[layer], "attn", None)
            if attention is None:
                raise CannotCarryError(f"block {layer} has no attention")
            # it would see rows as the positions of a few sequences, which the check of the logits could miss
            if any(getattr(part, "fwd_hooks", None) for part in attention.modules()):
                raise CannotCarryError(
                    f"there is a hook inside the attention of block {layer}, where a bridge mixes its rows"
                )

    def _keep(self, tensor: torch.Tensor, hook: Any) -> None:
        self._values[hook.name] = tensor[:, -1:].clone()

    def _pass(self, tokens: torch.Tensor, cache: Recorder | SharedPrefix, *, whole: bool = False) -> torch.Tensor:
        """The logits [row, position, token] of the last position, or of all if `whole`."""
        known = inspect.signature(as_bridge(self.model).original_model.forward).parameters
        options: dict[str, Any] = {"cache" if "cache" in known else "past_key_values": cache, "use_cache": True}
        if "logits_to_keep" in known and not whole:
            options["logits_to_keep"] = 1
        length = len(self._tokens)
        with passing_suffixes(self.model, [(length - len(tokens), length)]):
            return self.model(tokens[None], attention_mask=torch.ones_like(self._tokens[None]), **options)

    def value(self, layer: int) -> Float[torch.Tensor, "ask suffix neuron"]:
        """The site's activations at the last position."""
        # a point with several names calls itself by one of them
        return self._values[self.model.hook_dict[site_hook(self.model, layer, self.site)].name]

    def scaled(self) -> torch.Tensor:
        """Which positions of the suffix are scaled, [ask, suffix]: its only one."""
        return torch.ones(1, 1, dtype=torch.bool, device=self._tokens.device)

    def reads(self, ask: int) -> slice:
        """Where in its suffix the logits of the ask are read."""
        return slice(0, 1)

    def finish(self, final: torch.Tensor) -> torch.Tensor:
        """The logits [row, position, token] of what `run_rows` gives: the same."""
        return final

    def run_rows(self, joining: Mapping[int, int], hooks: Sequence[Hook]) -> Float[torch.Tensor, "row ask suffix token"]:
        """The logits of all rows, `joining[layer]` of which join at each layer; as `rows.run_rows` for what `hooks` see.

        The untouched token runs along as the first of the batch, unseen by `hooks`, as what later rows are copies of.
        """
        cache = SharedPrefix(self._prefix)
        of_rows = [_without_first(hook) for hook in hooks]
        with with_hooks(self.model, of_rows), reading(self.model, cache), _growing(self.model, joining):
            logits = self._pass(self._tokens[-1:], cache)
        return logits[1:, None, -1:]


def _without_first(hook: Hook) -> Hook:
    name, function = hook

    def of_rows(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        changed = function(tensor[1:], hook=hook)
        return tensor if changed is None else torch.cat([tensor[:1], changed])

    return name, of_rows


@contextmanager
def _growing(model: HookedModel, joining: Mapping[int, int]) -> Iterator[None]:
    """Before each block in `joining`, so many copies of the batch's first row are appended to it."""
    with ExitStack() as stack:
        for layer, number in joining.items():
            # not at hook_resid_pre: OPT's blocks note the size of the batch before that
            stack.callback(model.blocks[layer].register_forward_pre_hook(_grown(number)).remove)
        yield


def _grown(number: int) -> Callable[..., tuple[Any, ...]]:
    def before(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        rows, *others = args
        return torch.cat([rows, rows[:1].expand(number, -1, -1)]), *others

    return before
