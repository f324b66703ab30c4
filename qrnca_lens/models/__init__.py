"""Hooked models: loading them, their sites, their tokens, and the shipped model."""

from qrnca_lens.models.checks import check_hooked
from qrnca_lens.models.errors import BusyModelError, ModelError
from qrnca_lens.models.hooked import HookedModel, device_of, exclusive, is_hooked_transformer
from qrnca_lens.models.loading import load_model
from qrnca_lens.models.reader import Reader, reader_of, target_id, text_of, to_tokens
from qrnca_lens.models.single_tokens import OptionTokens
from qrnca_lens.models.sites import check_site, mlp_width, site_hook, sites_of

__all__ = [
    "BusyModelError",
    "HookedModel",
    "ModelError",
    "OptionTokens",
    "Reader",
    "check_hooked",
    "check_site",
    "device_of",
    "exclusive",
    "is_hooked_transformer",
    "load_model",
    "mlp_width",
    "reader_of",
    "site_hook",
    "sites_of",
    "target_id",
    "text_of",
    "to_tokens",
]
