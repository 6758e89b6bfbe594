"""The layers of the package: who may import whom."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module imports modules of its own layer and of those above it in this list. Names are those below `jaxq`;
# a package stands for all that it holds.
LAYERS: list[set[str]] = [
    {"blocks", "errors", "interrupt", "patches", "progress", "version"},
    {"integer", "float4", "mx", "packing", "statistics"},
    {"formats", "quant_utils"},
    {
        "plain",
        "awq",
        "block_scales",
        "gptq",
        "drift",
        "allocation",
        "readers",
        "present",
        "edit",
        "sparse",
        "reading",
        "reasons",
        "graph",
        "fold",
        "forms",
        "declined",
        "dead",
    },
    {
        "windows",
        "widen",
        "runtime",
        "lazy_load",
        "lazy_save",
        "batches",
        "store",
        "spool",
        "forward",
        "collect",
        "capture",
    },
    {
        "methods",
        "stacks",
        "groups",
        "effective",
        "residuals",
        "sensitivity",
        "propagate",
        "checkpoint",
        "job",
        "model_file",
        "opset",
        "results",
        "readback",
    },
    {"source", "rewrite", "budget"},
    {"pipeline", "estimate", "inspect"},
    {"modelopt", "int4", "evaluation", "output_errors", "inputs", "caches", "companions", "config", "config_errors"},
    {"texts", "text_datasets", "data", "hf", "hf_export", "records", "task"},
    {"run", "command", "report"},
]
ASIDE: dict[str, set[str]] = {
    # jaxq/__init__.py: the public functions
    "": {
        "awq",
        "block_scales",
        "errors",
        "float4",
        "formats",
        "gptq",
        "integer",
        "mx",
        "packing",
        "statistics",
        "version",
    },
    "embedded": {"errors"},
}
"""What modules outside the layers may import; every layer may import ``embedded``."""

MATHS = {
    *("blocks", "integer", "float4", "mx", "formats", "packing", "statistics"),
    *("awq", "block_scales", "gptq", "drift", "methods", "quant_utils"),
}
MATHS_NEVER = {
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "hydra",
    "omegaconf",
    "pathlib",
    "os",
    "io",
    "shutil",
    "tempfile",
}
HARNESS = {"config", "config_errors", "command", "report"}
ONLY_IN = {"onnxruntime": {"runtime"}, "hydra": HARNESS, "omegaconf": HARNESS, "rich": {"command", "report", "inspect"}}
NOT_ON_IMPORT = ("hydra", "onnxruntime", "onnx_ir", "onnx", "onnxscript", "rich", "tokenizers")


def modules() -> dict[str, Path]:
    """Files by the name below `jaxq`: "forms.dq"; packages without "__init__"."""
    found = {}
    for path in sorted((ROOT / "jaxq").rglob("*.py")):
        parts = path.relative_to(ROOT / "jaxq").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too; those under TYPE_CHECKING as well."""
    found = set()
    for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(each, ast.Import):
            found |= {alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            assert each.level == 0, f"{path}:{each.lineno} has a relative import"
            base = each.module or ""
            found |= {f"{base}.{alias.name}" for alias in each.names}
    return found


def within(path: Path) -> set[str]:
    """Modules of jaxq that a file imports, as names below `jaxq`."""
    found = set()
    for name in imported(path):
        if name == "jaxq" or name.startswith("jaxq."):
            rest = name.removeprefix("jaxq").lstrip(".")
            found.add(rest if rest in MODULES else rest.rpartition(".")[0])
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


def layer(name: str) -> int:
    return next((i for i, names in enumerate(LAYERS) if top(name) in names), -1)


def test_every_module_has_one_place():
    placed = [name for names in (*LAYERS, set(ASIDE)) for name in names]
    assert len(placed) == len(set(placed))
    assert {top(name) for name in MODULES} <= set(placed)


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "__init__")
def test_imports_point_down(name):
    allowed = {m for m in MODULES if 0 <= layer(m) <= layer(name) or top(m) == "embedded"}
    if top(name) in ASIDE:
        allowed = {m for m in MODULES if top(m) in ASIDE[top(name)] | {top(name)}}
    assert within(MODULES[name]) - allowed == set()


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: within(path) - {name} for name, path in MODULES.items()}
    list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("name", sorted(MATHS))
def test_the_maths_sees_no_files_and_no_onnx(name):
    assert {top(n) for n in imported(MODULES[name])} & MATHS_NEVER == set()
    assert {top(n) for n in within(MODULES[name])} <= MATHS | {"errors"}


@pytest.mark.parametrize("name", MODULES, ids=lambda name: name or "__init__")
def test_some_packages_are_used_in_one_place(name):
    used = {top(n) for n in imported(MODULES[name])}
    assert {p for p in used if p in ONLY_IN and name not in ONLY_IN[p]} == set()
    assert not used & {"experiments", "tests"}


def test_importing_the_package_is_light():
    code = f"import sys, jaxq; print(*(n for n in {NOT_ON_IMPORT!r} if n in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
