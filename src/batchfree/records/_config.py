"""The configuration of a cell: everything that decides its numbers."""

from __future__ import annotations

import hashlib
import shlex
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias, get_args

from pydantic import Field, FiniteFloat, NonNegativeInt, PositiveInt, model_validator

from batchfree.records._record import Record

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BATCH_FREE_NORMS", "NORMS", "STARTS", "CellConfig", "Half", "Norm", "Start"]

Norm: TypeAlias = Literal["none", "bn", "bn-frozen", "bn+ws", "gn", "gn+ws", "ln", "in"]
#: How a run starts. `scratch`: from its seed, or from `weights`. The others from the trained network of another run of
#: its seed: `trained` goes on with it. In its copies with Group Norm the norms are `fresh`, have Batch Norm's weight
#: and bias `copied`, or are `calibrated` to it; `recovered` is distilled from it on top.
Start: TypeAlias = Literal["scratch", "trained", "fresh", "copied", "calibrated", "recovered"]

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
        if problem := self.crop_problem(self.stored_size, self.image_size, self.augment):
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

    @staticmethod
    def crop_problem(stored_size: int | None, image_size: int | None, augment: str) -> str:
        """Why images held at that side do not become what the network sees, with what to do; empty where they do."""
        if stored_size is None:
            return ""
        if image_size is None or stored_size <= image_size:
            return (
                f"stored_size = {stored_size} was given with image_size = {image_size}. Training images are held "
                f"larger than the network sees them, to be cropped. Give an image_size below it, or leave stored_size "
                f"out"
            )
        if augment not in ("crop-flip", "resized-crop"):
            return (
                f"stored_size = {stored_size} was given with augment = {augment!r}, which crops nothing. Augmentations "
                f"that crop: crop-flip, resized-crop. Give one of these, or leave stored_size out"
            )
        return ""

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
