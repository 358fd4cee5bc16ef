import stat

import pytest

from nodeapp.core.errors import Corrupt, Unavailable
from nodeapp.network.identity import IdentityLock, load_identity, load_or_create_identity


def test_an_identity_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = tmp_path / "deep" / "identity.key"
    first = load_or_create_identity(path)
    assert load_or_create_identity(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["identity.key"]


def test_the_peer_id_and_the_file_are_those_of_libp2p(tmp_path):
    from libp2p.crypto.ed25519 import Ed25519PrivateKey
    from libp2p.peer.id import ID

    path = tmp_path / "identity.key"
    identity = load_or_create_identity(path)
    key = Ed25519PrivateKey.new(identity.seed)
    assert str(ID.from_pubkey(key.get_public_key())) == identity.peer_id
    assert path.read_bytes()[:4] == bytes.fromhex("08011240")
    assert path.read_bytes()[36:] == key.get_public_key().to_bytes()


def test_a_key_file_others_can_read_is_refused(tmp_path):
    path = tmp_path / "identity.key"
    load_or_create_identity(path)
    path.chmod(0o644)
    with pytest.raises(Corrupt, match="chmod 600"):
        load_identity(path)


@pytest.mark.parametrize("damage", [b"", b"x" * 68, b"\x08\x01\x12\x40" + bytes(64)])
def test_a_damaged_key_file_is_refused_and_kept(tmp_path, damage):
    path = tmp_path / "identity.key"
    path.write_bytes(damage)
    path.chmod(0o600)
    with pytest.raises(Corrupt):
        load_or_create_identity(path)
    assert path.read_bytes() == damage


def test_an_identity_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="identity"):
        load_or_create_identity(tmp_path / "file" / "identity.key")


def test_the_lock_is_held_by_one_and_free_after_release(tmp_path):
    lock = IdentityLock(tmp_path / "identity.key")
    with pytest.raises(Unavailable, match="another process"):
        IdentityLock(tmp_path / "identity.key")
    lock.release()
    lock.release()
    IdentityLock(tmp_path / "identity.key").release()
    assert (tmp_path / "identity.key.lock").exists()
