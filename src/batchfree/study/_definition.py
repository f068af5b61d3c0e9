"""A study as a TOML file, and what it becomes with a protocol, a preset and the command line's overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batchfree.errors import StudyError, unknown_name
from batchfree.records import CellConfig, ReportSpec, StudyRecord
from batchfree.study._data import ImageData
from batchfree.study._expansion import expanded, expanded_pretraining
from batchfree.study._overrides import laid_over, override, override_pretraining
from batchfree.study._rule import by_rule
from batchfree.study._schedules import check_steps
from batchfree.study._settings import ArmSettings
from batchfree.study._study_file import Overlay, StudyFile, Table, plain, read_study_file
from batchfree.weights import shortened

__all__ = ["Loaded", "Study", "load_study"]

#: Data sets and their fingerprints by `ArmSettings.source`.
Loaded = dict[tuple[object, ...], tuple[ImageData, str]]

#: What a comparison's reference may say instead of a value.
REFERENCE_WORDS = ("largest", "none")


@dataclass(frozen=True)
class Study:
    """A study with every setting decided: its arms, and what its report shows."""

    name: str
    title: str
    reproduces: str
    protocol: str
    pretraining: ArmSettings | None  # trained before the arms that start from its network; None: none does
    arms: tuple[ArmSettings, ...]
    axes: tuple[str, ...]
    settings: dict[str, str]
    report: ReportSpec
    chosen: tuple[str, ...] = ()  # what rules chose once the data was known, in words

    @property
    def runs(self) -> tuple[ArmSettings, ...]:
        """Everything that is trained: the pre-training, where there is one, and the arms."""
        return self.arms if self.pretraining is None else (self.pretraining, *self.arms)

    def decided(self, *, download: bool = False) -> Study:
        """The study with what its rules give for the data; itself where there are none.

        Raises:
            StudyError: a setting that was given contradicts a rule.
            DataError: a data set is missing, damaged or unusable.
        """
        if all(arm.rule is None for arm in self.runs):
            return self
        measured: dict[tuple[object, ...], tuple[int, int]] = {}
        decided, chosen = [], []
        for arm in self.runs:
            if arm.rule is not None:
                if arm.source not in measured:
                    measured[arm.source] = arm.measured(download=download)
                arm, words = by_rule(arm, *measured[arm.source], self.name)
                chosen.append(words)
            decided.append(arm)
        before = None if self.pretraining is None else decided.pop(0)
        return replace(self, pretraining=before, arms=tuple(decided), chosen=tuple(dict.fromkeys(chosen)))

    def load(self, *, download: bool = False) -> Loaded:
        """Every data set that a run needs, with its fingerprint; of a study whose rules are `decided`.

        Raises:
            DataError: a data set is missing, damaged or unusable.
            StudyError: a rule is not decided, or an arm starts from the network of a pre-training that has other
                classes.
        """
        loaded: Loaded = {}
        for arm in self.runs:
            if arm.source not in loaded:
                data = arm.load(download=download)
                loaded[arm.source] = data, data.fingerprint()
        if self.pretraining is not None:
            before = loaded[self.pretraining.source][0].classes
            for arm in self.arms:
                if arm.start != "scratch" and (classes := loaded[arm.source][0].classes) != before:
                    raise StudyError(
                        f"{self.name}: start = {plain(arm.start)} was given for {len(classes)} classes "
                        f"({shortened(classes)}), and [pretraining] trains on {len(before)} ({shortened(before)}). The "
                        f"trained classifier is for these, in this order. Pass data of the same classes for both."
                    )
        return loaded

    def cells(self, loaded: Loaded) -> tuple[CellConfig, ...]:
        """Every cell, each once; those of the pre-training first.

        Args:
            loaded: as `load` gives it.

        Raises:
            StudyError: an SGD batch is larger than the training set.
        """
        pretraining: list[CellConfig] = []
        if self.pretraining is not None:
            trained = self.pretraining.cells(self.name, self.protocol, *loaded[self.pretraining.source])
            pretraining = [cell.model_copy(update={"keeps_weights": True}) for cell in trained]
        for cell in pretraining:
            check_steps(cell)
        cells = {cell.cell_id: cell for cell in pretraining}
        for arm in self.arms:
            for cell in arm.cells(self.name, self.protocol, *loaded[arm.source], pretraining):
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
            in it fall away. Where some tables of arms have the key, those without it get it too, but for a norm batch
            that none of their norms sees, and for groups where they have channels_per_group, or the reverse. "default"
            takes a setting of the file away. "pretraining.KEY" is a setting of the pre-training, which otherwise has
            the arms' but for those that the file gives it.

    Raises:
        StudyError: no such study, preset or protocol; or a key, a value or a combination is refused. Nothing is read
            but the file.
    """
    where, file = read_study_file(study)
    overlay = _chosen(where, "preset", preset, file.presets) or Overlay()
    protocol = protocol or overlay.protocol or next(iter(file.protocols), None)
    rules = _chosen(where, "protocol", protocol, file.protocols) or Overlay()
    _check_overlays(where, file)
    settings = laid_over([file.settings, rules.settings, overlay.settings], dict(overrides or {}))
    if "norm_batches_per_step" in settings and "sgd_batch" in (overrides or {}):
        raise StudyError(
            f"sgd_batch was given with protocol {protocol!r}, in which the SGD batch is "
            f"{settings['norm_batches_per_step']} norm batches. One of them decides. "
            f"Leave it out, or pass another protocol."
        )
    given = dict(overrides or {})
    layers = [] if file.pretraining is None else [file.pretraining, rules.pretraining, overlay.pretraining]
    before = override_pretraining(where, layers, given)
    tables = override(where, overlay.arms or rules.arms or file.arms, settings, given)
    if settings.get("data") != "pets" and "split" not in (overrides or {}):
        settings.pop("split", None)  # the file's is for the data that it names
    arms = expanded(where, tables, settings)
    _check_comparisons(where, file)
    return Study(
        name=file.name,
        title=file.title,
        reproduces=file.reproduces,
        protocol=protocol or "",
        pretraining=expanded_pretraining(where, before, settings, arms),
        arms=arms,
        axes=_axes(arms, tables),
        settings=_described(settings, tables, before, protocol),
        report=file.report,
    )


def _chosen(where: str, kind: str, name: str | None, among: Mapping[str, Overlay]) -> Overlay | None:
    if name is None:
        return None
    if name not in among:
        if not among:
            raise StudyError(f"{kind} {name!r} was given, and {where} has none. Leave --{kind} out.")
        raise StudyError(unknown_name(kind, name, among))
    return among[name]


def _check_overlays(where: str, file: StudyFile) -> None:
    """A misspelt key is refused also in protocols and presets that are not chosen, and in an unused pre-training."""
    overlays = {f"protocols.{name}": overlay for name, overlay in file.protocols.items()}
    overlays |= {f"presets.{name}": overlay for name, overlay in file.presets.items()}
    tables = [file.pretraining or {}]
    for name, overlay in overlays.items():
        tables += (overlay.settings, overlay.pretraining, *(overlay.arms or []))
        if overlay.pretraining and file.pretraining is None:
            raise StudyError(
                f"{where}: [{name}.pretraining] was given, and no [pretraining] that it is laid over. Add that table, "
                f"or leave this one out."
            )
    for table in tables:
        for key in table:
            if key not in ArmSettings.model_fields:
                raise StudyError(f"{where}: {unknown_name('setting', key, ArmSettings.model_fields)}")


def _check_comparisons(where: str, file: StudyFile) -> None:
    """Each names settings, and a reference that some arm of the file can be, whatever is chosen of them."""
    overlays = [*file.protocols.values(), *file.presets.values()]
    tables = [file.settings, *file.arms]
    tables += [table for overlay in overlays for table in (overlay.settings, *(overlay.arms or []))]
    for comparison in file.report.compare:
        for key in (*comparison.reference, *comparison.only):
            if key not in CellConfig.model_fields:
                raise StudyError(f"{where}: {unknown_name('setting', key, CellConfig.model_fields)}")
        for key, value in comparison.reference.items():
            given = [table[key] for table in tables if key in table]
            values = [each for one in given for each in (one if isinstance(one, list) else [one])]
            if values and value not in (*values, *REFERENCE_WORDS):
                raise StudyError(
                    f"{where}: the comparison {comparison.title!r} has the reference {key} = {plain(value)}, which no "
                    f"arm has. Arms of this file have: {', '.join(dict.fromkeys(map(plain, values)))}. Name one of "
                    f"these, or {' or '.join(map(plain, REFERENCE_WORDS))}."
                )


def _axes(arms: Sequence[ArmSettings], tables: Sequence[Table]) -> tuple[str, ...]:
    """The keys of the tables whose values differ between arms."""
    keys = dict.fromkeys(key for table in tables for key in table)
    varying = tuple(key for key in keys if len({getattr(arm, key) for arm in arms}) > 1)
    if "start" in varying:  # what follows from it, as a learning rate for trained weights does, tells no arms apart
        pairs = {key: len({(arm.start, getattr(arm, key)) for arm in arms}) for key in varying}
        starts = len({arm.start for arm in arms})
        varying = tuple(key for key in varying if key in ("start", "norm") or pairs[key] > starts)
    unseen = [key for key in varying if key not in CellConfig.model_fields]
    if unseen:
        raise StudyError(
            f"{', '.join(unseen)} was given several values, and says only how others are made. An axis is one of: "
            f"{', '.join(key for key in ArmSettings.model_fields if key in CellConfig.model_fields)}. "
            f"Give the values that follow from it, for instance of learning_rate or sgd_batch."
        )
    return varying


def _described(settings: Table, tables: Sequence[Table], before: Table | None, protocol: str | None) -> dict[str, str]:
    described = {key: plain(value) for key, value in settings.items()}
    if before is not None:
        described["pretraining"] = _listed(before)
    for index, table in enumerate(tables):
        described[f"arms {index + 1}" if len(tables) > 1 else "arms"] = _listed(table)
    return {**({} if protocol is None else {"protocol": protocol}), **described}


def _listed(table: Table) -> str:
    return "; ".join(f"{key} = {plain(value)}" for key, value in table.items())
