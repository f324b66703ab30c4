"""Hooked models: loading them, their sites, their tokens, and the shipped model."""

from qrnca_lens.models.checks import check_hooked
from qrnca_lens.models.errors import BusyModelError, ModelError
from qrnca_lens.models.hooked import Hook, HookedModel, exclusive, is_hooked_transformer, with_hooks
from qrnca_lens.models.letters import LetterWarning, option_tokens, options_of
from qrnca_lens.models.loading import load_model
from qrnca_lens.models.sites import Site, check_site, mlp_width, site_hook, sites_of
from qrnca_lens.models.tokens import OptionTokens, device_of, target_id, to_tokens

__all__ = [
    "BusyModelError",
    "Hook",
    "HookedModel",
    "LetterWarning",
    "ModelError",
    "OptionTokens",
    "Site",
    "check_hooked",
    "check_site",
    "device_of",
    "exclusive",
    "is_hooked_transformer",
    "load_model",
    "mlp_width",
    "option_tokens",
    "options_of",
    "site_hook",
    "sites_of",
    "target_id",
    "to_tokens",
    "with_hooks",
]
