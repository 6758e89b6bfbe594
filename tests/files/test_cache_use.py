"""A cache is used by many, and by none while something in it is deleted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from jaxq.errors import JaxqError
from jaxq.files.cache_use import cache_in_use, cache_to_itself


def marks(cache: Path) -> list[Path]:
    return list((cache / "locks").glob("use-*"))


def test_many_use_a_cache_and_none_has_it_to_itself(tmp_path):
    with cache_in_use(tmp_path), cache_in_use(tmp_path):
        assert len(marks(tmp_path)) == 2
        with pytest.raises(JaxqError, match="a run uses the cache"), cache_to_itself(tmp_path):
            pass
    assert not marks(tmp_path)
    with cache_to_itself(tmp_path):
        pass


def test_the_lock_of_a_run_counts(tmp_path):
    (tmp_path / "locks").mkdir()
    lock, refused = FileLock(tmp_path / "locks" / "run-abc"), pytest.raises(JaxqError, match="a run uses")
    with lock, refused, cache_to_itself(tmp_path):
        pass
    with cache_to_itself(tmp_path):
        pass
    assert (tmp_path / "locks" / "run-abc").exists()


def test_two_do_not_delete_at_a_time(tmp_path):
    with cache_to_itself(tmp_path), pytest.raises(JaxqError, match="another command"), cache_to_itself(tmp_path):
        pass


def test_the_mark_of_a_killed_process_does_not_count(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from jaxq.files.cache_use import cache_in_use\n"
        "with cache_in_use(Path(sys.argv[1])): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert marks(tmp_path)
    with cache_to_itself(tmp_path):
        assert not marks(tmp_path)


def test_a_run_that_begins_meanwhile_waits(tmp_path):
    code = (
        "import sys; from pathlib import Path; from jaxq.files.cache_use import cache_in_use\n"
        "print('begins', flush=True)\n"
        "with cache_in_use(Path(sys.argv[1])): print('uses', flush=True)"
    )
    with cache_to_itself(tmp_path):
        run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None and run.stdout.readline() == "begins\n"
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(0.3)
    assert run.communicate(timeout=20)[0] == "uses\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_used_without_a_mark(tmp_path):
    tmp_path.chmod(0o500)
    with cache_in_use(tmp_path):
        pass
