"""A checkpoint: what a job has got to, as its holder's own type and as it is stored."""

from __future__ import annotations

from typing import Any, TypeVar

from axeq.documents.codec import Codec, opened, plain, seal, size
from axeq.documents.record import Record
from axeq.words.errors import PayloadInvalid

__all__ = ["restored", "stored"]

S = TypeVar("S")

_LARGEST = 256 * 1024


def stored(state: Any, name: str, codec: Codec | None) -> Any:
    """Returns a checkpoint of a job of the task `name` as it is stored; raises `PayloadInvalid`, `PayloadSealed`."""
    root = f"checkpoint of {name!r}"
    encoded = plain(state, root=root, secrets=codec is not None)
    if codec is None:
        length = size({"checkpoint": encoded}, root=root)
    else:
        encoded = seal(encoded, codec, root=root)
        length = len(encoded)
    if length > _LARGEST:
        raise PayloadInvalid(f"{root} is {length:,} bytes, the limit is {_LARGEST:,}: keep the content elsewhere")
    return encoded


def restored(record: Record, kind: type[S], codec: Codec | None) -> S | None:
    """Returns a job's checkpoint as a `kind`, None where it has none; raises `pydantic.ValidationError`,
    `PayloadSealed`.
    """
    encoded = record.document.get("checkpoint")
    if encoded is None:
        return None
    from pydantic import TypeAdapter  # with all of pydantic's types: who keeps no checkpoints does not pay

    state = opened(encoded, codec, root=f"checkpoint of {record.name!r}")
    return TypeAdapter(kind).validate_python(state, strict=False, by_alias=False, by_name=True)
