"""A limited child's start has a time of its own, whatever its question may take."""

import sys

import msgspec
import pytest

from nodeapp.core.errors import Unavailable
from nodeapp.inference import child
from nodeapp.inference.child import LimitedChild

QUESTION = msgspec.json.encode(
    {"template": "{{ word }}", "values": {"word": "here"}, "max_characters": 100}
)


@pytest.fixture
def slow_interpreter(tmp_path, monkeypatch):
    """A machine where Python needs two seconds to start."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nsleep 2\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(program))


async def test_a_slow_start_does_not_eat_the_questions_time(slow_interpreter):
    one = LimitedChild("words", module="jinja2.sandbox", max_answer_bytes=1000)
    try:
        assert (await one.ask(QUESTION, deadline_seconds=1.9)).text == "here"
    finally:
        await one.close()


async def test_a_start_that_does_not_come_is_ours_to_answer_for(slow_interpreter, monkeypatch):
    monkeypatch.setattr(child, "START_SECONDS", 0.1)
    one = LimitedChild("words", module="jinja2.sandbox", max_answer_bytes=1000)
    with pytest.raises(Unavailable, match="words process did not start"):
        await one.ask(QUESTION, deadline_seconds=5)
    assert one._child is None, "it was ended"
