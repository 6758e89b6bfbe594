"""Shows a sweep: the command line quantizes a model once for each combination of options and writes one table.
Prints: least KL divergence to the float model: blocks of 32, 5.01 bits a weight"""

import csv
import subprocess
import sys
import tempfile
from pathlib import Path

options = ["method=rtn_dq", "block_size=32,128", "eval.samples=8"]
with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "jaxq.run", "--multirun", *options]
    subprocess.run(command, cwd=folder, check=True)  # prints each run, then the table
    (table,) = Path(folder).glob("outputs/sweeps/*/*/summary.csv")
    rows = list(csv.DictReader(table.open()))
best = min(rows, key=lambda row: float(row["kl"]))
size = f"blocks of {best['block_size']}, {float(best['bits_per_weight']):.2f} bits a weight"
print(f"least KL divergence to the float model: {size}")
