"""What `axeq demo` finds in Python source."""

from __future__ import annotations

from textwrap import dedent

import pytest

from axeq.edges.measure import KEPT, Function, Measured, measure_source


def measured(source: str) -> Measured:
    return measure_source(dedent(source).encode())


def complexity(body: str) -> int:
    indented = "".join(f"    {line}\n" for line in dedent(body).strip().splitlines())
    (function,) = measure_source(f"async def f(a, b, c):\n{indented}".encode()).longest
    return function.complexity


def test_a_module_without_functions_has_none() -> None:
    found = measured("x = 1 if True else 2\n")

    assert found == Measured(functions=0, complexity=0, longest=[])


def test_a_function_is_measured_from_its_def_to_its_last_line() -> None:
    found = measured(
        """
        @decorated
        def f(
            a,
        ):
            x = '''
            '''

        after = 1
        """
    )

    assert found.longest == [Function(name="f", lines=5, complexity=1)]


def test_nested_and_async_functions_and_methods_are_named_by_what_holds_them() -> None:
    found = measured(
        """
        class Outer:
            class Inner:
                async def method(self):
                    pass
        def f():
            if True:
                def g(): pass
        """
    )

    assert {function.name for function in found.longest} == {"Outer.Inner.method", "f", "f.g"}
    assert found.functions == 3


def test_a_nested_function_counts_its_own_branches_and_not_its_holder_s() -> None:
    found = measured(
        """
        def f(a):
            def g(b):
                if b: pass
                if b: pass
            class C:
                if a: pass
            if a: pass
        """
    )

    assert {function.name: function.complexity for function in found.longest} == {"f": 2, "f.g": 3}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("pass", 1),
        ("if a: pass\nelif b: pass\nelse: pass", 3),
        ("return a if b else c", 2),
        ("for x in a: pass\nelse: pass", 2),
        ("async for x in a: pass", 2),
        ("while a: pass", 2),
        ("try: pass\nexcept A: pass\nexcept B: pass\nelse: pass\nfinally: pass", 3),
        ("with a: pass", 1),
        ("return a and b and c", 3),
        ("return a and b or c", 3),
        ("return not a", 1),
        ("return lambda x: x or a", 2),
        ("return lambda x: x", 1),
        ("return [x for y in a for x in y if x if y]", 5),
        ("match a:\n  case 1: pass\n  case 2 | 3: pass\n  case _: pass", 3),
        ("match a:\n  case x if b: pass\n  case x: pass", 2),
    ],
)
def test_each_decision_adds_to_the_complexity(body: str, expected: int) -> None:
    assert complexity(body) == expected


def test_the_complexity_of_a_file_is_that_of_its_most_complex_function_however_short() -> None:
    short = "def short(a): return a and a and a and a\n"
    long = "def long():\n" + "    pass\n" * 20

    found = measured(short + long)

    assert found.complexity == 4
    assert [function.name for function in found.longest] == ["long", "short"]


def test_only_the_longest_functions_are_kept_but_all_are_counted() -> None:
    source = "".join(f"def f{lines}():\n" + "    pass\n" * lines for lines in range(1, KEPT + 4))

    found = measured(source)

    assert found.functions == KEPT + 3
    assert [function.lines for function in found.longest] == list(range(KEPT + 4, 4, -1))


@pytest.mark.filterwarnings("error")
def test_a_dubious_escape_in_a_file_is_not_reported_by_the_demo() -> None:
    assert measured(r"x = '\d'").functions == 0


def test_the_encoding_that_a_file_declares_is_obeyed() -> None:
    source = "# -*- coding: latin-1 -*-\ndef größe(): pass\n".encode("latin-1")

    (function,) = measure_source(source).longest

    assert function.name == "größe"


@pytest.mark.parametrize("source", [b"def f(:\n", b"print 'old'\n", b"# coding: unheard-of\n", b"x = '\xff'\n"])
def test_a_file_that_does_not_parse_is_refused_with_its_name(source: bytes) -> None:
    with pytest.raises(SyntaxError) as refused:
        measure_source(source, "half_saved.py")

    assert refused.value.filename == "half_saved.py"
