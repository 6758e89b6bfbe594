"""``jaxq cache``: what lies there, and how it is deleted."""

import json
from pathlib import Path

import pytest

from jaxq.errors import JaxqError
from jaxq.files.cache_use import cache_in_use
from jaxq.harness.cache_command import KINDS, clear_cache


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A cache with an entry of each kind, and one of somebody else."""
    cache = tmp_path / "own ü"
    for name in (
        "moments-2-a/x",
        "run-b/windows/y",
        "hf-c/model.onnx",
        ".hf-d/z",
        "drawn/t",
        "xla/f",
        "locks/run-b",
        "mine/notes",
    ):
        path = cache / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1000))
    (cache / "embedded-e.onnx").write_bytes(bytes(500))
    return cache


def kinds(jaxq, cache: Path) -> dict[str, tuple[int, int]]:
    listed = json.loads(jaxq("cache", "list", "--json", "--cache-dir", str(cache)).out)
    assert listed["nbytes"] == sum(kind["nbytes"] for kind in listed["kinds"])
    return {kind["kind"]: (kind["entries"], kind["nbytes"]) for kind in listed["kinds"]}


ALL = {
    "moments": (1, 1000),
    "runs": (1, 1000),
    "exports": (2, 2000),
    "drawn": (1, 1000),
    "compiled": (1, 1000),
    "embedded": (1, 500),
    "other": (1, 1000),
}


def test_the_cache_is_listed(jaxq, own):
    assert kinds(jaxq, own) == ALL
    out = jaxq("cache", "list", "--cache-dir", str(own)).out
    assert str(own) in out and "7.5 kB" in out
    assert all(f" {kind.purpose} " in out for kind in KINDS), "each on one line of 80 columns"
    (own / "drawn" / "second").touch()
    assert kinds(jaxq, own)["drawn"] == (2, 1000)


def test_an_empty_cache_is_listed_and_not_made(jaxq, tmp_path):
    done = jaxq("cache", "list", "--cache-dir", str(tmp_path / "none"))
    assert done.code == 0 and "0 bytes" in done.out
    assert "nothing to delete" in jaxq("cache", "clear", "--cache-dir", str(tmp_path / "none")).out
    assert not (tmp_path / "none").exists()


def test_one_kind_is_deleted_or_all(jaxq, own):
    done = jaxq("cache", "clear", "exports", "--yes", "--cache-dir", str(own))
    assert done.code == 0 and "exports" in done.out
    assert kinds(jaxq, own) == {name: usage for name, usage in ALL.items() if name != "exports"}
    assert jaxq("cache", "clear", "-y", "--cache-dir", str(own)).code == 0
    assert kinds(jaxq, own) == {"other": ALL["other"]}
    assert (own / "mine" / "notes").exists()


def test_links_are_deleted_and_not_what_they_name(own, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    (own / "moments-2-link").symlink_to(outside)
    clear_cache("moments", own, None)
    assert (outside / "kept").exists() and not (own / "moments-2-link").is_symlink()


@pytest.mark.parametrize("answer", [True, False])
def test_a_question_is_asked(own, monkeypatch, answer, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    questions = []
    clear_cache("runs", own, lambda question: questions.append(question) or answer)
    assert "runs" in questions[0] and "1.0 kB" in questions[0] and str(own) in questions[0]
    assert (own / "run-b").exists() != answer
    assert ("nothing was deleted" in capsys.readouterr().out) != answer


def test_without_a_terminal_nobody_is_asked(own, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(JaxqError, match="--yes"):
        clear_cache(None, own, lambda question: True)
    assert (own / "run-b").exists()


def test_nothing_is_deleted_while_a_run_uses_the_cache(jaxq, own):
    with cache_in_use(own):
        done = jaxq("cache", "clear", "--yes", "--cache-dir", str(own))
    assert done.code == 2 and "a run uses the cache" in done.err
    assert kinds(jaxq, own) == ALL


def test_a_run_marks_its_cache_as_used(jaxq, tmp_path, monkeypatch):
    from jaxq.harness import command

    opened, refused = command.open_task, []

    def open_task(*args):
        with pytest.raises(JaxqError, match="a run uses the cache"):
            clear_cache(None, tmp_path / "cache", None)
        refused.append(True)
        return opened(*args)

    monkeypatch.setattr(command, "open_task", open_task)
    (tmp_path / "cache" / "xla").mkdir(parents=True)
    (tmp_path / "cache" / "xla" / "f").touch()
    small = ("method=rtn_dq", "calib.samples=0", "eval.samples=0", f"cache_dir={tmp_path / 'cache'}")
    assert jaxq(*small).code == jaxq(*small, "dry_run=true").code == 0
    assert len(refused) == 2
    assert not list((tmp_path / "cache" / "locks").glob("use-*"))


def test_what_is_no_kind_or_no_folder_is_refused(jaxq, own):
    done = jaxq("cache", "clear", "everything", "--cache-dir", str(own))
    assert done.code == 2 and "moments, runs, exports" in done.err
    (own / "file").write_text("")
    done = jaxq("cache", "list", "--cache-dir", str(own / "file"))
    assert done.code == 2 and "is a file" in done.err
