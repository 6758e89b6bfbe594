"""The models that are judged, each with its tokenizer and texts."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from texts import split_ids, topic_ids
from tokenizers import Tokenizer

from jaxq import embedded

SUBJECTS = ("smollm2p", "embedded")


@dataclass(frozen=True)
class Subject:
    """A model and the texts that go with it.

    Attributes:
        model: Its ONNX file.
        tokenizer: Its tokenizer.
        calibration: Token ids that calibration rows are drawn from.
        like: Held-out token ids of the same kind.
        eval_rows: Rows of each held-out text where no other number is asked for.
        eval_length: Tokens of such a row.
    """

    model: Path
    tokenizer: Tokenizer
    calibration: np.ndarray
    like: np.ndarray
    eval_rows: int
    eval_length: int


def load_subject(name: str, models: Path | None, work: Path) -> Subject:
    """One of `SUBJECTS`.

    Args:
        name: Which.
        models: Folder with smollm2p/; None for the embedded model.
        work: Folder that the embedded model is written to.
    """
    if name == "embedded":
        return _embedded(work)
    if models is None:
        sys.exit(f"--models is missing: give the folder of {name}, which make_smollm2.py writes")
    model = models / name / "model.onnx"
    tokenizer = Tokenizer.from_file(str(model.with_name("tokenizer.json")))
    return Subject(model, tokenizer, topic_ids(tokenizer, 0), topic_ids(tokenizer, 1), 16, 512)


def _embedded(work: Path) -> Subject:
    """The model that jaxq carries: rows are as long as its context, and as many as its evaluation split has at most.

    Quantization changes its perplexity little: it takes more text than SmolLM2 to tell methods apart.
    """
    model = work / "embedded.onnx"
    embedded.write_model(model)
    context = embedded.load_weights()[0].context
    return Subject(model, embedded.load_tokenizer(), split_ids("calib"), split_ids("eval"), 234, context)
