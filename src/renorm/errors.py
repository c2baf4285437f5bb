"""Every exception this package raises on purpose.

A message says what is wrong, the value received, what is allowed, and what to do about it.
"""


class RenormError(Exception):
    """Base of all errors of this package."""


class ArgumentError(RenormError, ValueError):
    """An argument, a shape or a setting is outside what is allowed."""


class ConversionError(RenormError, TypeError):
    """A module tree holds something that cannot be converted faithfully."""


class CollectiveError(RenormError, RuntimeError):
    """Processes that share statistics could not exchange them."""


class MissingExtraError(RenormError, ImportError):
    """A part of the package needs an optional dependency that is not installed."""


class RecordError(RenormError):
    """A results file holds something that is not a record of this package."""


class DataError(RenormError):
    """A data set is not where it was looked for, or a file of it is damaged."""
