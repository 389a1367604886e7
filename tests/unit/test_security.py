"""What an attacker may try through ids, labels, payloads, results and errors, without a server."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import bson
import mongomock
import pymongo
import pytest
from bson.binary import Binary
from bson.objectid import ObjectId
from bson.regex import Regex
from bson.son import SON
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

import axeq
from axeq.documents import codec
from axeq.documents.codec import SEALED, is_sealed, opened, seal
from axeq.documents.failure import failure, opened_failure, sealed_failure
from axeq.documents.model import bind
from axeq.documents.record import Record
from axeq.rules import manage
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Snoozed, decide, describe, sealed
from axeq.rules.settlement import settlement
from axeq.wire import embedded, servers
from axeq.wire.clients import transport
from axeq.words import errors
from axeq.words.errors import redact
from axeq.words.states import Cause
from tests.support.masking import Mask

from .playing import ScriptedClock, changed, held_record

PACKAGE = Path(axeq.__file__).parent
PAGE = (PACKAGE.parent / "docs" / "security.md").read_text()
LIMIT = 256 * 1024
SECRET = "s3cr3t-w0rd"  # a test's own

OPERATORS = [
    {"$ne": None},
    {"$gt": ""},
    SON([("$exists", True)]),
    re.compile("."),
    Regex("."),
    ["a"],
    frozenset("a"),
    None,
    True,
    1.0,
]


class Note(axeq.Model[Any], name="note"):
    text: Any = None


class Account(axeq.Model[SecretStr], name="account"):
    password: SecretStr


class Open(BaseModel):
    password: SecretStr


class Broken:
    """A codec that raises, quoting what it was given."""

    def encode(self, data: bytes, /) -> bytes:
        raise RuntimeError(f"no key for {data!r}")

    decode = encode


@pytest.fixture
def jobs() -> Any:
    return mongomock.MongoClient().db.jobs


@pytest.fixture
def queue(jobs: Any) -> axeq.Queue:
    return axeq.Queue(axeq.Store(jobs.database))


def sources() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            yield path.stem, node


# What is asked for is a value, never an operator


@pytest.mark.parametrize("identity", OPERATORS, ids=repr)
@pytest.mark.parametrize("verb", ["get", "wait", "cancel", "retry", "remove"])
def test_an_id_that_a_filter_would_take_for_more_than_a_value_is_refused(
    verb: str, identity: Any, queue: axeq.Queue, jobs: Any
) -> None:
    queue.enqueue(Note())
    before = list(jobs.find())

    with pytest.raises(axeq.ConfigurationError, match=r"^id must be an ObjectId, text"):
        getattr(queue, verb)(identity)

    assert list(jobs.find()) == before


@pytest.mark.parametrize("identity", ["../..", "0" * 24, "{$ne: 1}", 7, ObjectId("0" * 24), b"a"], ids=repr)
def test_an_id_that_no_job_has_is_not_found(identity: Any, queue: axeq.Queue) -> None:
    with pytest.raises(axeq.JobNotFound):
        queue.get(identity)


@pytest.mark.parametrize("asked", [each for each in OPERATORS if each is not None], ids=repr)
@pytest.mark.parametrize("option", ["label", "name"])
def test_a_search_takes_only_text(option: str, asked: Any, queue: axeq.Queue) -> None:
    queue.enqueue(Note(), label="a")

    with pytest.raises(axeq.ConfigurationError, match=f"^{option} "):
        queue.find(**{option: asked})


@pytest.mark.parametrize("option", ["label", "id"])
@pytest.mark.parametrize("value", [each for each in OPERATORS if each is not None], ids=repr)
def test_a_job_has_no_operator_for_a_label_or_an_id(option: str, value: Any, queue: axeq.Queue, jobs: Any) -> None:
    with pytest.raises(axeq.ConfigurationError, match=f"^{option} must be"):
        queue.enqueue(Note(), **{option: value})  # type: ignore[arg-type]

    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize("name", [{"$ne": None}, "a b", ""], ids=repr)
def test_only_what_can_name_a_task_is_paused(verb: str, name: Any, queue: axeq.Queue) -> None:
    with pytest.raises(axeq.ConfigurationError, match=r"^name "):
        getattr(queue, verb)(name)


@pytest.mark.parametrize("text", ["$password", "$$ROOT", "$data.password", "{$ne: 1}", "a.b", "\0"])
def test_text_that_looks_like_an_expression_is_stored_as_text(text: str, queue: axeq.Queue) -> None:
    job = queue.enqueue(Note(text={"value": [text]}), label=text)

    found = queue.get(job.id, model=Note)

    assert (found.payload.text, found.label) == ({"value": [text]}, text)


@pytest.mark.parametrize("key", ["$where", "$", "a.b", ".", "a\0b", ""])
def test_a_key_that_mongodb_would_read_as_more_is_refused_and_nothing_is_sent(
    key: str, queue: axeq.Queue, jobs: Any
) -> None:
    with pytest.raises(axeq.PayloadInvalid, match="MongoDB cannot address keys"):
        queue.enqueue_many([Note(), Note(text=[{"deep": {key: SECRET}}])])

    assert jobs.count_documents({}) == 0


# Sizes, and errors that do not quote what they refuse


class Quoting:
    def __repr__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(SECRET * 100_000, id="large"),
        pytest.param(Quoting(), id="unknown type"),
        pytest.param(SECRET + "\ud800", id="surrogate"),
        pytest.param({SECRET: {"inner": Quoting()}}.get(SECRET), id="nested"),
        pytest.param(Decimal("0." + "7" * 40), id="decimal"),
        pytest.param(7**40, id="integer"),
        pytest.param(SecretStr(SECRET), id="secret"),
    ],
)
def test_a_refused_payload_is_not_quoted_and_nothing_is_sent(text: Any, queue: axeq.Queue, jobs: Any) -> None:
    with pytest.raises(axeq.PayloadInvalid) as raised:
        queue.enqueue(Note(text=text))

    assert SECRET not in str(raised.value)
    assert "7777" not in str(raised.value)
    assert str(7**40) not in str(raised.value)
    assert len(str(raised.value)) < 300
    assert jobs.count_documents({}) == 0


def test_a_payload_that_is_too_large_names_its_size_and_the_limit(queue: axeq.Queue) -> None:
    payload = Note(text="x" * LIMIT)

    with pytest.raises(axeq.PayloadTooLarge) as raised:
        queue.enqueue(payload)

    assert raised.value.size == len(bson.encode(payload.model_dump()))
    assert raised.value.limit == LIMIT
    assert f"{raised.value.size:,} bytes, the limit is {LIMIT:,}" in str(raised.value)


@given(st.text(st.characters(), max_size=50), st.integers(0, 3000))
def test_a_stored_failure_is_bounded_in_bytes(text: str, times: int) -> None:
    stored = failure(text * times, text * times, text * times)

    assert len(stored["type"].encode()) <= 256
    assert len(stored["message"].encode()) <= 2048
    assert len(stored["traceback"].encode()) <= 16_384


def test_a_failure_keeps_the_beginning_of_its_message_and_the_end_of_its_traceback() -> None:
    stored = failure("ValueError", "first" + "é" * 5000, "é" * 50_000 + "last")

    assert stored["message"].startswith("firsté")
    assert stored["message"].endswith("é...")
    assert stored["traceback"].startswith("...é")
    assert stored["traceback"].endswith("élast")


# Nothing stored is ever code


def test_pickle_is_known_only_to_the_pipe_between_a_pool_and_its_own_processes() -> None:
    serializers = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml", "jsonpickle"}

    found = {
        (module, name)
        for module, node in sources()
        for name in _imported(node)
        if name.partition(".")[0] in serializers
    }

    assert found == {("processes", "pickle")}


def test_nothing_is_imported_or_evaluated_by_a_name_that_is_not_in_the_source() -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "import_module", "locate", "resolve_name", "loads"}

    calls = {(module, name) for module, node in sources() for name in _called(node) if name in forbidden}

    # A table in the source, modules of axeq that are loaded late, the files of an embedded server, as JSON, and the
    # pipe between a pool and its processes.
    assert calls == {
        ("__init__", "import_module"),
        ("late", "import_module"),
        ("embedded", "loads"),
        ("keeper", "loads"),
        ("processes", "loads"),
    }


def test_a_module_that_is_loaded_late_is_one_of_axeq_named_in_the_source() -> None:
    given = [
        node.args[0]
        for _, node in sources()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Late"
    ]

    assert given
    assert all(isinstance(name, ast.Constant) and str(name.value).startswith("axeq.") for name in given)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _called(node: ast.AST) -> list[str]:
    """Returns the function that is called, without its module; `re.compile` is none that evaluates."""
    if not isinstance(node, ast.Call):
        return []
    called = node.func
    if isinstance(called, ast.Name):
        return [called.id]
    return [called.attr] if isinstance(called, ast.Attribute) and called.attr != "compile" else []


@pytest.mark.parametrize("kind", ["SystemExit", "builtins.eval", "os.system", "KeyboardInterrupt"])
def test_a_stored_failure_is_never_made_an_exception_of_its_name(kind: str, queue: axeq.Queue, jobs: Any) -> None:
    job = queue.enqueue(Note())
    stored = {"type": kind, "message": "rm -rf /", "traceback": ""}
    jobs.update_one({"_id": job.id}, {"$set": {"state": "cancelled", "cause": "exhausted", "error": stored}})

    with pytest.raises(axeq.JobCancelled) as raised:
        job.wait(1)

    assert raised.value.error == stored
    assert raised.value.__cause__ is None


# Credentials


@pytest.mark.parametrize(
    "text",
    [
        f"cannot use mongodb://ann:{SECRET} and more@h/db",
        f"cannot use mongodb+srv://ann:my {SECRET}@h/db",
        f"cannot use MONGODB://ann:12345 {SECRET}@h:1,i:2/db\nnext line",
        f"cannot use mongodb://ann:a/{SECRET}@h/db",
        f"mongodb://ann:{SECRET}@h/db?authMechanismProperties=x",
    ],
)
def test_a_password_with_spaces_is_redacted_too(text: str) -> None:
    assert SECRET not in redact(text)
    assert redact(text).splitlines()[1:] == text.splitlines()[1:]


def test_an_address_after_a_uri_without_credentials_stays() -> None:
    assert redact("mongodb://h/db is down\nask ann@example.org") == "mongodb://h/db is down\nask ann@example.org"


def test_an_exception_of_a_handler_is_stored_without_the_uri_that_it_quotes() -> None:
    uri = f"mongodb://ann:{SECRET}@h/db"
    try:
        raise ConnectionError(f"no answer from {uri}") from ValueError(uri)
    except ConnectionError as error:
        stored = describe(error)

    assert SECRET not in str(stored)
    assert "mongodb://***@h/db" in stored["message"]
    assert "mongodb://***@h/db" in stored["traceback"]


@pytest.mark.parametrize("password", ["pa#ss", "pa%23ss", "my pass", "p;a"])
def test_a_password_never_changes_the_database_that_is_used(password: str) -> None:
    store = axeq.Store(f"mongodb://ann:{password}@h/shop?appName=a#b")

    assert store.place.database == "shop"
    assert password not in repr(store)


@pytest.mark.parametrize(
    ("uri", "wrong"),
    [
        ("mongodb://localhost/shop", None),
        ("mongodb://127.0.0.1:1,[::1]:2/shop", None),
        ("mongodb://h/shop?tls=true", None),
        ("mongodb://h/shop", "not encrypted"),
        ("mongodb://127.0.0.1,h/shop", "not encrypted"),
        ("mongodb://h/shop?tls=true&tlsAllowInvalidCertificates=true", "certificate is not checked"),
        ("mongodb://h/shop?tls=true&tlsInsecure=true", "certificate is not checked"),
        ("mongodb://h/shop?tls=true&tlsAllowInvalidHostnames=true", "name is not checked"),
    ],
)
def test_the_doctor_sees_a_way_to_the_server_that_is_open_to_others(uri: str, wrong: str | None) -> None:
    with pymongo.MongoClient[Any](uri, connect=False) as client:
        found = transport(client)

    assert (found is None) == (wrong is None)
    assert (wrong or "") in (found or "")


def test_the_keeper_of_an_embedded_server_is_not_given_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_URI", f"mongodb://ann:{SECRET}@h/db")

    assert SECRET not in str(embedded._environment()) + str(servers.environment())


# Logs


@pytest.mark.parametrize("name", ["a\n", "a b", "a\0", "", "ä", "x" * 129, "$x", "a{b}", 7], ids=repr)
def test_a_task_or_queue_is_named_in_a_plain_alphabet_only(name: Any, queue: axeq.Queue) -> None:
    for naming in (lambda: bind(Open, name=name), lambda: axeq.Queue(queue.store, name)):
        with pytest.raises(axeq.ConfigurationError):
            naming()


@pytest.mark.parametrize("identity", ["a\nERROR forged", "a\x1b[2J", "a\u2028b", "", "x" * 513, b"x" * 513], ids=repr)
def test_an_id_is_one_short_line_for_logs_name_jobs_by_it(identity: Any, queue: axeq.Queue, jobs: Any) -> None:
    with pytest.raises(axeq.ConfigurationError, match=r"^id must be"):
        queue.enqueue(Note(), id=identity)

    assert jobs.count_documents({}) == 0


FORGED = "gone\n2026-01-01 CRITICAL root: all is lost\x1b[2J\r"


@pytest.mark.parametrize(
    "error",
    [
        errors.LeaseLost(FORGED, FORGED),
        errors.JobNotFound(FORGED),
        errors.JobGone(FORGED),
        errors.WaitTimeout(FORGED, 1, FORGED),
        errors.LabelTaken("note", FORGED, existing_id=FORGED),
        errors.EnqueueUnknown([FORGED], FORGED),
        errors.JobCancelled(FORGED, FORGED, {"type": FORGED, "message": FORGED}),
        errors.StoreUnavailable("h", FORGED),
        errors.AccessDenied("h", FORGED),
        errors.ConfigurationError(FORGED),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_one_line_that_steers_no_terminal(error: Exception) -> None:
    assert "CRITICAL" in str(error)
    assert str(error).isprintable()


# Limits


@pytest.mark.parametrize(
    "options",
    [
        {"delay": timedelta(days=3651)},
        {"delay": 1e300},
        {"delay": float("nan")},
        {"run_at": datetime(2999, 1, 1, tzinfo=UTC)},
        {"run_at": datetime.max.replace(tzinfo=UTC)},
        {"retention": timedelta(days=3651)},
        {"priority": 2**15},
        {"priority": -(2**15) - 1},
        {"priority": 1.5},
        {"priority": True},
        {"label": "x" * 513},
    ],
    ids=str,
)
def test_an_enqueue_asks_for_nothing_beyond_its_limits(options: dict[str, Any], queue: axeq.Queue, jobs: Any) -> None:
    with pytest.raises(axeq.ConfigurationError):
        queue.enqueue(Note(), **options)

    assert jobs.count_documents({}) == 0


@pytest.mark.parametrize("running", [False, True], ids=["waiting", "running"])
def test_a_reason_is_kept_as_short_text(running: bool, queue: axeq.Queue, jobs: Any) -> None:
    job = queue.enqueue(Note())
    if running:
        lease = datetime.now(UTC) + timedelta(hours=1)
        jobs.update_one({"_id": job.id}, {"$set": {"state": "dequeued", "available_at": lease}})

    job.cancel("é" * 100_000)

    stored = jobs.find_one({"_id": job.id})
    kept = stored["cancel"]["reason"] if running else stored["events"][-1]["reason"]
    assert isinstance(kept, str)
    assert 0 < len(kept.encode()) <= 2048


def test_a_document_is_no_reason_and_never_sent(queue: axeq.Queue, jobs: Any) -> None:
    job = queue.enqueue(Note())
    before = jobs.find_one({"_id": job.id})

    with pytest.raises(axeq.ConfigurationError, match="reason must be text, not dict"):
        job.cancel({"$set": {"x": 1}})  # type: ignore[arg-type]

    assert jobs.find_one({"_id": job.id}) == before


def test_a_moment_at_the_end_of_time_is_refused_rather_than_rounded_beyond_it() -> None:
    record = Record({"attempts": 1})

    outcome = decide(axeq.Retry(at=datetime.max.replace(tzinfo=UTC)), record, Limits())

    assert isinstance(outcome, Failed)
    assert outcome.error["type"] == "ConfigurationError"


def test_a_pause_that_others_wrote_amiss_stops_no_pool() -> None:
    names = [{"name": {"$ne": None}}, {"name": ["a"]}, {"name": 7}, {"name": "note"}, {}]
    amiss = [{"queue": "default", **name} for name in names]

    op = manage.paused(["default"])
    next(op)
    with pytest.raises(StopIteration) as ended:
        op.send([*amiss, {"queue": ["default"], "name": "other"}])

    assert ended.value.value == {"default": {"note", None}}


# Sealed payloads


def test_a_sealed_payload_is_a_marked_binary_that_shows_nothing_of_it() -> None:
    stored = bind(Note).encode(Note(text=SECRET), LIMIT, Mask())

    assert type(stored) is Binary
    assert stored.subtype == SEALED == 174
    assert SECRET.encode() not in stored
    assert b"text" not in stored


@given(st.recursive(st.none() | st.text() | st.integers(-(2**63), 2**63 - 1) | st.binary(), st.lists, max_leaves=20))
def test_what_was_sealed_is_read_back_equal(value: Any) -> None:
    stored = bind(Note).encode(Note(text=value), LIMIT, Mask())
    written = bson.decode(bson.encode({"data": stored}), codec.CODEC_OPTIONS)["data"]

    assert bind(Note).decode(written, 1, Mask()) == Note(text=value)


@pytest.mark.parametrize("result", [1, "text", [1, {"a": b"b"}], {"a": None}, False, b"", 0.5], ids=repr)
def test_a_sealed_result_is_read_back_equal(result: Any) -> None:
    stored = bind(Note).encode_result(result, LIMIT, Mask())

    assert is_sealed(stored)
    assert bind(Note).decode_result(stored, Mask()) == result


def test_no_result_stays_no_result() -> None:
    assert bind(Note).encode_result(None, LIMIT, Mask()) is None
    assert bind(Note).decode_result(None, Mask()) is None


def test_without_a_codec_what_is_stored_is_as_it_was() -> None:
    assert bind(Note).encode(Note(text=SECRET), LIMIT) == {"text": SECRET}
    assert bind(Note).encode_result({"a": 1}, LIMIT) == {"a": 1}


def test_the_limit_is_that_of_the_sealed_bytes() -> None:
    binding, payload = bind(Note), Note(text="x" * 100)
    length = len(binding.encode(payload, LIMIT, Mask()))

    assert len(binding.encode(payload, length, Mask())) == length
    with pytest.raises(axeq.PayloadTooLarge) as raised:
        binding.encode(payload, length - 1, Mask())
    with pytest.raises(axeq.ResultInvalid):
        binding.encode_result("x" * 100, 100, Mask())

    assert raised.value.size == length


@pytest.mark.parametrize("given_codec", [None, Mask(1), Broken()], ids=["none", "another key", "broken"])
@pytest.mark.parametrize("read", ["decode", "decode_result"])
def test_what_cannot_be_opened_is_an_error_of_its_own_that_quotes_nothing(given_codec: Any, read: str) -> None:
    binding = bind(Note)
    stored = {
        "decode": binding.encode(Note(text=SECRET), LIMIT, Mask(2)),
        "decode_result": binding.encode_result(SECRET, LIMIT, Mask(2)),
    }[read]
    call: Callable[[], Any] = {
        "decode": lambda: binding.decode(stored, 1, given_codec),
        "decode_result": lambda: binding.decode_result(stored, given_codec),
    }[read]

    with pytest.raises(axeq.PayloadSealed, match="of 'note' is sealed, and") as raised:
        call()

    assert SECRET not in str(raised.value)


def test_bytes_that_changed_since_cannot_be_opened() -> None:
    stored = seal({"a": 1}, Mask(), root="x")
    changed = Binary(bytes(stored[:-8]), SEALED)

    with pytest.raises(axeq.PayloadSealed):
        opened(changed, Mask(), root="x")


def test_a_model_that_upgrades_or_accepts_anything_is_never_given_sealed_bytes() -> None:
    class Lenient(axeq.Model[None], name="lenient", version=2):
        text: str = "made up"

        @classmethod
        def upgrade(cls, data: Any, version: int) -> dict[str, Any]:
            return {}

    stored = bind(Lenient).encode(Lenient(text="real"), LIMIT, Mask())

    with pytest.raises(axeq.PayloadSealed):
        bind(Lenient).decode(stored, 1)


@pytest.mark.parametrize("broken", [Broken(), type("Text", (Mask,), {"encode": lambda self, data: "text"})()])
def test_a_codec_that_fails_stores_nothing_rather_than_plain_text(broken: Any, jobs: Any) -> None:
    queue = axeq.Queue(axeq.Store(jobs.database, codec=broken))

    with pytest.raises(axeq.PayloadSealed, match="note cannot be sealed: the store's codec raised") as raised:
        queue.enqueue(Note(text=SECRET))

    assert SECRET not in str(raised.value)
    assert jobs.count_documents({}) == 0


def test_a_value_with_the_mark_of_sealed_bytes_cannot_be_smuggled_in() -> None:
    forged = seal("forged", Mask(), root="x")

    with pytest.raises(axeq.PayloadInvalid, match=r"^note\.text\[0\]: a Binary of subtype 174"):
        bind(Note).encode(Note(text=[forged]), LIMIT)
    with pytest.raises(axeq.ResultInvalid):
        bind(Note).encode_result(forged, LIMIT)


def test_secrets_are_refused_without_a_codec_and_sealed_by_value_with_one() -> None:
    sealed_account = bind(Account).encode(Account(password=SecretStr(SECRET)), LIMIT, Mask())
    sealed_open = bind(Open, name="open").encode(Open(password=SecretStr(SECRET)), LIMIT, Mask())
    sealed_result = bind(Account).encode_result(SecretStr(SECRET), LIMIT, Mask())

    assert bind(Account).decode(sealed_account, 1, Mask()).password.get_secret_value() == SECRET
    assert bind(Open, name="open").decode(sealed_open, 1, Mask()).password.get_secret_value() == SECRET
    assert bind(Account).decode_result(sealed_result, Mask()).get_secret_value() == SECRET
    with pytest.raises(axeq.PayloadInvalid, match="give the store a codec"):
        bind(Account).encode(Account(password=SecretStr(SECRET)), LIMIT)
    with pytest.raises(axeq.ResultInvalid):
        bind(Account).encode_result(SecretStr(SECRET), LIMIT)


@pytest.mark.parametrize("given_codec", [object(), "key", 7, type("Half", (), {"encode": lambda self, data: data})()])
def test_a_codec_without_both_methods_is_refused_at_once(given_codec: Any, jobs: Any) -> None:
    with pytest.raises(axeq.ConfigurationError, match=r"^codec must be an object with encode\(bytes\)"):
        axeq.Store(jobs.database, codec=given_codec)


def test_a_store_takes_its_codec_to_another_process_and_shows_it_nowhere() -> None:
    store = axeq.Store("mongodb://localhost/shop", codec=Mask(77))

    sent: axeq.Store = pickle.loads(pickle.dumps(store))

    assert isinstance(sent.codec, Mask)
    assert sent.codec.key == 77
    assert "77" not in repr(store) + repr(axeq.Queue(store)) + repr(axeq.Pool(store, worker="w"))


def test_a_sealed_failure_shows_its_type_and_no_more() -> None:
    error = failure("ValueError", SECRET, f"Traceback: {SECRET}")

    stored = sealed_failure(error, Mask())

    assert SECRET.encode() not in bson.encode(stored)
    assert (stored["type"], stored["message"], stored["traceback"]) == ("ValueError", "(sealed)", "")
    assert opened_failure(stored, Mask()) == error
    assert opened_failure(stored, None) == stored
    assert opened_failure(stored, Mask(1)) == stored
    assert opened_failure(error, Mask()) == error


def test_a_failure_that_cannot_be_sealed_is_dropped_rather_than_shown() -> None:
    stored = sealed_failure(failure("ValueError", SECRET, SECRET), Broken())

    assert SECRET not in str(stored)
    assert stored["type"] == "ValueError"


def test_an_outcome_is_sealed_where_it_may_quote_the_payload() -> None:
    error = failure("ResultInvalid", SECRET)

    failed = sealed(Failed(error, delay=5), Mask())
    refused = sealed(Cancelled(Cause.RESULT, SECRET, error), Mask())
    asked = Cancelled(Cause.HANDLER, "a reason that the handler chose to show")

    assert SECRET not in f"{failed}{refused}"
    assert isinstance(failed, Failed)
    assert failed.delay == 5
    assert sealed(asked, Mask()) is asked
    assert sealed(Snoozed(5.0, data={}, version=1), Mask()) == Snoozed(5.0, data={}, version=1)
    assert sealed(Completed(1), Mask()) == Completed(1)


def test_what_an_event_keeps_of_a_failure_is_sealed_on_its_own() -> None:
    record = held_record()
    error = failure("ValueError", SECRET, f"Traceback of {SECRET} " + "." * 5000)

    for outcome in (Failed(error), Cancelled(Cause.EXHAUSTED, "attempt 1 of 1 failed", error), Snoozed(error=error)):
        kept = sealed(outcome, Mask())
        stored = changed(record.document, settlement(record, kept, Limits(), ScriptedClock()).update)

        assert SECRET.encode() not in bson.encode(stored)
        assert len(bson.encode(stored["events"][-1])) < 2000


def test_only_the_codec_opens_the_failures_of_a_jobs_past() -> None:
    record = held_record()
    kept = sealed(Failed(failure("ValueError", SECRET, "Traceback")), Mask())
    stored = changed(record.document, settlement(record, kept, Limits(), ScriptedClock()).update)

    shown = {
        codec: axeq.Job(stored, axeq.Store("mongodb://localhost/shop", codec=codec), None).errors[0].message
        for codec in (None, Mask(1), Mask())
    }

    assert list(shown.values()) == ["(sealed)", "(sealed)", SECRET]
    assert Record(stored).errors[0].message == "(sealed)"


# The page


RIGHTS = {
    "insert_one": {"insert"},
    "insert_many": {"insert"},
    "update_one": {"update"},
    "update_many": {"update"},
    "bulk_write": {"update"},
    "find_one_and_update": {"find", "update"},
    "delete_one": {"remove"},
    "delete_many": {"remove"},
    "count_documents": {"find"},
    "list_indexes": {"listIndexes"},
    "create_indexes": {"createIndex"},
    "find": {"find"},
    "aggregate": {"find"},
}
"""What MongoDB asks of an account, by command."""
INDEXED = ["JOBS", "ISOLATIONS"]
INDEXING = {"createIndex", "listIndexes"}


def test_the_documented_roles_allow_every_command_of_axeq_and_no_more() -> None:
    needed: dict[str, set[str]] = {"JOBS": {"changeStream"}, "CONTROL": set(), "WORKERS": set(), "ISOLATIONS": set()}
    for _, node in sources():
        for collection, command in _commands(node):
            for each in INDEXED if collection == "collection" else [collection]:
                needed[each] |= RIGHTS[command]

    written = {"find", "insert", "update", "remove"}
    assert needed["WORKERS"] | needed["CONTROL"] <= {"find", "update", "remove"}
    assert needed["ISOLATIONS"] - INDEXING <= written
    assert _documented("axeq") == {
        "jobs": needed["JOBS"] - {"createIndex"},
        "jobs.isolations": written | {"listIndexes"},
        **{f"jobs.{name}": written for name in ("control", "workers")},
    }
    assert _documented("axeqIndexes") == {"jobs": INDEXING, "jobs.isolations": INDEXING}


def test_the_code_of_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

    for block in blocks:
        exec(compile(block, "docs/security.md", "exec"), {})

    assert blocks


def _commands(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields the collection and the method of a command that a rule makes."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Call", "Find")):
        return
    collection = node.args[0]
    assert isinstance(collection, ast.Name)
    if node.func.id == "Find":
        yield collection.id, "find"
        return
    for each in ast.walk(node.args[1]):
        if isinstance(each, ast.Constant):
            yield collection.id, str(each.value)


def _documented(role: str) -> dict[str, set[str]]:
    script = next(text for text in re.findall(r"```js\n(.*?)```", PAGE, re.DOTALL) if f'role: "{role}"' in text)
    granted = re.findall(r'collection: "([\w.]+)" \},\s+actions: \[(.*?)\]', script)
    return {collection: set(re.findall(r'"(\w+)"', actions)) for collection, actions in granted}
