"""A run that was stopped resumes when it is started again, and ends with the same bytes."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import onnx
import pytest

from jaxq.files.model_file import load_model
from jaxq.formats.integers import IntegerFormat
from jaxq.forms.registry import find_form
from jaxq.graph.prepare import prepare
from jaxq.graph.sites import find_sites, sibling_groups
from jaxq.methods.registry import MethodSpec
from jaxq.pipeline.job import Job
from jaxq.pipeline.quantize import quantize_model
from jaxq.pipeline.resume import ResultStore, run_state
from jaxq.runtime.batches import Batch
from jaxq.search.group import quantize_group
from tests.support import models
from tests.support.decoder import decoder_batches
from tests.support.models import HIDDEN, build, node, tokens, value, weight
from tests.support.running import quantize, save


class Interrupted(Exception):
    pass


def stop_after(label: str, steps: int) -> Callable[[str, int], Callable[[], None]]:
    """A progress that raises after so many steps of a phase."""

    def begin(name: str, total: int, /) -> Callable[[], None]:
        del total
        left = [steps]

        def advance() -> None:
            left[0] -= 1
            if name == label and left[0] == 0:
                raise Interrupted

        return advance

    return begin


class Setup:
    """A run of the decoder that is interrupted, and taken up again."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.batches, self.window_bytes = decoder_batches(), 40_000
        self.notices: list[str] = []

    def job(self, name: str = "out") -> Job:
        spec = MethodSpec("awq_lite", IntegerFormat(block_size=32), alpha_step=0.5)
        target = self.folder / f"{name}.onnx"
        return Job(
            self.source,
            target,
            spec,
            find_form("dq"),
            ("*lm_head*",),
            self.folder / "cache",
            window_bytes=self.window_bytes,
        )

    def interrupt(self, label: str, steps: int) -> None:
        with pytest.raises(Interrupted):
            quantize_model(self.job(), self.batches, stop_after(label, steps))
        assert not self.job().target.exists()

    def go_on(self):
        outcome = quantize_model(self.job(), self.batches, notify=self.notices.append)
        assert outcome.notices == tuple(self.notices)
        return outcome

    def expected(self) -> bytes:
        cache = self.folder / "another cache"
        job = self.job("expected")
        quantize_model(Job(**{**vars(job), "cache": cache}), self.batches)
        return job.target.read_bytes()


@pytest.fixture
def setup(decoder, tmp_path) -> Setup:
    return Setup(decoder, tmp_path)


def test_finished_windows_do_not_run_again(setup):
    whole = quantize_model(setup.job("first"), setup.batches)
    setup.folder.joinpath("cache").rename(setup.folder / "old cache")
    count = len(whole.windows)
    assert count >= 6
    setup.interrupt("calibrate", 3 * len(setup.batches) + 1)  # in the fourth window
    outcome = setup.go_on()
    assert len(outcome.windows) == count - 3
    assert setup.notices == ["this command was stopped before: the run resumes its work"]
    assert setup.job().target.read_bytes() == setup.job("first").target.read_bytes()


def test_finished_weights_are_not_searched_again(setup, monkeypatch):
    setup.interrupt("search", 5)
    count = 0

    def counted(*args):
        nonlocal count
        count += 1
        return quantize_group(*args)

    monkeypatch.setattr("jaxq.pipeline.group_search.quantize_group", counted)
    outcome = setup.go_on()
    assert outcome.windows == ()
    assert 0 < count <= 12 - 4  # four groups a layer, three layers; another one may have been under way
    assert setup.job().target.read_bytes() == setup.expected()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 255
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "pattern",
    [
        "run-*/windows/captured/*.npy",
        "run-*/windows/captured/state.json",
        "run-*/weights/*.safetensors",
        "run-*/planned.json",
        "moments-*/*.safetensors",
    ],
)
@pytest.mark.parametrize("damage", [spoil, lambda path: path.write_bytes(path.read_bytes()[:-7])], ids=["bit", "cut"])
def test_damaged_work_is_done_again(pattern, damage, setup):
    label = "search" if "weights" in pattern else "calibrate"
    setup.interrupt(label, 4 if label == "search" else 4 * len(setup.batches) + 1)
    files = sorted((setup.folder / "cache").glob(pattern))
    assert files
    for path in files:
        damage(path)
    setup.go_on()
    assert setup.job().target.read_bytes() == setup.expected()


def other_data(setup: Setup) -> None:
    setup.batches = decoder_batches(fill=3)[:2]


def other_window(setup: Setup) -> None:
    setup.window_bytes = 200_000


@pytest.mark.parametrize(
    ("change", "what"), [(other_data, "calibration data"), (other_window, "window size")], ids=["data", "windows"]
)
def test_a_stale_state_is_told_and_done_anew(change, what, setup):
    setup.interrupt("search", 3)
    change(setup)
    setup.go_on()
    assert setup.notices == [f"this command was stopped before, but its work is of another {what}: the run begins anew"]
    assert setup.job().target.read_bytes() == setup.expected()


def test_a_model_that_changed_is_begun_anew(setup):
    proto = models.swiglu()
    x = [Batch({"x": tokens(4, 10, HIDDEN)})]
    setup.source, setup.batches = save(proto, setup.folder / "in"), x
    setup.interrupt("search", 1)
    setup.source.unlink()
    save(models.mlp(), setup.folder / "in")
    setup.go_on()
    assert setup.notices == ["this command was stopped before, but its work is of another model: the run begins anew"]
    assert setup.job().target.read_bytes() == setup.expected()


def test_another_command_does_not_see_it(setup):
    setup.interrupt("search", 3)
    quantize(setup.source, setup.folder / "rtn.onnx", "rtn_dq", cache=setup.folder / "cache", exclude=("*lm_head*",))
    assert len(list((setup.folder / "cache").glob("run-*"))) == 1
    setup.go_on()
    assert not list((setup.folder / "cache").glob("run-*"))


def test_a_state_that_no_program_wrote_is_told(setup):
    setup.interrupt("search", 3)
    (path,) = (setup.folder / "cache").glob("run-*/content.json")
    path.write_text("[")
    setup.go_on()
    assert setup.notices == ["this command was stopped before, but its work cannot be read: the run begins anew"]


def test_the_same_run_twice_at_a_time(tmp_path):
    notices: list[str] = []
    with run_state(tmp_path, "id", {"model": "m"}, notices.append) as first:
        with run_state(tmp_path, "id", {"model": "m"}, notices.append) as second:
            assert second.folder != first.folder
            assert not second.resumes
        assert first.folder.is_dir()
    assert not first.folder.exists()
    assert not second.folder.exists()
    assert notices == ["another process runs the same command: this run uses none of its work, and cannot be resumed"]


def test_a_state_is_guarded_while_it_is_removed(tmp_path, monkeypatch):
    """A run that begins when the same one ends shares nothing with what is being removed."""
    remove, notices = shutil.rmtree, list[str]()

    def remove_slowly(folder: Path, ignore_errors: bool = False) -> None:
        monkeypatch.setattr("jaxq.pipeline.resume.shutil.rmtree", remove)
        for path in folder.iterdir():  # files first, as it may happen
            if path.is_file():
                path.unlink()
        with run_state(tmp_path, "id", {"model": "m"}, notices.append) as second:
            assert second.folder != folder
            assert not second.resumes
            (second.folder / "weights").mkdir(exist_ok=True)
            (second.folder / "weights" / "one").touch()
            remove(folder, ignore_errors=ignore_errors)
            assert (second.folder / "weights" / "one").exists()

    with run_state(tmp_path, "id", {"model": "m"}, notices.append) as first:
        (first.folder / "weights").mkdir()
        monkeypatch.setattr("jaxq.pipeline.resume.shutil.rmtree", remove_slowly)
    with run_state(tmp_path, "id", {"model": "m"}, notices.append) as third:
        assert third.folder == first.folder
        assert not third.resumes


def images() -> onnx.ModelProto:
    """Three convolutions, the last one in two groups."""
    nodes = [node("Conv", "x first", "h"), node("Conv", "h second", "i"), node("Conv", "i third", "y", group=2)]
    weights = {"first": weight(16, 8, 3, 3), "second": weight(16, 16, 1, 1), "third": weight(12, 8, 3, 3)}
    return build(nodes, weights, {"y": ("n", 12, "h", "w")}, [value("x", ("n", 8, "h", "w"))])


MOE = [Batch({"x": tokens(3, 20, HIDDEN, seed=seed)}) for seed in range(3)]
IMAGES = [Batch({"x": tokens(2, 8, 6, 6, seed=seed)}) for seed in range(2)]


@pytest.mark.parametrize("label", ["calibrate", "search"])
@pytest.mark.parametrize(
    ("make", "batches"),
    [(models.masked_moe, MOE), (models.broadcast_moe, MOE), (images, IMAGES)],
    ids=["experts", "experts of the same tokens", "convolution"],
)
def test_stacks_and_kernels_go_on_as_matrices_do(make, batches, label, tmp_path):
    """Moments of each matrix are found again, and scales of each come back from disk."""
    source = save(make(), tmp_path)

    def job(name: str, cache: str) -> Job:
        spec = MethodSpec("awq_full", IntegerFormat(block_size=32, num_bits=3), alpha_step=0.5, clip_step=0.25)
        return Job(source, tmp_path / f"{name}.onnx", spec, find_form("dq"), (), tmp_path / cache, window_bytes=1000)

    whole = quantize_model(job("whole", "another"), batches)
    steps = 1 if label == "search" else len(batches) * len(whole.windows)
    with pytest.raises(Interrupted):
        quantize_model(job("out", "cache"), batches, stop_after(label, steps))
    outcome = quantize_model(job("out", "cache"), batches)
    assert outcome.notices == ("this command was stopped before: the run resumes its work",)
    assert len(outcome.windows) < len(whole.windows)
    assert (outcome.layers, outcome.tokens) == (whole.layers, whole.tokens)
    assert job("out", "cache").target.read_bytes() == job("whole", "another").target.read_bytes()


def test_work_of_another_command_is_not_used(setup):
    """Not even where somebody copies it in place."""
    setup.interrupt("search", 5)
    (own,) = (setup.folder / "cache").glob("run-*")
    files = {path.name: path.read_bytes() for path in (own / "weights").iterdir()}
    setup.go_on()
    setup.job().target.unlink()
    setup.notices.clear()
    setup.window_bytes = 200_000  # another content of the same command
    setup.interrupt("search", 1)
    for name, content in files.items():
        (own / "weights" / name).write_bytes(content)
    store = ResultStore(own / "weights", "another key")
    model = load_model(setup.source)
    prepare(model)
    for group in sibling_groups(find_sites(model.graph, ("*lm_head*",))[0]):
        assert store.get(group, [IntegerFormat(block_size=32)] * len(group.sites)) is None
    setup.go_on()
    assert setup.job().target.read_bytes() == setup.expected()


def test_the_moments_of_another_activation_are_not_taken(setup):
    setup.interrupt("search", 1)
    paths = sorted((setup.folder / "cache").glob("moments-*/*.safetensors"))
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)
    assert setup.go_on().moments_from_cache == 0
    assert setup.job().target.read_bytes() == setup.expected()


def test_work_is_kept_as_long_as_the_caller_has_more_to_do(setup):
    def stopped_later() -> None:
        with ExitStack() as until:
            quantize_model(setup.job(), setup.batches, keep_state_until=until)
            raise Interrupted

    with pytest.raises(Interrupted):
        stopped_later()
    assert list((setup.folder / "cache").glob("run-*"))
    with ExitStack() as until:
        outcome = quantize_model(setup.job(), setup.batches, notify=setup.notices.append, keep_state_until=until)
        assert list((setup.folder / "cache").glob("run-*"))
    assert not list((setup.folder / "cache").glob("run-*"))
    assert outcome.notices == ("this command was stopped before: the run resumes its work",)
