"""What a study and its cells are on disk: schema, writing, reading, version.

    <out>/study.json                     the study's settings; an --out belongs to one study
    <out>/cells/<id>/config.json         one training run: one configuration, one seed
    <out>/cells/<id>/environment.json    versions, machine and threads it ran with
    <out>/cells/<id>/metrics.jsonl       a line per finished epoch
    <out>/cells/<id>/result.json         the outcome; written last and atomically, so its presence means finished
    <out>/cells/<id>/cost.json           seconds and memory, apart from the result, which is the same on every run

Nothing here needs a framework, so that a report can be rebuilt anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from batchfree.errors import RecordError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BATCH_FREE_NORMS",
    "NORMS",
    "SCHEMA_VERSION",
    "CellConfig",
    "CellRecord",
    "CellResult",
    "Cost",
    "Environment",
    "EpochMetrics",
    "Norm",
    "Protocol",
    "Record",
    "Status",
    "StudyRecord",
    "read_cell",
    "read_metrics",
    "read_record",
    "read_study",
    "summarise",
    "write_atomically",
    "write_record",
]

#: Raised when a file's meaning changes; a reader refuses other versions.
SCHEMA_VERSION = 1

Norm: TypeAlias = Literal["bn", "gn", "gn+ws", "ln", "in"]
Protocol: TypeAlias = Literal["fixed-sgd", "paper"]
#: `done`: all epochs ran. `diverged`: the loss stopped being finite. `failed`: it crashed or was killed.
Status: TypeAlias = Literal["done", "diverged", "failed"]

NORMS: tuple[Norm, ...] = ("bn", "gn", "gn+ws", "ln", "in")
#: Norms that do not see the batch, hence not the norm batch either.
BATCH_FREE_NORMS: tuple[Norm, ...] = ("gn", "gn+ws", "ln", "in")

#: The error of a run is the median over this many last epochs (Wu & He 2018, section 4.1).
LAST_EPOCHS = 5


class Record(BaseModel):
    """One JSON file: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="constants")

    schema_version: Literal[1] = 1


class CellConfig(Record):
    """Everything that decides a cell's numbers; its hash is the cell's name.

    `norm_batch` is how many images share Batch Norm's statistics, `None` where the norm cannot see it. Under protocol
    "paper" it also sets `sgd_batch` and `learning_rate`, so batch-free cells carry it too.
    """

    study: str
    data: str  # name, or the absolute path of a folder of class folders
    data_fingerprint: str  # SHA-256 of the images and labels this cell sees
    model: str
    norm: Norm
    norm_batch: PositiveInt | None = None
    sgd_batch: PositiveInt
    groups: PositiveInt | Literal["auto"]
    protocol: Protocol
    learning_rate: Annotated[FiniteFloat, Field(gt=0)]
    momentum: FiniteFloat
    weight_decay: FiniteFloat
    schedule: Literal["cosine", "step"]
    epochs: PositiveInt
    train_images: PositiveInt
    image_size: PositiveInt | None = None  # side in pixels; only a folder of images is resized
    seed: NonNegativeInt
    threads: PositiveInt
    data_dir: str | None = None  # where the files of a named data set lie

    @model_validator(mode="after")
    def _norm_batch_fits(self) -> Self:
        if self.norm == "bn" and (self.norm_batch is None or self.sgd_batch % self.norm_batch):
            raise ValueError(
                f"Batch Norm with norm_batch={self.norm_batch} and sgd_batch={self.sgd_batch}: a norm batch that "
                f"divides the SGD batch is needed"
            )
        return self

    @property
    def cell_id(self) -> str:
        """Folder name: what the cell is, in short, and the hash of its whole configuration."""
        # Where the images lie is not what they are: the fingerprint is.
        identity = self.model_dump_json(exclude={"data", "data_dir"})
        digest = hashlib.sha256(identity.encode()).hexdigest()[:10]
        batch = "" if self.norm_batch is None else f"-n{self.norm_batch}"
        return f"{self.norm.replace('+', '-')}{batch}-s{self.seed}-{digest}"

    def assignments(self) -> list[str]:
        """`key=value` words that `batchfree cell` turns into this configuration again."""
        values = self.model_dump(exclude={"schema_version"}, exclude_none=True)
        return [f"{key}={value}" for key, value in values.items()]

    def command(self, out: str) -> str:
        """The one line that runs this cell alone, anywhere."""
        return shlex.join(["batchfree", "cell", *self.assignments(), "--out", out])


class StudyRecord(Record):
    """What was asked for: the settings as given and the cells that follow from them."""

    study: str
    command: str
    settings: dict[str, str]
    cells: tuple[CellConfig, ...]


class EpochMetrics(Record):
    """One line of metrics.jsonl. Losses are cross-entropies in nats."""

    epoch: int  # from 1
    train_loss: float
    validation_loss: float
    error_percent: float  # of the validation images


class CellResult(Record):
    """A cell's outcome. The numbers are `None` unless `status` is "done"."""

    cell_id: str
    status: Status
    reason: str = ""  # why it is not done; empty when it is
    error_percent: float | None = None  # median of the last five epochs
    final_error_percent: float | None = None
    best_error_percent: float | None = None  # optimistic: chosen on the validation images
    validation_loss: float | None = None  # of the last epoch
    num_groups: tuple[int, ...] = ()  # of each norm in forward order; empty for Batch Norm


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


class Cost(Record):
    """What a cell cost, over all its starts."""

    seconds: float
    steps: int
    peak_memory_bytes: int


class CellRecord(BaseModel):
    """All that is on disk of one cell; `result` is `None` while it is not finished."""

    config: CellConfig
    result: CellResult | None
    metrics: tuple[EpochMetrics, ...]
    environment: Environment | None
    cost: Cost | None


RecordT = TypeVar("RecordT", bound=Record)


def summarise(cell_id: str, metrics: Sequence[EpochMetrics], num_groups: Iterable[int]) -> CellResult:
    """The result of a cell that ran all its epochs.

    Args:
        metrics: one entry per epoch, at least one.
        num_groups: groups of each norm in forward order.
    """
    errors = [epoch.error_percent for epoch in metrics]
    return CellResult(
        cell_id=cell_id,
        status="done",
        error_percent=statistics.median(errors[-LAST_EPOCHS:]),
        final_error_percent=errors[-1],
        best_error_percent=min(errors),
        validation_loss=metrics[-1].validation_loss,
        num_groups=tuple(num_groups),
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Writes `path` so that a reader, or a power cut, finds the old content or the new, never a part.

    Temporary file beside it, flush, fsync, replace, fsync of the folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_record(path: Path, record: Record) -> None:
    """Writes `record` as indented JSON, atomically."""
    write_atomically(path, (record.model_dump_json(indent=2) + "\n").encode())


def read_record(path: Path, schema: type[RecordT]) -> RecordT:
    """Reads what `write_record` wrote.

    Raises:
        RecordError: the file cannot be read, is not JSON, is of another version or has other keys.
    """
    return _parse(path, _read_text(path), schema)


def read_metrics(path: Path) -> tuple[EpochMetrics, ...]:
    """Every finished epoch of a cell; none where the file does not exist yet.

    Raises:
        RecordError: a line is not a record. A last line without its line end was cut short and is left out.
    """
    if not path.exists():
        return ()
    lines = _read_text(path).split("\n")[:-1]  # what follows the last line end was cut short
    return tuple(_parse(path, line, EpochMetrics) for line in lines)


def read_cell(folder: Path, config: CellConfig | None = None) -> CellRecord:
    """All that is on disk of the cell in `folder`; `config` where a study knows it, and the cell may not have begun."""

    def optional(name: str, schema: type[RecordT]) -> RecordT | None:
        path = folder / name
        return read_record(path, schema) if path.exists() else None

    return CellRecord(
        config=read_record(folder / "config.json", CellConfig) if config is None else config,
        result=optional("result.json", CellResult),
        metrics=read_metrics(folder / "metrics.jsonl"),
        environment=optional("environment.json", Environment),
        cost=optional("cost.json", Cost),
    )


def read_study(out: Path) -> tuple[StudyRecord, list[CellRecord]]:
    """The study in `out` and its cells, in the study's order; a cell that never started has only its configuration.

    Raises:
        RecordError: `out` holds no study, or a file in it is damaged or of another version.
    """
    path = out / "study.json"
    if not path.exists():
        raise RecordError(
            f"{out} holds no study: {path.name} is not there. Pass the folder that was given to "
            f"`batchfree study ... --out`."
        )
    study = read_record(path, StudyRecord)
    return study, [read_cell(out / "cells" / config.cell_id, config) for config in study.cells]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path} cannot be read: {error}. It should be a file that batchfree wrote. "
            f"Delete the cell's folder and run the study again."
        ) from error


def _parse(path: Path, text: str, schema: type[RecordT]) -> RecordT:
    try:
        version = json.loads(text).get("schema_version")
    except (json.JSONDecodeError, AttributeError) as error:
        raise RecordError(
            f"{path} is not a JSON record ({error}). It was cut short or edited. "
            f"Delete {'the study' if path.name == 'study.json' else 'the cell'}'s folder and run the study again."
        ) from error
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {version}; this batchfree reads version {SCHEMA_VERSION}. "
            f"Use the batchfree that wrote it, or another --out."
        )
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RecordError(f"{path} does not hold a {schema.__name__}: {problems}. Delete it and run again.") from None
