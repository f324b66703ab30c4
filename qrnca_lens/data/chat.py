"""Prompts as chats: the user asks, and the assistant's turn is opened with a lead that the letter follows directly.

The template is the tokenizer's own. No model is imported here: what a tokenizer must have is asked of the object itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qrnca_lens.core.values import WrongKindError, told
from qrnca_lens.data.errors import DataError
from qrnca_lens.data.templates import TEMPLATES
from qrnca_lens.data.texts import begins_with_label, check_text

if TYPE_CHECKING:  # query.py imports this module
    from qrnca_lens.data.query import Prompt, Query


@dataclass(frozen=True)
class Chat:
    """How prompts become chats: the tokenizer with its template, and the lead (None: by the query's language).

    `bos`: the text of the BOS that the model puts before every text by itself, which the rendered text then does without.
    `special`: the texts of the special tokens, which no question may hold.
    """

    tokenizer: Any
    lead: str | None
    bos: str
    special: tuple[str, ...]

    @classmethod
    def of(cls, model: Any, lead: str | None) -> Chat:
        """From a model with a `tokenizer`, or a tokenizer itself.

        TypeError for anything else; DataError for a tokenizer without a chat template and for a lead that templates would
        not leave as it is.
        """
        tokenizer = getattr(model, "tokenizer", model)
        if not hasattr(tokenizer, "apply_chat_template"):
            raise WrongKindError(
                "a chat is rendered by a model's tokenizer; expected a model or a tokenizer of transformers, not "
                f"{told(model)}"
            )
        name = getattr(getattr(model, "cfg", None), "model_name", "") or getattr(tokenizer, "name_or_path", "")
        if not tokenizer.chat_template:
            raise DataError(
                f"the tokenizer of {name or 'this model'} has no chat template, so prompts cannot become chats; use the "
                "plain prompts (without as_chat, or --chat), or set model.tokenizer.chat_template to the one that the model "
                "was trained with"
            )
        if lead is not None and check_text(lead, "lead", "a chat") != lead.strip():
            raise DataError(f"a chat: field 'lead': {lead!r} begins or ends in white space, which chat templates cut off")
        return cls(tokenizer, lead, _own_bos(model, tokenizer), _special(tokenizer))

    @property
    def step(self) -> str:
        """What `QuerySet.made` tells of it."""
        digest = hashlib.sha256(repr(self.tokenizer.chat_template).encode()).hexdigest()[:8]
        return f"chat template={digest} lead={'by language' if self.lead is None else repr(self.lead)}"

    def rendered(self, queries: Sequence[Query]) -> tuple[Query, ...]:
        """The queries with every prompt as a chat (`QuerySet.as_chat`)."""
        return tuple(self._query(query) for query in queries)

    def _query(self, query: Query) -> Query:
        return replace(
            query,
            prompts=tuple(
                self._prompt(prompt, self._lead(query, prompt), f"query {query.id!r}, prompt {i}")
                for i, prompt in enumerate(query.prompts)
            ),
        )

    def _lead(self, query: Query, prompt: Prompt) -> str:
        if self.lead is not None:
            return self.lead
        if prompt.read == "answer":  # its own last line, which the answer follows
            return prompt.text.rstrip().rpartition("\n")[2]
        if query.language not in TEMPLATES:
            raise DataError(
                f"query {query.id!r}: there is no lead for the assistant in language {query.language!r}; give lead="
            )
        return TEMPLATES[query.language].detection[1].text.rpartition("\n")[2]

    def _prompt(self, prompt: Prompt, lead: str, where: str) -> Prompt:
        if prompt.rendering == "chat":
            raise DataError(f"{where} is a chat already; make it of the plain prompts, once")
        asked = without_cue(prompt.text, where)
        held = [token for token in self.special if token in asked]
        if held:
            raise DataError(
                f"{where}: the text holds {held[0]!r}, a special token of the tokenizer, which would end or begin a turn; "
                "make the chat of plain prompts"
            )
        text = self._text(asked, lead, where)
        return replace(prompt, text=text, options=prompt.shown, rendering="chat")

    def _text(self, asked: str, lead: str, where: str) -> str:
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": lead}]
        try:
            text = str(self.tokenizer.apply_chat_template(turns, tokenize=False, continue_final_message=True))
        except Exception as error:  # a template is a program of its own, and fails in its own ways
            raise DataError(
                f"{where}: the tokenizer's chat template fails on a turn of the user's and one of the assistant's: {error}; "
                "use the plain prompts"
            ) from error
        if asked.strip() not in text or not text.endswith(lead):
            raise DataError(
                f"{where}: the tokenizer's chat template does not keep the question, or does not end in the lead {lead!r}: "
                f"it ends in {text[-60:]!r}; give another lead, or use the plain prompts"
            )
        return text.removeprefix(self.bos)


def _special(tokenizer: Any) -> tuple[str, ...]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    texts = (*tokenizer.all_special_tokens, *(str(token) for token in added if token.special))
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def without_cue(text: str, where: str) -> str:
    """A prompt without its last line, which asks for the letter ("Answer:"); all of it where the last line is an option.

    DataError for a text of one line.
    """
    question, _, cue = text.rstrip().rpartition("\n")
    if begins_with_label(cue):
        return text
    if not question.strip():
        raise DataError(
            f"{where}: the text has a single line, so the question cannot be told from the line that asks for the answer; "
            "end the prompt in such a line"
        )
    return question


def _own_bos(model: Any, tokenizer: Any) -> str:
    """The BOS that the model, or the tokenizer alone, puts before every text; "" if none."""
    token = tokenizer.bos_token_id
    if token is None:
        return ""
    cfg = getattr(model, "cfg", None)
    adds = tokenizer.encode("A")[:1] == [token] if cfg is None else cfg.default_prepend_bos
    return str(tokenizer.bos_token) if adds else ""
