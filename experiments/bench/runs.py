"""The commands that are compared: one place for every tool's arguments."""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]

WEIGHTS = 210
SUBSETS = {7: r"/layers\.14/", 28: r"/layers\.(3|10|18|26)/"}
"""Number of weights -> nodes: one and four of the 30 layers, on which ModelOpt's default path is measured."""


@dataclass(frozen=True)
class Setup:
    """Settings of all runs; with a ``cache``, runs of jaxq share moments and compiled functions."""

    model: Path
    tokens: Path
    calib_rows: int
    block_size: int
    jaxq_python: str
    peer_python: str
    cache: Path | None = None


@dataclass(frozen=True)
class Run:
    """One tool with one method.

    Attributes:
        name: Key in the results.
        python: ``"jaxq"`` or ``"peer"``: which interpreter runs it.
        module: The package whose absence makes the run unavailable.
        label: The row's name in the table.
        subset: Not the whole model: no quality, and only a time to extrapolate from.
        method: jaxq's, where the name does not say it.
        options: More of the command line.
    """

    name: str
    python: str
    module: str
    label: str
    subset: bool = False
    method: str = ""
    options: tuple[str, ...] = ()


RUNS = {
    run.name: run
    for run in (
        Run("onnxruntime_rtn", "jaxq", "onnxruntime", "onnxruntime MatMulNBits (RTN)"),
        Run("modelopt_rtn_dq", "peer", "nvidia-modelopt", "ModelOpt rtn_dq"),
        Run("jaxq_rtn_dq", "jaxq", "jax", "jaxq rtn_dq"),
        Run("modelopt_awq_lite_cached", "peer", "nvidia-modelopt", "ModelOpt awq_lite, activations cached"),
        Run("modelopt_awq_lite_7", "peer", "nvidia-modelopt", "ModelOpt awq_lite, default, 7 weights", subset=True),
        Run("modelopt_awq_lite_28", "peer", "nvidia-modelopt", "ModelOpt awq_lite, default, 28 weights", subset=True),
        Run("modelopt_awq_lite_default", "peer", "nvidia-modelopt", "ModelOpt awq_lite, default"),
        Run("jaxq_awq_lite", "jaxq", "jax", "jaxq awq_lite"),
        Run("modelopt_awq_full_cached", "peer", "nvidia-modelopt", "ModelOpt awq_full, activations cached"),
        Run("jaxq_awq_full", "jaxq", "jax", "jaxq awq_full"),
    )
}
LONG = ("modelopt_awq_lite_default", "modelopt_awq_full_cached")

MODELOPT_OPTIONS = {
    "modelopt_rtn_dq": ["--method=rtn_dq"],
    "modelopt_awq_lite_cached": ["--method=awq_lite", "--cached"],
    "modelopt_awq_lite_7": ["--method=awq_lite", f"--only={SUBSETS[7]}"],
    "modelopt_awq_lite_28": ["--method=awq_lite", f"--only={SUBSETS[28]}"],
    "modelopt_awq_lite_default": ["--method=awq_lite"],
    "modelopt_awq_full_cached": ["--method=awq_full", "--cached"],
}

PAIRS = (
    ("jaxq_rtn_dq", "modelopt_rtn_dq"),
    ("jaxq_rtn_dq", "onnxruntime_rtn"),
    ("jaxq_awq_lite", "modelopt_awq_lite_cached"),
    ("jaxq_awq_lite", "modelopt_awq_lite_default"),
    ("jaxq_awq_full", "modelopt_awq_full_cached"),
)
"""Pairs of runs; the ratio is the figure of jaxq divided by that of the peer."""


def command(run: Run, setup: Setup, folder: Path) -> list[str]:
    """The run's command line; it writes one .onnx file under ``folder``."""
    if run.method or run.name.startswith("jaxq_"):
        return jaxq_command(run.method or run.name.removeprefix("jaxq_"), setup, folder, run.options)
    common = [f"--model={setup.model}", f"--out={folder / 'model.onnx'}", f"--block-size={setup.block_size}"]
    if run.name.startswith("onnxruntime_"):
        how = f"--algorithm={run.name.removeprefix('onnxruntime_')}"
        python = setup.peer_python if run.python == "peer" else setup.jaxq_python
        return [python, str(HERE / "peers" / "onnxruntime_nbits.py"), *common, how, *run.options]
    script = str(HERE / "peers" / "modelopt_int4.py")
    return [setup.peer_python, script, *common, f"--tokens={setup.tokens}", *MODELOPT_OPTIONS[run.name]]


def jaxq_command(method: str, setup: Setup, folder: Path, options: tuple[str, ...] = ()) -> list[str]:
    """jaxq; with a fresh cache where the setup has none, so that what it compiles is part of its time.

    Rounding needs no data, and gets none: with data jaxq would also measure what each layer loses.
    """
    return [
        setup.jaxq_python,
        "-m",
        "jaxq.run",
        "model=onnx",
        f"model.path={setup.model}",
        f"calib.tokens={setup.tokens}",
        f"calib.samples={0 if method == 'rtn_dq' else setup.calib_rows}",
        f"method={method}",
        f"block_size={setup.block_size}",
        "eval.samples=0",
        f"cache_dir={setup.cache or folder / 'cache'}",
        f"hydra.run.dir={folder}",
        *options,
    ]


def shown(text: str, setup: Setup, folder: Path) -> str:
    """``text`` without this machine's paths, for the results."""
    names = {
        str(folder): "OUT",
        str(setup.model): "MODEL",
        str(setup.tokens): "TOKENS",
        str(REPOSITORY): ".",
        setup.jaxq_python: "python",
        setup.peer_python: "python",
    }
    for path, name in names.items():
        text = text.replace(path, name)
    return text
