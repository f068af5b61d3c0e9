"""From the command line's words to a study's settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence

import typer

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["overrides_from"]

#: Options that take several values, by commas.
AXES = ("model", "norm", "norm_batch", "groups")


def overrides_from(options: Mapping[str, object], assignments: Sequence[str]) -> dict[str, object]:
    """What was given, as `load_study` takes it.

    Args:
        options: values by setting; `None` where an option was not given.
        assignments: `KEY=VALUE` words, values as in TOML; a bare word is text.
    """
    given: dict[str, object] = {}
    for key, value in options.items():
        if value is not None:
            given[key] = _values(key, str(value)) if key in AXES else value
    if "learning_rate" in given:
        given["learning_rate_scale"] = "none"
    for word in assignments:
        key, equals, text = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set {word!r} was given. It is KEY=VALUE, for instance momentum=0.8.")
        given[key.strip()] = _toml_value(text.strip())
    return given


def _values(key: str, text: str) -> object:
    values = [_number_or_word(word.strip()) for word in text.split(",") if word.strip()]
    return values[0] if key in ("model", "groups") and len(values) == 1 else values


def _number_or_word(word: str) -> int | str:
    return int(word) if re.fullmatch("-?[0-9]+", word) else word


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
