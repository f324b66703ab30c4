"""The error of bad question data."""


class DataError(ValueError):
    """Question data that cannot be used; the message names the place, the field and what was expected."""
