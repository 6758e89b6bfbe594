"""Token ids and other inputs of a model from an ``.npz`` file."""

import zlib
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from jaxq.errors import JaxqError
from jaxq.runtime.inputs import MASK, TOKENS, InputSpec

Arrays = dict[str, np.ndarray]
_PARTS = ("calib", "eval")


def token_file_samples(path: Path, key: str, samples: int, spec: InputSpec) -> dict[str, np.ndarray]:
    """The first samples of an npz file.

    Args:
        path: File with an array ``key`` of token ids [samples, length], or ``input_ids``; and perhaps an
            ``attention_mask`` of that shape, whether or not the model wants one, and arrays named as the model's other
            inputs, samples first. "calib" and "eval" may lie in one file.
        key: "calib" or "eval".
        samples: How many at most.
        spec: What the model wants.

    Raises:
        JaxqError: the file is missing or unreadable, has names that nothing reads, has the token ids twice, or its
            arrays have different lengths.
    """
    arrays = read_npz(path)
    feeds = {name: array[:samples] for name, array in arrays.items() if name in (*spec.names, MASK)}
    if key in arrays:
        if TOKENS in feeds:
            raise JaxqError(f"token file {str(path)!r} has token ids in {key!r} and in {TOKENS!r}: leave one out")
        feeds[TOKENS] = arrays[key][:samples]
    if not feeds:
        raise JaxqError(
            f"token file {str(path)!r} holds {', '.join(sorted(arrays)) or 'nothing'}: it needs {key!r} (token ids), "
            f"or the model's inputs: {', '.join(spec.names)}"
        )
    if unread := sorted(set(arrays) - {*feeds, *_PARTS}):
        raise JaxqError(
            f"token file {str(path)!r} holds {', '.join(unread)}, which nothing reads: rename or leave out what is "
            f"none of the model's inputs: {', '.join(spec.names)}"
        )
    if len({len(a) for a in feeds.values()}) > 1:
        lengths = ", ".join(f"{name} {len(a)}" for name, a in sorted(feeds.items()))
        raise JaxqError(f"token file {str(path)!r} has different numbers of samples: {lengths}")
    return feeds


def read_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise JaxqError(f"token file {str(path)!r} {what}: give the path of an .npz file")
    try:
        if not is_zipfile(path):  # numpy would take it for a pickle, or for a single array
            raise BadZipFile("write one with numpy.savez(path, calib=ids)")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise JaxqError(f"token file {str(path)!r} is not an .npz file that can be read: {error}") from error
    if other := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise JaxqError(f"token file {str(path)!r} holds {other[0]!r}, which is no array: write it with numpy.savez")
    if flat := [name for name, array in arrays.items() if not array.ndim]:
        raise JaxqError(f"token file {str(path)!r} has a single number in {flat[0]!r}: arrays with samples are needed")
    return arrays
