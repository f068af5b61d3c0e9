"""What a rule makes of an arm's settings once the data is known."""

from __future__ import annotations

from batchfree.errors import StudyError
from batchfree.study._bit_rule import BIT_BATCH, BIT_LEARNING_RATE, BIT_MOMENTUM, bit_rule
from batchfree.study._settings import ArmSettings
from batchfree.study._study_file import Table, plain

__all__ = ["RULED", "by_rule"]

#: Settings that a rule decides, or that would contradict it, where neither the table that names it nor one that is laid
#: over that has them.
RULED = (
    "sgd_batch", "norm_batch", "norm_batches_per_step", "optimizer", "learning_rate", "learning_rate_scale", "momentum",
    "weight_decay", "schedule", "max_steps", "epochs", "stored_size", "image_size", "augment", "mixup",
)  # fmt: skip
SIZES = ("stored_size", "image_size")


def by_rule(arm: ArmSettings, images: int, area: int, where: str) -> tuple[ArmSettings, str]:
    """The arm with every setting decided, and what its rule chose in words.

    Args:
        arm: one with a rule.
        images, area: of its training images, as `ArmSettings.measured` gives them.
        where: the study, for messages.

    Raises:
        StudyError: a setting that was given contradicts the rule.
    """
    given: Table = arm.model_dump(exclude_unset=True, exclude={"rule"})
    _refuse_halves(given, where, plain(arm.rule))
    _, sgd_batch = ArmSettings.model_validate({"sgd_batch": BIT_BATCH, **given}).batches
    chosen = {key: value for key, value in _bit_settings(images, area, sgd_batch).items() if key not in given}
    if "epochs" in given:
        chosen.pop("max_steps", None)
    if "norm_batches_per_step" in given:  # the norm batches make the SGD batch
        chosen.pop("sgd_batch", None)
    decided = ArmSettings.model_validate({**chosen, **given})
    if problems := decided.problems():
        raise StudyError(f"{where}, with rule = {plain(arm.rule)}: {'; '.join(problems)}.")
    own = {key: given[key] for key in RULED if key in given}
    size = f"{images:,} training images of {area:,} pixels (height times width)"
    words = f"rule = {plain(arm.rule)}, {size}: {_listed(chosen)}"
    if own:
        words += f"; given: {_listed(own)}"
    if arm.weights is None and arm.start == "scratch":
        words += ". Without --weights it trains from scratch, and the rule is for fine-tuning"
    return decided, words


def _refuse_halves(given: Table, where: str, rule: str) -> None:
    """Refuses a setting that says nothing without another, which the rule would give for itself."""
    sizes = {key: given[key] for key in SIZES if key in given}
    if len(sizes) == 1:
        raise StudyError(
            f"{where}: {_listed(sizes)} was given, and rule = {rule} gives both sizes or none, as one is cropped from "
            f"the other. Pass {' and '.join(SIZES)}, or neither{_taken_away(*sizes)}."
        )
    scale = given.get("learning_rate_scale", "none")
    if scale != "none" and "learning_rate" not in given:
        raise StudyError(
            f"{where}: learning_rate_scale = {plain(scale)} was given, and rule = {rule} gives a learning rate that is "
            f"in proportion to the SGD batch already. Pass learning_rate too, or neither"
            f"{_taken_away('learning_rate_scale')}."
        )


def _taken_away(key: str) -> str:
    return f"; where a preset or file gives it, --set {key}=default"


def _bit_settings(images: int, area: int, sgd_batch: int) -> Table:
    """BiT's rule for SGD batches of that size.

    It is for 512. At another size a run sees as many images, at a learning rate in proportion, as the authors' notebook
    has it (google-research/big_transfer, colabs/big_transfer_tf2.ipynb).
    """
    rule = bit_rule(images, area)
    return {
        "sgd_batch": BIT_BATCH,
        "optimizer": "sgd",
        "learning_rate": BIT_LEARNING_RATE * sgd_batch / BIT_BATCH,
        "learning_rate_scale": "none",
        "momentum": BIT_MOMENTUM,
        "weight_decay": 0.0,
        "schedule": "bit",
        "max_steps": -(-rule.steps * BIT_BATCH // sgd_batch),
        "stored_size": rule.resize,
        "image_size": rule.crop,
        "augment": "crop-flip",
        "mixup": rule.mixup_alpha,
    }


def _listed(table: Table) -> str:
    return ", ".join(f"{key} = {plain(value)}" for key, value in table.items())
