"""Cut the activation of a convolution into patches: rows that the kernel multiplies as a matrix."""

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from jaxq.graph.activations import Patches

# Elements of a piece: a 3 x 3 kernel makes nine patch elements of each element of the activation, too many at once.
_PIECE = 1 << 23


def cut_patches(x: np.ndarray, how: Patches, piece: int = _PIECE) -> Iterator[np.ndarray]:
    """The patches of an activation, in pieces of bounded size.

    Args:
        x: Activation [batch, channels, ...].
        how: The convolution.
        piece: Numbers of a piece; one row of output positions is the least.

    Yields:
        Pieces [groups, patches, channels / groups * size of the kernel]; within a row the channels count slowest, as in
        a kernel [c_out, channels / groups, ...].

    Example:
        >>> how = Patches(kernel=(2,), strides=(1,), dilations=(1,), pads=(0, 1))
        >>> next(cut_patches(np.array([[[1, 2, 3]]]), how)).tolist()
        [[[1, 2], [2, 3], [3, 0]]]
    """
    rank = len(how.kernel)
    extents = [(k - 1) * d + 1 for k, d in zip(how.kernel, how.dilations, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *_ends(x.shape[2:], how, extents)])
    if any(size < extent for size, extent in zip(padded.shape[2:], extents, strict=True)):
        return
    windows = sliding_window_view(padded, extents, tuple(range(2, 2 + rank)))
    outputs = [slice(None, None, step) for step in how.strides]
    within = [slice(None, None, step) for step in how.dilations]
    windows = windows[(slice(None), slice(None), *outputs, *within)]
    windows = np.moveaxis(windows, 1, 1 + rank)  # [batch, positions ..., channels, kernel ...]
    length = int(np.prod(windows.shape[1 + rank :]))
    rows = max(1, piece // max(1, length * int(np.prod(windows.shape[2 : 1 + rank]))))
    for image in windows:
        for start in range(0, len(image), rows):
            cut = image[start : start + rows].reshape(-1, how.groups, length // how.groups)
            yield np.moveaxis(cut, 1, 0)


def _ends(sizes: tuple[int, ...], how: Patches, extents: list[int]) -> list[tuple[int, int]]:
    """Zeros before and behind each spatial axis."""
    rank = len(sizes)
    if how.auto_pad == "VALID":
        return [(0, 0)] * rank
    if how.auto_pad == "NOTSET":
        return list(zip(how.pads[:rank], how.pads[rank:], strict=True))
    ends = []
    for size, extent, step in zip(sizes, extents, how.strides, strict=True):
        total = max(0, (-(-size // step) - 1) * step + extent - size)
        less, more = total // 2, total - total // 2
        ends.append((less, more) if how.auto_pad == "SAME_UPPER" else (more, less))
    return ends
