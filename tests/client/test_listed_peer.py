"""What the host writes into the registry is what renters read there."""

import msgspec
import pytest

from nodeapp.chain.listing import metadata_fields
from nodeapp.core.errors import InvalidRequest
from nodeapp.network.identity import identity_from_seed
from nodeapp.renter.sources import RegisteredMetadata
from nodeapp.service.settings import ChainSettings

PEER = identity_from_seed(b"l" * 32).peer_id
ADDRESSES = (f"/ip4/203.0.113.7/tcp/9000/p2p/{PEER}", f"/dns4/gpu.example/tcp/9000/p2p/{PEER}")


def test_a_listed_peer_comes_back_as_it_was_written():
    fields = metadata_fields(ChainSettings(listing_libp2p=ADDRESSES), "", b"\x02" * 33)
    read = msgspec.json.decode(msgspec.json.encode(fields), type=RegisteredMetadata)
    assert (read.libp2p.peer_id, read.libp2p.addresses) == (PEER, ADDRESSES)


def test_without_the_setting_nothing_is_said_of_libp2p():
    assert "libp2p" not in metadata_fields(ChainSettings(), "", b"\x02" * 33)


@pytest.mark.parametrize(
    "addresses",
    [
        ("/ip4/203.0.113.7/tcp/9000",),
        (*ADDRESSES, "/ip4/203.0.113.7/tcp/9000/p2p/12D3KooWOther"),
    ],
)
def test_an_address_without_its_peer_or_of_another_is_refused(addresses):
    with pytest.raises(InvalidRequest):
        metadata_fields(ChainSettings(listing_libp2p=addresses), "", b"\x02" * 33)
