"""The wheel holds all that the program needs, and runs from an empty folder; the README's commands are the CI's."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_contents(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        "jaxq/py.typed",
        "jaxq/__init__.pyi",
        "jaxq/run.py",
        "jaxq/conf/config.yaml",
        "jaxq/embedded/weights.safetensors",
        "jaxq/embedded/tokenizer.json",
    }
    assert expected <= names
    packaged = {name.removeprefix("jaxq/conf/") for name in names if name.startswith("jaxq/conf/")}
    assert packaged == {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*.yaml")}
    assert not [name for name in names if name.startswith(("tests/", "experiments/"))]


def test_the_embedded_model_is_small_enough(wheel):
    assert (ROOT / "jaxq" / "embedded" / "weights.safetensors").stat().st_size < 16e6


def test_runs_from_an_empty_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    environment = os.environ | {"PYTHONPATH": str(site), "JAXQ_CACHE": str(tmp_path / "cache")}
    script = "import jaxq, jaxq.run; print(jaxq.__file__); jaxq.run.main()"
    arguments = ["method=rtn_dq", "calib.samples=0", "eval.samples=0"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=empty, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(site) in done.stdout.splitlines()[0]
    assert len(list(empty.glob("outputs/*/*/model.onnx"))) == 1


def test_the_readme_starts_with_commands_that_ci_runs_too():
    readme = (ROOT / "README.md").read_text().splitlines()
    first = "\n".join(readme[:20])
    assert "python -m jaxq.run method=awq_lite block_size=128" in first
    install = re.search(r'pip install -q -e "(\.\[cpu,genai,test\])"', "\n".join(readme))
    assert install
    assert install.group(1) in (ROOT / ".ci" / "run").read_text()


def test_the_version_is_said_once():
    import jaxq

    assert f'version = "{jaxq.__version__}"' in (ROOT / "pyproject.toml").read_text()
