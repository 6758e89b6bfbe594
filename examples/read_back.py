"""Shows the weights of a quantized ONNX file, whichever tool wrote the file, beside the float weights.
Prints: 28 weights, the largest relative error is 0.122 in model.layers.0.self_attn.o_proj.weight"""

import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir

import jaxq
from jaxq import embedded
from jaxq.forms import find_form
from jaxq.pipeline import Job, MethodSpec, quantize_model
from jaxq.readback import read_weights

errors = {}
_, float_weights = embedded.load_weights()
with tempfile.TemporaryDirectory() as name:
    source, target = Path(name) / "float.onnx", Path(name) / "int4.onnx"
    embedded.write_model(source)
    method = MethodSpec("rtn_dq", jaxq.make_format("int4", 128))  # round to nearest, which needs no data
    quantize_model(Job(source, target, method, form=find_form("matmulnbits"), exclude=("*lm_head*",), cache=Path(name)))
    for weight in read_weights(ir.load(target)):
        w = float_weights[weight.name]
        errors[weight.name] = np.linalg.norm(weight.dequantize() - w) / np.linalg.norm(w)
        print(f"{weight.name:40} {weight.form} {weight.dtype} block {weight.block_size} {weight.bits:.2f} bits")
worst = max(errors, key=lambda name: errors[name])
print(f"{len(errors)} weights, the largest relative error is {errors[worst]:.3f} in {worst}")
