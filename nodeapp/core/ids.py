"""Identifiers; every one is a string or int NewType, canonical form stated here."""

from __future__ import annotations

from typing import NewType

Address = NewType("Address", str)
"""EIP-55 checksummed 0x address of an account or contract."""
NATIVE = Address("0x" + "0" * 40)
"""The native coin where an asset's address is expected."""
JobId = NewType("JobId", int)
"""The marketplace's session number."""
ModelId = NewType("ModelId", str)
"""0x + 64 lower-case hex: keccak256(repo + "/" + fileName)."""
RequestId = NewType("RequestId", str)
"""One prompt inside a session; 32 lower-case hex, chosen by the renter."""
PeerId = NewType("PeerId", str)
"""libp2p peer id, base58btc."""
Cid = NewType("Cid", str)
"""S5 blob identifier, multibase base32 ("blob…")."""
TxHash = NewType("TxHash", str)
"""0x + 64 lower-case hex."""
