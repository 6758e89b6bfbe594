"""Open the model of a job, and find which weights are quantized and which are skipped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from jaxq.errors import JaxqError
from jaxq.files.model_file import data_files, data_path, load_model
from jaxq.forms.form import Form
from jaxq.graph.already_quantized import ALREADY, PART
from jaxq.graph.normalize.functions import inline_functions
from jaxq.graph.normalize.ties import share_copies, share_transposed
from jaxq.graph.opset import raise_opset
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import Group, find_sites, matches, sibling_groups, unmatched
from jaxq.graph.skipped import Skipped, skipped_in_functions
from jaxq.graph.unused import remove_unused
from jaxq.pipeline.job import Job, split_supported, useless_patterns


@dataclass(frozen=True, eq=False)
class Source:
    """A model that is to be quantized.

    Attributes:
        model: In the shape that `jaxq.graph.prepare` gives it, of the form's opset; its weights lie in the file.
        groups: Weights that are quantized, siblings together.
        skipped: Skipped float weights, with reasons.
        unmatched: Patterns that match no weight.
        files: The model's file, and those of its external data.
        nbytes: Size of the files.
        quantized_source_bytes: Bytes of the weights that are quantized.
        ties: Sentences on heads that are copies of a table, and are no weights of their own any more.
    """

    model: ir.Model
    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    unmatched: tuple[str, ...]
    files: tuple[Path, ...]
    nbytes: int
    quantized_source_bytes: int
    ties: tuple[str, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all float weights."""
        return self.quantized_source_bytes + sum(d.nbytes for d in self.skipped)


def open_source(job: Job, form: Form) -> Source:
    """Loads a job's model and finds its weights.

    Raises:
        JaxqError: the file is bad, would be overwritten, or holds nothing that can be quantized.
    """
    model = load_model(job.source)
    files = (job.source, *data_files(job.source, model))
    _refuse_overwriting(files, job.target)
    inline_functions(model)  # the opset converter would inline all functions, and refuses some
    # The opset converter removes what no output depends on; this way the report names it.
    unused = remove_unused(model) if model.opset_imports.get("", form.opset) < form.opset else []
    raise_opset(model, form.opset, form.ir_version)
    prepare(model)
    ties = _share_ties(model, job)
    sites, skipped = find_sites(model.graph, job.exclude, None if job.gather is None else job.gather.positive_axis)
    sites, unsupported = split_supported(job, sites)
    skipped += [*unsupported, *skipped_in_functions(model), *unused]
    unmatched_patterns = (*unmatched(model.graph, job.exclude), *useless_patterns(job, sites))
    if not sites:
        raise JaxqError(f"model {str(job.source)!r} {_nothing_left(skipped)}")
    nbytes = sum(path.stat().st_size for path in files)
    quantized = sum(site.weight.const_value.nbytes for site in sites if site.weight.const_value is not None)
    return Source(
        model, tuple(sibling_groups(sites)), tuple(skipped), unmatched_patterns, files, nbytes, quantized, ties
    )


def _share_ties(model: ir.Model, job: Job) -> tuple[str, ...]:
    """Brings ties into the shape that `find_sites` knows; returns a sentence on each dropped copy of a table."""
    share_transposed(model)
    if job.gather is None or job.gather.positive_axis != 1:  # the axis along which a head is blocked too
        return ()
    apart = [*job.exclude, *(pattern for rule in job.rules for pattern in rule.patterns)]
    copies = share_copies(model, lambda head: any(matches(head, pattern) for pattern in apart))
    return tuple(f"{head!r} is a copy of the table {table!r}: both are quantized once" for head, table in copies)


def _refuse_overwriting(sources: Sequence[Path], target: Path) -> None:
    source_files = {path.resolve() for path in sources}
    for path in (target, data_path(target)):
        if path.resolve() in source_files:
            raise JaxqError(
                f"the target {str(path)!r} belongs to the source, which is never changed: give another path"
            )


def _nothing_left(skipped: Sequence[Skipped]) -> str:
    """The reason why no weight of a model can be quantized."""
    codes = [d for d in skipped if d.reason == ALREADY]
    others = [d for d in skipped if d.reason not in (ALREADY, PART)]
    size = sum(d.nbytes for d in codes)
    if size > sum(d.nbytes for d in others):
        return f"is {ALREADY}: {len(codes)} tensors of codes, {size / 1e6:.2f} MB; no float weight can be quantized"
    reasons = dict.fromkeys(d.reason for d in sorted(others, key=lambda d: -d.nbytes))
    return f"has no weight that can be quantized: {'; '.join(list(reasons)[:3]) or 'it holds no float weights'}"
