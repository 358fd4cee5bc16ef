import hashlib

from nodeapp.core.ids import ModelId
from nodeapp.wire.provider_key import any_host_key, provider_key

MODEL = ModelId("0x" + "ab" * 32)


def test_a_provider_key_is_a_cid_of_the_model_on_its_chain():
    from libp2p.bitswap.cid import parse_cid

    cid = parse_cid(provider_key(MODEL, 8453))
    digest = hashlib.sha256(f"fabstir/model/1/8453/{MODEL}".encode()).digest()
    assert cid.multihash == bytes((0x12, 32)) + digest
    assert (cid.version, str(cid.codec)) == (1, "raw")


def test_keys_of_other_models_chains_and_purposes_differ():
    other = ModelId("0x" + "cd" * 32)
    keys = {
        provider_key(MODEL, 1),
        provider_key(MODEL, 2),
        provider_key(other, 1),
        any_host_key(1),
        any_host_key(2),
    }
    assert len(keys) == 5
