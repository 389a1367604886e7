"""What a job carries: a pydantic model with a name, a version and a result type."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self, cast

from bson.binary import Binary
from pydantic import BaseModel, ValidationError
from pydantic.errors import PydanticSchemaGenerationError

from axeq.documents.codec import Codec, opened, plain, seal, size
from axeq.words.errors import ConfigurationError, PayloadInvalid, PayloadTooLarge, ResultInvalid
from axeq.words.number import whole

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R = TypeVar("R", default=Any)
else:
    from typing import TypeVar

    R = TypeVar("R")

M = TypeVar("M", bound=BaseModel)
M_co = TypeVar("M_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)

__all__ = ["LARGEST_PAYLOAD", "Binding", "M", "Model", "Payload", "R", "bind", "name_of", "problems"]

LARGEST_PAYLOAD = 8 * 1024 * 1024
"""Bytes of BSON: with a result beside it, and what a job has of its own, within MongoDB's 16 MiB."""


class Payload(Protocol[M_co, R_co]):
    """What type checkers read from a `Model`: the payload's own type and its result type. It has no use at run
    time.
    """

    def __axeq_types__(self) -> tuple[M_co, R_co]: ...


_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


class Model(BaseModel, Generic[R]):
    """The base of a job's payload: `class Thumbnail(axeq.Model[Made], name="thumbnail")`.

    Class options: `name` of the task, 1 to 128 of `A-Z a-z 0-9 _ . : / -`; `version` of the payload's shape,
    default 1; `secrets`, "refuse" (default) or "store", says what becomes of secret fields in a store without a
    codec; with one they are sealed with the rest. `Model[R]` names
    what a handler returns; plain `Model` leaves it open. Raises `ConfigurationError` where an option cannot
    work.
    """

    __axeq__: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        version: int | None = None,
        secrets: Literal["refuse", "store"] | None = None,
        **options: Any,
    ) -> None:
        super().__init_subclass__(**options)
        given = {"name": name, "version": version, "secrets": secrets}
        declared = {key: value for key, value in given.items() if value is not None}
        if declared:
            cls.__axeq__ = _declared({"version": 1, "secrets": "refuse", **cls.__axeq__, **declared}, cls.__name__)

    if TYPE_CHECKING:

        def __axeq_types__(self) -> tuple[Self, R]: ...

    @classmethod
    def upgrade(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
        """Returns the stored `data` of an older `version` in this version's shape; override it as the shape
        changes.
        """
        return data


class Binding(Generic[M, R]):
    """A model bound to a task name: how its payloads and results become BSON and come back."""

    __slots__ = ("_results", "_secrets", "model", "name", "result", "version")

    def __init__(
        self, model: type[M], *, name: str, version: int = 1, result: Any = Any, secrets: bool = False
    ) -> None:
        self.model = model
        self.name = name
        self.version = version
        self.result = result
        self._secrets = secrets
        from pydantic import TypeAdapter  # with all of pydantic's types: who defines no model does not pay

        try:
            self._results: TypeAdapter[R] = TypeAdapter(result)
        except PydanticSchemaGenerationError as error:
            raise ConfigurationError(
                f"result type {result!r} of {name!r} is none that pydantic knows: {error}"
            ) from None

    def encode(self, payload: M, limit: int, codec: Codec | None = None) -> Any:
        """Returns `payload` as plain BSON, or sealed by a `codec`, of at most `limit` bytes.

        Raises `PayloadInvalid` naming the field, `PayloadTooLarge`, or `PayloadSealed` where the codec fails.
        """
        if not isinstance(payload, self.model):
            raise PayloadInvalid(
                f"payload of {self.name!r} must be a {self.model.__name__}, not {type(payload).__name__}"
            )
        secrets = self._secrets or codec is not None
        data: Any = plain(payload.model_dump(round_trip=True), root=self.name, secrets=secrets)
        if codec is None:
            length = size(data, root=self.name)
        else:
            data = seal(data, codec, root=self.name)
            length = len(data)
        if length > limit:
            raise PayloadTooLarge(self.name, length, limit)
        return data

    def decode(self, data: Any, version: int, codec: Codec | None = None) -> M:
        """Returns the payload that `data` of `version` holds; `codec` opens it where it is sealed.

        Raises `pydantic.ValidationError` where it does not validate, `PayloadSealed` where it cannot be opened.
        """
        if data.__class__ is Binary:
            data = opened(data, codec, root=f"payload of {self.name!r}")
        if version < self.version and issubclass(self.model, Model):
            data = self.model.upgrade(data, version)
        return self.model.model_validate(data, strict=False, by_alias=False, by_name=True)

    def encode_result(self, value: R, limit: int, codec: Codec | None = None) -> Any:
        """Returns a handler's return value as plain BSON, or sealed by a `codec`, of at most `limit` bytes; None
        for None.

        Raises `ResultInvalid` where it is not of the result type or cannot be stored, `PayloadSealed` where the
        codec fails.
        """
        if value is None and self.result in (None, type(None), Any):
            return None
        try:
            dumped = self._results.dump_python(self._results.validate_python(value), round_trip=True)
            stored = plain(dumped, root="result", secrets=codec is not None)
            if codec is None or stored is None:
                length = size({"result": stored}, root="result")
            else:
                stored = seal(stored, codec, root=f"result of {self.name!r}")
                length = len(stored)
        except (ValidationError, PayloadInvalid) as error:
            raise ResultInvalid(f"result of {self.name!r}: {_explain(error)}") from None
        if length > limit:
            raise ResultInvalid(
                f"result of {self.name!r} is {length:,} bytes, the limit is {limit:,}: store a reference"
            )
        return stored

    def decode_result(self, stored: Any, codec: Codec | None = None) -> R:
        """Returns a stored result as the result type; `codec` opens it where it is sealed.

        Raises `ResultInvalid` where it no longer validates, `PayloadSealed` where it cannot be opened.
        """
        stored = opened(stored, codec, root=f"result of {self.name!r}")
        try:
            return self._results.validate_python(stored, strict=False)
        except ValidationError as error:
            raise ResultInvalid(f"stored result of {self.name!r}: {_explain(error)}") from None


def bind(model: type[M], *, name: str | None = None, result: Any = None) -> Binding[M, Any]:
    """Returns the binding of `model`, a subclass of `Model` or any pydantic model with a `name`.

    Raises `ConfigurationError` where it is neither, or a `name` disagrees with the model's own.
    """
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ConfigurationError(_no_model(model))
    return cast("Binding[M, Any]", _bind(model, name, result))


@lru_cache(maxsize=4096)
def _bind(model: type[BaseModel], name: str | None, result: Any) -> Binding[Any, Any]:
    declared: dict[str, Any] = getattr(model, "__axeq__", None) or {}
    if declared:
        if name is not None and name != declared["name"]:
            raise ConfigurationError(f"{model.__name__} is named {declared['name']!r}: it cannot go as {name!r}")
        return Binding(
            model,
            name=declared["name"],
            version=declared["version"],
            result=_result_type(model),
            secrets=declared["secrets"] == "store",
        )
    if name is None:
        raise ConfigurationError(
            f'{model.__name__} has no task name: declare it as class {model.__name__}(axeq.Model, name="..."), '
            "or pass name="
        )
    return Binding(model, name=name_of(name), result=Any if result is None else result)


def _no_model(given: Any) -> str:
    """Says of what is no class of payloads, or of a payload's class, what should be there."""
    if isinstance(given, BaseModel):
        return f"the model must be a pydantic model's class, {type(given).__name__}, not an instance of it"
    if not isinstance(given, type):
        return f"the model must be a pydantic model's class, as in axeq.Model, not {given!r:.100}"
    wrong = "a class: call it" if issubclass(given, type) else f"a {given.__name__}"
    return f"a job's payload must be a pydantic model, as in Thumbnail(image=...), not {wrong}"


def name_of(name: str) -> str:
    """Returns `name` if it can name a task or a queue; raises `ConfigurationError` otherwise."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        declared = getattr(name, "__axeq__", None)
        hint = f": that of {name.__name__} is {declared['name']!r}" if declared and isinstance(name, type) else ""
        raise ConfigurationError(f"name {name!r} must be 1 to 128 of A-Z a-z 0-9 _ . : / -{hint}")
    return name


def _declared(options: dict[str, Any], model: str) -> dict[str, Any]:
    if "name" not in options:
        raise ConfigurationError(f"{model} has a version or secrets= but no name: give it name=")
    name = name_of(options["name"])
    if options["secrets"] not in ("refuse", "store"):
        raise ConfigurationError(f'secrets of {name!r} must be "refuse" or "store", not {options["secrets"]!r}')
    return {**options, "name": name, "version": whole(f"version of {name!r}", options["version"], 1)}


def _result_type(model: type[BaseModel]) -> Any:
    for base in model.__mro__:
        metadata = getattr(base, "__pydantic_generic_metadata__", None) or {}
        if metadata.get("origin") is Model:
            (result,) = metadata["args"]
            return Any if isinstance(result, TypeVar) else result
    return Any


def problems(error: Exception) -> str:
    """Returns what is wrong with a stored payload that could not be read, without quoting it where it does not
    validate.
    """
    if not isinstance(error, ValidationError):
        return str(error)
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'payload'}: {problem['msg']}" for problem in found
    )


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where + ': ' if where else ''}{first['msg']}"
    return str(error)
