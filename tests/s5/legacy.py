"""The older form of a CID, which portals read and nobody of ours writes."""

from nodeapp.core.ids import Cid
from nodeapp.s5.cid import BlobId, encode_multibase


def legacy_cid_of(blob: BlobId) -> Cid:
    """Raw hash and size in base58."""
    size = blob.size.to_bytes(8, "little").rstrip(b"\x00") or b"\x00"
    return Cid(encode_multibase("z", b"\x26\x1f" + blob.hash + size))
