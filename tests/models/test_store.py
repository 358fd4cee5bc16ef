"""The model store: what may be removed and what not, names and digests that are paths."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from nodeapp.core.errors import Corrupt, InvalidRequest, NotFound, Rejected, TooLarge
from nodeapp.inference.catalogue import CatalogueEntry, name_of_file
from nodeapp.inference.model_store import ModelStore


def entry(name, data, *, added_at=1, **more):
    return CatalogueEntry(
        name=name,
        source="test",
        repo="r",
        file_name=f"{name}.gguf",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        architecture="llama",
        quantisation="Q4_1",
        context_length=512,
        licence="",
        added_at=added_at,
        **more,
    )


def take_in(store, name, data, **more):
    made = entry(name, data, **more)
    store.check_room(len(data))
    part = store.parts / "p"
    part.write_bytes(data)
    return made, store.take_in(part, made)


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "models")


def names(store):
    return [item.name for item in store.entries()]


def test_a_model_is_kept_under_its_hash_read_only(store):
    made, removed = take_in(store, "a", b"weights")
    path = store.blob(made.sha256)
    assert (path.read_bytes(), path.stat().st_mode & 0o777, removed) == (b"weights", 0o444, ())
    assert path.name == f"sha256-{made.sha256}"
    assert store.find("a") == made
    assert list(store.parts.iterdir()) == []


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "../" * 20 + "etc/passwd",
        "a" * 63,
        "g" * 64,
        "a" * 64 + "\n",
        "a" * 60 + "/../",
        "٣" * 64,
    ],
)
def test_a_digest_that_is_none_never_becomes_a_path(store, digest):
    with pytest.raises(InvalidRequest, match="not 64 hex digits"):
        store.blob(digest)


def test_an_upper_case_digest_is_the_same_blob(store):
    assert store.blob("AB" * 32) == store.blob("ab" * 32)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "a" * 65, "-a", "a\n", "a b"])
def test_a_name_that_is_none_is_refused(store, name):
    store.check_room(1)
    with pytest.raises(InvalidRequest, match="model name"):
        store.take_in(store.parts / "p", entry(name, b"x"))


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("SmolLM2-135M.Q4_1.gguf", "smollm2-135m.q4_1"),
        ("../../etc/passwd", "passwd"),
        ("a b/ü ü.gguf", "model"),
        ("...", "model"),
    ],
)
def test_every_file_name_gives_a_name(store, file_name, name):
    assert name_of_file(file_name) == name


def test_another_file_under_a_taken_name_is_refused(store):
    take_in(store, "a", b"one")
    with pytest.raises(Rejected, match="remove it first or give another --name"):
        take_in(store, "a", b"two")
    take_in(store, "a", b"one")
    assert names(store) == ["a"]


def test_removing_takes_the_file_away_unless_another_name_has_it(store):
    made, _ = take_in(store, "a", b"same")
    take_in(store, "b", b"same")
    store.remove("a")
    assert store.blob(made.sha256).exists()
    store.remove("b")
    assert not store.blob(made.sha256).exists()
    with pytest.raises(NotFound, match=r"there: none"):
        store.remove("b")


def test_a_model_in_use_is_not_removed_not_even_by_another_process(store):
    made, _ = take_in(store, "a", b"weights")
    assert not store.is_in_use(made.sha256)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from nodeapp.inference.model_store import ModelStore\n"
        "hold = ModelStore(Path(sys.argv[1])).hold(sys.argv[2])\nprint('held', flush=True)\n"
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), made.sha256],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        assert store.is_in_use(made.sha256)
        with pytest.raises(Rejected, match="in use"):
            store.remove("a")
        holder.kill()
        holder.wait(10)
        assert not store.is_in_use(made.sha256)
        store.remove("a")
    finally:
        holder.kill()
        holder.stdout.close()
        holder.stdin.close()
        holder.wait(10)
    assert names(store) == []


def test_a_hold_on_what_is_gone_says_so(store):
    made, _ = take_in(store, "a", b"weights")
    store.blob(made.sha256).unlink()
    with pytest.raises(NotFound, match="add the model again"):
        store.hold(made.sha256)


def test_the_one_used_longest_ago_makes_room(tmp_path):
    store = ModelStore(tmp_path, budget_bytes=300)
    for number, name in enumerate("abc"):
        take_in(store, name, name.encode() * 100, added_at=number + 1)
    store.change("a", used_at=50)
    _, removed = take_in(store, "d", b"d" * 150, added_at=60)
    assert removed == ("b", "c")
    assert names(store) == ["a", "d"]
    assert store.used_bytes() == 250


def test_pinned_and_used_models_never_make_room(tmp_path):
    store = ModelStore(tmp_path, budget_bytes=200)
    first, _ = take_in(store, "a", b"a" * 100)
    take_in(store, "b", b"b" * 100)
    store.change("b", pinned=True)
    hold = store.hold(first.sha256)
    with pytest.raises(TooLarge, match="in use or pinned"):
        take_in(store, "c", b"c" * 100)
    with pytest.raises(Rejected, match="unpin b"):
        store.remove("b")
    assert names(store) == ["a", "b"]
    hold.close()
    assert take_in(store, "c", b"c" * 100)[1] == ("a",)


def test_room_is_checked_before_anything_is_written(tmp_path):
    with pytest.raises(TooLarge, match=r"inference\.store_bytes is 10"):
        ModelStore(tmp_path / "m", budget_bytes=10).check_room(11)
    with pytest.raises(TooLarge, match=r"remove a model or set inference\.store_dir"):
        ModelStore(tmp_path / "m").check_room(1 << 60)


def test_a_damaged_catalogue_is_not_taken_for_an_empty_one(store):
    take_in(store, "a", b"x")
    (store.root / "catalogue.json").write_text('{"models": [{"name": "../../x"}]}')
    with pytest.raises(Corrupt, match="add the models again"):
        store.entries()


def test_writers_of_several_processes_lose_nothing(store):
    for number in range(4):
        take_in(store, f"m{number}", bytes([number]))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from nodeapp.inference.model_store import ModelStore\n"
        "store = ModelStore(Path(sys.argv[1]))\n"
        "for turn in range(20): store.change(sys.argv[2], used_at=turn + 1)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(store.root), f"m{number}"])
        for number in range(4)
    ]
    assert [child.wait(30) for child in running] == [0] * 4
    assert [item.last_used for item in store.entries()] == [20] * 4


def test_a_store_that_cannot_be_made_says_which_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidRequest, match=r"inference\.store_dir"):
        ModelStore(Path(tmp_path / "file" / "models")).check_room(1)
