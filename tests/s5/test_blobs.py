"""nodeapp/s5/blobs.py: whole or not there, inside limits."""

import asyncio

import pytest

from nodeapp.core.errors import NotFound, TooLarge, Unavailable
from nodeapp.s5.blobs import open_blob_store
from nodeapp.s5.cid import BlobId, blob_id_of


def store_in(path, max_blob_bytes=1000, quota_bytes=1500):
    return open_blob_store(path, max_blob_bytes=max_blob_bytes, quota_bytes=quota_bytes)


async def pieces(*parts):
    for part in parts:
        yield part


async def test_a_blob_is_found_by_its_hash_also_after_reopening(tmp_path):
    blob = await store_in(tmp_path).put(pieces(b"one ", b"two"))
    assert blob == blob_id_of(b"one two")
    again = store_in(tmp_path)
    found = await again.find(BlobId(blob.hash, 0))
    assert (found.id, found.path.read_bytes()) == (blob, b"one two")
    assert found.path.relative_to(tmp_path).parts == ("blobs", blob.hex[:2], blob.hex)
    assert again.used_bytes == 7


async def test_an_empty_blob_is_a_blob(tmp_path):
    store = store_in(tmp_path)
    blob = await store.put(pieces())
    assert (await store.find(blob)).path.read_bytes() == b""


async def test_a_blob_of_another_size_or_hash_is_not_there(tmp_path):
    store = store_in(tmp_path)
    blob = await store.put(pieces(b"data"))
    for other in (BlobId(blob.hash, 5), BlobId(bytes(32), 4)):
        with pytest.raises(NotFound):
            await store.find(other)


async def test_the_same_blob_is_kept_once_and_counted_once(tmp_path):
    store = store_in(tmp_path)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(store.put(pieces(b"x" * 100)))
    assert store.used_bytes == 100
    assert len(list((tmp_path / "blobs").glob("*/*"))) == 1
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_a_blob_over_the_limit_is_refused_and_leaves_nothing(tmp_path):
    store = store_in(tmp_path)
    with pytest.raises(TooLarge):
        await store.put(pieces(b"x" * 600, b"x" * 401))
    assert store.used_bytes == 0
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_the_quota_covers_all_blobs(tmp_path):
    store = store_in(tmp_path)
    await store.put(pieces(b"a" * 1000))
    with pytest.raises(Unavailable, match="full"):
        await store.put(pieces(b"b" * 501))
    await store.put(pieces(b"c" * 500))
    assert store.used_bytes == 1500


async def test_a_cut_off_upload_leaves_nothing(tmp_path):
    store = store_in(tmp_path)

    async def cut_off():
        yield b"half"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put(cut_off())
    assert store.used_bytes == 0
    assert list((tmp_path / "incoming").iterdir()) == []


async def test_what_a_crash_left_is_removed_at_the_next_start(tmp_path):
    store_in(tmp_path)
    (tmp_path / "incoming" / "half").write_bytes(b"x")
    store_in(tmp_path)
    assert list((tmp_path / "incoming").iterdir()) == []
