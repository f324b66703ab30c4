"""Questions, multi-choice queries and their files; touches no model."""

from qrnca_lens.data.errors import DataError
from qrnca_lens.data.forms import form_shares, given_away
from qrnca_lens.data.multi_choice import Distractors, to_multi_choice
from qrnca_lens.data.query import ALL_GROUPS, Prompt, Query, QuerySet, Question, Read
from qrnca_lens.data.readers.files import load_queries, load_questions, save_queries
from qrnca_lens.data.templates import LETTERS, OPEN_TEMPLATES, TEMPLATES
from qrnca_lens.data.wording import WORDING, Wording

__all__ = [
    "ALL_GROUPS",
    "LETTERS",
    "OPEN_TEMPLATES",
    "TEMPLATES",
    "WORDING",
    "DataError",
    "Distractors",
    "Prompt",
    "Query",
    "QuerySet",
    "Question",
    "Read",
    "Wording",
    "form_shares",
    "given_away",
    "load_queries",
    "load_questions",
    "save_queries",
    "to_multi_choice",
]
