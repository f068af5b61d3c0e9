"""A study's TOML file: what stands in it, and what is wrong with it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchfree.errors import StudyError, unknown_name
from batchfree.records import Comparison, ReportSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["STUDIES", "Overlay", "StudyFile", "Table", "plain", "read_study_file", "refusal", "study_text"]

#: The built-in studies, in the order in which they are explained.
STUDIES = ("norm-batch", "norms", "groups", "depth", "vgg", "pets", "bit", "recipe", "fine-tune")

Table = dict[str, Any]


class Overlay(BaseModel):
    """A protocol or a preset: settings that replace the study's, and perhaps other arms."""

    model_config = ConfigDict(frozen=True, extra="allow")

    arms: list[Table] | None = None
    protocol: str | None = None  # a preset may name one
    pretraining: Table = {}

    @property
    def settings(self) -> Table:
        """Everything but the arms and the pre-training."""
        return dict(self.model_extra or {})


class StudyFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")  # it becomes a folder's name
    title: str
    reproduces: str = ""
    settings: Table = {}
    pretraining: Table | None = None  # the settings in which the run before the others differs from them
    arms: list[Table]
    protocols: dict[str, Overlay] = {}
    presets: dict[str, Overlay] = {}
    report: ReportSpec = ReportSpec()


#: The keys of the file's own tables within others.
_TABLES: dict[str | int, Sequence[str]] = {
    "report": tuple(ReportSpec.model_fields),
    "compare": tuple(Comparison.model_fields),
}


def study_text(name: str) -> str:
    """The file of a built-in study.

    Raises:
        StudyError: no such study.
    """
    if name not in STUDIES:
        raise StudyError(unknown_name("study", name, STUDIES) + " Or pass the path of a TOML file.")
    return resources.files("batchfree.study").joinpath("studies", f"{name}.toml").read_text(encoding="utf-8")


def read_study_file(study: str | Path) -> tuple[str, StudyFile]:
    """The study of that name or path, and what to call it in messages.

    Raises:
        StudyError: it cannot be read, or a key of it is refused.
    """
    path = Path(study)
    if isinstance(study, Path) or path.suffix == ".toml":
        where = str(study)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StudyError(
                f"{path} cannot be read ({error}). A TOML file is needed. Print one to start from with "
                f"`batchfree study show NAME`; names: {', '.join(STUDIES)}."
            ) from None
    else:
        where, text = study, study_text(study)
    try:
        return where, StudyFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise StudyError(
            f"{where} is not TOML: {error}. Compare it with `batchfree study show norm-batch`, and mend that line."
        ) from None
    except ValidationError as error:
        raise refusal(where, error, tuple(StudyFile.model_fields)) from None


def refusal(where: str, error: ValidationError, fields: Sequence[str]) -> StudyError:
    """pydantic's findings as one message: where, what was given, what is allowed."""
    parts = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            table = next((part for part in reversed(problem["loc"][:-1]) if part in _TABLES), None)
            kind = "setting" if table is None else f"setting of {table}"
            parts.append(unknown_name(kind, str(problem["loc"][-1]), fields if table is None else _TABLES[table]))
        elif problem["type"] == "literal_error" and isinstance(problem["input"], str):
            allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            parts.append(unknown_name(key.replace("int", "").strip("."), problem["input"], allowed))
        elif problem["type"] == "missing":
            parts.append(f"{key} is missing. A study's file needs it. Add it")
        else:
            parts.append(f"{key} = {plain(problem['input'])} was given. {problem['msg']}. Pass such a value")
    unique = dict.fromkeys(part.rstrip(".") for part in parts)
    text = "; ".join(unique)
    return StudyError(f"{where}: {text}{'' if text.endswith('?') else '.'}")


def plain(value: object) -> str:
    """A value as the file has it."""
    return json.dumps(value) if isinstance(value, (list, dict, bool, str)) else str(value)
