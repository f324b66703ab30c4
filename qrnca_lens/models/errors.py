"""The errors of a model that cannot be used as asked."""


class ModelError(ValueError):
    """A model, folder or tokenizer that cannot be used; the message names it and says what to do."""


class BusyModelError(RuntimeError):
    """A model that another thread runs or has hooks on."""
