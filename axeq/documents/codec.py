"""Python values as plain, queryable BSON. The table below is the whole of it; any other type is refused by name.

==========================================  ==========================================================
value                                       stored as
==========================================  ==========================================================
None, bool, str, float, bytes, ObjectId     themselves
int                                         a 64-bit integer; a larger one is refused
datetime                                    a date: UTC, cut to the millisecond; a naive one is refused
date, time                                  ISO 8601 text
timedelta                                   seconds, as a double
Decimal                                     Decimal128, when its 34 digits hold the value exactly
UUID                                        a UUID (binary subtype 4)
enum                                        its value
path, URL, IP address or network, ZoneInfo  text
regular expression                          its pattern's text
list, tuple, set, frozenset, deque          an array; a set in the order of its elements' text
mapping                                     a document: keys become text; "", "$...", "a.b" and NUL are refused
model, dataclass                            a document of its fields
SecretStr, SecretBytes                      refused, unless the model says `secrets="store"` or a codec seals them
==========================================  ==========================================================

Where a store has a codec, the whole value is then sealed: BSON bytes that the codec has encoded, as a binary of subtype
`SEALED`.
"""

from __future__ import annotations

import dataclasses
import decimal
import re
import uuid
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import PurePath
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import bson
from bson.binary import Binary, UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion, TypeCodec, TypeRegistry
from bson.decimal128 import Decimal128, create_decimal128_context
from bson.errors import BSONError
from bson.int64 import Int64
from bson.objectid import ObjectId
from pydantic import BaseModel

from axeq.words.errors import PayloadInvalid, PayloadSealed

__all__ = ["CODEC_OPTIONS", "SEALED", "Codec", "fingerprint", "is_sealed", "opened", "plain", "seal", "size"]

SEALED = 0xAE
"""The binary subtype of what a codec has encoded: one of those that BSON leaves to users (0x80 to 0xFF)."""

_DEEPEST = 90  # MongoDB nests documents 100 levels deep; the job's own take some.
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1
_DECIMAL_CONTEXT = create_decimal128_context()


class _DecimalCodec(TypeCodec):
    @property
    def python_type(self) -> type[decimal.Decimal]:
        return decimal.Decimal

    @property
    def bson_type(self) -> type[Decimal128]:
        return Decimal128

    def transform_python(self, value: decimal.Decimal) -> Decimal128:
        return Decimal128(value)

    def transform_bson(self, value: Decimal128) -> decimal.Decimal:
        return value.to_decimal()


CODEC_OPTIONS: CodecOptions[dict[str, Any]] = CodecOptions(
    tz_aware=True,
    tzinfo=UTC,
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,  # a year beyond Python's must not spoil a whole read
    uuid_representation=UuidRepresentation.STANDARD,
    type_registry=TypeRegistry([_DecimalCodec()]),
)
"""How axeq reads and writes BSON, whatever the client's own options: aware datetimes, standard UUIDs, `Decimal`."""


class Codec(Protocol):
    """Makes bytes unreadable to those without it, and readable again, as by encryption.

    Called from any thread, and on a pool's loop, so it must be quick. For handlers in processes of their own it
    must be one that can be pickled.
    """

    def encode(self, data: bytes, /) -> bytes:
        """Returns `data` sealed."""
        ...

    def decode(self, data: bytes, /) -> bytes:
        """Returns what was sealed; raises anything where it cannot."""
        ...


class _Refused(Exception):
    """Carries the path of a refused value up to where the whole of it is known."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.path: list[str] = []


def plain(value: Any, *, root: str, secrets: bool = False) -> Any:
    """Returns `value` as plain BSON by the table above.

    `root` names the value in errors; `secrets` says whether secret values are stored as they are.
    Raises `PayloadInvalid` naming the field, its type and the mend.
    """
    try:
        return _Converter(secrets).convert(value, 0)
    except _Refused as refused:
        where = "".join(reversed(refused.path))
        raise PayloadInvalid(f"{root}{where}: {refused.message}") from None


def size(document: Mapping[str, Any], *, root: str) -> int:
    """Returns how many bytes `document`, plain already, takes as BSON; `root` names it in errors.

    Raises `PayloadInvalid` where BSON itself refuses it, as for text with lone surrogates.
    """
    try:
        return len(bson.encode(document, codec_options=CODEC_OPTIONS))
    except (BSONError, UnicodeEncodeError, OverflowError) as error:
        raise _unwritable(error, document, root) from None


def fingerprint(data: Any) -> str:
    """Returns a text that is the same for equal values, plain already, and for no others: a hash of their BSON."""
    import hashlib  # only who asks for it pays

    written = bson.encode({"value": _in_order(data)}, codec_options=CODEC_OPTIONS)
    return hashlib.sha256(written).hexdigest()


def _in_order(value: Any) -> Any:
    """Returns `value` with the fields of its documents in one order, for equal mappings may have several."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value)}
    return [_in_order(item) for item in value] if isinstance(value, list) else value


def seal(value: Any, codec: Codec, *, root: str) -> Binary:
    """Returns `value`, plain already, as a binary that only `codec` can open; `root` names it in errors.

    Raises `PayloadInvalid` where BSON refuses it, `PayloadSealed` where the codec fails.
    """
    try:
        written = bson.encode({"value": value}, codec_options=CODEC_OPTIONS)
    except (BSONError, UnicodeEncodeError, OverflowError) as error:
        raise _unwritable(error, {"value": value}, root) from None
    try:
        return Binary(codec.encode(written), SEALED)
    except Exception as error:
        raise PayloadSealed(f"{root} cannot be sealed: the store's codec raised {type(error).__name__}") from error


def is_sealed(stored: Any) -> bool:
    """Whether `stored` is what a codec has sealed."""
    return isinstance(stored, Binary) and stored.subtype == SEALED


def opened(stored: Any, codec: Codec | None, *, root: str) -> Any:
    """Returns what was sealed, or `stored` itself where it was not; `root` names it in errors.

    Raises `PayloadSealed` without a codec, or with one that cannot open it.
    """
    if not is_sealed(stored):
        return stored
    if codec is None:
        raise PayloadSealed(f"{root} is sealed, and this store has no codec: give it the one that sealed it")
    try:
        return bson.decode(codec.decode(bytes(stored)), CODEC_OPTIONS)["value"]
    except Exception as error:
        raise PayloadSealed(
            f"{root} is sealed, and the store's codec cannot open it ({type(error).__name__}): it was sealed with "
            "another key, or has changed since"
        ) from error


def _unwritable(error: Exception, document: Mapping[str, Any], root: str) -> PayloadInvalid:
    if isinstance(error, UnicodeEncodeError):
        where = _surrogate(document) or ""
        return PayloadInvalid(f"{root}{where}: text with a lone surrogate, which UTF-8 cannot hold: clean it")
    # The driver's own text may hold the value.
    return PayloadInvalid(f"{root} cannot be written as BSON ({type(error).__name__})")


def _surrogate(value: Any) -> str | None:
    """Returns the path of the first text that UTF-8 cannot hold, None where there is none."""
    if isinstance(value, str):
        return None if value.encode(errors="ignore").decode() == value else ""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        inner = _surrogate(item) if not isinstance(key, str) or _surrogate(key) is None else ""
        if inner is not None:
            return f"{_step(key)}{inner}"
    return None


def _step(key: str | int) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


class _Converter:
    def __init__(self, secrets: bool) -> None:
        self.secrets = secrets

    def convert(self, value: Any, depth: int) -> Any:
        converter = _BY_TYPE.get(type(value))
        if converter is None:
            converter = _by_base(value)
        return converter(self, value, depth)

    def same(self, value: Any, depth: int) -> Any:
        return value

    def integer(self, value: int, depth: int) -> int:
        if not _SMALLEST <= value <= _LARGEST:
            raise _Refused("an integer beyond 64 bits: declare the field as str or Decimal, or keep it within 64 bits")
        return int(value)

    def text(self, value: Any, depth: int) -> str:
        return str(value)

    def moment(self, value: datetime, depth: int) -> datetime:
        if value.utcoffset() is None:
            raise _Refused("a naive datetime: give it a time zone, as in datetime.now(timezone.utc)")
        return value

    def iso(self, value: date | time, depth: int) -> str:
        return value.isoformat()

    def seconds(self, value: timedelta, depth: int) -> float:
        return value.total_seconds()

    def decimal(self, value: decimal.Decimal, depth: int) -> decimal.Decimal:
        with decimal.localcontext(_DECIMAL_CONTEXT) as context:
            context.traps[decimal.Inexact] = True
            try:
                return context.create_decimal(value)
            except decimal.DecimalException:
                raise _Refused("a Decimal of more than 34 digits: round it, or declare the field as str") from None

    def enum(self, value: Enum, depth: int) -> Any:
        return self.convert(value.value, depth)

    def raw(self, value: Any, depth: int) -> bytes:
        return bytes(value)

    def binary(self, value: Binary, depth: int) -> Binary:
        if value.subtype == SEALED:
            raise _Refused(f"a Binary of subtype {SEALED}, which marks what a codec has sealed: use another subtype")
        return value

    def secret(self, value: Any, depth: int) -> Any:
        if not self.secrets:
            raise _Refused(
                "a secret would be stored in plain text: enqueue a reference to it, give the store a codec, or declare "
                'the model with secrets="store"'
            )
        return value.get_secret_value()

    def pattern(self, value: re.Pattern[Any], depth: int) -> Any:
        return value.pattern

    def zone(self, value: ZoneInfo, depth: int) -> str:
        return value.key

    def model(self, value: BaseModel, depth: int) -> Any:
        return self.mapping(value.model_dump(round_trip=True), depth)

    def dataclass(self, value: Any, depth: int) -> Any:
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return self.mapping(fields, depth)

    def mapping(self, value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        self.descend(depth)
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = key if type(key) is str else self.key(key)
            try:
                if not name or name[0] == "$" or "." in name or "\0" in name:
                    raise _Refused(
                        'as a key: MongoDB cannot address keys that are empty, start with "$" or contain "." or NUL; '
                        "use a list of pairs"
                    )
                if name in result:
                    raise _Refused("two keys with the same text")
                result[name] = self.convert(item, depth + 1)
            except _Refused as refused:
                refused.path.append(_step(name))
                raise
        return result

    def key(self, key: Any) -> str:
        if isinstance(key, Enum):
            return self.key(key.value)
        if isinstance(key, str | int | uuid.UUID | date | time | PurePath) and not isinstance(key, bool):
            return key.isoformat() if isinstance(key, date | time) else str(key)
        raise _Refused(f"a key of type {type(key).__name__}: use text, a number, a UUID, a date or an enum")

    def sequence(self, value: Any, depth: int) -> list[Any]:
        self.descend(depth)
        result: list[Any] = []
        for position, item in enumerate(value):
            try:
                result.append(self.convert(item, depth + 1))
            except _Refused as refused:
                refused.path.append(_step(position))
                raise
        return result

    def unordered(self, value: Any, depth: int) -> list[Any]:
        return self.sequence(sorted(value, key=repr), depth)

    def descend(self, depth: int) -> None:
        if depth > _DEEPEST:
            raise _Refused(f"nested deeper than {_DEEPEST} levels")


_Conversion = Callable[[_Converter, Any, int], Any]

_BASES: tuple[tuple[tuple[type, ...], _Conversion], ...] = (
    ((Enum,), _Converter.enum),
    ((bool, type(None), ObjectId, Int64, Decimal128, uuid.UUID), _Converter.same),
    ((Binary,), _Converter.binary),
    ((str, PurePath), _Converter.text),
    ((int,), _Converter.integer),
    ((float,), lambda _, value, __: float(value)),
    ((datetime,), _Converter.moment),
    ((date, time), _Converter.iso),
    ((timedelta,), _Converter.seconds),
    ((decimal.Decimal,), _Converter.decimal),
    ((bytes, bytearray, memoryview), _Converter.raw),
    ((re.Pattern,), _Converter.pattern),
    ((ZoneInfo,), _Converter.zone),
    (
        (IPv4Address, IPv6Address, IPv4Interface, IPv6Interface, IPv4Network, IPv6Network),
        _Converter.text,
    ),
    ((BaseModel,), _Converter.model),
    ((Mapping,), _Converter.mapping),
    ((list, tuple, deque), _Converter.sequence),
    ((set, frozenset), _Converter.unordered),
)

_BY_TYPE: dict[type, _Conversion] = {
    type(None): _Converter.same,
    bool: _Converter.same,
    str: _Converter.same,
    float: _Converter.same,
    bytes: _Converter.same,
    int: _Converter.integer,
    ObjectId: _Converter.same,
    dict: _Converter.mapping,
    list: _Converter.sequence,
    datetime: _Converter.moment,
}


def _by_base(value: Any) -> _Conversion:
    for bases, conversion in _BASES:
        if isinstance(value, bases):
            return conversion
    # By module, for to import pydantic's URLs and secrets takes as long as a third of axeq, and few models have one.
    modules = {base.__module__: base.__name__ for base in type(value).__mro__}
    if "pydantic.networks" in modules:
        return _Converter.text
    if modules.get("pydantic.types", "").startswith(("Secret", "_Secret")):
        return _Converter.secret
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _Converter.dataclass
    raise _Refused(f"a {type(value).__module__}.{type(value).__qualname__} has no place in BSON: {_mend(value)}")


def _mend(value: Any) -> str:
    if isinstance(value, Coroutine):
        return "await it"
    if isinstance(value, BaseException):
        return "raise it, or give its text"
    return "use one of the types that docs/payloads.md lists, or give the field a serializer"
