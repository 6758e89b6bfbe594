"""The golden files' format: two flat arrays, and cases that say where in them their arrays lie."""

from importlib.metadata import version
from typing import Any

import ml_dtypes
import numpy as np

Reference = dict[str, Any]


class Pool:
    """Collects arrays: floats as float32 (float16 and bfloat16 fit exactly), integers as int16.

    `add` returns ``{"pool", "offset", "shape", "dtype"}``; one npz entry per array would cost more than the arrays.
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {"floats": [], "codes": []}
        self._sizes = {"floats": 0, "codes": 0}

    def add(self, array: np.ndarray) -> Reference:
        array = np.asarray(array)
        name = "floats" if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16 else "codes"
        held = array.astype(np.float32 if name == "floats" else np.int16)
        if not np.array_equal(held.astype(array.dtype), array, equal_nan=name == "floats"):
            raise ValueError(f"an array of {array.dtype} does not fit the pool {name!r}: {array!r}")
        place = {"pool": name, "offset": self._sizes[name], "shape": list(array.shape), "dtype": str(array.dtype)}
        self._parts[name].append(held.ravel())
        self._sizes[name] += held.size
        return place

    def floats(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *self._parts["floats"]])

    def codes(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.int16), *self._parts["codes"]])


def producer() -> dict[str, str]:
    """Who computed the numbers."""
    return {"producer": "nvidia-modelopt", "version": version("nvidia-modelopt"), "numpy": version("numpy")}
