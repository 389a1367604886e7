"""Payloads as BSON: every type of the table there and back, and every refusal with its field and its mend."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import uuid
from collections import deque
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path, PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

import bson
import pytest
from bson.objectid import ObjectId
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import (
    AnyUrl,
    BaseModel,
    ConfigDict,
    Field,
    HttpUrl,
    MongoDsn,
    PostgresDsn,
    SecretBytes,
    SecretStr,
    TypeAdapter,
)

from axeq.documents import codec
from axeq.documents.codec import CODEC_OPTIONS, plain, size
from axeq.words.errors import PayloadInvalid, Retry

DOCS = Path(__file__).parents[2] / "docs" / "payloads.md"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Author(BaseModel):
    name: str = Field(alias="authorName")
    seen: datetime | None = None

    model_config = ConfigDict(populate_by_name=True)


@dataclasses.dataclass
class Size:
    width: int
    unit: Colour


def there_and_back(kind: Any, value: Any) -> Any:
    """Returns what is read back of a value that was stored."""
    adapter = TypeAdapter(kind, config=None if _configures_itself(kind) else ConfigDict(arbitrary_types_allowed=True))
    stored = plain(adapter.dump_python(value, round_trip=True), root="x")
    read = bson.decode(bson.encode({"x": stored}, codec_options=CODEC_OPTIONS), CODEC_OPTIONS)["x"]
    return adapter.validate_python(read, by_alias=False, by_name=True)


def _configures_itself(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind))


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=".\0$"), min_size=1, max_size=8)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
DECIMALS = st.builds(
    lambda digits, exponent: Decimal(digits).scaleb(exponent),
    st.integers(-(10**28) + 1, 10**28 - 1),
    st.integers(-3000, 3000),
)
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))

ROWS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "None": (type(None), st.none()),
    "bool": (bool, st.booleans()),
    "str": (str, st.text()),
    "float": (float, st.floats(allow_nan=False)),
    "bytes": (bytes, st.binary()),
    "ObjectId": (ObjectId, st.binary(min_size=12, max_size=12).map(ObjectId)),
    "int": (int, INTEGERS),
    "date": (date, st.dates()),
    "time": (time, st.times()),
    "time with an offset": (time, st.times(timezones=OFFSETS)),
    "timedelta": (timedelta, st.timedeltas(timedelta(days=-49_000), timedelta(days=49_000))),
    "Decimal": (Decimal, DECIMALS),
    "UUID": (uuid.UUID, st.uuids()),
    "enum": (Colour, st.sampled_from(Colour)),
    "enum of numbers": (Level, st.sampled_from(Level)),
    "path": (PurePosixPath, st.lists(NAMES, min_size=1).map(lambda parts: PurePosixPath(*parts))),
    "URL": (AnyUrl, st.sampled_from(["https://a.example/b?c=d", "ftp://h/"]).map(AnyUrl)),
    "IPv4 address": (IPv4Address, st.ip_addresses(v=4)),
    "IPv6 address": (IPv6Address, st.ip_addresses(v=6)),
    "IPv4 network": (IPv4Network, st.ip_addresses(v=4).map(IPv4Network)),
    "IPv6 network": (IPv6Network, st.ip_addresses(v=6).map(IPv6Network)),
    "IPv4 interface": (IPv4Interface, st.ip_addresses(v=4).map(IPv4Interface)),
    "IPv6 interface": (IPv6Interface, st.ip_addresses(v=6).map(IPv6Interface)),
    "ZoneInfo": (ZoneInfo, st.sampled_from(["UTC", "Europe/Zurich"]).map(ZoneInfo)),
    "regular expression": (re.Pattern[str], st.sampled_from(["a+b", r"\d{2}"]).map(re.compile)),
    "list": (list[int], st.lists(INTEGERS)),
    "tuple": (tuple[int, str], st.tuples(INTEGERS, st.text())),
    "set": (set[int], st.sets(INTEGERS)),
    "frozenset": (frozenset[str], st.frozensets(st.text())),
    "deque": (deque[int], st.lists(INTEGERS).map(deque)),
    "mapping": (dict[str, int], st.dictionaries(NAMES, INTEGERS)),
    "mapping by number": (dict[int, str], st.dictionaries(INTEGERS, st.text())),
    "mapping by UUID": (dict[uuid.UUID, int], st.dictionaries(st.uuids(), INTEGERS)),
    "mapping by date": (dict[date, int], st.dictionaries(st.dates(), INTEGERS)),
    "mapping by enum": (dict[Colour, int], st.dictionaries(st.sampled_from(Colour), INTEGERS)),
    "model": (Author, st.builds(lambda name: Author(authorName=name), st.text())),
    "dataclass": (Size, st.builds(Size, INTEGERS, st.sampled_from(Colour))),
}


@pytest.mark.parametrize("row", ROWS)
@given(data=st.data())
def test_what_is_stored_is_read_back_equal(row: str, data: st.DataObject) -> None:
    kind, values = ROWS[row]
    value = data.draw(values)

    read = there_and_back(kind, value)

    assert read == value
    assert type(read) is type(value)


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=OFFSETS))  # noqa: DTZ001 - bounds of naive parts
@example(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
def test_a_datetime_is_read_back_in_utc_cut_to_the_millisecond(value: datetime) -> None:
    read = there_and_back(datetime, value)

    assert read == value.replace(microsecond=value.microsecond // 1000 * 1000)
    assert read.utcoffset() == timedelta(0)


@given(st.dictionaries(NAMES, INTEGERS | st.text() | st.lists(st.booleans())))
def test_the_size_is_that_of_the_stored_bytes(document: dict[str, Any]) -> None:
    assert size(document, root="x") == len(bson.encode(document))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (timedelta(minutes=1, milliseconds=500), 60.5),
        (date(2026, 5, 4), "2026-05-04"),
        (time(8, 30), "08:30:00"),
        (Decimal("9.90"), Decimal("9.90")),
        (Colour.RED, "red"),
        (Level.HIGH, 2),
        (PurePosixPath("/srv/a.jpg"), "/srv/a.jpg"),
        (HttpUrl("https://example.org"), "https://example.org/"),
        (IPv4Network("10.0.0.0/8"), "10.0.0.0/8"),
        (ZoneInfo("Europe/Zurich"), "Europe/Zurich"),
        (re.compile("a+b"), "a+b"),
        ({"b", "a"}, ["a", "b"]),
        ({date(2026, 5, 4): 1}, {"2026-05-04": 1}),
        ({Colour.RED: 1}, {"red": 1}),
        (Author(authorName="Ann"), {"name": "Ann", "seen": None}),
        (Size(3, Colour.BLUE), {"width": 3, "unit": "blue"}),
        (memoryview(b"ab"), b"ab"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_type_is_stored_in_the_form_that_the_table_names(value: Any, stored: Any) -> None:
    assert plain(value, root="x") == stored


def test_a_set_is_stored_the_same_way_in_every_process() -> None:
    words = {"gamma", "alpha", "beta", "delta"}

    assert plain(words, root="x") == ["alpha", "beta", "delta", "gamma"]


@pytest.mark.parametrize(
    "url", [PostgresDsn("postgres://h/db"), MongoDsn("mongodb://h/db")], ids=["postgres", "mongodb"]
)
def test_a_url_of_several_hosts_is_text_too(url: Any) -> None:
    assert plain(url, root="x") == str(url)


def _forgotten() -> Any:
    coroutine = asyncio.sleep(0)
    coroutine.close()
    return coroutine


@pytest.mark.parametrize(
    ("value", "field", "mend"),
    [
        ({"at": datetime(2026, 5, 4)}, "thumbnail.at", "give it a time zone"),  # noqa: DTZ001 - the mistake itself
        ({"where": {"$set": 1}}, "thumbnail.where['$set']", "use a list of pairs"),
        ({"sizes": {"a.b": 1}}, "thumbnail.sizes['a.b']", "use a list of pairs"),
        ({"sizes": {"a\0b": 1}}, "thumbnail.sizes['a\\x00b']", "use a list of pairs"),
        ({"sizes": {"": 1}}, "thumbnail.sizes['']", "use a list of pairs"),
        ({"sizes": {1: "a", "1": "b"}}, "thumbnail.sizes['1']", "two keys with the same text"),
        ({"sizes": {1.5: "a"}}, "thumbnail.sizes", "use text, a number, a UUID, a date or an enum"),
        ({"sizes": {True: "a"}}, "thumbnail.sizes", "use text, a number, a UUID, a date or an enum"),
        ({"width": 2**63}, "thumbnail.width", "declare the field as str or Decimal"),
        ({"width": -(2**63) - 1}, "thumbnail.width", "declare the field as str or Decimal"),
        ({"price": Decimal("1." + "1" * 34)}, "thumbnail.price", "round it, or declare the field as str"),
        ({"key": SecretStr("s3cret")}, "thumbnail.key", "enqueue a reference to it"),
        ({"key": SecretBytes(b"s3cret")}, "thumbnail.key", 'secrets="store"'),
        ({"task": object()}, "thumbnail.task", "docs/payloads.md"),
        ({"number": 1j}, "thumbnail.number", "give the field a serializer"),
        ({"later": _forgotten()}, "thumbnail.later", "await it"),
        ({"error": Retry("s3cret")}, "thumbnail.error", "raise it"),
        ({"all": [1, {"deep": [object()]}]}, "thumbnail.all[1].deep[0]", "docs/payloads.md"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("thumbnail") else "",
)
def test_a_refused_value_names_its_field_and_the_mend(value: Mapping[str, Any], field: str, mend: str) -> None:
    with pytest.raises(PayloadInvalid) as raised:
        plain(value, root="thumbnail")

    assert str(raised.value).startswith(f"{field}: ")
    assert mend in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_nesting_too_deep_for_mongodb_is_refused_by_field() -> None:
    value: Any = 1
    for _ in range(95):
        value = [value]

    with pytest.raises(PayloadInvalid, match=r"^thumbnail\.deep\[0\].*nested deeper than 90 levels"):
        plain({"deep": value}, root="thumbnail")


def test_a_payload_that_contains_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(PayloadInvalid, match="nested deeper"):
        plain(endless, root="thumbnail")


@pytest.mark.parametrize("value", [{"name": "\ud800"}, {"names": ["a", "\ud800"]}, {"sizes": {"\ud800": 1}}])
def test_text_with_a_lone_surrogate_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(PayloadInvalid):
        size(plain(value, root="thumbnail"), root="thumbnail")


@pytest.mark.parametrize(
    ("value", "field"),
    [({"name": "\ud800"}, "thumbnail.name"), ({"names": ["a", "\ud800"]}, "thumbnail.names[1]")],
    ids=["field", "element"],
)
def test_text_with_a_lone_surrogate_names_its_field(value: dict[str, Any], field: str) -> None:
    with pytest.raises(PayloadInvalid, match=re.escape(field)):
        size(plain(value, root="thumbnail"), root="thumbnail")


def test_secrets_are_stored_where_the_model_says_so() -> None:
    assert plain({"key": SecretStr("s3cret")}, root="x", secrets=True) == {"key": "s3cret"}
    assert plain({"key": SecretBytes(b"s3cret")}, root="x", secrets=True) == {"key": b"s3cret"}


def test_the_page_for_users_names_every_type_of_the_table() -> None:
    cells = _first_column(DOCS.read_text(), "| value | stored as |")

    documented = " ".join(cells)
    missing = [word for word in _types_of_the_table() if word not in documented]
    assert not missing


def test_the_page_for_users_names_no_type_that_the_table_lacks() -> None:
    cells = _first_column(DOCS.read_text(), "| value | stored as |")

    types = _types_of_the_table()
    assert [cell for cell in cells if not any(word in cell for word in types)] == []


def _types_of_the_table() -> list[str]:
    assert codec.__doc__ is not None
    table = codec.__doc__.split("\n==")[2]
    columns = [line.split("  ")[0].strip() for line in table.splitlines()[1:]]
    return [word for column in columns for word in re.split(r", | or ", column) if word]


def _first_column(page: str, heading: str) -> list[str]:
    table = page.partition(heading)[2].partition("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()[2:]]
