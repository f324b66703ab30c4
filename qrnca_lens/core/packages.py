"""Modules that need packages which may be missing: loaded on first use, with words that say what to install."""

from __future__ import annotations

import importlib
from types import ModuleType

_INSTALLED_AS = {"sklearn": "scikit-learn", "google.protobuf": "protobuf"}


def load(module: str) -> ModuleType:
    """Import a module; ModuleNotFoundError that names the package and how to install it where one is missing."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise told(error) from error


def told(error: ModuleNotFoundError) -> ModuleNotFoundError:
    """The same error with what to install; a module of this package that is missing is left as it is."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "qrnca_lens"):
        return error
    name = _INSTALLED_AS.get(error.name or "", _INSTALLED_AS.get(package, package))
    return ModuleNotFoundError(f"the package {name!r} is not installed; pip install {name}", name=error.name)
