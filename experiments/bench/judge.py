"""Runs a tool on drawn calibration rows; evaluates its file on held-out text like and unlike the calibration text."""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measure import limit_threads
from runs import REPOSITORY, Run, Setup
from smollm2p import device, run_once, save, versions, written_files
from subjects import SUBJECTS, load_subject
from texts import drawn_rows, prose_ids, spread_rows

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        run: The tool and its options.
        seed: Draws the calibration rows.
        rows: Their number, of 256 tokens.
    """

    run: Run
    seed: int
    rows: int

    @property
    def key(self) -> str:
        """Its name in the results, below its run's."""
        return f"{self.seed}" if self.rows == 32 else f"{self.seed} of {256 * self.rows} tokens"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `Judge` reads."""
    parser.add_argument("--model", choices=SUBJECTS, default="smollm2p")
    parser.add_argument("--models", type=Path, help="folder with smollm2p/; not needed for the embedded model")
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--peer-python", default="python")
    parser.add_argument("--eval-rows", type=int, help="of each text: 16 of 512 tokens, embedded 234 of 256 at most")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=3600)
    parser.add_argument("--out", type=Path, required=True)


class Judge:
    """Runs cases and stores their results in a file; cases with results are skipped.

    Args:
        args: See `add_arguments`.
        work: Folder for models, moments and the float model's probabilities.
    """

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.subject = load_subject(args.model, args.models, work)
        self.eval_rows = args.eval_rows or self.subject.eval_rows
        settings = {"model": args.model, "eval_rows": self.eval_rows}
        settings |= {k: getattr(args, k) for k in ("block_size", "threads")}
        self.result: dict[str, Any] = {"settings": settings, "runs": {}}
        if args.out.exists():
            old = json.loads(args.out.read_text())
            if old["settings"] != settings:
                sys.exit(f"{args.out} has other settings: {old['settings']}")
            self.result["runs"] = old["runs"]
        self.held_out = self._write_held_out()

    def judge(self, case: Case) -> dict[str, Any]:
        """The case's figures: of this run, or of an earlier one."""
        kept = self.result["runs"].setdefault(case.run.name, {})
        if "quality" not in kept.get(case.key, {}):
            kept[case.key] = self._measured(case)
            save(self.args.out, self.result)
            print(case.run.name, case.key, json.dumps(kept[case.key]), flush=True)
        return kept[case.key]

    def _measured(self, case: Case) -> dict[str, Any]:
        pythons = (sys.executable, self.args.peer_python)
        setup = Setup(self.subject.model, self._write_tokens(case), case.rows, self.args.block_size, *pythons)
        setup = replace(setup, cache=self.work / f"cache-{case.key.replace(' ', '-')}")
        folder = self.work / "run"
        made = run_once(case.run, setup, folder, limit_threads(self.args.threads), self.args.timeout)
        del made["peak_mb"]  # a child's starts at this process's own, which holds the texts
        made |= self._origin(case.run)
        if "error" not in made:
            (path,) = [p for p in written_files(folder) if p.suffix == ".onnx"]
            if (path.parent / "report.json").exists():
                report = json.loads((path.parent / "report.json").read_text())
                made["phases"] = {phase: round(s, 1) for phase, s in report["seconds"].items()}
                made["bits_per_weight"] = report["size"]["bits_per_weight"]
            made["quality"] = self._quality(path)
        shutil.rmtree(folder, ignore_errors=True)
        return made

    def _origin(self, run: Run) -> dict[str, Any]:
        """Commit, versions and machine of a run: a file of results has runs of several."""
        found = {"commit": _commit(), "versions": versions(sys.executable)}
        if run.python == "peer":
            found["peer_versions"] = versions(self.args.peer_python)
        return found | {"device": device(self.args.threads)}

    def _write_tokens(self, case: Case) -> Path:
        """Calibration rows, and one evaluation row, which token files need."""
        path = self.work / "tokens.npz"
        rows = drawn_rows(self.subject.calibration, case.rows, case.seed)
        np.savez(path, calib=rows, eval=spread_rows(self.subject.like, 1, self.subject.eval_length))
        return path

    def _write_held_out(self) -> dict[str, Path]:
        """Rows spread over each text without overlap, at most as many as the text has."""
        length = self.subject.eval_length
        texts = {"like": self.subject.like, "unlike": prose_ids(self.subject.tokenizer, self.args.prose)}
        paths = {name: self.work / f"{name}.npz" for name in texts}
        for name, ids in texts.items():
            count = min(self.eval_rows, (len(ids) - 1) // length)
            np.savez(paths[name], eval=spread_rows(ids, count, length))
        return paths

    def _quality(self, path: Path) -> dict[str, Any]:
        """Figures of a file, and of the float model, on each text."""
        found = {}
        for text, tokens in self.held_out.items():
            out = self.work / "quality.json"
            options = [f"--tokens={tokens}", f"--out={out}", "--levels=1", f"--keep={self.work}"]
            script = [sys.executable, str(HERE / "evaluate.py"), f"--reference={self.subject.model}"]
            subprocess.run([*script, *options, f"file={path}"], check=True, stdout=subprocess.DEVNULL)
            files = json.loads(out.read_text())["files"]
            found[text] = {"float": files["fp32"]["level1"], **files["file"]["level1"]}
        return found


def _commit() -> str:
    """The last commit that changed jaxq, "" outside a clone; with a "+" where jaxq has uncommitted changes."""
    last, changes = (
        subprocess.run(["git", "-C", REPOSITORY, *what, "--", "jaxq"], capture_output=True, text=True, check=False)
        for what in (("log", "-1", "--format=%H"), ("status", "--porcelain"))
    )
    return last.stdout.strip() + "+" * bool(changes.stdout)


def share_closed(perplexity: float, rounded: float, exact: float) -> float:
    """Share of the gap in log-perplexity that is closed: plain rounding 0, float 1."""
    return float(1 - np.log(perplexity / exact) / np.log(rounded / exact))
