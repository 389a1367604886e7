"""The layers of docs/design.md, held as data: what may import what, read from the source itself.

Imports inside functions and under TYPE_CHECKING count.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "axeq"

LAYERS: dict[str, tuple[str, ...]] = {
    "words": ("late", "errors", "number", "states", "priority", "clock", "duration", "backoff"),
    "documents": ("codec", "model", "failure", "record", "flaw", "checkpoint", "settings"),
    "wire": (
        "commands",
        "translation",
        "changes",
        "wire",
        "simulated",
        "capabilities",
        "servers",
        "embedded",
        "lock",
        "clients",
        "store",
        "sessions",
    ),
    "rules": (
        "outcome",
        "enqueue",
        "batch",
        "replacement",
        "isolation",
        "due",
        "group",
        "backlog",
        "lifecycle",
        "settlement",
        "interim",
        "transaction",
        "manage",
        "waiting",
        "pull",
        "periodic",
        "workers",
        "strangers",
        "indexes",
    ),
    "faces": (
        "handle",
        "limits",
        "options",
        "callback",
        "lease",
        "taker",
        "consumer",
        "face",
        "queue",
        "asyncqueue",
        "hands",
        "atomic",
        "context",
        "task",
    ),
    "supply": ("lag", "board", "feed", "hints", "shares", "source"),
    "attempts": (
        "leases",
        "settler",
        "threads",
        "hooks",
        "lifespan",
        "processes",
        "executor",
        "together",
        "desk",
    ),
    "running": (
        "pace",
        "lane",
        "turns",
        "crew",
        "ceiling",
        "claims",
        "rounds",
        "gatherer",
        "dispatcher",
        "ticker",
        "plan",
        "unknown",
        "shift",
        "oneshot",
        "pool",
    ),
    "edges": ("keeper", "measure", "screen", "demo", "cli"),
}
"""The folders of axeq and their modules, in order: each module may import only those before it."""

THIRD_PARTIES: dict[str, set[str]] = {
    "words": set(),
    "documents": {"bson", "pydantic", "typing_extensions"},
    "wire": {"bson", "pymongo"},
    "rules": {"bson"},
    "faces": {"pydantic"},
    "supply": set(),
    "attempts": {"pydantic", "pymongo"},
    "running": {"pydantic", "pymongo"},
    "edges": {"click", "pydantic", "rich"},
}

WEB_FRAMEWORKS = {"callback": {"fastapi", "flask", "starlette"}}
"""Extras that one module knows; that `import axeq` loads none of them is another test's claim."""

ORDER = [*chain.from_iterable(LAYERS.values()), "__init__"]
BELOW_FACES = [module for layer in ("words", "documents", "wire", "rules") for module in LAYERS[layer]]
KNOW_ASYNC = {"changes", "wire", "simulated", "clients", "store", "sessions"}

LONGEST_MODULE = 500
LONGEST_FUNCTION = 40

every_module = pytest.mark.parametrize("module", ORDER)


def path_of(module: str) -> Path:
    return PACKAGE / f"{module}.py" if module == "__init__" else PACKAGE / layer_of(module) / f"{module}.py"


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text())


def imports(module: str) -> Iterator[str]:
    """Yields every module that `module` imports, by its full name."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"axeq.{module} imports relatively in line {node.lineno}"
            assert node.module is not None
            folder = node.module.partition(".")[2] in ("", *LAYERS) and node.module.startswith("axeq")
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if folder else [node.module]


def siblings(module: str) -> set[str]:
    """Returns the modules of axeq that `module` imports."""
    found = set()
    for name in imports(module):
        package, *path = name.split(".")
        if package == "axeq":
            found.add(path[1] if path[0] in LAYERS else "__init__")
    return found


def layer_of(module: str) -> str:
    return next(layer for layer, modules in LAYERS.items() if module in modules)


def functions(module: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_every_module_has_its_layer() -> None:
    modules = {path_of(module) for module in ORDER}
    folders = {PACKAGE / layer / "__init__.py" for layer in LAYERS}

    assert set(PACKAGE.rglob("*.py")) == modules | folders
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folder_says_what_it_is_for_and_nothing_else(layer: str) -> None:
    said = ast.parse((PACKAGE / layer / "__init__.py").read_text())

    assert ast.get_docstring(said)
    assert len(said.body) == 1


def test_the_design_page_shows_the_same_layers() -> None:
    rows = re.findall(r"^\| (\w+) \| (`.*?`) \|", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE)
    shown = {layer: set(re.findall(r"`(\w+)`", modules)) for layer, modules in rows}

    assert shown == {layer: set(modules) for layer, modules in LAYERS.items()}
    assert list(shown) == list(LAYERS)


@every_module
def test_a_module_imports_only_modules_below_it(module: str) -> None:
    below = set(ORDER[: ORDER.index(module)])

    assert siblings(module) <= below


def test_no_module_imports_itself_through_others() -> None:
    reached: dict[str, set[str]] = {}
    for module in ORDER:
        reached[module] = siblings(module).union(*(reached.get(name, {name}) for name in siblings(module)))

    assert [module for module in ORDER if module in reached[module]] == []


@pytest.mark.parametrize("module", ORDER[:-1])
def test_a_layer_knows_only_its_own_third_parties(module: str) -> None:
    packages = {name.partition(".")[0] for name in imports(module)} - {"axeq"} - sys.stdlib_module_names

    assert packages <= THIRD_PARTIES[layer_of(module)] | WEB_FRAMEWORKS.get(module, set())


@pytest.mark.parametrize("module", LAYERS["rules"])
def test_a_rule_knows_no_driver(module: str) -> None:
    assert {name.partition(".")[0] for name in imports(module)}.isdisjoint({"pymongo", "motor", "mongomock"})


@pytest.mark.parametrize("module", [module for module in BELOW_FACES if module not in KNOW_ASYNC])
def test_only_the_wire_knows_async_below_the_faces(module: str) -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)

    assert [node.lineno for node in ast.walk(tree(module)) if isinstance(node, waiting)] == []
    assert "asyncio" not in set(imports(module))


@every_module
def test_a_module_says_what_it_is_for(module: str) -> None:
    assert ast.get_docstring(tree(module))


@every_module
def test_no_module_is_too_long_to_read(module: str) -> None:
    lines = path_of(module).read_text().count("\n")

    assert lines <= LONGEST_MODULE


@every_module
def test_no_function_is_too_long_to_read(module: str) -> None:
    long = [node.name for node in functions(module) if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION]  # type: ignore[operator]

    assert long == []
