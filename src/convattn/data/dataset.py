"""What may be wrong with a data set, and how it is told."""

import warnings

__all__ = ["DataError", "DataWarning", "tell"]


class DataError(ValueError):
    """A data set that is missing, empty, or not laid out as expected."""


class DataWarning(UserWarning):
    """What was chosen, mapped or passed over in a data set, in one line."""


def tell(line: str) -> None:
    """Warn, in one line, of what was chosen, mapped or passed over."""
    warnings.warn(line, DataWarning, stacklevel=2)
