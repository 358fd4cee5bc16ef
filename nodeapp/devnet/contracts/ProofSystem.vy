# pragma version 0.4.3
"""
@title Replay guard for proof hashes
@notice Every proof hash is accepted once on the whole chain. What the proof says is checked off chain.
"""

event ProofVerified:
    proofHash: indexed(bytes32)
    prover: indexed(address)
    tokens: uint256

event CallerAuthorized:
    caller: indexed(address)
    authorized: bool

owner: public(address)
verifiedProofs: public(HashMap[bytes32, bool])
authorizedCallers: public(HashMap[address, bool])


@deploy
def __init__():
    self.owner = msg.sender


@external
def setAuthorizedCaller(caller: address, authorized: bool):
    assert msg.sender == self.owner, "Not owner"
    assert caller != empty(address), "Zero address"
    self.authorizedCallers[caller] = authorized
    log CallerAuthorized(caller=caller, authorized=authorized)


@external
def markProofUsed(
    proofHash: bytes32, prover: address, claimedTokens: uint256, modelId: bytes32
) -> bool:
    """
    @return False when the hash was seen before (or is zero); the caller reverts.
    """
    assert self.authorizedCallers[msg.sender], "Not authorized"
    if proofHash == empty(bytes32) or self.verifiedProofs[proofHash]:
        return False
    self.verifiedProofs[proofHash] = True
    log ProofVerified(proofHash=proofHash, prover=prover, tokens=claimedTokens)
    return True
