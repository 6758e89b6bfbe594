"""The table at the end of a sweep, the file with its rows, and what becomes of its folder."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from jaxq.harness.failures import BAD_INPUT, fail
from jaxq.harness.run_folder import TABLE, link_latest, remove_sweep_without_result
from jaxq.harness.run_table import print_runs
from jaxq.harness.sweep_rows import COLUMNS, errors_of, sweep_rows


class SweepTable(Callback):
    """Hydra callback: prints one table of all runs at the end of a sweep, and writes it as ``summary.csv``."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Lets `remove_stopped_sweep` know the sweep's folder: Hydra itself tells it to the runs alone."""
        HydraConfig.instance().set_config(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads the reports of the runs and prints the table; exits with code 2 if a run failed.

        The table has the figures of runs without a model, so that dry and failed runs need no folder.
        """
        folder = Path(config.hydra.sweep.dir)
        rows = sweep_rows(folder)
        if remove_sweep_without_result(folder, _named(config.hydra.overrides.hydra)):
            with (folder / TABLE).open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
            if any(folder.glob("*/model.onnx")):
                link_latest(folder)
        console = print_runs("sweep", [row | {"error": "failed" if row["error"] else ""} for row in rows])
        if folder.is_dir():
            console.print(f"{folder}/{TABLE}", highlight=False, soft_wrap=True)
        errors = errors_of(rows)
        for error, runs in errors.items():
            fail(f"{error} ({'run' if len(runs) == 1 else 'runs'} {', '.join(runs)})")
        if errors:
            raise SystemExit(BAD_INPUT)
        console.exit_if_unread()


def remove_stopped_sweep() -> None:
    """Removes what a sweep left that ended without a table; its finished runs stay."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        remove_sweep_without_result(Path(HydraConfig.get().sweep.dir), _named(HydraConfig.get().overrides.hydra))


def _named(overrides: Sequence[str]) -> bool:
    """True if the command names the sweep's folder."""
    return any(override.startswith("hydra.sweep.dir=") for override in overrides)
