"""The tasks of noxfile.py: CONTRIBUTING names each of them, and every module of jaxq has tests for `nox -s quick`."""

import importlib.util
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
MODULES = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "jaxq").rglob("*.py")) if p.stem != "__init__"]
UNTESTED = {"jaxq/__main__.py", "jaxq/errors.py", "jaxq/progress.py", "jaxq/run.py", "jaxq/version.py"}


@pytest.fixture(scope="module")
def tasks():
    spec = importlib.util.spec_from_file_location("noxfile", ROOT / "noxfile.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_contributing_has_every_task_and_no_other():
    sessions = re.findall(r"^@nox\.session\ndef (\w+)", (ROOT / "noxfile.py").read_text(encoding="utf-8"), re.MULTILINE)
    table = re.findall(r"^\| `nox -s (\w+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(table) == sorted(sessions)


@pytest.mark.parametrize("path", MODULES)
def test_a_changed_module_has_quick_tests(path, tasks):
    *tests, doctests = tasks.tests_of(path)
    assert doctests == path
    assert all((ROOT / test).exists() for test in tests)
    assert tests or path in UNTESTED


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("jaxq/pipeline/budget.py", ["tests/pipeline/test_budget.py", "jaxq/pipeline/budget.py"]),
        ("jaxq/graph/normalize/gemm.py", ["tests/graph/test_normalize.py", "jaxq/graph/normalize/gemm.py"]),
        ("jaxq/int4.py", ["tests/modelopt/test_int4_arrays.py", "jaxq/int4.py"]),
        ("jaxq/embedded/tokenizer.json", []),
        ("tests/forms/test_fold.py", ["tests/forms/test_fold.py"]),
        ("tests/support/models.py", []),
        ("examples/sweep.py", ["tests/examples"]),
        ("conf/dtype/int4.yaml", ["tests/harness/test_compose.py"]),
        ("LICENSE", []),
    ],
)
def test_the_tests_of_a_file(path, expected, tasks):
    assert tasks.tests_of(path) == expected


def test_hooks_run_what_the_extra_installs():
    """No hook clones a repository: a commit works without network."""
    (repository,) = OmegaConf.load(ROOT / ".pre-commit-config.yaml").repos
    assert repository.repo == "local"
    assert [hook.entry.split()[:3] for hook in repository.hooks] == [
        ["python", "-m", tool] for tool in ("ruff", "ruff", "nox", "pytest")
    ]
