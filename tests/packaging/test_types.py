"""Types reach users: a type checker accepts right calls of the public functions, and refuses wrong ones."""

import inspect
import json
import pydoc
import subprocess
import sys
from pathlib import Path

import pytest

import jaxq

ROOT = Path(__file__).parents[2]

START = """\
import jax
import jax.numpy as jnp
import numpy as np

import jaxq
from jaxq import int4, quant_utils
from jaxq.methods import search_clip
from jaxq.numerics import find_full_range_scales

w: jax.Array = jnp.ones((64, 8))
x: jax.Array = jnp.ones((16, 64))
a: np.ndarray = np.ones((64, 8), np.float32)
fmt = jaxq.IntegerFormat(block_size=32)
"""

RIGHT = """\
q, s, zp = jaxq.quant_tensor(w, block_size=32, alpha=0.9, use_zero_point=True)
codes: jax.Array = jaxq.rtn(w, s, 32, zp=zp, num_bits=4)
values: jax.Array = jaxq.dq_tensor(q, s, 32, zp=zp)
full_range: jax.Array = find_full_range_scales(w, 32)
unpacked: jax.Array = jaxq.unpack_int4(jaxq.pack_int4(q), shape=(64, 8), signed=False)
sums: jaxq.MomentSums = jaxq.accumulate(jaxq.zero_sums(64), x, keep=jnp.ones(16))
moments: jaxq.Moments = jaxq.finish(sums)
error: jax.Array = jaxq.output_error(values - w, jaxq.damp(moments.h, damping=0.05))
quantized: jaxq.Quantized = fmt.quantize(w, clip_ratio=0.9)
restored: jax.Array = fmt.dequantize(quantized)
scales: jaxq.Scales = jaxq.search_block_scales(w, moments.h, fmt)
rounded: jax.Array = jaxq.gptq_round(w, moments.h, scales, fmt, descent_passes=1)
ratios: jax.Array = search_clip(w, moments.h, jnp.array(jaxq.ratio_grid(0.5, 0.05)), fmt)
inside_jit: jax.Array = jax.jit(lambda w: jaxq.rtn(w, s, 32))(w)
stacked: jax.Array = jax.vmap(jaxq.encode_e2m1)(w)
of_numpy, _ = quant_utils.find_scales(a, 32, alpha=0.9)
of_jax, _, _ = int4.quant_tensor(w, 32, 0.5, True)
packed = quant_utils.pack_weights_to_int4(quant_utils.rtn(a, of_numpy, 32))
magnitudes = int4.get_weight_scale(a, 32)
"""

WRONG = """\
jaxq.quant_tensor(w, block_size="x")
jaxq.quant_tensor(w, 32, blocksize=32)
jaxq.quant_tensor(w)
jaxq.quant_tensor([[1.0]], 32)
jaxq.quant_tensor(w, 32).shape
name: str = jaxq.rtn(w, w, 32)
two, values_only = jaxq.quant_tensor(w, 32)
jaxq.find_scales(w, 32)[1].shape
jaxq.pack_int4(w, True)
jaxq.unpack_int4(w, 64, signed=False)
jaxq.accumulate(x, x, x)
jaxq.finish(jaxq.zero_sums(64)).xx
jaxq.output_error(w)
fmt.quantize(w, "0.9")
fmt.quantize(w).codes
jaxq.Nvfp4Format().dequantize(w)
jaxq.MxFormat("mxfp4").encode(w)
jaxq.search_clip(w, w, (1.0, 0.9), fmt)
jaxq.weight_magnitude(w, block=32)
jaxq.awq_scale(w, w, alpha="0.5")
quant_utils.quant_tensor(a, "32")
quant_utils.rtn(a, a, 32, zero_point=a)
quant_utils.pack_weights_to_int4(a, signed=True)
int4.find_scales(a, block_size="x")
int4.dq_tensor(a, a, 32).quantized
int4.get_weight_scale(a, block_size="x")
"""


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory) -> set[str]:
    """Lines of a user's file, right and wrong ones, in which pyright finds an error."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "user.py").write_text(START + RIGHT + WRONG)
    # Of the user's project, whose checker has the strictness that pyright begins with.
    (folder / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    diagnostics = json.loads(done.stdout)["generalDiagnostics"]
    lines = (START + RIGHT + WRONG).splitlines()
    return {lines[d["range"]["start"]["line"]] for d in diagnostics if d["severity"] == "error"}


def test_right_calls_are_accepted(mistakes):
    assert mistakes & {*START.splitlines(), *RIGHT.splitlines()} == set()


@pytest.mark.parametrize("line", WRONG.splitlines())
def test_wrong_calls_are_refused(line, mistakes):
    assert line in mistakes


def test_right_calls_run():
    exec(START + RIGHT, {})


@pytest.mark.parametrize("name", [name for name in jaxq.__all__ if inspect.isroutine(getattr(jaxq, name))])
def test_help_shows_signature_and_docstring(name):
    function = getattr(jaxq, name)
    page = pydoc.plain(pydoc.render_doc(function))
    title, _, signature, description, *_ = page.splitlines()
    assert title == f"Python Library Documentation: function {name} in module {function.__module__}"
    assert signature.startswith(f"{name}({next(iter(inspect.signature(function).parameters))}")
    assert description.strip() == inspect.cleandoc(function.__doc__).splitlines()[0]


def test_help_on_a_jitted_function():
    page = pydoc.plain(pydoc.render_doc(jaxq.quant_tensor))
    assert "PjitFunction" not in page
    assert "block_size: int, quantize_axis: int = 0, alpha: float" in page
    assert "Codes, scales and zero points of ``w``" in page
