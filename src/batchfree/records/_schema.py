"""The schema: what each file of a study holds."""

from __future__ import annotations

import hashlib
import shlex
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BATCH_FREE_NORMS",
    "NORMS",
    "RETRIED",
    "SCHEMA_VERSION",
    "STARTS",
    "CellConfig",
    "CellRecord",
    "CellResult",
    "Comparison",
    "Cost",
    "Environment",
    "EpochMetrics",
    "FigureKind",
    "Half",
    "Norm",
    "Record",
    "ReportSpec",
    "Start",
    "Status",
    "StudyRecord",
    "crop_problem",
    "summarise",
]

#: Raised when a file's meaning changes; a reader refuses other versions.
SCHEMA_VERSION = 2

Norm: TypeAlias = Literal["none", "bn", "bn-frozen", "bn+ws", "gn", "gn+ws", "ln", "in"]
#: How a run starts. `scratch`: from its seed, or from `weights`. The others from the trained network of another run of
#: its seed: `trained` goes on with it. In its copies with Group Norm the norms are `fresh`, have Batch Norm's weight
#: and bias `copied`, or are `calibrated` to it; `recovered` is distilled from it on top.
Start: TypeAlias = Literal["scratch", "trained", "fresh", "copied", "calibrated", "recovered"]
#: `done`: all epochs ran. `diverged`: the loss stopped being finite. `failed`: it crashed or was killed. `out of
#: memory`, `timed out`: it hit a limit. `skipped`: its network cannot be built.
Status: TypeAlias = Literal["done", "diverged", "failed", "out of memory", "timed out", "skipped"]
#: Runs that are tried again when the study is run again: another time, or more room, may change the outcome.
RETRIED: tuple[Status, ...] = ("failed", "out of memory", "timed out")

NORMS: tuple[Norm, ...] = get_args(Norm)
#: Norms that do not see the batch, hence not the norm batch either.
BATCH_FREE_NORMS: tuple[Norm, ...] = ("none", "bn-frozen", "gn", "gn+ws", "ln", "in")
#: Norms with which a run can start so. From scratch there is nothing learnt to freeze; strict Weight Standardization is
#: for training from scratch.
STARTS: dict[Start, tuple[Norm, ...]] = {
    "scratch": tuple(norm for norm in NORMS if norm != "bn-frozen"),
    "trained": ("bn", "bn-frozen"),
    "fresh": ("gn",),
    "copied": ("gn",),
    "calibrated": ("gn",),
    "recovered": ("gn",),
}

Half: TypeAlias = Literal["first", "second"]


class Record(BaseModel):
    """One JSON file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")

    #: Fields that this schema version did not have at first. They are in the JSON only where they say something, so
    #: that a batchfree of before them reads the rest, and cells keep the names that they had.
    _added_later: ClassVar[tuple[str, ...]] = ()

    schema_version: Literal[2] = 2

    @model_serializer(mode="wrap")
    def _without_unused(self, serialise: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        unused = self._unused if info.mode == "json" else ()
        return {name: value for name, value in serialise(self).items() if name not in unused}

    @property
    def _unused(self) -> set[str]:
        fields = type(self).model_fields
        return {name for name in self._added_later if getattr(self, name) == fields[name].default}


class CellConfig(Record):
    """Everything that decides a cell's numbers; its hash is the cell's name.

    `norm_batch` is how many images share Batch Norm's statistics, `None` where the norm cannot see it and nothing else
    follows from it.
    """

    # Of fine-tuning, of data that any study may halve or turn, and of BiT's rule.
    _added_later: ClassVar[tuple[str, ...]] = (
        *("start", "pretraining", "keeps_weights", "half", "rotation"),
        *("max_steps", "mixup", "stored_size"),
    )

    study: str
    protocol: str = ""  # the study's name for how batch sizes, learning rate and schedule hang together
    model: str
    weights: str | None = None  # "pretrained" or a file; None: from scratch
    weights_fingerprint: str | None = None  # SHA-256 of that file
    start: Start = "scratch"
    pretraining: str | None = None  # the id of the cell whose trained network this one starts from
    keeps_weights: bool = False  # its trained network stays in weights.safetensors, for the cells that name it
    norm: Norm
    norm_batch: PositiveInt | None = None
    groups: PositiveInt | Literal["auto"] = "auto"
    channels_per_group: PositiveInt | None = None  # instead of `groups`
    zero_gamma: bool | None = None  # the last gamma of each residual block starts at 0; None: as the model has it
    sgd_batch: PositiveInt
    workers: PositiveInt = 1  # processes that share each SGD batch
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[FiniteFloat, Field(gt=0)]
    momentum: FiniteFloat = 0.9
    weight_decay: FiniteFloat = 1e-4
    schedule: Literal["cosine", "step", "constant", "bit"] = "cosine"
    epochs: PositiveInt
    max_steps: PositiveInt | None = None  # after which the last epoch ends; None: whole epochs
    augment: str = "none"
    mixup: Annotated[FiniteFloat, Field(ge=0)] = 0.0  # alpha of Zhang et al. 2018; 0: images are not blended
    data: str  # name, or the absolute path of a folder of class folders
    data_fingerprint: str  # SHA-256 of the images and labels this cell sees
    data_dir: str | None = None  # where the files of a named data set lie
    split: str | None = None  # of a data set that has several
    half: Half | None = None  # of the training images, in a fixed random order; None: both
    rotation: FiniteFloat = 0.0  # of every image, in degrees
    train_images: PositiveInt
    validation_images: PositiveInt
    image_size: PositiveInt | None = None  # side in pixels that the network sees; None: as the data set has it
    stored_size: PositiveInt | None = None  # side of the training images before the crop; None: the same
    seed: NonNegativeInt
    threads: PositiveInt = 1
    device: str = "cpu"

    @model_validator(mode="after")
    def _norm_batch_fits(self) -> Self:
        per_worker, rest = divmod(self.sgd_batch, self.workers)
        if rest:
            raise ValueError(f"an SGD batch of {self.sgd_batch} does not split over {self.workers} workers")
        if self.norm not in BATCH_FREE_NORMS and (self.norm_batch is None or per_worker % self.norm_batch):
            raise ValueError(
                f"Batch Norm with norm_batch={self.norm_batch} and {per_worker} images per step and worker: a norm "
                f"batch that divides them is needed"
            )
        return self

    @model_validator(mode="after")
    def _start_has_its_network(self) -> Self:
        if (self.start == "scratch") != (self.pretraining is None):
            raise ValueError(
                f"start={self.start} with pretraining={self.pretraining}: every start but scratch is from the network "
                f"of another cell, which pretraining names. Give both, or leave both out"
            )
        if self.norm not in STARTS[self.start]:
            starts = [start for start, norms in STARTS.items() if self.norm in norms]
            raise ValueError(
                f"norm={self.norm} with start={self.start}: norms that start so are {', '.join(STARTS[self.start])}. "
                f"Give one of these, or start={' or start='.join(starts)}"
            )
        return self

    @model_validator(mode="after")
    def _stored_size_is_cropped(self) -> Self:
        if problem := crop_problem(self.stored_size, self.image_size, self.augment):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _steps_end_in_the_last_epoch(self) -> Self:
        per_epoch, steps = self.steps_per_epoch, self.max_steps
        if steps is not None and per_epoch and self.epochs != (needed := -(-steps // per_epoch)):
            raise ValueError(
                f"max_steps={steps} with epochs={self.epochs} of {per_epoch} steps each: the run ends in the last of "
                f"its epochs. Give epochs={needed}, or no max_steps"
            )
        return self

    @property
    def steps_per_epoch(self) -> int:
        """Of a whole epoch; its ragged last batch is left out."""
        return self.train_images // self.sgd_batch

    @property
    def total_steps(self) -> int:
        """Of all epochs."""
        return self.epochs * self.steps_per_epoch if self.max_steps is None else self.max_steps

    @property
    def cell_id(self) -> str:
        """Folder name: what the cell is, in short, and the hash of its whole configuration."""
        # Where images and weights lie is not what they are: the fingerprints are.
        moved = {"weights"} if self.weights_fingerprint else set()
        identity = self.model_dump_json(exclude={"data", "data_dir"} | moved)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        batch = "" if self.norm_batch is None else f"-n{self.norm_batch}"
        start = "" if self.start == "scratch" else f"-{self.start}"
        return f"{self.norm.replace('+', '-')}{start}{batch}-s{self.seed}-{digest}"

    @property
    def arm_id(self) -> str:
        """The same for the cells that differ in the seed alone."""
        first = {"seed": 0, "start": "scratch", "pretraining": None}
        return f"{self.start} {self.model_copy(update=first).cell_id}"

    def assignments(self) -> list[str]:
        """`key=value` words that `batchfree cell` turns into this configuration again."""
        values = self.model_dump(exclude={"schema_version"} | self._unused, exclude_none=True)
        return [f"{key}={value}" for key, value in values.items()]

    def command(self, out: str) -> str:
        """The one line that runs this cell alone, anywhere."""
        return shlex.join(["batchfree", "cell", *self.assignments(), "--out", out])


#: The drawing that a study is about; `curves` are drawn for every study.
FigureKind: TypeAlias = Literal["norm-batch", "groups", "bars", "curves", "percentiles", "fine-tuning"]


AxisChoice: TypeAlias = str | int | float | bool


class Comparison(BaseModel):
    """One family of seed-paired differences, corrected together for being many.

    Each arm is compared with the arm that has the values of `reference` and equals it in all other axes. "largest"
    stands for the largest value of an axis, "none" for what has none of it. Arms take part that have the value of
    each axis in `only`, or one of its values; all where it is empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    reference: dict[str, AxisChoice]
    only: dict[str, AxisChoice | tuple[AxisChoice, ...]] = {}


class ReportSpec(BaseModel):
    """What a study's part of the report shows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    figure: FigureKind = "bars"
    compare: tuple[Comparison, ...] = ()


class StudyRecord(Record):
    """What was asked for, and the cells that follow from it."""

    study: str
    title: str
    reproduces: str  # papers, figures and tables
    command: str
    settings: dict[str, str]
    axes: tuple[str, ...]  # the fields of CellConfig in which the arms differ; the seed is not one
    cells: tuple[CellConfig, ...]
    report: ReportSpec = ReportSpec()


class EpochMetrics(Record):
    """One line of metrics.jsonl. Losses are cross-entropies in nats."""

    epoch: int  # from 1; 0 is before the first step, of cells that start from a trained network
    train_loss: float | None  # None at epoch 0
    validation_loss: float
    error_percent: float  # of the validation images
    #: Batch Norm alone, in the last epochs: the error with running statistics computed anew from training images.
    recomputed_error_percent: float | None = None
    #: 1st, 20th, 80th and 99th percentile of the last convolution's output on validation images.
    feature_percentiles: tuple[float, float, float, float] | None = None


class CellResult(Record):
    """A cell's outcome. The numbers are `None` unless `status` is "done"."""

    _added_later: ClassVar[tuple[str, ...]] = ("initial_error_percent",)

    cell_id: str
    status: Status
    reason: str = ""  # why it is not done; empty when it is
    error_percent: float | None = None  # median over the last epochs: see last_epochs
    initial_error_percent: float | None = None  # before the first step, of cells that start from a trained network
    final_error_percent: float | None = None
    best_error_percent: float | None = None  # optimistic: chosen on the validation images
    recomputed_error_percent: float | None = None  # median over the same epochs; Batch Norm alone
    validation_loss: float | None = None  # of the last epoch
    num_groups: tuple[int, ...] = ()  # of each norm in forward order; empty for Batch Norm

    @property
    def is_final(self) -> bool:
        """Whether running the study again leaves it as it is."""
        return self.status not in RETRIED


class Environment(Record):
    """What a cell ran on."""

    python: str
    torch: str
    numpy: str
    platform: str
    processor: str
    cpu_capability: str  # the instruction set torch's kernels use
    threads: int
    batchfree: str
    torchvision: str | None = None
    timm: str | None = None  # where it is installed
    cuda: str | None = None  # that torch was built for, where the run is on such a device


class Cost(Record):
    """What a cell cost, over all its starts."""

    seconds: float  # building the network, calibration and recovery included; training and validation
    training_seconds: float
    steps: int
    peak_memory_bytes: int  # of training, above what the process held before it; of the last start

    @property
    def seconds_per_step(self) -> float | None:
        """Of training alone."""
        return self.training_seconds / self.steps if self.steps else None


class CellRecord(BaseModel):
    """All that is on disk of one cell; `result` is `None` while it is not finished."""

    config: CellConfig
    result: CellResult | None
    metrics: tuple[EpochMetrics, ...]
    environment: Environment | None
    cost: Cost | None


def crop_problem(stored_size: int | None, image_size: int | None, augment: str) -> str:
    """Why training images of that side do not become what the network sees, with what to do; empty where they do."""
    if stored_size is None:
        return ""
    if image_size is None or stored_size <= image_size:
        return (
            f"stored_size = {stored_size} was given with image_size = {image_size}. Training images are held larger "
            f"than the network sees them, to be cropped. Give an image_size below it, or leave stored_size out"
        )
    if augment not in ("crop-flip", "resized-crop"):
        return (
            f"stored_size = {stored_size} was given with augment = {augment!r}, which crops nothing. Augmentations "
            f"that crop: crop-flip, resized-crop. Give one of these, or leave stored_size out"
        )
    return ""


def last_epochs(epochs: int) -> int:
    """Over how many of its last epochs the error of a run is the median: five, but no more than the last half.

    Five are those of Wu & He (2018, section 4.1), of a hundred; in a run of six they would nearly reach its start.

    >>> last_epochs(100), last_epochs(6)
    (5, 3)
    """
    return min(5, (epochs + 1) // 2)


def summarise(cell_id: str, metrics: Sequence[EpochMetrics], num_groups: Iterable[int]) -> CellResult:
    """The result of a cell that ran all its epochs.

    Args:
        metrics: one entry per epoch, at least one; perhaps one of epoch 0 before them.
        num_groups: groups of each norm in forward order.
    """
    initial = metrics[0].error_percent if metrics[0].epoch == 0 else None
    errors = [epoch.error_percent for epoch in metrics if epoch.epoch]
    last = last_epochs(len(errors))
    recomputed = [e for epoch in metrics[-last:] if (e := epoch.recomputed_error_percent) is not None]
    return CellResult(
        cell_id=cell_id,
        status="done",
        error_percent=statistics.median(errors[-last:]),
        initial_error_percent=initial,
        final_error_percent=errors[-1],
        best_error_percent=min(errors),
        recomputed_error_percent=statistics.median(recomputed) if recomputed else None,
        validation_loss=metrics[-1].validation_loss,
        num_groups=tuple(num_groups),
    )
