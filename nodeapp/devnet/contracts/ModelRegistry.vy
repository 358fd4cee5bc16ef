# pragma version 0.4.3
"""
@title Models that may be sold
@notice A model id is keccak256(repo + "/" + fileName). The registry holds the sha256 of the
        GGUF file and the most tokens per second that a host may claim for it.
"""

struct Model:
    huggingfaceRepo: String[128]
    fileName: String[128]
    sha256Hash: bytes32
    approvalTier: uint256
    active: bool
    timestamp: uint256

event ModelAdded:
    modelId: indexed(bytes32)
    huggingfaceRepo: String[128]
    fileName: String[128]
    tier: uint256

event ModelDeactivated:
    modelId: indexed(bytes32)

event ModelReactivated:
    modelId: indexed(bytes32)

event ModelRateLimitUpdated:
    modelId: indexed(bytes32)
    tokensPerSecond: uint256

TIER_TRUSTED: constant(uint256) = 1
DEFAULT_RATE_LIMIT: constant(uint256) = 2000
APPROVAL_THRESHOLD: public(constant(uint256)) = 100_000 * 10**18

owner: public(address)
_models: HashMap[bytes32, Model]
_ids: DynArray[bytes32, 1024]
_rateLimits: HashMap[bytes32, uint256]


@deploy
def __init__():
    self.owner = msg.sender


@internal
@pure
def _id(repo: String[128], fileName: String[128]) -> bytes32:
    return keccak256(concat(repo, "/", fileName))


@external
@pure
def getModelId(repo: String[128], fileName: String[128]) -> bytes32:
    return self._id(repo, fileName)


@external
def addTrustedModel(repo: String[128], fileName: String[128], sha256Hash: bytes32):
    assert msg.sender == self.owner, "Not owner"
    assert len(repo) > 0 and len(fileName) > 0, "Empty name"
    assert sha256Hash != empty(bytes32), "Empty hash"
    modelId: bytes32 = self._id(repo, fileName)
    assert self._models[modelId].timestamp == 0, "Model exists"
    self._models[modelId] = Model(
        huggingfaceRepo=repo,
        fileName=fileName,
        sha256Hash=sha256Hash,
        approvalTier=TIER_TRUSTED,
        active=True,
        timestamp=block.timestamp,
    )
    self._ids.append(modelId)
    log ModelAdded(modelId=modelId, huggingfaceRepo=repo, fileName=fileName, tier=TIER_TRUSTED)


@external
def deactivateModel(modelId: bytes32):
    assert msg.sender == self.owner, "Not owner"
    assert self._models[modelId].active, "Not active"
    self._models[modelId].active = False
    log ModelDeactivated(modelId=modelId)


@external
def reactivateModel(modelId: bytes32):
    assert msg.sender == self.owner, "Not owner"
    assert self._models[modelId].timestamp != 0, "No model"
    assert not self._models[modelId].active, "Already active"
    self._models[modelId].active = True
    log ModelReactivated(modelId=modelId)


@external
def setModelRateLimit(modelId: bytes32, tokensPerSecond: uint256):
    assert msg.sender == self.owner, "Not owner"
    assert self._models[modelId].timestamp != 0, "No model"
    self._rateLimits[modelId] = tokensPerSecond
    log ModelRateLimitUpdated(modelId=modelId, tokensPerSecond=tokensPerSecond)


@external
@view
def getModelRateLimit(modelId: bytes32) -> uint256:
    limit: uint256 = self._rateLimits[modelId]
    return limit if limit != 0 else DEFAULT_RATE_LIMIT


@external
@view
def isModelApproved(modelId: bytes32) -> bool:
    return self._models[modelId].active


@external
@view
def getModelHash(modelId: bytes32) -> bytes32:
    return self._models[modelId].sha256Hash


@external
@view
def getModel(modelId: bytes32) -> Model:
    return self._models[modelId]


# A public HashMap of structs would return one tuple; the marketplace's clients expect flat values.
@external
@view
def models(modelId: bytes32) -> (String[128], String[128], bytes32, uint256, bool, uint256):
    m: Model = self._models[modelId]
    return m.huggingfaceRepo, m.fileName, m.sha256Hash, m.approvalTier, m.active, m.timestamp


@external
@view
def getAllModels() -> DynArray[bytes32, 1024]:
    return self._ids
