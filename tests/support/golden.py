"""Numbers recorded from NVIDIA ModelOpt: the cases of tests/parity/golden, written by experiments/parity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "parity" / "golden"


def load(name: str) -> list[dict[str, Any]]:
    """The cases of a file; arrays replace their places in the file's flat pools."""
    data = np.load(FOLDER / f"{name}.npz")
    pools = {key: data[key] for key in ("floats", "codes")}

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return [read(element) for element in value]
        if not isinstance(value, dict) or "pool" not in value:
            return value
        flat = pools[value["pool"]][value["offset"] :][: int(np.prod(value["shape"]))]
        return flat.reshape(value["shape"]).astype(value["dtype"])

    return [{key: read(value) for key, value in case.items()} for case in json.loads(str(data["meta"]))["cases"]]


def cases(source: list[dict[str, Any]], function: str) -> list[Any]:
    """The cases of a function of ModelOpt, as parameters of a test."""
    parameters = [pytest.param(case, id=case["id"]) for case in source if case.get("function") == function]
    assert parameters, f"no case of {function}"
    return parameters


def case_of(source: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The case of that name."""
    return next(case for case in source if case["id"] == name)


def assert_close(got: Any, expected: np.ndarray, roundings: int = 1) -> None:
    """Both are float32 of the same shape, and differ by so many roundings at most."""
    got = np.asarray(got)
    assert (got.dtype, got.shape) == (np.float32, expected.shape)
    far = np.abs(got.astype(np.float64) - expected) > roundings * np.spacing(np.abs(expected))
    assert not far.any(), f"{far.sum()} of {far.size} numbers are off, such as {got[far][0]} for {expected[far][0]}"
