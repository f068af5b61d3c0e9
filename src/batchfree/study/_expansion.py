"""The runs that a study's tables stand for: their lists multiplied out over the settings, and the pre-training."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pydantic import ValidationError

from batchfree.errors import StudyError
from batchfree.study._overrides import not_replaced
from batchfree.study._settings import ArmSettings
from batchfree.study._study_file import Table, plain, refusal

__all__ = ["expanded", "expanded_pretraining"]


def expanded(where: str, tables: Sequence[Table], settings: Table) -> tuple[ArmSettings, ...]:
    """Every combination of every table's lists, over what a table leaves of `settings`.

    Raises:
        StudyError: no arm, an empty list, or a value or a combination that is refused.
    """
    arms: list[ArmSettings] = []
    for table in tables:
        if "rule" in table:
            raise StudyError(
                f"{where}: rule = {plain(table['rule'])} was given to some arms. A rule is for all runs of a study. "
                f"Name one, in [settings], a protocol, a preset or --set."
            )
        axes = {key: value if isinstance(value, list) else [value] for key, value in table.items()}
        for key, values in axes.items():
            if not values or any(values.count(value) > 1 for value in values):
                raise StudyError(
                    f"{where}: {key} = {plain(values)} was given. A list names at least one value, and each once. "
                    f"Mend the list."
                )
        below = not_replaced(settings, table)
        for combination in itertools.product(*axes.values()):
            given = {**below, **dict(zip(axes, combination, strict=True))}
            try:
                arm = ArmSettings.model_validate(given)
            except ValidationError as error:
                raise refusal(where, error, tuple(ArmSettings.model_fields)) from None
            if arm.rule is None and (problems := arm.problems()):  # with a rule they are known once it is decided
                raise StudyError(f"{where}: {'; '.join(problems)}.")
            arms.append(arm)
    if not arms:
        raise StudyError(f"{where} has no [[arms]]. A study needs at least one, for instance norm = ['bn', 'gn'].")
    return tuple(dict.fromkeys(arms))


def expanded_pretraining(
    where: str, before: Table | None, settings: Table, arms: Sequence[ArmSettings]
) -> ArmSettings | None:
    """The run before the others, for as many seeds as start from it; `None` where no arm does.

    Raises:
        StudyError: there is none that the arms can start from.
    """
    started = [arm for arm in arms if arm.start != "scratch"]
    if not started:
        return None
    if before is None:
        raise StudyError(
            f"{where}: start = {plain(started[0].start)} was given, and no [pretraining] whose network it starts "
            f'from. Add that table with the settings in which the pre-training differs, or pass start = "scratch".'
        )
    if started[0].rule is not None:
        raise StudyError(
            f"{where}: rule = {plain(started[0].rule)} was given beside [pretraining], which trains a network from its "
            f"seed. The rule is for weights that are trained already, and for all runs of a study. Leave the rule out."
        )
    trained = expanded(f"{where}, [pretraining]", [before], {**settings, "seeds": max(arm.seeds for arm in started)})
    problems = []
    if len(trained) > 1:
        problems.append("a list was given, and one network per seed is trained. Name one value of each key")
    if (trained[0].norm, trained[0].start) != ("bn", "scratch"):
        problems.append(
            f"norm = {plain(trained[0].norm)} and start = {plain(trained[0].start)} were given. The others start from "
            f'a network with Batch Norm. Pass norm = "bn" and start = "scratch"'
        )
    if trained[0].seeds < max(arm.seeds for arm in started):
        problems.append(f"seeds = {trained[0].seeds} is less than those of the arms that start from it. Leave it out")
    if others := sorted({arm.model for arm in started} - {trained[0].model}):
        problems.append(
            f"model = {plain(trained[0].model)} is trained, and arms start from it with {', '.join(others)}. One "
            f"network is trained per seed. Pass one model for all"
        )
    if problems:
        raise StudyError(f"{where}, [pretraining]: {'; '.join(problems)}.")
    return trained[0]
