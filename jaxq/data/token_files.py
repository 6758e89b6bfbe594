"""Token ids and other inputs of a model from an ``.npz`` file."""

import zlib
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from jaxq.errors import JaxqError
from jaxq.runtime.inputs import MASK, TOKENS, InputSpec

Arrays = dict[str, np.ndarray]
_KEYS = ("calib", "eval")


def token_file_samples(path: Path, key: str, samples: int, spec: InputSpec) -> dict[str, np.ndarray]:
    """The first samples of an npz file.

    Args:
        path: File with token ids [samples, length], in an array named ``key`` or ``input_ids``. Further arrays may be
            an ``attention_mask`` of that shape, even for a model without such an input, and the model's other inputs
            under their names, samples first. One file may have both "calib" and "eval".
        key: "calib" or "eval".
        samples: Number of samples at most.
        spec: The model's inputs.

    Returns:
        Arrays by input name; token ids under ``input_ids``.

    Raises:
        JaxqError: the file is missing or unreadable, has an array of another name or the token ids twice, or its arrays
            have different lengths.
    """
    arrays = read_npz(path)
    feeds = {name: array[:samples] for name, array in arrays.items() if name in (*spec.names, MASK)}
    if key in arrays:
        if TOKENS in feeds:
            raise JaxqError(f"token file {str(path)!r} has token ids in {key!r} and in {TOKENS!r}: remove one of them")
        feeds[TOKENS] = arrays[key][:samples]
    if not feeds:
        raise JaxqError(
            f"token file {str(path)!r} has {', '.join(sorted(arrays)) or 'no arrays'}: it needs {key!r} (token ids), "
            f"or the model's inputs: {', '.join(spec.names)}"
        )
    if unused := sorted(set(arrays) - {*feeds, *_KEYS}):
        raise JaxqError(
            f"token file {str(path)!r} has {', '.join(unused)}, which nothing reads: the model's inputs are "
            f"{', '.join(spec.names)}; rename or remove the others"
        )
    if len({len(a) for a in feeds.values()}) > 1:
        lengths = ", ".join(f"{name} {len(a)}" for name, a in sorted(feeds.items()))
        raise JaxqError(f"token file {str(path)!r} has different numbers of samples: {lengths}")
    return feeds


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, by name.

    Raises:
        JaxqError: the file is missing or unreadable, or has something else than arrays with a samples axis.
    """
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise JaxqError(f"token file {str(path)!r} {fault}: give the path of an .npz file")
    try:
        if not is_zipfile(path):  # np.load would read it as a pickle or a single array
            raise BadZipFile("write one with numpy.savez(path, calib=ids)")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise JaxqError(f"token file {str(path)!r} is not an .npz file that can be read: {error}") from error
    if others := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise JaxqError(f"token file {str(path)!r} has {others[0]!r}, which is no array: write it with numpy.savez")
    if scalars := [name for name, array in arrays.items() if not array.ndim]:
        raise JaxqError(f"token file {str(path)!r} has a single number in {scalars[0]!r}: give an array with samples")
    return arrays
