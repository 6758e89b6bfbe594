"""Files, functions and parameter lists stay short enough to read; the exceptions are listed with a reason each."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "jaxq").rglob("*.py"))
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60  # without the docstring
MAX_PARAMETERS = 7  # without self or cls


SEED = "the signature is ModelOpt's, so that its callers need to change the import alone"

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
MANY_PARAMETERS = {
    "jaxq/modelopt/quantize.py:quantize": SEED,
    "jaxq/modelopt/search_per_node.py:run_awq_scale_search_per_node": SEED,
    "jaxq/modelopt/search_per_subgraph.py:run_awq_scale_search_per_subgraph": SEED,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Functions and methods of a file by their qualified names, those inside other functions too."""
    for node in ast.iter_child_nodes(tree):
        name = f"{prefix}{node.name}" if isinstance(node, Function | ast.ClassDef) else prefix
        if isinstance(node, Function):
            yield name, node
        yield from functions(node, f"{name}." if isinstance(node, Function | ast.ClassDef) else prefix)


FUNCTIONS = {
    f"{path.relative_to(ROOT).as_posix()}:{name}": function
    for path in PATHS
    for name, function in functions(ast.parse(path.read_text(encoding="utf-8")))
}


def count_lines(function: Function) -> int:
    """Lines from ``def`` to the end, without decorators and the docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)


def count_parameters(function: Function) -> int:
    """Parameters that a caller can give; ``*args`` and ``**kwargs`` count as one each."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    bound = bool(names) and names[0] in ("self", "cls")
    return len(names) - bound + (given.vararg is not None) + (given.kwarg is not None)


LINES = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in PATHS}
FUNCTION_LINES = {name: count_lines(function) for name, function in FUNCTIONS.items()}
PARAMETERS = {name: count_parameters(function) for name, function in FUNCTIONS.items()}


@pytest.mark.parametrize(
    ("sizes", "limit", "exceptions"),
    [
        (LINES, MAX_FILE_LINES, LONG_FILES),
        (FUNCTION_LINES, MAX_FUNCTION_LINES, LONG_FUNCTIONS),
        (PARAMETERS, MAX_PARAMETERS, MANY_PARAMETERS),
    ],
    ids=["lines of files", "lines of functions", "parameters"],
)
def test_only_the_listed_exceptions_are_above_the_limit(sizes, limit, exceptions):
    above = {name: size for name, size in sizes.items() if size > limit}
    assert above.keys() - exceptions.keys() == set(), {name: above[name] for name in above.keys() - exceptions.keys()}
    assert exceptions.keys() - above.keys() == set(), "these exceptions are no longer needed: drop them from the list"


def test_the_counts_are_right():
    source = '''
class A:
    @staticmethod
    def f(self, a, /, b, *c, d=1, **e):
        """One
        two."""
        def g():
            return 1
        return g
'''
    inside = dict(functions(ast.parse(source)))
    assert list(inside) == ["A.f", "A.f.g"]
    assert count_lines(inside["A.f"]) == 4
    assert count_parameters(inside["A.f"]) == 5
    assert count_lines(inside["A.f.g"]) == 2
