"""A study as a TOML file, and what it becomes with a protocol, a preset and the command line's overrides."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchfree.errors import StudyError, unknown_name
from batchfree.records import CellConfig, ReportSpec, StudyRecord
from batchfree.study._data import ImageData, load_data
from batchfree.study._schedules import check_steps
from batchfree.study._settings import ArmSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["STUDIES", "Loaded", "Study", "load_study", "study_text"]

#: The built-in studies, in the order in which they are explained.
STUDIES = ("norm-batch", "norms", "groups", "depth", "vgg", "pets", "bit", "recipe")

Table = dict[str, Any]
#: Data sets and their fingerprints by `ArmSettings.source`.
Loaded = dict[tuple[object, ...], tuple[ImageData, str]]


class Overlay(BaseModel):
    """A protocol or a preset: settings that replace the study's, and perhaps other arms."""

    model_config = ConfigDict(frozen=True, extra="allow")

    arms: list[Table] | None = None
    protocol: str | None = None  # a preset may name one

    @property
    def settings(self) -> Table:
        """Everything but the arms."""
        return dict(self.model_extra or {})


class StudyFile(BaseModel):
    """What stands in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")  # it becomes a folder's name
    title: str
    reproduces: str = ""
    settings: Table = {}
    arms: list[Table]
    protocols: dict[str, Overlay] = {}
    presets: dict[str, Overlay] = {}
    report: ReportSpec = ReportSpec()


@dataclass(frozen=True)
class Study:
    """A study with every setting decided: its arms, and what its report shows."""

    name: str
    title: str
    reproduces: str
    protocol: str
    arms: tuple[ArmSettings, ...]
    axes: tuple[str, ...]
    settings: dict[str, str]
    report: ReportSpec

    def load(self, *, download: bool = False) -> Loaded:
        """Every data set that an arm needs, with its fingerprint.

        Raises:
            DataError: a data set is missing, damaged or unusable.
        """
        loaded: Loaded = {}
        for arm in self.arms:
            if arm.source not in loaded:
                data = _load(arm, download)
                loaded[arm.source] = data, data.fingerprint()
        return loaded

    def cells(self, loaded: Loaded) -> tuple[CellConfig, ...]:
        """Every cell, each once.

        Args:
            loaded: as `load` gives it.

        Raises:
            StudyError: an SGD batch is larger than the training set.
        """
        cells: dict[str, CellConfig] = {}
        for arm in self.arms:
            for cell in arm.cells(self.name, self.protocol, *loaded[arm.source]):
                check_steps(cell)
                cells.setdefault(cell.cell_id, cell)
        return tuple(cells.values())

    def record(self, cells: tuple[CellConfig, ...], command: str) -> StudyRecord:
        """What is kept with the results."""
        return StudyRecord(
            study=self.name,
            title=self.title,
            reproduces=self.reproduces,
            command=command,
            settings=self.settings,
            axes=self.axes,
            cells=cells,
            report=self.report,
        )


def load_study(
    study: str | Path,
    *,
    preset: str | None = None,
    protocol: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Study:
    """The study of that name, or in that file.

    Args:
        study: one of `STUDIES`, or the path of a TOML file like the ones that `study_text` gives.
        preset: settings of the file under that name, laid over the study's own.
        protocol: the same; laid over before the preset. The preset's, or the file's first, where `None`.
        overrides: settings that win over all of these. A list is an axis; arms that fix the key to a value that is not
            in it fall away. "default" takes a setting of the file away.

    Raises:
        StudyError: no such study, preset or protocol; or a key, a value or a combination is refused. Nothing is read
            but the file.
    """
    where, file = _read(study)
    overlay = _chosen(where, "preset", preset, file.presets) or Overlay()
    protocol = protocol or overlay.protocol or next(iter(file.protocols), None)
    rules = _chosen(where, "protocol", protocol, file.protocols) or Overlay()
    _check_overlays(where, file)
    settings = {**file.settings, **rules.settings, **overlay.settings}
    if "norm_batches_per_step" in settings and "sgd_batch" in (overrides or {}):
        raise StudyError(
            f"sgd_batch was given with protocol {protocol!r}, in which the SGD batch is "
            f"{settings['norm_batches_per_step']} norm batches. One of them decides. "
            f"Leave it out, or pass another protocol."
        )
    tables = _override(where, overlay.arms or rules.arms or file.arms, settings, dict(overrides or {}))
    if settings.get("data") != "pets" and "split" not in (overrides or {}):
        settings.pop("split", None)  # the file's is for the data that it names
    arms = _expand(where, tables, settings)
    _check_comparisons(where, file.report)
    return Study(
        name=file.name,
        title=file.title,
        reproduces=file.reproduces,
        protocol=protocol or "",
        arms=arms,
        axes=_axes(arms, tables),
        settings=_described(settings, tables, protocol),
        report=file.report,
    )


def study_text(name: str) -> str:
    """The file of a built-in study.

    Raises:
        StudyError: no such study.
    """
    if name not in STUDIES:
        raise StudyError(unknown_name("study", name, STUDIES) + " Or pass the path of a TOML file.")
    return resources.files("batchfree.study").joinpath("studies", f"{name}.toml").read_text(encoding="utf-8")


def _read(study: str | Path) -> tuple[str, StudyFile]:
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
        raise _refusal(where, error, tuple(StudyFile.model_fields)) from None


def _chosen(where: str, kind: str, name: str | None, among: Mapping[str, Overlay]) -> Overlay | None:
    if name is None:
        return None
    if name not in among:
        if not among:
            raise StudyError(f"{kind} {name!r} was given, and {where} has none. Leave --{kind} out.")
        raise StudyError(unknown_name(kind, name, among))
    return among[name]


def _override(where: str, tables: Sequence[Table], settings: Table, overrides: Table) -> list[Table]:
    """The arms' tables with `overrides` in them; those that belong to no table go to `settings`."""
    kept = [dict(table) for table in tables]
    for key, value in overrides.items():
        values = value if isinstance(value, list) else [value]
        if any(key in table for table in kept):
            kept = [table for table in kept if isinstance(table.get(key, []), list) or table[key] in values]
            for table in kept:
                if isinstance(table.get(key), list):
                    table[key] = values
            if not kept:
                raise StudyError(
                    f"{key} = {_plain(values)} leaves no arm of {where}. Its arms have "
                    f"{_plain([table[key] for table in tables if key in table])}. Pass some of these."
                )
        elif isinstance(value, list):
            kept = [{**table, key: value} for table in kept]
        elif value == "default":
            settings.pop(key, None)
        else:
            settings[key] = value
    return kept


def _expand(where: str, tables: Sequence[Table], settings: Table) -> tuple[ArmSettings, ...]:
    """Every combination of every table's lists, over `settings`."""
    arms: list[ArmSettings] = []
    for table in tables:
        axes = {key: value if isinstance(value, list) else [value] for key, value in table.items()}
        for key, values in axes.items():
            if not values or any(values.count(value) > 1 for value in values):
                raise StudyError(
                    f"{where}: {key} = {_plain(values)} was given. A list names at least one value, and each once. "
                    f"Mend the list."
                )
        for combination in itertools.product(*axes.values()):
            given = {**settings, **dict(zip(axes, combination, strict=True))}
            try:
                arm = ArmSettings.model_validate(given)
            except ValidationError as error:
                raise _refusal(where, error, tuple(ArmSettings.model_fields)) from None
            if problems := arm.problems():
                raise StudyError(f"{where}: {'; '.join(problems)}.")
            arms.append(arm)
    if not arms:
        raise StudyError(f"{where} has no [[arms]]. A study needs at least one, for instance norm = ['bn', 'gn'].")
    return tuple(dict.fromkeys(arms))


def _check_overlays(where: str, file: StudyFile) -> None:
    """A misspelt key is refused also in the protocols and presets that are not chosen."""
    for overlay in (*file.protocols.values(), *file.presets.values()):
        for table in (overlay.settings, *(overlay.arms or [])):
            for key in table:
                if key not in ArmSettings.model_fields:
                    raise StudyError(f"{where}: {unknown_name('setting', key, ArmSettings.model_fields)}")


def _check_comparisons(where: str, report: ReportSpec) -> None:
    for comparison in report.compare:
        for key in (*comparison.reference, *comparison.only):
            if key not in CellConfig.model_fields:
                raise StudyError(f"{where}: {unknown_name('setting', key, CellConfig.model_fields)}")


def _axes(arms: Sequence[ArmSettings], tables: Sequence[Table]) -> tuple[str, ...]:
    """The keys of the tables whose values differ between arms."""
    keys = dict.fromkeys(key for table in tables for key in table)
    varying = tuple(key for key in keys if len({getattr(arm, key) for arm in arms}) > 1)
    unseen = [key for key in varying if key not in CellConfig.model_fields]
    if unseen:
        raise StudyError(
            f"{', '.join(unseen)} was given several values, and says only how others are made. An axis is one of: "
            f"{', '.join(key for key in ArmSettings.model_fields if key in CellConfig.model_fields)}. "
            f"Give the values that follow from it, for instance of learning_rate or sgd_batch."
        )
    return varying


def _load(arm: ArmSettings, download: bool) -> ImageData:
    data = load_data(arm.data, data_dir=arm.data_dir, image_size=arm.image_size, split=arm.split, download=download)
    return data.take(arm.train_images, arm.validation_images)


def _refusal(where: str, error: ValidationError, fields: Sequence[str]) -> StudyError:
    """pydantic's findings as one message: where, what was given, what is allowed."""
    parts = []
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            parts.append(unknown_name("setting", key, fields))
        elif problem["type"] == "literal_error" and isinstance(problem["input"], str):
            allowed = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            parts.append(unknown_name(key.replace("int", "").strip("."), problem["input"], allowed))
        elif problem["type"] == "missing":
            parts.append(f"{key} is missing. A study's file needs it. Add it")
        else:
            parts.append(f"{key} = {_plain(problem['input'])} was given. {problem['msg']}. Pass such a value")
    unique = dict.fromkeys(part.rstrip(".") for part in parts)
    text = "; ".join(unique)
    return StudyError(f"{where}: {text}{'' if text.endswith('?') else '.'}")


def _described(settings: Table, tables: Sequence[Table], protocol: str | None) -> dict[str, str]:
    described = {key: _plain(value) for key, value in settings.items()}
    for index, table in enumerate(tables):
        described[f"arms {index + 1}" if len(tables) > 1 else "arms"] = "; ".join(
            f"{key} = {_plain(value)}" for key, value in table.items()
        )
    return {**({} if protocol is None else {"protocol": protocol}), **described}


def _plain(value: object) -> str:
    return json.dumps(value) if isinstance(value, (list, dict, bool, str)) else str(value)
