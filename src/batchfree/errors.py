"""The exception tree, and the two messages that every package needs.

Each message has three parts: what was given, what is allowed, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from types import ModuleType

__all__ = [
    "ArgumentError",
    "BatchfreeError",
    "ConversionError",
    "DataError",
    "GroupError",
    "MissingExtraError",
    "RecordError",
    "StudyError",
    "require",
    "unknown_name",
]


class BatchfreeError(Exception):
    """Base of every error that batchfree raises on purpose."""


class ArgumentError(BatchfreeError, ValueError):
    """An argument has a value that is not allowed."""


class GroupError(ArgumentError):
    """The channels do not split into groups as asked, or a group is too small to normalise."""


class ConversionError(BatchfreeError, ValueError):
    """A network cannot be converted; the message lists every reason."""


class DataError(BatchfreeError, ValueError):
    """A data set is missing, damaged or unusable."""


class RecordError(BatchfreeError, ValueError):
    """A file that a study wrote is damaged or comes from another version."""


class StudyError(BatchfreeError, ValueError):
    """A study's configuration is refused."""


class MissingExtraError(BatchfreeError, ImportError):
    """An optional dependency is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """The imported `module`, or an error that names the pip command which brings it.

    Args:
        module: what is imported, for instance `"torch"`.
        extra: the extra of batchfree that installs it.

    Raises:
        MissingExtraError: `module` is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise  # installed, but broken inside: its own message says more than ours
        raise MissingExtraError(
            f"{module} is not installed, and this part of batchfree needs it. Run: pip install 'batchfree[{extra}]'",
            name=module,
        ) from None


def unknown_name(kind: str, given: str, allowed: Iterable[str]) -> str:
    """The message for a name that is not one of `allowed`, nearest names first.

    >>> unknown_name("norm", "gm", ["bn", "gn"])
    "unknown norm 'gm'. Allowed: bn, gn. Did you mean gn?"
    """
    names = list(allowed)
    near = difflib.get_close_matches(given.lower(), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Pass one of them as the {kind}."
    return f"unknown {kind} {given!r}. Allowed: {', '.join(names)}. {hint}"
