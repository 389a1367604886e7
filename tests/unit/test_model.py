"""Models: how they are named, and how payloads and results become BSON and come back."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

import bson
import pytest
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

import axeq
from axeq.documents.codec import CODEC_OPTIONS
from axeq.documents.model import Binding, bind, name_of
from axeq.words.errors import ConfigurationError, PayloadInvalid, PayloadTooLarge, ResultInvalid

LIMIT = 256 * 1024


class Made(BaseModel):
    path: str


class Thumbnail(axeq.Model[Made], name="thumbnail", version=2):
    image: str
    width: int = 320
    tags: set[str] = Field(default_factory=set)

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        return {**data, "image": data["file"]}


class Open(axeq.Model, name="open"):
    size: int = 1


class Plain(BaseModel):
    text: str = ""


class Secret(axeq.Model, name="secret", secrets="store"):
    key: SecretStr


class Aliased(axeq.Model, name="aliased"):
    file_name: str = Field(alias="fileName")

    model_config = ConfigDict(populate_by_name=True)


def stored(document: dict[str, Any]) -> dict[str, Any]:
    """Returns a document as a server gives it back."""
    return bson.decode(bson.encode(document, codec_options=CODEC_OPTIONS), CODEC_OPTIONS)


# Declaring


def test_a_model_knows_its_name_its_version_and_its_result_type() -> None:
    binding = bind(Thumbnail)

    assert (binding.name, binding.version, binding.result) == ("thumbnail", 2, Made)


def test_a_model_without_a_result_type_leaves_it_open() -> None:
    assert (bind(Open).result, bind(Open).version) == (Any, 1)


def test_any_pydantic_model_can_be_bound_to_a_name() -> None:
    binding = bind(Plain, name="plain")

    assert (binding.name, binding.version, binding.result) == ("plain", 1, Any)


def test_a_plain_model_without_a_name_is_told_both_ways_to_give_one() -> None:
    with pytest.raises(ConfigurationError, match=r'Plain has no task name.*axeq\.Model, name="\.\.\."\).*pass name='):
        bind(Plain)


def test_a_name_that_disagrees_with_the_models_own_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Thumbnail is named 'thumbnail': it cannot go as 'other'"):
        bind(Thumbnail, name="other")


@pytest.mark.parametrize("model", [dict, "thumbnail", Made(path="a"), None], ids=repr)
def test_what_is_no_model_is_refused(model: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be a pydantic model"):
        bind(model, name="x")


@pytest.mark.parametrize("name", ["thumbnail", "a", "Ns.images/thumb-nail:v_2", "x" * 128])
def test_a_name_may_be_namespaced(name: str) -> None:
    assert name_of(name) == name


@pytest.mark.parametrize("name", ["", "two words", "x" * 129, "näme", "a\n", 5, None, "$a"], ids=repr)
def test_a_name_that_cannot_be_one_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be 1 to 128 of A-Z a-z 0-9"):
        name_of(name)


def test_a_model_is_refused_a_wrong_name_where_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="name 'two words' must be 1 to 128"):
        type("M", (axeq.Model,), {"__module__": __name__}, name="two words")


@pytest.mark.parametrize("version", [0, -1, 1.5, True, "2"], ids=repr)
def test_a_version_is_a_whole_number_from_one(version: Any) -> None:
    with pytest.raises(ConfigurationError, match="version of 'v' must be a whole number from 1"):
        type("V", (axeq.Model,), {"__module__": __name__}, name="v", version=version)


def test_a_misspelt_option_for_secrets_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="secrets"):
        type("S", (axeq.Model,), {"__module__": __name__}, name="s", secrets="stored")


def test_a_subclass_of_a_named_model_may_raise_the_version() -> None:
    newer = type("Newer", (Open,), {"__module__": __name__}, version=2)

    assert (bind(newer).name, bind(newer).version) == ("open", 2)


def test_a_result_type_that_pydantic_does_not_know_is_refused() -> None:
    class Strange:
        pass

    with pytest.raises(ConfigurationError, match=r"result type .*Strange.* of 'strange'"):
        Binding(Plain, name="strange", result=Strange)


# Payloads


def test_a_payload_is_stored_by_field_and_read_back_equal() -> None:
    payload = Thumbnail(image="a.jpg", tags={"b", "a"})

    data = bind(Thumbnail).encode(payload, LIMIT)

    assert data == {"image": "a.jpg", "width": 320, "tags": ["a", "b"]}
    assert bind(Thumbnail).decode(stored(data), 2) == payload


def test_fields_are_stored_by_name_whatever_their_alias() -> None:
    payload = Aliased(fileName="a.jpg")

    data = bind(Aliased).encode(payload, LIMIT)

    assert data == {"file_name": "a.jpg"}
    assert bind(Aliased).decode(data, 1) == payload


def test_a_payload_of_another_model_is_refused() -> None:
    with pytest.raises(PayloadInvalid, match="payload of 'thumbnail' must be a Thumbnail, not Open"):
        bind(Thumbnail).encode(Open(), LIMIT)  # type: ignore[arg-type]


def test_a_payload_over_the_limit_names_size_and_limit() -> None:
    with pytest.raises(PayloadTooLarge, match=r"payload of 'thumbnail' is 1,0\d\d bytes, the limit is 1,000") as raised:
        bind(Thumbnail).encode(Thumbnail(image="x" * 1000), 1000)

    assert (raised.value.limit, raised.value.size > 1000) == (1000, True)


def test_a_payload_of_exactly_the_limit_passes() -> None:
    binding = bind(Open)
    limit = len(bson.encode({"size": 1}))

    assert binding.encode(Open(), limit) == {"size": 1}
    with pytest.raises(PayloadTooLarge):
        binding.encode(Open(), limit - 1)


def test_secrets_are_stored_only_where_the_model_says_so() -> None:
    class Careless(axeq.Model, name="careless"):
        key: SecretStr

    data = bind(Secret).encode(Secret(key=SecretStr("s3cret")), LIMIT)

    assert bind(Secret).decode(data, 1).key.get_secret_value() == "s3cret"
    with pytest.raises(PayloadInvalid, match=r"^careless\.key: "):
        bind(Careless).encode(Careless(key=SecretStr("s3cret")), LIMIT)


def test_an_older_payload_passes_the_models_upgrade_and_a_current_one_does_not() -> None:
    binding = bind(Thumbnail)

    assert binding.decode({"file": "old.jpg"}, 1).image == "old.jpg"
    with pytest.raises(ValidationError):
        binding.decode({"file": "new.jpg"}, 2)


def test_a_payload_that_no_longer_validates_names_its_field() -> None:
    with pytest.raises(ValidationError, match="width"):
        bind(Thumbnail).decode({"image": "a.jpg", "width": "wide"}, 2)


def test_a_strict_model_still_reads_what_bson_has_made_of_its_types() -> None:
    class Strict(axeq.Model, name="strict"):
        tags: set[str]
        length: timedelta

        model_config = ConfigDict(strict=True)

    payload = Strict(tags={"a"}, length=timedelta(seconds=1.5))

    assert bind(Strict).decode(stored(bind(Strict).encode(payload, LIMIT)), 1) == payload


def test_a_payload_can_be_read_from_the_job_that_enqueue_has_just_returned() -> None:
    class Priced(axeq.Model, name="priced"):
        price: Decimal

    payload = Priced(price=Decimal("9.90"))

    assert bind(Priced).decode(bind(Priced).encode(payload, LIMIT), 1) == payload


# Results


def test_a_result_is_stored_plainly_and_read_back_as_its_type() -> None:
    binding = bind(Thumbnail)

    result = binding.encode_result(Made(path="b.jpg"), LIMIT)

    assert result == {"path": "b.jpg"}
    assert binding.decode_result(result) == Made(path="b.jpg")


@pytest.mark.parametrize(
    ("kind", "value", "plain"),
    [(int, 3, 3), (list[int], (1, 2), [1, 2]), (set[str], {"a"}, ["a"]), (timedelta, timedelta(seconds=1), 1.0)],
    ids=str,
)
def test_a_result_may_be_any_type_that_pydantic_knows(kind: Any, value: Any, plain: Any) -> None:
    binding: Binding[Any, Any] = Binding(Plain, name="plain", result=kind)

    result = binding.encode_result(value, LIMIT)

    assert result == plain
    assert type(binding.decode_result(result)) is type(binding._results.validate_python(value))


@pytest.mark.parametrize("kind", [None, type(None), Any], ids=str)
def test_no_result_is_stored_for_none(kind: Any) -> None:
    binding: Binding[Any, Any] = Binding(Plain, name="plain", result=kind)

    assert binding.encode_result(None, LIMIT) is None
    assert binding.decode_result(None) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"path": 3}, "result of 'thumbnail': path: "),
        (None, "result of 'thumbnail': "),
        (Made(path="x" * 2000), "result of 'thumbnail' is 2,0"),
    ],
    ids=["of another type", "none", "too large"],
)
def test_a_result_that_cannot_be_stored_says_why(value: Any, message: str) -> None:
    with pytest.raises(ResultInvalid, match=re.escape(message)):
        bind(Thumbnail).encode_result(value, 1000)


def test_an_open_result_that_bson_cannot_hold_names_its_place() -> None:
    with pytest.raises(ResultInvalid, match=r"result of 'open': result\.a\[0\]"):
        bind(Open).encode_result({"a": [object()]}, LIMIT)


def test_a_stored_result_that_no_longer_validates_says_so() -> None:
    with pytest.raises(ResultInvalid, match="stored result of 'thumbnail': path"):
        bind(Thumbnail).decode_result({"file": "b.jpg"})
