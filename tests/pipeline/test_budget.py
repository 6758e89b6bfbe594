"""method.bits_per_weight: formats chosen weight by weight, within the budget."""

import tempfile
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from jaxq.errors import JaxqError
from jaxq.formats.integers import FLOAT8, IntegerFormat
from jaxq.formats.registry import WeightFormat, make_format
from jaxq.forms.registry import FORMS, find_form
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites
from jaxq.methods.allocation import Option
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.budget import _nbytes, _weighted
from jaxq.pipeline.job import Budget, Gather, Job, Rule, check_job
from jaxq.pipeline.quantize import quantize_model
from jaxq.pipeline.sensitivity import sensitivities
from jaxq.pipeline.source import open_source
from jaxq.runtime.batches import Batch
from tests.support import models
from tests.support.decoder import decoder_batches
from tests.support.forms import run_form, skip_old
from tests.support.models import HIDDEN, build, node, tokens, value, weight
from tests.support.running import initializers, quantize, relative, run, save, with_weights
from tests.support.unpacked import dequantized

X = {"x": tokens(4, 10, HIDDEN)}


def formats(outcome) -> dict[str, tuple[str, int]]:
    return {layer.name: (layer.dtype, layer.block_size) for layer in outcome.layers}


def all_but_one_in_four_bits() -> onnx.ModelProto:
    """A gated product; its weights but for ``up`` are what four bits in blocks of 32 can say."""
    proto = models.swiglu()
    weights = initializers(proto)
    held = {name: np.asarray(IntegerFormat(32).round_trip(jnp.asarray(weights[name]))) for name in ("gate", "down")}
    return with_weights(proto, held)


@pytest.mark.long
@pytest.mark.parametrize("form", ["dq", "column_major", "matmulnbits"])
@pytest.mark.parametrize("method", ["rtn_dq", "gptq", "best"])
def test_what_loses_most_gets_the_bits(form, method, tmp_path):
    proto = all_but_one_in_four_bits()
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    batches = [] if method == "rtn_dq" else [Batch(X)]
    skip_old(form, IntegerFormat(32, 8))
    outcome = quantize(source, target, method, batches, IntegerFormat(32), form, bits=6.7)
    assert 6 < outcome.bits_per_weight <= 6.7
    assert formats(outcome)["up"][0] == "int8"
    assert {dtype for dtype, _ in formats(outcome).values()} > {"int8"}
    onnx.checker.check_model(str(target), full_check=True)
    want = run(with_weights(proto, dequantized(onnx.load(target))), X)[0]
    assert relative(run_form(form, target, X)[0], want) < 2e-6


@pytest.mark.long
def test_more_bits_never_lose_more(decoder, tmp_path):
    """The curve of a decoder's relative output errors falls with the budget."""
    sums = []
    for bits in (4.6, 6.0, 9.0):
        outcome = quantize(decoder, tmp_path / f"{bits}.onnx", "gptq", decoder_batches(), bits=bits)
        assert outcome.bits_per_weight <= bits
        sums.append(sum((layer.relative_output_error or 0) ** 2 for layer in outcome.layers))
    assert sums == sorted(sums, reverse=True)
    assert sums[-1] < sums[0] / 20


def test_a_budget_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(JaxqError, match=r"bits_per_weight is 3: this model's weights take 4\.\d+ bits at least"):
        quantize(save(models.swiglu(), tmp_path), tmp_path / "out.onnx", bits=3)
    assert not (tmp_path / "out.onnx").exists()


def test_a_budget_that_nothing_can_use_is_told_of(tmp_path):
    source = save(models.swiglu(), tmp_path)
    all_in_eight = quantize(source, tmp_path / "enough.onnx", bits=32)
    assert {dtype for dtype, _ in formats(all_in_eight).values()} == {"int8"}
    most = f"{all_in_eight.bits_per_weight:.3f}"
    assert all_in_eight.notices == (f"method.bits_per_weight is 32: weights take {most} at most in form 'dq'",)
    assert not quantize(source, tmp_path / "out.onnx", bits=6).notices


def test_a_rule_stands_and_counts(tmp_path):
    """A weight with a rule has its format, and what it takes is taken from the others."""
    source = save(models.swiglu(), tmp_path)
    rules = (Rule(("gate",), IntegerFormat(32, 8)),)
    outcome = quantize(source, tmp_path / "out.onnx", "gptq", [Batch(X)], rules=rules, bits=6.5)
    assert formats(outcome)["gate"] == ("int8", 32)
    assert outcome.bits_per_weight <= 6.5


def test_tables_take_part(tmp_path):
    ids = {"ids": np.arange(8, dtype=np.int64).reshape(1, 8)}
    gather = Gather(1, IntegerFormat(32))
    outcome = quantize(
        save(models.embedding(), tmp_path), tmp_path / "out.onnx", "gptq", [Batch(ids)], gather=gather, bits=12
    )
    assert outcome.bits_per_weight <= 12
    assert "int8" in {dtype for dtype, _ in formats(outcome).values()}


def uneven() -> onnx.ModelProto:
    """Columns of 84: an odd number of blocks of 32, and of 16 a last one that is not full."""
    nodes = [node("MatMul", "x a", "h"), node("MatMul", "h b", "y")]
    return build(nodes, {"a": weight(HIDDEN, 84), "b": weight(84, HIDDEN, seed=1)}, {"y": ("batch", "tokens", HIDDEN)})


def stored() -> list:
    """Every form of codes with each of its formats, and tables where it holds these."""
    found = []
    for name, form in FORMS.items():
        formats = [
            make_format(d, size) for d, sizes in form.block_sizes.items() for size in sizes if size in (-1, 16, 32)
        ]
        if form.casts:
            formats += [f for size in (16, 32) for f in form.alternatives(make_format("int4", size), True, FLOAT8)[1:]]
        found += [(name, fmt) for fmt in dict.fromkeys(formats)]
    return [pytest.param(name, fmt, id=f"{name} {fmt.dtype} {fmt.block_size} {fmt.scale_dtype}") for name, fmt in found]


@pytest.mark.parametrize(("form", "fmt"), stored())
@pytest.mark.parametrize("make", [uneven, models.embedding, models.tied, models.shared])
def test_a_plan_knows_the_bytes_of_a_file(form, fmt, make, tmp_path):
    """Filled-up blocks and zero points, copies and shared ones: budgets are kept because these are."""
    gather = Gather(1, fmt) if 1 in FORMS[form].gather_axes else None
    source = open_source(a_job(save(make(), tmp_path), tmp_path, form, fmt, gather), find_form(form))
    planned = {site.name: _nbytes(site, fmt, FORMS[form]) for group in source.groups for site in group.sites}
    outcome = quantize(tmp_path / "model.onnx", tmp_path / "out.onnx", fmt=fmt, form=form, gather=gather)
    assert {layer.name: layer.nbytes for layer in outcome.layers} == planned


def a_job(source: Path, folder: Path, form: str, fmt: WeightFormat, gather: Gather | None) -> Job:
    return Job(source, folder / "never.onnx", MethodSpec("rtn_dq", fmt), FORMS[form], (), folder, gather=gather)


@pytest.mark.long
@pytest.mark.parametrize("bits", [4.8, 5.0, 5.2])
def test_filled_up_zero_points_keep_to_the_budget(bits, tmp_path):
    """A column of 3 blocks has 2 bytes of zero points in a MatMulNBits."""
    fmt = make_format("uint4", 32, scale_dtype=FLOAT8)
    outcome = quantize(
        save(uneven(), tmp_path), tmp_path / "out.onnx", "gptq", [Batch(X)], fmt, "matmulnbits", bits=bits
    )
    assert bits - 0.3 < outcome.bits_per_weight <= bits


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int5"])
def test_a_file_says_what_a_budget_may_choose(dtype, tmp_path):
    """float8 scales need an opset that formats without them do not."""
    proto = models.swiglu()
    proto.opset_import[0].version = 17
    source, target = save(proto, tmp_path), tmp_path / "out.onnx"
    spec = MethodSpec("rtn_dq", make_format(dtype, 32))
    budget = Budget(5.0, scale_dtype=FLOAT8)
    with tempfile.TemporaryDirectory() as cache:
        outcome = quantize_model(Job(source, target, spec, FORMS["matmulnbits"], (), Path(cache), budget=budget))
    assert {layer.scale_dtype for layer in outcome.layers} >= {FLOAT8}
    onnx.checker.check_model(str(target), full_check=True)
    assert np.isfinite(run(target, X)[0]).all()


def test_scales_that_a_form_does_not_take_are_refused_whatever_the_base(tmp_path):
    source, spec = save(models.embedding(), tmp_path), MethodSpec("rtn_dq", make_format("mxfp8"))
    job = Job(source, tmp_path / "out.onnx", spec, FORMS["trt"], (), tmp_path, gather=Gather(1, IntegerFormat(32)))
    check_job(job, has_data=False)
    check_job(replace(job, budget=Budget(9.0)), has_data=False)
    for budget in (Budget(9.0, full_range=True), Budget(9.0, scale_dtype="float16")):
        with pytest.raises(JaxqError, match="'trt'"):
            check_job(replace(job, budget=budget), has_data=False)


def test_alternatives_have_the_scales_that_are_asked_for():
    """Whatever the format of weights without a choice: unsigned, or of 8 bits, which has wider scales."""
    for dtype in ("int4", "uint4", "int8"):
        for full_range in (False, True):
            found = FORMS["dq"].alternatives(make_format(dtype, 32, scale_dtype=FLOAT8), full_range, FLOAT8)[1:]
            signed = {f for f in found if f.dtype == "int4"}
            wanted = {make_format("int4", size, full_range, FLOAT8) for size in (16, 32, 64, 128)}
            assert signed == wanted - {make_format(dtype, 32, scale_dtype=FLOAT8)}


@pytest.mark.parametrize("form", FORMS)
def test_alternatives_are_held(form):
    for dtype in FORMS[form].block_sizes:
        fmt = make_format(dtype)
        found = FORMS[form].alternatives(fmt, FORMS[form].negative_scales)
        assert found[0] == fmt
        for other in found[1:]:
            assert other.block_size in FORMS[form].block_sizes[other.dtype]
            assert FORMS[form].negative_scales or not getattr(other, "full_range", False)


def stream(second: float) -> onnx.ModelProto:
    """``x1 = E[ids] + (E[ids] a) b``, then the same with ``c`` and ``d``, then a head."""
    nodes = [node("Gather", "table ids", "x0")]
    weights = {"table": weight(20, HIDDEN, seed=9), "head": weight(HIDDEN, 20, seed=8)}
    for i, (first, last) in enumerate(("ab", "cd")):
        nodes += [
            node("MatMul", f"x{i} {first}", f"h{i}"),
            node("Relu", f"h{i}", f"r{i}"),
            node("MatMul", f"r{i} {last}", f"p{i}"),
            node("Add", f"p{i} x{i}", f"x{i + 1}"),
        ]
        weights |= {first: weight(HIDDEN, 96, seed=i), last: weight(96, HIDDEN, seed=4 + i) * (second if i else 1)}
    nodes.append(node("MatMul", "x2 head", "y"))
    ids = value("ids", ("batch", "tokens"), onnx.TensorProto.INT64)
    return build(nodes, weights, {"y": ("batch", "tokens", 20)}, [ids])


def test_sensitivities_are_shares_of_the_stream(tmp_path):
    model = ir.from_proto(stream(1.0))
    prepare(model)
    sites, _ = find_sites(model.graph)
    energies = {"a": 1.0, "b": 3.0, "c": 1.0, "d": 2.0, "head": 5.0}
    table = np.median(np.square(initializers(stream(1.0))["table"]).mean(axis=0)) * HIDDEN
    found = sensitivities(sites, {site: energies[site.name] for site in sites})
    first, second = 3 / (table + 3), 2 / (table + 5)
    shares = {"a": first, "b": first, "c": second, "d": second, "head": 1.0}
    left = {"a": 0.5, "c": 0.5}
    sizes = {site.name: site.c_in * site.c_out for site in sites}
    want = {name: left.get(name, 1.0) * (sizes[name] * share) ** 0.5 for name, share in shares.items()}
    assert {s.name: f for s, f in found.items()} == pytest.approx(want)


def test_weights_count_half_way_to_what_their_sizes_say():
    """Four times the factor, or the error, is twice the weight; of an error the share that is left counts."""
    options, alike = [Option(4, 0.8), Option(8, 0.2)], [Option(4, 0.2), Option(8, 0.05)]
    plain, louder, better = (
        [o.loss for o in _weighted(*args)] for args in ((options, 5.0, 20), (options, 20.0, 20), (alike, 5.0, 20))
    )
    assert plain == pytest.approx([20 * 0.2**0.5, 5 * 0.2**0.5])
    assert louder == pytest.approx([2 * x for x in plain])
    assert better == pytest.approx([x / 2 for x in plain])
    turned = [o.loss for o in _weighted(options[::-1], 5.0, 20)]
    assert turned[::-1] == plain  # whichever format was asked for
    assert [o.loss for o in _weighted([Option(4, 0.0), Option(8, 0.0)], 5.0, 20)] == [0, 0]


def test_without_a_stream_weights_count_by_their_size(tmp_path):
    model = ir.from_proto(models.swiglu())
    prepare(model)
    sites, _ = find_sites(model.graph)
    found = sensitivities(sites, dict.fromkeys(sites, 1.0))
    assert {s.name: f for s, f in found.items()} == pytest.approx({s.name: (s.c_in * s.c_out) ** 0.5 for s in sites})
