"""Evaluate ONNX language models in one way, whatever tool wrote them.

    python experiments/bench/evaluate.py --reference model.onnx --tokens tokens.npz --out quality.json NAME=FILE ...

Perplexity, KL divergence to the reference (nats a token) and how often the most likely token is the same, on the array
`eval` [rows, length] of the token file; the model takes input_ids and attention_mask and gives logits. Each file is run
by onnxruntime at accuracy level 1 (float32 activations) and 4 (int8 activations, what onnxruntime does by default with
DequantizeLinear; a MatMulNBits node has its own attribute, which is set to the same level here).
A file with blocked DequantizeLinear below opset 21 is invalid: its opset is raised, and the report says so.
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

LEVELS = (1, 4)
BLOCKED_OPSET = 21


@dataclass(frozen=True)
class Quality:
    """Means over all predicted tokens. `kl` in nats; `top1` is the share of positions with the reference's argmax."""

    perplexity: float
    kl: float
    top1: float
    tokens: int
    seconds: float


def opset_version(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def loadable(path: Path, level: int) -> tuple[bytes | str, int | None]:
    """The file or its bytes, for a session; and the opset of the file where it had to be raised, else None."""
    model = onnx.load(path, load_external_data=False)
    version = opset_version(model)
    blocked = any(n.op_type == "DequantizeLinear" and any(a.name == "block_size" for a in n.attribute)
                  for n in model.graph.node)  # fmt: skip
    raised = blocked and version < BLOCKED_OPSET
    packed = [n for n in model.graph.node if n.op_type == "MatMulNBits"]
    if not raised and not packed:
        return str(path), None
    onnx.load_external_data_for_model(model, str(path.parent))
    if raised:
        next(o for o in model.opset_import if o.domain in ("", "ai.onnx")).version = BLOCKED_OPSET
    for node in packed:
        kept = [a for a in node.attribute if a.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", level)])
    return model.SerializeToString(), version if raised else None


def open_session(source: bytes | str, level: int, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def log_probabilities(session: ort.InferenceSession, row: np.ndarray) -> np.ndarray:
    """Log probabilities [length - 1, vocabulary] of the tokens after the first, float32."""
    feed = {"input_ids": row[None], "attention_mask": np.ones_like(row)[None]}
    names = {i.name for i in session.get_inputs()}
    logits = np.asarray(session.run(["logits"], {k: v for k, v in feed.items() if k in names})[0], np.float32)[0, :-1]
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def reference_file(path: Path, rows: np.ndarray, threads: int, folder: str | Path) -> np.memmap:
    """The reference's log probabilities of all rows, on disk: they take gigabytes."""
    name = hashlib.sha256(rows.tobytes() + str((path, path.stat().st_size, ort.__version__)).encode()).hexdigest()[:16]
    kept = Path(folder) / f"reference-{name}.npy"
    if kept.exists():
        return np.load(kept, mmap_mode="r")
    session = open_session(str(path), 0, threads)
    probabilities: np.memmap | None = None
    partial = kept.with_suffix(".partial")
    for i, row in enumerate(rows):
        p = log_probabilities(session, row)
        if probabilities is None:
            probabilities = np.lib.format.open_memmap(partial, "w+", np.float32, (len(rows), *p.shape))
        probabilities[i] = p
    if probabilities is None:
        raise ValueError("the token file holds no rows to evaluate")
    probabilities.flush()
    partial.rename(kept)
    return probabilities


def predictor(session: ort.InferenceSession, rows: np.ndarray) -> Callable[[int], np.ndarray]:
    return lambda i: log_probabilities(session, rows[i])


def compare(predict: Callable[[int], np.ndarray], rows: np.ndarray, reference: np.ndarray) -> Quality:
    """Log probabilities of each row by its number, against the reference's."""
    nll, kl, same, tokens, start = 0.0, 0.0, 0, 0, time.perf_counter()
    for i, (row, want) in enumerate(zip(rows, reference, strict=True)):
        got = predict(i)
        nll -= float(np.take_along_axis(got, row[1:, None], axis=1).sum(dtype=np.float64))
        kl += float((np.exp(want) * (want - got)).sum(dtype=np.float64))
        same += int((got.argmax(axis=1) == want.argmax(axis=1)).sum())
        tokens += len(got)
    seconds = time.perf_counter() - start
    return Quality(float(np.exp(nll / tokens)), kl / tokens, same / tokens, tokens, seconds)


def evaluate(path: Path, rows: np.ndarray, reference: np.ndarray, threads: int, levels: Sequence[int]) -> dict:
    """Quality by accuracy level; an `error` in place of what could not be run."""
    found: dict = {}
    for level in levels:
        try:
            source, raised_from = loadable(path, level)
            predict = predictor(open_session(source, level, threads), rows)
            found[f"level{level}"] = asdict(compare(predict, rows, reference))
        except Exception as error:  # an invalid file is a result, not the end of the benchmark
            found[f"level{level}"] = {"error": f"{type(error).__name__}: {error}"[:400]}
            continue
        if raised_from is not None:
            found["opset_raised_from"] = raised_from
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="NAME=FILE")
    parser.add_argument("--reference", type=Path, required=True, help="the model before quantization")
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=None, help="evaluate the first rows only")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 lets it choose")
    parser.add_argument("--levels", type=int, nargs="+", default=LEVELS, help="accuracy levels of onnxruntime")
    parser.add_argument("--keep", type=Path, help="folder that keeps the reference's probabilities for the next call")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = np.load(args.tokens)["eval"][: args.rows]
    with tempfile.TemporaryDirectory() as folder:
        reference = reference_file(args.reference, rows, args.threads, args.keep or folder)
        result: dict = {"onnxruntime": ort.__version__, "rows": list(rows.shape), "files": {}}
        result["files"]["fp32"] = {"level1": asdict(compare(lambda i: reference[i], rows, reference))}
        for item in args.files:
            name, _, path = item.partition("=")
            result["files"][name] = evaluate(Path(path), rows, reference, args.threads, args.levels)
            print(name, json.dumps(result["files"][name]), flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
