"""``jaxq evaluate --tasks``: a tiny local task of lm-evaluation-harness on a builder's folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxq.errors import JaxqError
from jaxq.harness.lm_eval_tasks import genai_folder, run_tasks
from tests.genai.folders import RUNS, make_folder

pytestmark = RUNS

TASK = """task: jaxq_tiny
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


def tiny_task(folder: Path) -> Path:
    """A task of four questions with two answers each."""
    rows = [{"question": f"one and {i} is", "choices": [" two", " a list of names"], "answer": i % 2} for i in range(4)]
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    task = folder / "jaxq_tiny.yaml"
    task.write_text(TASK.format(data=data))
    return task


def test_tasks_are_those_of_lm_eval(tmp_path, monkeypatch):
    """The figures are the ones that lm_eval's own command line prints for the folder."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = make_folder("llama-fp32", tmp_path / "model")
    task = tiny_task(tmp_path)
    (figure,) = run_tasks({"m": genai_folder("m", model)}, [str(task)])
    assert (figure.model, figure.task, figure.metric, figure.samples) == ("m", "jaxq_tiny", "acc", 4)
    backend = ("--model", "onnxruntime-genai", "--model_args", f"pretrained={model.parent}")
    command = ("-m", "lm_eval", *backend, "--tasks", str(task), "--output_path", str(tmp_path / "own"))
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    own = json.loads(next((tmp_path / "own").rglob("results*.json")).read_text())
    assert figure.value == own["results"]["jaxq_tiny"]["acc,none"]
    assert run_tasks({"m": model.parent}, [str(task)], limit=2)[0].samples == 2
    with pytest.raises(JaxqError, match="jaxq_other"):
        run_tasks({"m": model.parent}, ["jaxq_other"])


def test_the_command_shows_them(jaxq, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = make_folder("llama-fp32", tmp_path / "model")
    task = tiny_task(tmp_path)
    done = jaxq("evaluate", str(model.parent), "--tasks", str(task), "--limit", "2", "--json")
    assert done.code == 0, done.err
    (figure,) = json.loads(done.out)["tasks"]
    assert (figure["task"], figure["metric"], figure["samples"]) == ("jaxq_tiny", "acc", 2)


def test_what_tasks_need_is_said(jaxq, tmp_path):
    model = make_folder("llama-fp32", tmp_path / "model")
    task = tiny_task(tmp_path)
    try:
        import lm_eval  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        done = jaxq("evaluate", str(model), "--tasks", str(task))
        assert done.code == 2 and "extra lm-eval" in done.err, done.err
    (model.parent / "genai_config.json").unlink()
    done = jaxq("evaluate", str(model), "--tasks", str(task))
    assert done.code == 2 and "genai_config.json" in done.err and done.err.count("\n") == 1
    done = jaxq("evaluate", str(model), "--limit", "3")
    assert done.code == 2 and "--tasks" in done.err
