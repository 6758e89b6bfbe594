"""The project's tasks: ``nox -l`` lists them, ``nox -s NAME`` runs one, ``nox`` runs those to run before a commit.

They use the Python that runs nox and make no environment of their own: set one up as README.md says.
Options after ``--`` go to the tool: ``nox -s test -- -k awq``.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "quick"]

ROOT = Path(__file__).parent
STRUCTURE = ["tests/test_architecture.py", "tests/test_sizes.py"]
QUICK_SECONDS = 35  # no test starts later; starting pytest and ending the last tests take the rest of a minute


def run(session: nox.Session, *command: str, **environment: str) -> None:
    """Runs a module of this Python: ``python -m ruff ...``."""
    session.run(sys.executable, "-m", *command, env=environment)


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules, imports, format. `nox -s lint -- --fix` mends what it can."""
    run(session, "ruff", "check", *session.posargs, ".")
    run(session, "ruff", "format", *([] if "--fix" in session.posargs else ["--check"]), ".")


@nox.session
def types(session: nox.Session) -> None:
    """Pyright on jaxq, tests, examples, experiments and this file."""
    run(session, "pyright", "--pythonpath", sys.executable, *session.posargs)


@nox.session
def test(session: nox.Session) -> None:
    """All tests, 12 to 17 minutes on two cores."""
    run(session, "pytest", "-n", "2", "--durations=20", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """Tests of what changed since origin/main, under a minute; `nox -s quick -- HEAD~3` names another commit."""
    paths = changed_paths(session.posargs[0] if session.posargs else base())
    selected = dict.fromkeys([*STRUCTURE, *(test for path in paths for test in tests_of(path))])
    options = ["-n", "2", "-m", "not slow and not long", "-rs", f"--stop-after={QUICK_SECONDS}"]
    run(session, "pytest", *options, *selected)


@nox.session
def docs(session: nox.Session) -> None:
    """The manual into site/, where each broken link is an error (extra docs)."""
    run(session, "mkdocs", "build", "--strict", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Array functions beside ModelOpt's and onnxruntime's: `nox -s bench -- --peer-python PY --out FILE`."""
    session.run(sys.executable, "experiments/bench/functions.py", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """The property tests on many random examples, other ones at each run."""
    options = ["-n", "2", "-m", "hypothesis and not slow"]
    run(session, "pytest", *options, *session.posargs, HYPOTHESIS_PROFILE="fuzz")


def git(*arguments: str) -> list[str]:
    """Lines that a git command prints; none where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def base() -> str:
    """The commit at which this branch left origin/main, or the last commit where there is no such branch."""
    return next(iter(git("merge-base", "HEAD", "origin/main")), "HEAD")


def changed_paths(commit: str) -> list[str]:
    """Files that differ from a commit, those that git does not know yet included."""
    return git("diff", "--name-only", "--diff-filter=d", commit) + git("ls-files", "--others", "--exclude-standard")


def tests_of(path: str) -> list[str]:
    """Paths for pytest that test a file of this repository, its own doctests included; none for most other files."""
    folder, *inner = Path(path).parts
    if folder == "tests":
        return [path] if Path(path).name.startswith("test_") and path.endswith(".py") else []
    if folder == "jaxq" and path.endswith(".py"):
        return [*(next(filter(None, module_tests(inner)), [])), path]
    if folder == "examples":
        return ["tests/examples"]
    if folder == "conf":
        return ["tests/harness/test_compose.py"]
    manual = folder in ("docs", "README.md", "mkdocs.yml") and (ROOT / "tests" / "docs").is_dir()
    return ["tests/docs"] if manual else []


def module_tests(inner: list[str]) -> Iterator[list[str]]:
    """Tests of a module of jaxq, from close to remote: the first that are not empty are to be run.

    Args:
        inner: Parts of its path below jaxq/: ["methods", "awq.py"].
    """
    package, stem = (inner[0] if len(inner) > 1 else "*"), Path(inner[-1]).stem
    for name in (stem, *reversed(inner[1:-1])):
        yield [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob(f"tests/{package}/test_{name}*.py"))]
    yield importers(".".join(["jaxq", *inner[:-1], stem]))
    if package != "*":
        yield [f"tests/{package}"] if (ROOT / "tests" / package).is_dir() else []
        yield importers(f"jaxq.{package}", limit=1000)


def importers(module: str, limit: int = 8) -> list[str]:
    """Test files that import from a module or from below it; none where more than ``limit`` do."""
    naming = re.compile(rf"^from {re.escape(module)}[. ]", re.MULTILINE)
    files = [
        path for path in sorted(ROOT.glob("tests/**/test_*.py")) if naming.search(path.read_text(encoding="utf-8"))
    ]
    return [str(path.relative_to(ROOT)) for path in files] if len(files) <= limit else []
