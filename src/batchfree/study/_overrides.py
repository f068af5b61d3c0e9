"""What the command line's overrides make of a study file's tables."""

from __future__ import annotations

from collections.abc import Sequence

from batchfree.errors import StudyError, unknown_name
from batchfree.records import BATCH_FREE_NORMS
from batchfree.study._rule import RULED
from batchfree.study._settings import ArmSettings
from batchfree.study._study_file import Table, plain

__all__ = ["laid_over", "not_replaced", "override", "override_pretraining"]

#: Keys of which an arm has one or the other.
RIVALS = {"groups": "channels_per_group", "channels_per_group": "groups"}
#: Keys that take the place of others that stand in a table below.
REPLACED: dict[str, tuple[str, ...]] = {"rule": RULED, "max_steps": ("epochs",), "epochs": ("max_steps",)}


def laid_over(layers: Sequence[Table], overrides: Table) -> Table:
    """Each table's settings over those before it, as far as `overrides` leave them; these are not among them yet."""
    if overrides.get("rule") == "default":
        layers = [{key: value for key, value in layer.items() if key != "rule"} for layer in layers]
    settings: Table = {}
    for layer in layers:
        settings = {**not_replaced(settings, layer), **layer}
    return not_replaced(settings, overrides)


def not_replaced(settings: Table, above: Table) -> Table:
    """The settings that stay where the table `above` is laid over them."""
    replaced = {other for key, value in above.items() if value != "default" for other in REPLACED.get(key, ())}
    return {key: value for key, value in settings.items() if key not in replaced}


def override(where: str, tables: Sequence[Table], settings: Table, overrides: Table) -> list[Table]:
    """The arms' tables with `overrides` in them; those that belong to no table go to `settings`."""
    lengths = {key: value for key, value in overrides.items() if key in ("epochs", "max_steps")}
    kept = [not_replaced(table, lengths) for table in tables]  # what stands in an arm's table wins over a rule
    for key, value in overrides.items():
        values = value if isinstance(value, list) else [value]
        if any(key in table for table in kept):
            kept = [table for table in kept if isinstance(table.get(key, []), list) or table[key] in values]
            for table in kept:
                if isinstance(table.get(key), list):
                    table[key] = values
                elif (
                    key not in table
                    and RIVALS.get(key) not in table
                    and _reaches(key, {**settings, **overrides, **table})
                ):
                    table[key] = value
            if not kept:
                raise StudyError(
                    f"{key} = {plain(values)} leaves no arm of {where}. Its arms have "
                    f"{plain([table[key] for table in tables if key in table])}. Pass some of these."
                )
        elif isinstance(value, list):
            kept = [{**table, key: value} for table in kept]
        elif value == "default":
            settings.pop(key, None)
        else:
            settings[key] = value
    return kept


def _reaches(key: str, table: Table) -> bool:
    """Whether the table's runs depend on `key`: on the norm batch they may not."""
    norms = table.get("norm", "bn")
    is_blind = set(norms if isinstance(norms, list) else [norms]) <= set(BATCH_FREE_NORMS)
    follows = "norm_batches_per_step" in table or table.get("learning_rate_scale") == "norm_batch"
    return key != "norm_batch" or not is_blind or follows


def override_pretraining(where: str, layers: Sequence[Table], overrides: Table) -> Table | None:
    """The pre-training's table, of those laid over each other, with its own among `overrides`.

    These are taken out of `overrides`. `None` where there are no layers, hence no pre-training.
    """
    words = [key for key in overrides if key.startswith("pretraining.")]
    if words and not layers:
        raise StudyError(f"{', '.join(words)} was given, and {where} has no [pretraining]. Leave it out.")
    if not layers:
        return None
    own = {word.partition(".")[2]: overrides.pop(word) for word in words}
    for key in own:
        if key not in ArmSettings.model_fields:
            raise StudyError(f"{where}, [pretraining]: {unknown_name('setting', key, ArmSettings.model_fields)}")
    changed = {**laid_over(layers, own), **own}
    return {key: value for key, value in changed.items() if value != "default"}
