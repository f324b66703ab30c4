"""Many prompts read once, and what the rows of the engine need of them.

An ask (see asks.py) changes or reads nothing before its start, and attention is causal: keys and values of earlier positions
stand still. They are cached once for every text. A prompt that is the beginning of another one in the same batch, asked at
an earlier position, shares its text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch.nn.utils.rnn import pad_sequence

from qrnca_lens.core.neurons import Site
from qrnca_lens.engine.activity import right_padded
from qrnca_lens.engine.asks import Ask
from qrnca_lens.engine.attention import Cached, cached
from qrnca_lens.engine.blocks import HookedBlocks
from qrnca_lens.engine.hooks import Hook, carries_hooks, with_hooks
from qrnca_lens.engine.reading import last_logits
from qrnca_lens.models import HookedModel, site_hook


class Texts:
    """The cached texts of some asks in a HookedTransformer; suffixes have the length of the longest one, shorter ones end in
    copies of their last position, which nothing before it sees. CannotCarryError for hooks that rows do not meet.

    `logits[ask]`: the untouched model's at its `reads` last positions, [read, token].
    """

    def __init__(self, model: HookedModel, asks: Sequence[Ask], site: Site) -> None:
        self.model, self.asks = model, asks
        self.site: Site = site
        self.blocks = HookedBlocks(model)
        self.blocks.check()
        self.layers = self.blocks.layers
        device = asks[0].tokens.device
        self.starts = torch.tensor([ask.start for ask in asks], device=device)
        lengths = torch.tensor([len(ask.tokens) for ask in asks], device=device)
        self.width = int((lengths - self.starts).max())
        self._at = torch.minimum(self.starts[:, None] + torch.arange(self.width, device=device), lengths[:, None] - 1)
        edited = carries_hooks(model)
        self._texts, self._text_of = _shared([ask.tokens for ask in asks], whole=edited)
        self._kept: dict[str, list[torch.Tensor]] = defaultdict(list)
        self.logits: list[Float[torch.Tensor, "read token"]] = []
        with torch.no_grad():
            self._read(alone=edited)
        self._ready: dict[int, Cached] = {}

    def _read(self, *, alone: bool) -> None:
        """Run the texts: all as one batch or, where the model carries hooks of others, one by one and as a whole, as these
        hooks expect it. What they do at the end of the model, to positions that are not there in a row, is then seen."""
        finals: list[torch.Tensor] = []
        for texts in [[text] for text in range(len(self._texts))] if alone else [list(range(len(self._texts)))]:
            tokens, mask = right_padded([self._texts[text] for text in texts])
            asks = [ask for ask, text in enumerate(self._text_of) if text in texts]
            inside = torch.tensor([texts.index(self._text_of[ask]) for ask in asks], device=tokens.device)
            keep, first = self._keepers(asks, inside)
            with with_hooks(self.model, keep, first=first):
                if alone:  # a text ends where each of its prompts ends
                    most = max(self.asks[ask].reads for ask in asks)
                    found, _ = last_logits(self.model, tokens, mask, reads=most)
                    finals += [found[0, -self.asks[ask].reads :] for ask in asks]
                else:
                    found = self.blocks.read(tokens, mask)
                    finals += [found[i, self._read_positions(ask)] for i, ask in zip(inside.tolist(), asks, strict=True)]
        order = sorted(range(len(self.asks)), key=self._text_of.__getitem__) if alone else range(len(self.asks))
        by_ask = dict(zip(order, finals, strict=True))
        self.logits = [by_ask[ask] if alone else self.blocks.finish(by_ask[ask][None])[0] for ask in range(len(self.asks))]

    def _keepers(self, asks: Sequence[int], inside: torch.Tensor) -> tuple[list[Hook], list[Hook]]:
        """Hooks that keep keys and values whole and the site at the suffixes of these asks, and hooks to run first that keep
        the residual stream there: rows that join a block meet the hooks of others in it."""
        at = self._at[asks]

        def whole(tensor: torch.Tensor, hook: Any) -> None:
            self._kept[hook.name].append(tensor.detach())

        def suffix(tensor: torch.Tensor, hook: Any) -> None:
            rows, places = inside.to(tensor.device), at.to(tensor.device)
            self._kept[hook.name].append(tensor[rows[:, None], places].detach())

        keep: list[Hook] = []
        for layer in self.layers:
            keep += [(self.blocks.name(layer, what), whole) for what in ("key", "value")]
            keep.append((site_hook(self.model, layer, self.site), suffix))
        return keep, [(self.blocks.name(layer, "resid"), suffix) for layer in self.layers]

    def _read_positions(self, ask: int) -> slice:
        length = len(self.asks[ask].tokens)
        return slice(length - self.asks[ask].reads, length)

    def value(self, layer: int) -> Float[torch.Tensor, "ask suffix neuron"]:
        """The site's activations at every suffix."""
        return self._of_asks(site_hook(self.model, layer, self.site))

    def resid(self, layer: int) -> Float[torch.Tensor, "ask suffix d_model"]:
        """The residual stream that enters the block, at every suffix."""
        return self._of_asks(self.blocks.name(layer, "resid"))

    def prefix(self, layer: int) -> Cached:
        """The keys and values of the layer that the suffixes attend to."""
        if layer not in self._ready:
            keys, values = (self._of_texts(self.blocks.name(layer, what)) for what in ("key", "value"))
            window = self.blocks.geometry(layer).window
            self._ready[layer] = cached(keys, values, self.starts.to(keys.device), self.width, window)
        return self._ready[layer]

    def _of_asks(self, name: str) -> torch.Tensor:
        kept = self._kept[name]
        if len(kept) > 1:
            order = sorted(range(len(self.asks)), key=self._text_of.__getitem__)
            kept[:] = [torch.cat(kept)[torch.tensor(order).argsort()]]
        return kept[0]

    def _of_texts(self, name: str) -> torch.Tensor:
        """Whole tensors [ask, position, ...]; the cache of texts itself is let go."""
        kept = self._kept.pop(name)
        texts = kept[0] if len(kept) == 1 else pad_sequence([tensor[0] for tensor in kept], batch_first=True)
        return texts if self._text_of == list(range(len(texts))) else texts[self._text_of]

    def scaled(self) -> torch.Tensor:
        """Which positions of the suffixes are scaled, [ask, suffix]."""
        chosen = torch.zeros(len(self.asks), self.width, dtype=torch.bool, device=self.starts.device)
        for row, ask in enumerate(self.asks):
            chosen[row, torch.tensor(ask.scaled, device=chosen.device) - ask.start] = True
        return chosen

    def reads(self, ask: int) -> slice:
        """Where in its suffix the logits of an ask are read."""
        end = len(self.asks[ask].tokens) - self.asks[ask].start
        return slice(end - self.asks[ask].reads, end)

    def finish(self, final: torch.Tensor) -> torch.Tensor:
        """The logits [row, position, token] of what `rows.run_rows` gives."""
        return self.blocks.finish(final)


def _shared(prompts: Sequence[torch.Tensor], *, whole: bool) -> tuple[list[torch.Tensor], list[int]]:
    """The texts to read, and each prompt's: what is another one, or begins it (not if `whole`), needs none of its own."""
    texts: list[torch.Tensor] = []
    text_of = [0] * len(prompts)
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
        ids, size = prompts[i], len(prompts[i])
        same = (t for t, text in enumerate(texts) if (len(text) == size or not whole) and torch.equal(text[:size], ids))
        text_of[i] = next(same, len(texts))
        if text_of[i] == len(texts):
            texts.append(ids)
    order = sorted(range(len(texts)), key=text_of.index)  # texts in the order of the prompts, so that most stay as they are
    return [texts[t] for t in order], [order.index(t) for t in text_of]
