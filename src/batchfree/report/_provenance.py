"""How the study was run, as term and description: what somebody needs to judge it or to run it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from batchfree.records import CellConfig, CellRecord, Environment, StudyRecord
from batchfree.report._arms import usable_error
from batchfree.report._wording import enumerated, length, percent

__all__ = ["environment_text", "environments", "provenance"]


def provenance(study: StudyRecord, cells: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """Terms and what they were in this study; a term whose value differs between runs says where it had which."""
    configs = [config for config in study.cells if not config.keeps_weights]

    def values(read: Callable[[CellConfig], object], *axes: str) -> str:
        return _by_norm_batch(configs, read, is_axis=any(axis in study.axes for axis in axes))

    def images(c: CellConfig) -> str:
        parts = [c.data, *([f"split {c.split}"] if c.split else []), *([f"{c.half} half"] if c.half else [])]
        turned = [f"turned by {c.rotation:g} degrees"] if c.rotation else []
        return f"{', '.join(parts + turned)} (SHA-256 {c.data_fingerprint[:12]}...)"

    def start(c: CellConfig) -> str:
        if c.pretraining is not None:
            return "of the pre-training"
        fingerprint = f" (SHA-256 {c.weights_fingerprint[:12]}...)" if c.weights_fingerprint else ""
        return "from scratch" if c.weights is None else f"{c.weights}{fingerprint}"

    def pretraining() -> str:
        """What the others start from, and how well it does its own task."""
        if not (trained := [cell for cell in cells if cell.config.keeps_weights]):
            return ""
        c = trained[0].config
        errors = {cell.config.seed: error for cell in trained if (error := usable_error(cell)) is not None}
        of_seeds = [f"{percent(error)} (seed {seed})" for seed, error in errors.items()]
        outcome = f"; error {enumerated(of_seeds)}" if errors else ""
        settings = f"norm batch {c.norm_batch}, {length(c)}, learning rate {c.learning_rate:g}"
        return f"{c.train_images:,} images of {images(c)}, {settings}{outcome}"

    grouped = [config for config in configs if config.norm in ("gn", "gn+ws")]
    seconds = sum(cell.cost.seconds for cell in cells if cell.cost is not None)
    return [
        ("Reproduces", study.reproduces or "no publication"),
        ("Model", values(lambda c: c.model, "model")),
        ("Weights", values(start, "weights", "start")),
        ("Data", values(images, "data", "split")),
        ("Training images", values(lambda c: f"{c.train_images:,}", "train_images")),
        ("Validation images", values(lambda c: f"{c.validation_images:,}", "validation_images")),
        ("Image side", values(_image_side, "image_size", "stored_size")),
        ("Augmentation", values(_augmentation, "augment", "mixup")),
        ("Epochs", values(length, "epochs", "max_steps")),
        ("Protocol", values(lambda c: c.protocol or "none named", "protocol")),
        ("SGD batch", values(_sgd_batch, "sgd_batch", "workers")),
        ("Optimiser", values(_optimizer, "optimizer", "momentum", "weight_decay")),
        (
            "Learning rate",
            values(lambda c: f"{c.learning_rate:g}, {c.schedule} schedule", "learning_rate", "schedule", "start"),
        ),
        ("Groups asked for", _by_norm_batch(grouped, _groups, is_axis=True) or "none"),
        ("Last gamma of each block", values(lambda c: _GAMMA[c.zero_gamma], "zero_gamma")),
        *([("Pre-training", before)] if (before := pretraining()) else []),
        ("Seeds", ", ".join(map(str, sorted({c.seed for c in configs})))),
        ("Device and threads per run", values(lambda c: f"{c.device}, {c.threads}", "device", "threads")),
        ("Time of all runs together", f"{seconds:,.0f} s"),
    ]


def environments(cells: Sequence[CellRecord]) -> list[tuple[str, int]]:
    """Every environment that runs were made in, with how many; more than one is worth knowing before comparing."""
    return Counter(environment_text(cell.environment) for cell in cells if cell.environment is not None).most_common()


def environment_text(e: Environment) -> str:
    """Versions and machine in one line."""
    optional = {"torchvision": e.torchvision, "timm": e.timm, "CUDA": e.cuda}
    others = "".join(f", {name} {version}" for name, version in optional.items() if version is not None)
    return (
        f"Python {e.python}, torch {e.torch}{others}, NumPy {e.numpy}, batchfree {e.batchfree}; {e.platform}; "
        f"{e.processor} ({e.cpu_capability})"
    )


_GAMMA = {None: "as the network has it", True: "0", False: "1"}


def _image_side(config: CellConfig) -> str:
    seen = "as the data has it" if config.image_size is None else f"{config.image_size} pixels"
    return seen if config.stored_size is None else f"{seen}, of {config.stored_size} before the crop in training"


def _augmentation(config: CellConfig) -> str:
    return f"{config.augment}, mixup with alpha {config.mixup:g}" if config.mixup else config.augment


def _sgd_batch(config: CellConfig) -> str:
    return f"{config.sgd_batch}{f' over {config.workers} workers' if config.workers > 1 else ''}"


def _optimizer(config: CellConfig) -> str:
    name = f"SGD, momentum {config.momentum:g}" if config.optimizer == "sgd" else "Adam"
    return f"{name}, weight decay {config.weight_decay:g}"


def _groups(config: CellConfig) -> str:
    return str(config.groups) if config.channels_per_group is None else f"{config.channels_per_group} channels each"


def _by_norm_batch(configs: Sequence[CellConfig], read: Callable[[CellConfig], object], *, is_axis: bool) -> str:
    """The one value that all runs share, or every value; of what is no axis, each with its norm batches."""
    found: dict[str, list[str]] = {}
    for config in configs:
        where = "any" if config.norm_batch is None else str(config.norm_batch)
        norm_batches = found.setdefault(str(read(config)), [])
        if where not in norm_batches:
            norm_batches.append(where)
    if len(found) <= 1:
        return next(iter(found), "")
    if is_axis:
        return "; ".join(found)
    return "; ".join(f"{value} at norm batch {', '.join(where)}" for value, where in found.items())
