"""The trees that the docstrings draw are the trees that exist."""

import re
from types import ModuleType

import pytest

import corte_protocol.errors
import corte_teacher.errors
from corte_protocol.errors import WIRE, CorteError


def drawn(module: ModuleType) -> dict[str, str]:
    """Child to parent, as the indented docstring of an errors module draws them."""
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in (module.__doc__ or "").splitlines():
        match = re.fullmatch(r"( {4,})([A-Z][A-Za-z]+)( {2,}.*)?", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if stack:
            parents[name] = stack[-1][1]
        stack.append((depth, name))
    return parents


@pytest.mark.parametrize("module", [corte_protocol.errors, corte_teacher.errors])
def test_the_drawn_tree_is_the_real_one(module: ModuleType) -> None:
    """Every error class of the module is drawn under its base, and nothing else is drawn."""
    real = {
        name: value.__mro__[1].__name__
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, CorteError) and value.__module__ == module.__name__
    }
    real.pop("CorteError", None)
    assert drawn(module) == real


@pytest.mark.parametrize("module", [corte_protocol.errors, corte_teacher.errors])
def test_every_code_has_a_row_on_the_wire(module: ModuleType) -> None:
    """An error that names a code names one that clients know."""
    codes = {v.code for v in vars(module).values() if isinstance(v, type) and hasattr(v, "code")}
    assert codes <= set(WIRE)


def test_rows_are_fixed_texts_of_real_failures() -> None:
    """Statuses are those of failures, and a text is one sentence without a placeholder."""
    for code, row in WIRE.items():
        assert 400 <= row.status < 600 and row.title.endswith(".") and "{" not in row.title, code
