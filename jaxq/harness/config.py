"""The configuration of a run: the schema that Hydra checks ``conf/`` and the command line against.

The ``help`` of each field is the one place that describes an option: `jaxq.harness.config_reference` makes the
reference page from it. Most defaults are in ``conf/``; those of optional values and of a few others are in the schema.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

import jaxq
from jaxq.pipeline.job import default_cache

HELP, CHOICES = "help", "choices"
"""Keys of the metadata of the schema's fields."""


def _option(text: str, default: object = MISSING, choices: tuple[str, ...] = ()) -> Any:
    """A field of the schema: its description, the default where ``conf/`` has none, and the values that it can take."""
    return field(default=default, metadata={HELP: text, CHOICES: choices})


def _group(schema: type, text: str) -> Any:
    """A field of the schema that holds options of its own."""
    return field(default_factory=schema, metadata={HELP: text})


@dataclass
class ModelConfig:
    """The model."""

    name: str = _option(
        "Where the model comes from; set by model=. embedded: the small language model that ships with jaxq. onnx: "
        "the file model.path. hf: the Hugging Face model model.id.",
        choices=("embedded", "onnx", "hf"),
    )
    path: str | None = _option("Path of the ONNX file; required with model=onnx. The file is never changed.", None)
    id: str | None = _option(
        "Hugging Face model: a local folder, or a repository as owner/name; required with model=hf. It is exported to "
        "ONNX once, and the export is cached in cache_dir. Needs the extra hf.",
        None,
    )
    dtype: str = _option(
        "Float type of the export, for model=hf. float32 runs everywhere; float16 halves the export.",
        "float32",
        ("float32", "float16"),
    )


@dataclass
class MethodConfig:
    """The method and its parameters; see `jaxq.methods.registry.MethodSpec`."""

    name: str = _option("The quantization method; set by method=, which also loads the defaults of the method.")
    full_range: bool | None = _option(
        "Use the lowest code of symmetric integers too (-8 for int4): the scale is the largest weight of the block, "
        "with its sign, over -8. More accurate than the positive scale max / 7 at the same size, but scales can be "
        "negative, which form=trt and form=trt_qdq do not support. null: true for methods that use calibration data, "
        "where the form supports negative scales.",
        None,
    )
    alpha_step: float = _option(
        "awq_lite, awq_full, awq_gptq: step of the grid of exponents alpha from 0 to 1, where channel scales are "
        "activation^alpha / weight^(1 - alpha). From 0.001 to 1; 0.1 tries eleven exponents, and no scaling."
    )
    search_columns: int = _option(
        "awq_lite, awq_full, awq_gptq: columns of each weight, evenly spaced, on which channel scales are compared; 0: "
        "all. Fewer columns are faster; the accepted scales are checked on all columns."
    )
    min_clip_ratio: float = _option(
        "awq_clip, awq_full: smallest clip ratio that is tried for a block, above 0 and at most 1. 1 turns clipping "
        "off."
    )
    clip_step: float = _option("awq_clip, awq_full: step of the grid of clip ratios, from 0.001 to 1.")
    block_scales: bool = _option(
        "Also search block scales in awq_lite, awq_clip and awq_full; the search replaces the one over clip ratios. "
        "rtn_search, gptq, awq_gptq and best search them in any case."
    )
    damping: float = _option(
        "rtn_search, gptq, awq_gptq, best, and block_scales: added to the diagonal of the second moments H, in units "
        "of the mean of the diagonal. From 0 to 10. GPTQ uses ten times more where H cannot be factored."
    )
    descent_passes: int = _option(
        "gptq, awq_gptq, best: passes of coordinate descent after GPTQ, from 0 to 100. They lower the loss on the "
        "calibration data and hardly help on other text, so the default is none."
    )
    ridge: float = _option(
        "best: ridge regularization of the corrected target, in tokens, from 0.001 to 1e9. A weight is fitted to "
        "compensate for the errors of the weights before it, as if this many more tokens had shown no error. It "
        "matters more the fewer calibration tokens there are."
    )
    shrinkage: float = _option(
        "rtn_search, gptq, awq_gptq, best, and block_scales: shrinks the entries of the second moments H off the "
        "diagonal, in tokens, from 0 to 1e9: as if this many more tokens had shown uncorrelated channels. It matters "
        "more the fewer calibration tokens there are. 0: none."
    )
    bits_per_weight: float | None = _option(
        "Budget: mean bits per element of all quantized weights, scales and zero points included; above 0 and at most "
        "32. The dtype and the block size are then chosen for each weight. null: every weight has the given dtype and "
        "block_size.",
        None,
    )
    exclude: list[str] = _option(
        "Weights that are not quantized: a list of shell patterns of weight or node names, such as ['*lm_head*']. The "
        "output layer is excluded by default because its errors reach the logits directly. A pattern that you give has "
        "to fit a weight. []: exclude nothing."
    )


@dataclass
class DtypeConfig:
    """The number format of the codes; see `jaxq.formats.registry.make_format`."""

    name: str = _option("Number format of the codes; set by dtype=.")
    default_block_size: int = _option("Block size of the dtype where block_size is not given.")


@dataclass
class FormConfig:
    """The way an ONNX file stores a quantized weight; see `jaxq.forms.registry`."""

    name: str = _option("The nodes and tensors that store a quantized weight in the file; set by form=.")
    accuracy_level: int = _option(
        "form=matmulnbits: the attribute accuracy_level of the MatMulNBits nodes. 1 computes in float32; 4 rounds "
        "activations to 8 bits, which is faster, and what onnxruntime does by default for form=dq.",
        choices=("0", "1", "2", "3", "4"),
    )


@dataclass
class MixedConfig:
    """Weights in 8 bits beside weights in fewer."""

    int8: list[str] = _option(
        "Weights in int8 instead of dtype: a list of shell patterns of weight or node names, such as ['*v_proj*']. A "
        "pattern that you give has to fit a weight that is quantized and no table."
    )
    block_size: int | None = _option(
        "Block size of the weights in mixed.int8. null: -1, one block per output channel, where the form supports it, "
        "else block_size.",
        None,
        ("-1", "16", "32", "64", "128", "256"),
    )


@dataclass
class GatherConfig:
    """Tables of Gather, such as embeddings; see `jaxq.pipeline.job.Gather`."""

    axis: int | None = _option(
        "Quantize the tables that Gather reads, such as embeddings, in blocks along this axis of the table: 1 or -1: "
        "along each row; 0: down each column. null: tables are skipped.",
        None,
        ("0", "1", "-1"),
    )
    dtype: str = _option("Number format of quantized tables.")
    block_size: int | None = _option(
        "Block size of quantized tables. null: 32, or the only one that the format has.",
        None,
        ("-1", "16", "32", "64", "128", "256"),
    )


@dataclass
class DataConfig:
    """Calibration data, or held-out data; see `jaxq.data`. One of tokens, text, dataset and source is given at most."""

    tokens: str | None = _option(
        "Path of an .npz file with token ids [samples, length] named calib or eval, or with arrays named after the "
        "inputs of the model.",
        None,
    )
    text: Any = _option(
        "Path of a text file, or of a folder of .txt, .md, .rst, .text and .markdown files; or a list of these, such "
        "as [a/,b/].",
        None,
    )
    dataset: Any = _option(
        "Hugging Face dataset: a repository, a folder or a file; or a list of these. Needs the extra datasets.",
        None,
    )
    shares: list[float] | None = _option(
        "Shares of the samples that come from each of several texts or datasets, such as [3,1]: three quarters from "
        "the first. null: equal shares.",
        None,
    )
    source: str | None = _option(
        "Where the data comes from if it is neither a file nor a dataset; self: text drawn from the language model "
        "itself, with other seeds for eval. null: for calib, such text where the method can use data, "
        "none is given, and the model is a language model other than the embedded one; for eval, such text where all "
        "of the calibration text is drawn.",
        None,
        ("self",),
    )
    subset: str | None = _option("Name of the configuration of the dataset, where it has several.", None)
    split: str | None = _option("Split of the dataset. null: train for calib, test for eval.", None)
    column: str | None = _option(
        "Column of the dataset that holds the text. null: the column text, or the only one that holds strings.", None
    )
    tokenizer: str | None = _option(
        "Path of the tokenizer.json that turns text into tokens. null: that of calib, else the one beside the model.",
        None,
    )
    samples: int = _option("Number of samples at most, evenly spread over a text. 0: no data.")
    length: int = _option(
        "Tokens of a sample of text, the special tokens of the tokenizer included; at least 2. Token files have their "
        "own length."
    )
    batch_size: int = _option("Samples of one forward pass. More are faster on many cores and need more memory.")


@dataclass
class CalibConfig(DataConfig):
    """Calibration data."""

    self_share: float = _option(
        "Share of calib.samples that is drawn from the language model itself, beside text, a dataset or token ids; "
        "from 0 to 1.",
        0.0,
    )


@dataclass
class EvalConfig(DataConfig):
    """Held-out data. Where it names none: the array eval of calib.tokens, or held-out text of the embedded model."""

    holdout_fraction: float = _option(
        "Fraction of the samples of calib.text or calib.dataset that is held out of the calibration and used for the "
        "evaluation, from 0 to below 1. 0: none.",
        0.0,
    )


@dataclass
class Config:
    """A run."""

    model: ModelConfig = _group(ModelConfig, "The model that is quantized.")
    method: MethodConfig = _group(MethodConfig, "The quantization method, with the defaults of its parameters.")
    dtype: DtypeConfig = _group(DtypeConfig, "Number format of the codes.")
    form: FormConfig = _group(FormConfig, "The way the ONNX file stores a quantized weight.")
    mixed: MixedConfig = _group(MixedConfig, "Weights in 8 bits beside weights in fewer.")
    gather: GatherConfig = _group(GatherConfig, "Tables that Gather reads, such as embeddings.")
    calib: CalibConfig = _group(
        CalibConfig, "Calibration data. The embedded model reads the documentation of the running Python by default."
    )
    eval: EvalConfig = _group(
        EvalConfig, "Held-out data on which the accuracy is measured. It is never used to choose anything."
    )
    block_size: int = _option(
        "Rows of a weight that share a scale; -1: one scale per column. The default is that of the dtype. NVFP4 has "
        "blocks of 16, MXFP8 and MXFP4 of 32; no other size is possible there.",
        choices=("-1", "16", "32", "64", "128", "256"),
    )
    scale_dtype: str | None = _option(
        "Widest type of integer scales in the file. float8 is E4M3 over one power of two per weight, and float16 "
        "where the codes have more than 4 bits. Runtimes cast narrow scales once, when they load the file. null: the "
        "type of the weights, and float8 under method.bits_per_weight.",
        None,
        ("float32", "float16", "float8"),
    )
    dry_run: bool = _option(
        "Only estimate: the weights that would be quantized, the size of the file, memory and seconds. No model is "
        "written.",
        False,
    )
    cache_dir: str | None = _option(
        "Folder for second moments, compiled functions, exported models and the state of stopped runs, which later "
        "runs use again. null: $JAXQ_CACHE, or the cache folder of the user.",
        None,
    )
    window_gb: float = _option(
        "Weight bytes of a window, the part of the model that runs at a time during calibration, in GiB (2^30 bytes); "
        "above 0. Two windows are in memory at a time, so smaller windows need less memory. A larger single weight is "
        "a window of its own."
    )
    external_data_above_mb: int = _option(
        "A model whose weights take more MiB (2^20 bytes) than this keeps them in model.onnx.data; others are one "
        "file. The format limits a file to 2 GiB: larger models have external data in any case. 0: always external."
    )


def register() -> None:
    """Makes the schema known to Hydra as ``schema/run``."""
    ConfigStore.instance().store(group="schema", name="run", node=Config, package="_global_")


def option_names() -> list[str]:
    """All keys of the configuration, as they are written on the command line."""
    return flat_keys(OmegaConf.to_container(OmegaConf.structured(Config)))


def flat_keys(node: object, prefix: str = "") -> list[str]:
    """Keys of nested dictionaries, joined by dots.

    Example:
        >>> flat_keys({"a": {"b": 1}, "c": 2})
        ['a', 'a.b', 'c']
    """
    if not isinstance(node, Mapping):
        return []
    return [name for key, value in node.items() for name in (f"{prefix}{key}", *flat_keys(value, f"{prefix}{key}."))]


def conf_dir() -> Path:
    """The folder of YAML files: within the installed package, or at the root of a checkout."""
    package = Path(jaxq.__file__).parent
    packaged = package / "conf"
    return packaged if packaged.is_dir() else package.parent / "conf"


def cache_dir(config: Config) -> Path:
    """The folder for what later runs can use again: ``cache_dir``, or `jaxq.pipeline.job.default_cache`."""
    return Path(config.cache_dir) if config.cache_dir else default_cache()
