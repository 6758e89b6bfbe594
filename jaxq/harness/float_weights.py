"""Weights that a run left in float, and the options that would quantize them."""

import re
from collections.abc import Sequence
from typing import cast

from omegaconf import OmegaConf

from jaxq.errors import JaxqError
from jaxq.graph.skipped import Skipped
from jaxq.harness.config import Config
from jaxq.harness.make_job import make_job
from jaxq.pipeline.dry_run import planned_file_size
from jaxq.pipeline.job import Job

_LARGE_SHARE = 0.1
"""Share of the file from which float weights are worth a sentence."""


def float_weights_note(
    config: Config, job: Job, skipped: Sequence[Skipped], target_bytes: int, has_data: bool
) -> str | None:
    """The options that would quantize more, and the size of the file then; None where they would save little.

    Args:
        config: The configuration of the run.
        job: The job that ran.
        skipped: Weights that it left in float.
        target_bytes: Bytes of the file that it wrote.
        has_data: There was calibration data.
    """
    if sum(weight.nbytes for weight in skipped) <= _LARGE_SHARE * target_bytes:
        return None
    options, left, nbytes = list[str](), tuple(skipped), target_bytes
    while option := _next_option(left, options):
        try:
            more = cast(
                Config, OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist([*options, option]))
            )
            left, nbytes = planned_file_size(make_job(more, job.source, job.target, has_data), has_data)
        except JaxqError:  # the form stores no tables, for example
            break
        options.append(option)
    names = {weight.name for weight in left}
    quantized = sum(weight.nbytes for weight in skipped if weight.name not in names)
    if quantized <= _LARGE_SHARE * target_bytes or nbytes >= target_bytes:
        return None
    share = f"{quantized / 1e6:.2f} MB of the file ({quantized / target_bytes:.0%}) are float weights"
    return f"{share}: {' '.join(options)} quantizes them, and the file takes about {nbytes / 1e6:.2f} MB"


def _next_option(skipped: Sequence[Skipped], options: Sequence[str]) -> str | None:
    """An option that the reason of the largest weights names, and that is not among the options yet."""
    for weight in sorted(skipped, key=lambda weight: weight.nbytes, reverse=True):
        if weight.reason.startswith("excluded by the pattern") and "method.exclude=[]" not in options:
            return "method.exclude=[]"
        if "gather.axis" in weight.reason and not any(option.startswith("gather.axis=") for option in options):
            axis = re.search(r"gather\.axis=(\d)", weight.reason)
            return f"gather.axis={axis[1] if axis else 1}"
    return None
