"""Hooked models: loading them, their sites, their tokens, and the shipped model."""

from qrnca_lens.models.checks import check_hooked
from qrnca_lens.models.errors import BusyModelError, ModelError
from qrnca_lens.models.hooked import HookedModel, exclusive, is_hooked_transformer
from qrnca_lens.models.loading import load_model
from qrnca_lens.models.sites import check_site, mlp_width, site_hook, sites_of
from qrnca_lens.models.tokens import OptionTokens, device_of, target_id, to_tokens

__all__ = [
    "BusyModelError",
    "HookedModel",
    "ModelError",
    "OptionTokens",
    "check_hooked",
    "check_site",
    "device_of",
    "exclusive",
    "is_hooked_transformer",
    "load_model",
    "mlp_width",
    "site_hook",
    "sites_of",
    "target_id",
    "to_tokens",
]
