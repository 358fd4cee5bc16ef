"""What a process gave up it cannot do, each tried for real in a child."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from nodeapp.security.sandbox import landlock_version

needs_landlock = pytest.mark.skipif(landlock_version() < 4, reason="kernel without Landlock")


def run(code, *arguments):
    program = "import sys\nfrom pathlib import Path\nfrom nodeapp.security import sandbox\n"
    program += textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


ATTEMPT = """
def attempt(do):
    try:
        do()
    except OSError as error:
        print(type(error).__name__)
    else:
        print("done")
"""


@needs_landlock
def test_only_the_named_file_is_readable_and_nothing_is_writable(tmp_path):
    (tmp_path / "model.gguf").write_text("m")
    (tmp_path / "key").write_text("secret")
    said = run(
        ATTEMPT
        + """
model, key = Path(sys.argv[1]), Path(sys.argv[2])
assert sandbox.confine_files(readable=[model], writable=[])
attempt(model.read_bytes)
attempt(key.read_bytes)
attempt(lambda: model.write_text("x"))
attempt(lambda: (model.parent / "new").write_text("x"))
attempt(lambda: list(model.parent.iterdir()))
attempt(key.unlink)
""",
        tmp_path / "model.gguf",
        tmp_path / "key",
    )
    assert said == ["done"] + ["PermissionError"] * 5
    assert (tmp_path / "key").read_text() == "secret"


@needs_landlock
def test_confined_writing_leaves_reading_and_the_named_directory(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").write_text("o")
    said = run(
        ATTEMPT
        + """
import socket
inside, outside = Path(sys.argv[1]), Path(sys.argv[2])
assert sandbox.confine_files(readable=None, writable=[inside, Path("/nowhere")])
attempt(outside.read_bytes)
attempt(lambda: outside.write_text("x"))
attempt(lambda: (inside / "a").write_text("x"))
attempt(lambda: (inside / "a").replace(inside / "b"))
attempt(lambda: socket.socket(socket.AF_UNIX).bind(str(inside / "s")))
attempt(lambda: socket.create_connection(("127.0.0.1", 9), timeout=1))
""",
        tmp_path / "in",
        tmp_path / "out",
    )
    assert said == ["done", "PermissionError", "done", "done", "done", "PermissionError"]


def test_no_sockets_programs_or_processes_but_threads():
    said = run(
        ATTEMPT
        + """
import os, socket, subprocess, threading
sandbox.refuse_network_and_programs()
attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt(lambda: socket.socket(socket.AF_UNIX))
attempt(lambda: subprocess.run(["/bin/true"]))
attempt(os.fork)
attempt(lambda: os.execv("/bin/true", ["true"]))
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
"""
    )
    assert said == ["PermissionError"] * 5 + ["thread"]


def test_limits_hold_and_core_files_are_off():
    said = run(
        """
import resource
sandbox.limit_resources(sandbox.ResourceLimits(address_space_bytes=1 << 30, open_files=64))
print(resource.getrlimit(resource.RLIMIT_CORE)[1], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
try:
    bytearray(2 << 30)
except MemoryError:
    print("refused")
"""
    )
    assert said == ["0", "64", "refused"]
