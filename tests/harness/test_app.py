"""``jaxq``: its commands, its help, and the answers to what a newcomer types."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxq.harness.config import option_names
from jaxq.harness.evaluate import _READ, _check_settings
from tests.docs.blocks import check_quantize, lay_out
from tests.support.command_line import Finished

SMALL = ("method=rtn_dq", "calib.samples=2", "calib.length=16", "eval.samples=2")


def run_alone(*arguments: str, code: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own; then code that sees what it imported."""
    script = (
        "import sys\nfrom jaxq.__main__ import main\n"
        f"try:\n    main()\nexcept SystemExit as stop:\n    result = stop.code\n{code}\nsys.exit(result)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "100"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Models, texts and tokens, in paths with all that Hydra's grammar or a shell would stumble over."""
    folder = tmp_path_factory.mktemp("odd") / "a ü, [b]='c'\"d${x}"
    folder.mkdir()
    lay_out(folder)
    return folder


def refused(done: Finished, *words: str) -> None:
    assert done.code == 2
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert all(word in done.err for word in words), done.err
    assert not list(done.folder.rglob("*.onnx*"))


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [], ["quantize", "--help"], ["cache", "clear", "--help"]]
)
def test_help_and_version_load_neither_jax_nor_onnxruntime(arguments):
    heavy = ("jax", "numpy", "onnx", "onnxruntime", "hydra", "tokenizers")
    done = run_alone(*arguments, code=f"print('loaded', *(n for n in {heavy!r} if n in sys.modules), file=sys.stderr)")
    assert done.returncode == 0
    assert done.stderr == "loaded\n"


def test_the_version():
    assert run_alone("--version").stdout == "jaxq 0.1.0\n"


def test_the_help_has_a_line_and_an_example_for_each_command():
    text = run_alone("--help").stdout
    assert run_alone().stdout == text
    for command in ("quantize", "evaluate", "compare", "inspect", "run", "cache"):
        (line,) = [line for line in text.splitlines() if line.split()[:1] == [command]]
        assert len(line.split()) > 3 and not line.endswith("...")
        assert f"  jaxq {command} " in text
        helps = run_alone(command, "--help").stdout
        assert f"jaxq {command}" in helps and "xample" in helps
    for command in ("list", "clear"):
        assert f"jaxq cache {command}" in run_alone("cache", command, "--help").stdout.partition("xample")[2]


def test_the_help_of_evaluate_names_the_options_that_it_reads():
    text = run_alone("evaluate", "--help").stdout
    named = set(re.findall(r"eval\.\w+", text.partition("KEY=VALUE after")[2]))
    assert named == set(_READ)
    read = {name for name in option_names() if name.startswith("eval.")}
    assert read - named == {"eval.source", "eval.batch_size", "eval.holdout_fraction"}


@pytest.mark.parametrize("command", ["quantize", "evaluate"])
def test_the_examples_of_the_help_are_taken(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = re.findall(rf"^    jaxq {command} (.*)$", run_alone(command, "--help").stdout, re.MULTILINE)
    assert len(lines) >= 4
    for words in map(shlex.split, lines):
        if command == "quantize":
            check_quantize(words)
        else:
            _check_settings([word for word in words if "=" in word])


WRONG_OF_EVALUATE = {
    "an option of calibration": ["calib.samples=4"],
    "a group": ["method=best"],
    "a preset": ["preset=deploy"],
    "a dry run": ["dry_run=true"],
    "batches": ["eval.batch_size=4"],
    "drawn text": ["eval.source=self"],
    "the cache": ["cache_dir=x"],
    "Hydra's own": ["hydra.run.dir=x"],
}


@pytest.mark.parametrize("settings", WRONG_OF_EVALUATE.values(), ids=WRONG_OF_EVALUATE)
def test_what_evaluate_does_not_read_is_refused(jaxq, folder, settings):
    done = jaxq("evaluate", f"{folder}/model.onnx", "--data", f"{folder}/tokens.npz", *settings)
    refused(done, f"{settings[0].partition('=')[0]} is an option of a run", "eval.samples, eval.length can be given")


def test_a_folder_is_quantized_with_its_text(jaxq, folder, capfd):
    output = folder / "out, 1"
    output = output.with_name("out, [1]=ü")
    safe = Path(str(output).replace("${x}", ""))
    safe.parent.mkdir(exist_ok=True)
    done = jaxq("quantize", str(folder), "--data", str(folder / "texts"), "-o", str(safe), *SMALL)
    assert done.code == 0, done.err
    report = json.loads((safe / "report.json").read_text())
    assert report["config"]["model"]["path"] == str(folder / "model.onnx")
    assert report["config"]["form"]["name"] == "matmulnbits", "of the preset deploy"
    assert report["accuracy"]["tokens"] > 0, "a part of the text is held out"
    assert {"model.onnx", "layers.csv", "tokenizer.json"} <= {path.name for path in safe.iterdir()}


def test_a_model_alone_is_quantized(jaxq, folder):
    done = jaxq(str(folder / "model.onnx"), "--preset", "modelopt", "dry_run=true", "method=rtn_dq")
    assert done.code == 0, done.err
    assert "dry run" in done.out


def test_overrides_alone_are_a_run(jaxq):
    done = jaxq(*SMALL, "dry_run=true")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantise", "x.onnx"], ["no command 'quantise'", "write jaxq quantize x.onnx"]),
        (["x.onnx"], ["model 'x.onnx' does not exist"]),
        (["--model", "x.onnx"], ["no flag --model", "jaxq quantize x.onnx"]),
        (["--model=x.onnx", "method=best"], ["jaxq quantize x.onnx method=best"]),
        (["quantize", "--model", "x.onnx", "-o", "y"], ["jaxq quantize x.onnx -o y"]),
        (["quantize", "x.onnx", "--block-size", "32"], ["here block_size=32"]),
        (["quantize", "x.onnx", "--bits", "8"], ["here dtype=int8"]),
        (["quantize", "x.onnx", "-m"], ["jaxq run -m"]),
        (["quantize", "x.onnx", "y.onnx"], ["jaxq quantize x.onnx -o y"]),
        (["quantize"], ["missing argument 'MODEL'", "jaxq quantize --help"]),
        (["quantize", "x.onnx", "--nonsense"], ["no flag --nonsense"]),
        (["evaluate", "--model", "x.onnx", "--data", "d"], ["jaxq evaluate x.onnx --data d"]),
        (["inspect", "--input=x.onnx", "--all"], ["jaxq inspect x.onnx --all"]),
        (["evaluate", "x.onnx", "--bits", "8"], ["no flag --bits: jaxq evaluate --help"]),
        (["evaluate", "nowhere"], ["'nowhere' does not exist"]),
        (["evaluat", "x"], ["write jaxq evaluate x"]),
        (["run", "x.onnx"], ["jaxq quantize x.onnx"]),
        (["run", "-m", "--model", "x"], ["jaxq quantize x"]),
        (["output=out.onnx"], ["jaxq quantize takes -o out", "hydra.run.dir=out"]),
        (["model=/a b/x.onnx"], ["model=onnx 'model.path=/a b/x.onnx'"]),
        (["nonsense"], ["no command or file 'nonsense'", "jaxq quantize nonsense"]),
        (["compare", "--nonsense", "x"], ["--nonsense", "jaxq compare --help"]),
        (["compare", "nowhere"], ["run 'nowhere' does not exist"]),
        (["inspect", "nowhere"], ["'nowhere' does not exist"]),
        (["cache", "delete"], ["delete"]),
        (["bits=4"], ["no option 'bits': write dtype=int4"]),
        (["exclude_layers=a"], ["write method.exclude=a"]),
        (["quantize", "-o"], ["'-o' requires an argument"]),
        (["quantize", "x.onnx", "--dta", "y"], ["did you mean --data?"]),
    ],
)
def test_first_words_get_an_answer_that_helps(jaxq, arguments, words):
    refused(jaxq(*arguments), *words)


def save_classifier(path: Path) -> Path:
    """A model of pictures: it takes no tokens."""
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["b", size]) for n, size in (("pixels", 32), ("y", 16)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["pixels", "w"], ["y"])], "g", [x], [y], [weight])
    path.parent.mkdir(exist_ok=True)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path


@pytest.fixture
def bad(folder, tmp_path, monkeypatch) -> Path:
    """A folder with what a user may give by mistake."""
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "empty").mkdir()
    (bad / "words.onnx").write_text("no model")
    (bad / "latin.txt").write_bytes(b"\xff\xfe\x00")
    (bad / "zip.npz").write_bytes(b"")
    (bad / "bare").mkdir()
    (bad / "bare" / "model.onnx").symlink_to(folder / "model.onnx")
    (bad / "other").mkdir()
    (bad / "other" / "model.onnx").symlink_to(folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 5000}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(bad / "other" / "tokenizer.json"))
    tokenizer.save(str(save_classifier(bad / "pictures" / "model.onnx").with_name("tokenizer.json")))
    return bad


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("nowhere.onnx", None, ["does not exist"]),
        ("empty", None, ["has no model"]),
        ("words.onnx", None, ["not an ONNX model"]),
        ("latin.txt", None, ["not an ONNX model"]),
        ("bare", "nowhere", ["does not exist"]),
        ("other", "latin.txt", ["cannot be read as UTF-8"]),
        ("bare", "zip.npz", ["not an .npz file"]),
        ("bare", "TEXTS", ["without a tokenizer", "calib.tokenizer"]),
        ("other", "TEXTS", ["token id 5000", "0 to 2047", "tokenizer"]),
        ("pictures", "TEXTS", ["pixels", "npz"]),
        ("other", "empty", ["has no text"]),
    ],
)
def test_bad_input_is_one_sentence(jaxq, folder, bad, model, data, words):
    given = str(folder / "texts") if data == "TEXTS" else str(bad / str(data))
    arguments = [str(bad / model), *([] if data is None else ["--data", given])]
    length = ["calib.length=16"] if data is not None and not data.endswith(".npz") else []
    done = jaxq("quantize", *arguments, "-o", "out", *length)
    refused(done, *words)


def test_a_folder_is_inspected(jaxq, folder):
    done = jaxq("inspect", str(folder))
    assert done.code == 0 and "nothing is quantized" in done.out
    objects = json.loads(jaxq("inspect", str(folder), "--json").out)
    assert [entry["path"] for entry in objects] == [str(folder / "model.onnx")]


def test_an_interrupt_ends_every_command_with_130(jaxq, monkeypatch, folder):
    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("jaxq.harness.compare.compare", interrupted)
    monkeypatch.setattr("jaxq.harness.command.open_task", interrupted)
    done = jaxq("compare", "x")
    assert (done.code, done.err) == (130, "error: interrupted\n")
    done = jaxq("quantize", str(folder))
    assert (done.code, done.err.splitlines()[-1][:18]) == (130, "error: interrupted")
    assert not list(done.folder.rglob("*.onnx"))


def test_the_module_is_the_command(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "jaxq", "compare", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
