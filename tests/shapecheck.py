"""The run-time checker of annotations (named in pyproject.toml): beartype, which here takes any string for our choices.

Those are checked by the package itself, with an error of its own that the tests want to see.
"""

from typing import Literal

from beartype import BeartypeConf, BeartypeHintOverrides, beartype

_CHOICES = {
    Literal["right", "endpoints", "gauss-legendre", "auto"]: str,
    Literal["up", "gate", "pre", "post"]: str,
    Literal["last", "all"]: str,
    Literal["plain", "examples", "chat"]: str,
    Literal["letter", "answer"]: str,
    Literal["mean", "sum"]: str,
    Literal["local", "ray"]: str,
}
check = beartype(conf=BeartypeConf(hint_overrides=BeartypeHintOverrides(_CHOICES)))
