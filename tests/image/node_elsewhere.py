"""The node of a development chain, run where its files have other places: a container or a booted Debian."""

from __future__ import annotations

import shutil
from pathlib import Path

from nodeapp.renter.events import AnswerEnded
from tests.world import World, as_toml

_FILES = (
    ("chain", "deployment_file"),
    ("chain", "keystore_file"),
    ("chain", "password_file"),
    ("inference", "model_path"),
    ("prover", "profile_dir"),
)
COUNTING = "Write the numbers from 1 to 100, separated by commas."
TOKENS = 120


def write_settings(world: World, directory: Path, inside: str) -> None:
    """Everything the node's settings name, into `directory`, which is `inside` where the node runs."""
    values = world.node_values
    for section, key in _FILES:
        table = values[section]
        assert isinstance(table, dict)
        source = Path(str(table[key]))
        target = directory / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        table[key] = f"{inside}/{source.name}"
    node = values["node"]
    assert isinstance(node, dict)
    # The unit, or the image, says where the node's own files are.
    for key in ("state_dir", "run_dir", "cache_dir"):
        del node[key]
    (directory / "node.toml").write_text(as_toml(values))


def give(directory: Path, user: int, group: int) -> None:
    """Readable for the node alone, as it demands of keys."""
    import os

    for path in (directory, *directory.rglob("*")):
        os.chown(path, user, group)
        path.chmod(0o500 if path.is_dir() else 0o400)


def pay_for_an_answer(world: World, name: str, **settings: object) -> None:
    """A renter outside, with settings of its own, finds the node, pays, is answered, settles and verifies."""
    renter = world.renter(name, **settings)
    chat = renter.chat(COUNTING, "--max-tokens", TOKENS)
    assert chat.finish(150) == 0, chat.err
    ended = chat.one(AnswerEnded)
    assert ended.answer.startswith("1, 2, 3, 4"), ended.answer
    job = world.until_settled(ended.job_id, 120)
    assert job.tokens_used == TOKENS
    assert job.host_share + job.treasury_share + job.refund == job.deposit
    verify = renter.command("verify", "--job", ended.job_id)
    assert verify.finish() == 0, verify.out + verify.err
