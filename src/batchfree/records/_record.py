"""What every JSON file of a study has in common."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

__all__ = ["SCHEMA_VERSION", "Record"]

#: Raised when a file's meaning changes; a reader refuses other versions.
SCHEMA_VERSION = 2


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
