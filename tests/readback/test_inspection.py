"""``python -m jaxq.inspect``: what it shows of files that jaxq wrote and of others, and how it refuses bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from jaxq.formats.integers import IntegerFormat
from jaxq.formats.registry import make_format
from jaxq.inspect import main
from jaxq.pipeline.job import Rule
from jaxq.readback.inspection import inspect_model
from tests.support import models
from tests.support.models import FFN, HIDDEN
from tests.support.running import quantize, save


@pytest.fixture
def show(capsys):
    """Calls the command line; returns the exit code, output and error output."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A file with one weight in 4 bits and one in 8, its tensors beside it."""
    target = tmp_path / "out.onnx"
    rules = (Rule(("down",), IntegerFormat(-1, num_bits=8)),)
    quantize(save(models.mlp(), tmp_path), target, rules=rules, external_above=0)
    return target


def cells(line: str) -> list[str]:
    return line.split()


def test_a_mixed_file(show, mixed):
    code, out, err = show(mixed)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    size = mixed.stat().st_size + mixed.with_name("out.onnx.data").stat().st_size
    assert lines[0] == f"{mixed}: {size / 1e6:.3f} MB, opset 21, ir_version 10"
    rows = [cells(line) for line in lines if line.startswith(" dq")]
    assert rows == [
        ["dq", "int4", "32", "1", "6,144", "0.004", "5.000"],
        ["dq", "int8", "channel", "1", "6,144", "0.006", "8.333"],
    ]
    assert "quantized: 2 weights, 12,288 elements, 6.667 bits each" in lines
    assert "all weights: 0.010 MB, 6.667 bits each" in lines
    assert "left in float" not in out


def test_every_weight(show, mixed):
    _, out, _ = show(mixed, "--all")
    rows = [cells(line) for line in out.splitlines() if re.match(" (up|down)", line)]
    assert rows == [
        ["up", "MatMul", "dq", "int4", "32", f"{HIDDEN}x{FFN}", "5.000"],
        ["down", "MatMul", "dq", "int8", "channel", f"{FFN}x{HIDDEN}", "8.333"],
    ]


def test_json(show, mixed):
    code, out, _ = show(mixed, "--json")
    got = json.loads(out)
    assert code == 0
    assert got["bits_per_weight"] == got["bits_per_quantized_weight"] == 8 * got["weight_bytes"] / (2 * HIDDEN * FFN)
    assert (got["quantized_weights"], got["opset"], got["domains"]) == (2, 21, {})
    up = got["weights"][0]
    assert (up["name"], up["form"], up["dtype"], up["block_size"]) == ("up", "dq", "int4", 32)
    assert (up["shape"], up["nodes"], up["ops"]) == ([HIDDEN, FFN], ["/h/MatMul"], ["MatMul"])
    assert up["nbytes"] == up["file_nbytes"] == HIDDEN * FFN * 5 // 8


def test_a_folder_with_several_models(show, mixed):
    folder = mixed.parent
    names = sorted(path.name for path in folder.glob("*.onnx"))
    code, out, err = show(folder)
    assert (code, err, len(names)) == (0, "", 2)
    assert [line.partition(": ")[0] for line in out.splitlines() if "ir_version" in line] == [
        str(folder / name) for name in names
    ]
    _, out, _ = show(folder, "--json")
    assert [Path(entry["path"]).name for entry in json.loads(out)] == names


def test_what_is_left_in_float(show, tmp_path):
    """The largest first; vectors count, tables and shapes that a form brings along do not."""
    target = tmp_path / "out.onnx"
    source = save(models.attention(), tmp_path)
    fmt = make_format("nvfp4", 16)
    quantize(source, target, fmt=fmt, form="portable", exclude=("*lm_head*",))
    _, out, _ = show(target)
    tail = out[out.index("left in float") :].splitlines()
    assert tail == [
        "left in float: 2 tensors, 0.017 MB",
        f"  0.016 MB float32 {HIDDEN}x{HIDDEN} lm_head",
        f"  0.000 MB float32 {HIDDEN} scale",
    ]
    found = inspect_model(target)
    size, nbytes = 5 * HIDDEN**2 + HIDDEN, 4 * (HIDDEN**2 * 9 // 16 + 4) + 4 * (HIDDEN**2 + HIDDEN)
    assert found.weight_bytes == nbytes
    assert found.bits_per_weight == 8 * nbytes / size


def test_a_file_that_keeps_its_floats(show, tmp_path):
    target = tmp_path / "out.onnx"
    quantize(save(models.shared(), tmp_path), target, form="qdq")
    _, out, _ = show(target)
    nbytes = HIDDEN * HIDDEN * 4 + HIDDEN * HIDDEN // 32 * 4
    held = "stored as floats between quantizer and dequantizer: 1 weight"
    assert f"{held}, {nbytes / 1e6:.3f} MB" in out
    assert "5.000 bits each" in out
    assert inspect_model(target).bits_per_weight == 33


def test_a_float_model(show, tmp_path):
    code, out, _ = show(save(models.mlp(), tmp_path))
    assert code == 0
    assert "nothing is quantized" in out
    assert "all weights: 0.049 MB, 32.000 bits each" in out
    assert inspect_model(tmp_path / "model.onnx").bits_per_quantized_weight is None


def test_a_model_without_weights(show, tmp_path):
    proto = models.build([models.node("Relu", "x", "y")], {}, {"y": models.ACTIVATION})
    code, out, _ = show(save(proto, tmp_path))
    assert (code, out.splitlines()[1:]) == (0, ["nothing is quantized"])


def test_what_is_not_understood(show, tmp_path):
    weights = {"w": np.ones((HIDDEN, 8), np.uint8), "zero": np.uint8(0)}
    nodes = [models.node("DynamicQuantizeLinear", "x", "q s z"), models.node("MatMulInteger", "q w z zero", "y")]
    y = models.value("y", None, onnx.TensorProto.INT32)
    proto = models.build(nodes, {k: np.asarray(v) for k, v in weights.items()}, {})
    proto.graph.output.append(y)
    _, out, _ = show(save(proto, tmp_path))
    assert "nothing that is understood is quantized" in out
    assert "not understood: w: UINT8 that is read by MatMulInteger as input 1" in out
    assert "all weights: 0.001 MB, 8.000 bits each" in out


def test_a_weight_without_elements(show, tmp_path):
    weights = {"q": np.zeros((HIDDEN, 0), np.int8), "s": np.float32(1)}
    nodes = [models.node("DequantizeLinear", "q s", "w"), models.node("MatMul", "x w", "y")]
    proto = models.build(nodes, {k: np.asarray(v) for k, v in weights.items()}, {"y": (*models.ACTIVATION[:-1], 0)})
    code, out, _ = show(save(proto, tmp_path))
    assert code == 0
    assert "not understood: " in out and "a weight of shape [64, 0], without elements" in out


def test_bytes_that_do_not_fit(show, tmp_path):
    """Copies are told by their bytes: those that cannot be read are refused."""
    target = tmp_path / "out.onnx"
    quantize(save(models.shared(), tmp_path), target, form="dq")
    proto = onnx.load(target)
    for t in proto.graph.initializer:
        t.dims[:] = [2 * d for d in t.dims]
    code, out, err = show(save(proto, tmp_path, "broken.onnx"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "has bytes that do not fit its type and shape" in err


@pytest.mark.parametrize("option", ["--json", "--all"])
def test_a_reader_that_goes_away(option, tmp_path):
    """As ``head`` does: no error is shown."""
    path = save(models.mlp(), tmp_path)
    command = [sys.executable, "-m", "jaxq.inspect", path.name, option]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 1


BAD = {
    "no argument": ([], ["model", "required"]),
    "unknown option": (["a.onnx", "--al1"], ["--al1"]),
    "missing": (["nowhere.onnx"], ["'nowhere.onnx'", "does not exist"]),
    "folder of no models": (["."], ["'empty.onnx'", "not an ONNX model"]),
    "folder without a model": (["nothing"], ["'nothing'", "has no model"]),
    "text": (["text.onnx"], ["'text.onnx'", "not an ONNX model"]),
    "empty": (["empty.onnx"], ["'empty.onnx'", "not an ONNX model"]),
}


@pytest.mark.parametrize("row", BAD)
def test_bad_input(show, row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.onnx").write_text("no model\n" * 100)
    Path("empty.onnx").touch()
    Path("nothing").mkdir()
    arguments, words = BAD[row]
    code, out, err = show(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words)


def test_the_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("JAXQ_TRACEBACK", "1")
    with pytest.raises(Exception, match=r"nowhere\.onnx"):
        main(["nowhere.onnx"])


def test_as_a_program(tmp_path):
    """The module's name hides no module of Python's own, and its output fits a terminal of 80 columns."""
    path = tmp_path / "out.onnx"
    quantize(save(models.mlp(), tmp_path), path, form="matmulnbits")
    command = [sys.executable, "-m", "jaxq.inspect", path.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "matmulnbits" in done.stdout
    assert done.stdout.startswith("out.onnx: ")
    assert done.stdout.splitlines()[0].endswith("opset 18, ir_version 10, com.microsoft 1")
    assert max(map(len, done.stdout.splitlines())) <= 80
    code = (
        "import inspect, jaxq.inspect; assert inspect.signature(jaxq.inspect.main) and 'jaxq' not in inspect.__file__"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
