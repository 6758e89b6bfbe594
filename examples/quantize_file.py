"""Shows an ONNX file quantized with AWQ on calibration tokens; the model is the one that ships with jaxq.
Prints: 28 weights in 4.257 bits each, 15.87 MB -> 5.83 MB"""

import tempfile
from pathlib import Path

import numpy as np

import jaxq
from jaxq import embedded
from jaxq.forms import find_form
from jaxq.pipeline import Batch, Job, MethodSpec, quantize_model

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    embedded.write_model(folder / "float.onnx")
    ids = embedded.windows("calib", length=128)[:8]  # int64 [8, 128]; take text like that which the model will see
    batches = [Batch({"input_ids": row, "attention_mask": np.ones_like(row)}) for row in np.split(ids, 4)]
    job = Job(
        source=folder / "float.onnx",
        target=folder / "int4.onnx",
        method=MethodSpec("awq_lite", jaxq.make_format("int4", 128, full_range=True)),
        form=find_form("dq"),
        exclude=("*lm_head*",),
        cache=folder / "cache",
    )
    done = quantize_model(job, batches)
sizes = f"{done.source_bytes / 1e6:.2f} MB -> {done.target_bytes / 1e6:.2f} MB"
print(f"{len(done.layers)} weights in {done.bits_per_weight:.3f} bits each, {sizes}")
