"""Two runs in one folder: the second is refused, and a dead one is in nobody's way."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest

from afterfit.problem.folder import alone_in, alone_in_folder

HOLD = """
import sys, time
from afterfit.problem.folder import alone_in
with alone_in(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@alone_in_folder
def run(first: int, folder: Path | None = None) -> int:
    return first


def test_a_folder_in_use_is_refused_and_taken_over_when_its_process_was_killed(tmp_path: Path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match=r"another run.*wait"):
            run(1, tmp_path)
        os.kill(other.pid, signal.SIGKILL)
    assert run(1, folder=tmp_path) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_within_a_run_is_the_same_run_and_another_thread_is_not(tmp_path: Path):
    errors: list[str] = []

    def other() -> None:
        try:
            run(1, tmp_path)
        except RuntimeError as error:
            errors.append(str(error))

    with alone_in(tmp_path):
        assert run(2, tmp_path) == 2
        thread = Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert run(3) == 3
    other()
    assert len(errors) == 1
