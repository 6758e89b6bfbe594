"""The folders are the architecture: which package may import which, and what stays out of some of them."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ARRAYS = {"numerics", "formats", "methods"}
ONNX = {"graph", "files", "runtime", "huggingface", "readback"}
MEETING = {"forms", "calibration", "search", "pipeline", "evaluation", "data"}
BELOW = ARRAYS | ONNX | MEETING | {"embedded"}

MAY_IMPORT: dict[str, set[str]] = {
    # arrays wing
    "numerics": set(),
    "formats": {"numerics"},
    "methods": {"formats", "numerics"},
    # ONNX wing
    "graph": set(),
    "files": {"graph"},
    "runtime": {"files", "graph"},
    "readback": {"files", "graph"},
    "huggingface": {"files"},
    # where the wings meet
    "forms": {"formats", "graph"},
    "calibration": {"numerics", "graph", "files", "runtime"},
    "search": ARRAYS | {"graph", "forms"},
    "pipeline": ARRAYS | {"graph", "files", "runtime", "readback", "forms", "calibration", "search"},
    "evaluation": {"files", "runtime", "forms", "readback"},
    "embedded": set(),
    "data": {"files", "runtime", "embedded"},
    # on top
    "harness": BELOW,
    "modelopt": BELOW,
    # doors
    "": ARRAYS,
    "api": {"harness"},
    "run": {"harness"},
    "__main__": {"harness"},
    "inspect": {"harness", "readback"},
    "quant_utils": {"modelopt"} | ARRAYS,
    "int4": {"modelopt"} | ARRAYS,
}
"""What each package, or module at the root, may import beside itself; "" is ``jaxq/__init__.py``."""

FREE = {"errors", "progress", "version"}
"""Modules at the root that all may import; they import none of jaxq."""

FILES = {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "pathlib", "os", "io", "shutil", "tempfile"}
HYDRA = {"hydra", "omegaconf"}
NOT_IN = {
    **dict.fromkeys(ARRAYS, FILES | HYDRA),
    **dict.fromkeys(ONNX | MEETING | {"modelopt", "embedded"}, HYDRA),
}
"""Libraries that a package must not know: the maths no files and no ONNX, nothing below the harness Hydra."""

ONLY_IN = {
    "onnxruntime": {"runtime.session"},
    "rich": {
        "harness.lasting_console",
        "harness.cache_command",
        "harness.command",
        "harness.dry_run_report",
        "harness.evaluate_command",
        "harness.library_run",
        "harness.progress_bars",
        "harness.report",
        "harness.run_log",
        "harness.run_table",
        "readback.inspection_table",
        "readback.show",
    },
}
NOT_ON_IMPORT = ("jax", "hydra", "onnxruntime", "onnx_ir", "onnx", "onnxscript", "rich", "tokenizers")
MOST_FACE_LINES = 40


def modules() -> dict[str, Path]:
    """Files by the name below `jaxq`: "forms.dq"; packages without "__init__"."""
    named = {}
    for path in sorted((ROOT / "jaxq").rglob("*.py")):
        parts = path.relative_to(ROOT / "jaxq").with_suffix("").parts
        named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


MODULES = modules()
FACES = [
    path for path in MODULES.values() if path.name == "__init__.py" and path.parent.name not in ("jaxq", "embedded")
]


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too; those under TYPE_CHECKING as well."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(path: Path) -> set[str]:
    """Modules of jaxq that a file imports, as names below `jaxq`."""
    below = [n.removeprefix("jaxq").lstrip(".") for n in imported(path) if n == "jaxq" or n.startswith("jaxq.")]
    return {name if name in MODULES else name.rpartition(".")[0] for name in below}


def top(name: str) -> str:
    return name.partition(".")[0]


def test_every_package_is_in_the_table():
    assert {top(name) for name in MODULES} == {*MAY_IMPORT, *FREE}


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "__init__")
def test_imports_keep_to_the_table(name):
    others = {top(other) for other in within(MODULES[name])} - FREE - {top(name)}
    if name == "harness.config":
        others -= {""}  # `jaxq.__file__`, to find conf/
    assert others <= (set() if name in FREE else MAY_IMPORT[top(name)])


def test_no_packages_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        graph.setdefault(top(name), set()).update({top(other) for other in within(path)} - {"", top(name)})
    list(TopologicalSorter(graph).static_order())


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: within(path) - {name} for name, path in MODULES.items() if name}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "__init__")
def test_libraries_stay_where_they_belong(name):
    used = {top(library) for library in imported(MODULES[name])}
    assert used & NOT_IN.get(top(name), set()) == set()
    assert {library for library in used if name not in ONLY_IN.get(library, {name})} == set()
    assert not used & {"experiments", "tests"}


@pytest.mark.parametrize("path", FACES, ids=lambda path: path.parent.name)
def test_faces_have_no_logic(path):
    statements = ast.parse(path.read_text(encoding="utf-8")).body
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert all(isinstance(s, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign) for s in statements)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_FACE_LINES


def test_importing_the_package_is_light():
    code = f"import sys, jaxq; print(*(n for n in {NOT_ON_IMPORT!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
