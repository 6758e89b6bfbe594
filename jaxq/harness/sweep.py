"""The table at the end of a sweep, and the file with its rows."""

import csv
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from jaxq.harness.run_folder import link_latest, remove_without_result
from jaxq.harness.run_table import print_runs
from jaxq.harness.sweep_rows import COLUMNS, sweep_rows


class SweepTable(Callback):
    """Hydra callback: prints one table of all runs at the end of a sweep, and writes it as ``summary.csv``."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Reads the reports of the runs and prints the table; exits with code 2 if a run failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = sweep_rows(folder)
        console = print_runs("sweep", rows)
        with (folder / "summary.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        console.print(f"{folder}/summary.csv", highlight=False, soft_wrap=True)
        asked = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
        for run in folder.iterdir():  # the table has the figures of runs without a model
            if run.is_dir() and not asked:
                remove_without_result(run, with_record=True)
        if any(not row["error"] for row in rows) and folder.exists():
            link_latest(folder)
        if any(row["error"] for row in rows):
            raise SystemExit(2)
