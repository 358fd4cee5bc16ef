# pragma version 0.4.3
"""
@title Hosts: stake, address, models and prices
@notice Prices are base units per token times 1000. Only the price set per model and asset counts
        for a session; the two minimum prices of `registerNode` are range-checked and shown.
"""

interface Asset:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(sender: address, to: address, amount: uint256) -> bool: nonpayable

interface Models:
    def isModelApproved(modelId: bytes32) -> bool: view

struct Node:
    operator: address
    stakedAmount: uint256
    active: bool
    metadata: String[4096]
    apiUrl: String[256]
    minPricePerTokenNative: uint256
    minPricePerTokenStable: uint256

event NodeRegistered:
    operator: indexed(address)
    stakedAmount: uint256
    metadata: String[4096]
    modelIds: DynArray[bytes32, MAX_MODELS]

event NodeUnregistered:
    operator: indexed(address)
    returnedAmount: uint256

event StakeAdded:
    operator: indexed(address)
    amount: uint256

event ApiUrlUpdated:
    operator: indexed(address)
    newApiUrl: String[256]

event MetadataUpdated:
    operator: indexed(address)
    newMetadata: String[4096]

event ModelsUpdated:
    operator: indexed(address)
    newModels: DynArray[bytes32, MAX_MODELS]

event ModelTokenPricingUpdated:
    operator: indexed(address)
    modelId: indexed(bytes32)
    token: indexed(address)
    price: uint256

event SlashExecuted:
    host: indexed(address)
    amount: uint256
    remainingStake: uint256
    evidenceCID: String[256]
    reason: String[256]
    executor: indexed(address)
    timestamp: uint256

event HostAutoUnregistered:
    host: indexed(address)
    slashedAmount: uint256
    returnedAmount: uint256
    reason: String[256]

event SlashingAuthorityUpdated:
    previousAuthority: indexed(address)
    newAuthority: indexed(address)

MAX_MODELS: constant(uint256) = 64
MAX_NODES: constant(uint256) = 1024
MIN_STAKE: public(constant(uint256)) = 1000 * 10**18
MAX_SLASH_PERCENTAGE: public(constant(uint256)) = 50
MIN_STAKE_AFTER_SLASH: public(constant(uint256)) = 100 * 10**18
SLASH_COOLDOWN: public(constant(uint256)) = 86_400
PRICE_PRECISION: public(constant(uint256)) = 1000
MIN_PRICE_PER_TOKEN_NATIVE: public(constant(uint256)) = 227_273
MAX_PRICE_PER_TOKEN_NATIVE: public(constant(uint256)) = 22_727_272_727_273_000
MIN_PRICE_PER_TOKEN_STABLE: public(constant(uint256)) = 1
MAX_PRICE_PER_TOKEN_STABLE: public(constant(uint256)) = 100_000_000

fabToken: public(immutable(address))
modelRegistry: public(immutable(address))
treasury: public(immutable(address))
owner: public(address)
slashingAuthority: public(address)
lastSlashTime: public(HashMap[address, uint256])
modelTokenPricing: public(HashMap[address, HashMap[bytes32, HashMap[address, uint256]]])

_nodes: HashMap[address, Node]
_models: HashMap[address, DynArray[bytes32, MAX_MODELS]]
_supports: HashMap[address, HashMap[bytes32, bool]]
_activeNodes: DynArray[address, MAX_NODES]
_activeIndex: HashMap[address, uint256]


@deploy
def __init__(fabToken_: address, modelRegistry_: address, treasury_: address):
    """
    @param treasury_ who receives what is slashed; the deployer may slash until it names another
    """
    fabToken = fabToken_
    modelRegistry = modelRegistry_
    treasury = treasury_
    self.owner = msg.sender
    self.slashingAuthority = msg.sender


@internal
@pure
def _checkPrice(price: uint256, native: bool):
    if native:
        assert price >= MIN_PRICE_PER_TOKEN_NATIVE, "Native price too low"
        assert price <= MAX_PRICE_PER_TOKEN_NATIVE, "Native price too high"
    else:
        assert price >= MIN_PRICE_PER_TOKEN_STABLE, "Stable price too low"
        assert price <= MAX_PRICE_PER_TOKEN_STABLE, "Stable price too high"


@internal
def _setModels(operator: address, modelIds: DynArray[bytes32, MAX_MODELS]):
    assert len(modelIds) > 0, "No models"
    for old: bytes32 in self._models[operator]:
        self._supports[operator][old] = False
    for modelId: bytes32 in modelIds:
        assert staticcall Models(modelRegistry).isModelApproved(modelId), "Model not approved"
        assert not self._supports[operator][modelId], "Duplicate model"
        self._supports[operator][modelId] = True
    self._models[operator] = modelIds


@internal
@view
def _requireRegistered(operator: address):
    assert self._nodes[operator].active, "Not registered"


@external
@nonreentrant
def registerNode(
    metadata: String[4096],
    apiUrl: String[256],
    modelIds: DynArray[bytes32, MAX_MODELS],
    minPricePerTokenNative: uint256,
    minPricePerTokenStable: uint256,
):
    assert not self._nodes[msg.sender].active, "Already registered"
    assert len(metadata) > 0, "Empty metadata"
    assert len(apiUrl) > 0, "Empty API URL"
    self._checkPrice(minPricePerTokenNative, True)
    self._checkPrice(minPricePerTokenStable, False)
    self._setModels(msg.sender, modelIds)
    self._nodes[msg.sender] = Node(
        operator=msg.sender,
        stakedAmount=MIN_STAKE,
        active=True,
        metadata=metadata,
        apiUrl=apiUrl,
        minPricePerTokenNative=minPricePerTokenNative,
        minPricePerTokenStable=minPricePerTokenStable,
    )
    self._activeIndex[msg.sender] = len(self._activeNodes)
    self._activeNodes.append(msg.sender)
    assert extcall Asset(fabToken).transferFrom(
        msg.sender, self, MIN_STAKE, default_return_value=True
    ), "Stake failed"
    log NodeRegistered(
        operator=msg.sender, stakedAmount=MIN_STAKE, metadata=metadata, modelIds=modelIds
    )


@internal
def _remove(operator: address) -> uint256:
    """
    @return the stake to give back
    """
    returned: uint256 = self._nodes[operator].stakedAmount
    # The last active node takes the freed place, so that the list has no holes.
    last: address = self._activeNodes.pop()
    if last != operator:
        place: uint256 = self._activeIndex[operator]
        self._activeNodes[place] = last
        self._activeIndex[last] = place
    for modelId: bytes32 in self._models[operator]:
        self._supports[operator][modelId] = False
    self._models[operator] = []
    self._nodes[operator] = empty(Node)
    return returned


@internal
def _payStake(to: address, amount: uint256):
    assert extcall Asset(fabToken).transfer(to, amount, default_return_value=True), "Return failed"


@external
@nonreentrant
def unregisterNode():
    self._requireRegistered(msg.sender)
    returned: uint256 = self._remove(msg.sender)
    self._payStake(msg.sender, returned)
    log NodeUnregistered(operator=msg.sender, returnedAmount=returned)


@external
@nonreentrant
def slashStake(host: address, amount: uint256, evidenceCID: String[256], reason: String[256]):
    """
    @notice Take up to half of a host's stake, at most once a day; who keeps less than 100 FAB
            is unregistered and gets the rest back.
    """
    assert msg.sender == self.slashingAuthority, "Not slashing authority"
    assert self._nodes[host].active, "Host not active"
    assert len(evidenceCID) > 0, "Evidence CID required"
    assert len(reason) > 0, "Reason required"
    staked: uint256 = self._nodes[host].stakedAmount
    assert amount > 0, "Zero amount"
    assert amount <= staked * MAX_SLASH_PERCENTAGE // 100, "Amount exceeds maximum"
    last: uint256 = self.lastSlashTime[host]
    assert last == 0 or block.timestamp >= last + SLASH_COOLDOWN, "Slash cooldown active"
    self.lastSlashTime[host] = block.timestamp
    self._nodes[host].stakedAmount = staked - amount
    self._payStake(treasury, amount)
    log SlashExecuted(
        host=host,
        amount=amount,
        remainingStake=staked - amount,
        evidenceCID=evidenceCID,
        reason=reason,
        executor=msg.sender,
        timestamp=block.timestamp,
    )
    if staked - amount < MIN_STAKE_AFTER_SLASH:
        returned: uint256 = self._remove(host)
        self._payStake(host, returned)
        log HostAutoUnregistered(
            host=host, slashedAmount=amount, returnedAmount=returned, reason=reason
        )


@external
def setSlashingAuthority(newAuthority: address):
    assert msg.sender == self.owner, "Not owner"
    assert newAuthority != empty(address), "Invalid authority"
    log SlashingAuthorityUpdated(
        previousAuthority=self.slashingAuthority, newAuthority=newAuthority
    )
    self.slashingAuthority = newAuthority


@external
@nonreentrant
def stake(amount: uint256):
    self._requireRegistered(msg.sender)
    assert amount > 0, "Zero amount"
    self._nodes[msg.sender].stakedAmount += amount
    assert extcall Asset(fabToken).transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "Stake failed"
    log StakeAdded(operator=msg.sender, amount=amount)


@external
def updateApiUrl(newApiUrl: String[256]):
    self._requireRegistered(msg.sender)
    assert len(newApiUrl) > 0, "Empty API URL"
    self._nodes[msg.sender].apiUrl = newApiUrl
    log ApiUrlUpdated(operator=msg.sender, newApiUrl=newApiUrl)


@external
def updateMetadata(newMetadata: String[4096]):
    self._requireRegistered(msg.sender)
    assert len(newMetadata) > 0, "Empty metadata"
    self._nodes[msg.sender].metadata = newMetadata
    log MetadataUpdated(operator=msg.sender, newMetadata=newMetadata)


@external
def updateSupportedModels(newModels: DynArray[bytes32, MAX_MODELS]):
    self._requireRegistered(msg.sender)
    self._setModels(msg.sender, newModels)
    log ModelsUpdated(operator=msg.sender, newModels=newModels)


@external
def setModelTokenPricing(modelId: bytes32, token: address, price: uint256):
    self._requireRegistered(msg.sender)
    assert self._supports[msg.sender][modelId], "Model not supported"
    self._checkPrice(price, token == empty(address))
    self.modelTokenPricing[msg.sender][modelId][token] = price
    log ModelTokenPricingUpdated(operator=msg.sender, modelId=modelId, token=token, price=price)


@external
def clearModelTokenPricing(modelId: bytes32, token: address):
    self._requireRegistered(msg.sender)
    self.modelTokenPricing[msg.sender][modelId][token] = 0
    log ModelTokenPricingUpdated(operator=msg.sender, modelId=modelId, token=token, price=0)


@external
@view
def getModelPricing(operator: address, modelId: bytes32, token: address) -> uint256:
    price: uint256 = self.modelTokenPricing[operator][modelId][token]
    assert price > 0, "No model pricing"
    return price


@external
@view
def getHostModelPrices(
    operator: address, token: address
) -> (DynArray[bytes32, MAX_MODELS], DynArray[uint256, MAX_MODELS]):
    prices: DynArray[uint256, MAX_MODELS] = []
    for modelId: bytes32 in self._models[operator]:
        prices.append(self.modelTokenPricing[operator][modelId][token])
    return self._models[operator], prices


# A public HashMap of structs would return one tuple; the marketplace's clients expect flat values.
@external
@view
def nodes(operator: address) -> (address, uint256, bool, String[4096], String[256], uint256, uint256):
    n: Node = self._nodes[operator]
    return (
        n.operator,
        n.stakedAmount,
        n.active,
        n.metadata,
        n.apiUrl,
        n.minPricePerTokenNative,
        n.minPricePerTokenStable,
    )


@external
@view
def getNodeFullInfo(operator: address) -> (
    address,
    uint256,
    bool,
    String[4096],
    String[256],
    DynArray[bytes32, MAX_MODELS],
    uint256,
    uint256,
):
    n: Node = self._nodes[operator]
    return (
        n.operator,
        n.stakedAmount,
        n.active,
        n.metadata,
        n.apiUrl,
        self._models[operator],
        n.minPricePerTokenNative,
        n.minPricePerTokenStable,
    )


@external
@view
def isActiveNode(operator: address) -> bool:
    return self._nodes[operator].active


@external
@view
def getNodeApiUrl(operator: address) -> String[256]:
    return self._nodes[operator].apiUrl


@external
@view
def getNodeModels(operator: address) -> DynArray[bytes32, MAX_MODELS]:
    return self._models[operator]


@external
@view
def nodeSupportsModel(operator: address, modelId: bytes32) -> bool:
    return self._supports[operator][modelId]


@external
@view
def getAllActiveNodes() -> DynArray[address, MAX_NODES]:
    return self._activeNodes


@external
@view
def getNodesForModel(modelId: bytes32) -> DynArray[address, MAX_NODES]:
    found: DynArray[address, MAX_NODES] = []
    for operator: address in self._activeNodes:
        if self._supports[operator][modelId]:
            found.append(operator)
    return found
