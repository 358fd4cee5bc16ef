# pragma version 0.4.3
"""
@title Paid sessions between a renter and a host
@notice The renter deposits, the host claims delivered tokens with a proof hash, the session settles.
        cost = tokens * price / 1000, fee = cost * feeBasisPoints / 10000, both rounded down;
        host share + treasury fee + refund == deposit, always. address(0) is the native coin.
"""

interface Asset:
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(sender: address, to: address, amount: uint256) -> bool: nonpayable

interface Nodes:
    def isActiveNode(operator: address) -> bool: view
    def nodeSupportsModel(operator: address, modelId: bytes32) -> bool: view
    def getModelPricing(operator: address, modelId: bytes32, token: address) -> uint256: view

interface Models:
    def isModelApproved(modelId: bytes32) -> bool: view
    def getModelRateLimit(modelId: bytes32) -> uint256: view

interface Proofs:
    def markProofUsed(
        proofHash: bytes32, prover: address, claimedTokens: uint256, modelId: bytes32
    ) -> bool: nonpayable

interface Earnings:
    def creditEarnings(host: address, amount: uint256, token: address): nonpayable

struct Session:
    id: uint256
    depositor: address
    host: address
    paymentToken: address
    deposit: uint256
    pricePerToken: uint256
    tokensUsed: uint256
    maxDuration: uint256
    startTime: uint256
    lastProofTime: uint256
    proofInterval: uint256
    proofTimeoutWindow: uint256
    status: uint8
    withdrawnByHost: uint256
    refundedToUser: uint256
    conversationCID: String[256]
    lastProofHash: bytes32
    lastProofCID: String[256]

struct Proof:
    proofHash: bytes32
    tokensClaimed: uint256
    timestamp: uint256
    verified: bool
    deltaCID: String[256]

struct Terms:
    pricePerToken: uint256
    maxDuration: uint256
    proofInterval: uint256
    proofTimeoutWindow: uint256

# Zero means no limit, no expiry, any host, any model.
struct DelegateConfig:
    maxPerSession: uint128
    totalCap: uint128
    spent: uint128
    validUntil: uint64
    active: bool
    allowedHost: address
    allowedModel: bytes32

event SessionJobCreated:
    jobId: indexed(uint256)
    depositor: indexed(address)
    host: indexed(address)
    deposit: uint256

event SessionJobCreatedForModel:
    jobId: indexed(uint256)
    depositor: indexed(address)
    host: indexed(address)
    modelId: bytes32
    deposit: uint256

event SessionCreatedByDepositor:
    sessionId: indexed(uint256)
    depositor: indexed(address)
    host: indexed(address)
    deposit: uint256

event SessionCreatedByDelegate:
    sessionId: indexed(uint256)
    payer: indexed(address)
    delegate: indexed(address)
    host: address
    modelId: bytes32
    amount: uint256

event DelegateAuthorized:
    depositor: indexed(address)
    delegate: indexed(address)
    authorized: bool

event DelegateConfigured:
    depositor: indexed(address)
    delegate: indexed(address)
    maxPerSession: uint128
    totalCap: uint128
    validUntil: uint64
    allowedHost: address
    allowedModel: bytes32

event ProofSubmitted:
    jobId: indexed(uint256)
    host: indexed(address)
    tokensClaimed: uint256
    proofHash: bytes32
    proofCID: String[256]
    deltaCID: String[256]

event SessionCompleted:
    jobId: indexed(uint256)
    totalTokensUsed: uint256
    hostEarnings: uint256
    userRefund: uint256

event SessionCompletedBy:
    jobId: indexed(uint256)
    completedBy: indexed(address)
    tokensUsed: uint256
    paymentAmount: uint256
    refundAmount: uint256

event SessionTimedOut:
    jobId: indexed(uint256)
    hostEarnings: uint256
    userRefund: uint256

event DepositReceived:
    depositor: indexed(address)
    amount: uint256
    token: indexed(address)

event WithdrawalProcessed:
    depositor: indexed(address)
    amount: uint256
    token: indexed(address)

event RefundCreditedToDeposit:
    jobId: indexed(uint256)
    depositor: indexed(address)
    amount: uint256
    token: indexed(address)

event MinTokensFeeUpdated:
    oldFee: uint256
    newFee: uint256

event Paused:
    account: address

event Unpaused:
    account: address

event ContractPaused:
    by: indexed(address)

event ContractUnpaused:
    by: indexed(address)

event TokenAccepted:
    token: indexed(address)
    minDeposit: uint256
    maxDeposit: uint256

event TokenMinDepositUpdated:
    token: indexed(address)
    oldMinDeposit: uint256
    newMinDeposit: uint256

event TokenMaxDepositUpdated:
    token: indexed(address)
    oldMaxDeposit: uint256
    newMaxDeposit: uint256

event TreasuryWithdrawal:
    token: indexed(address)
    amount: uint256

ACTIVE: constant(uint8) = 0
COMPLETED: constant(uint8) = 1
TIMED_OUT: constant(uint8) = 2
NATIVE: constant(address) = empty(address)
MAX_DURATION: constant(uint256) = 365 * 86_400
MAX_NATIVE_DEPOSIT: constant(uint256) = 1000 * 10**18
BASIS_POINTS: constant(uint256) = 10_000
# Enough for a contract wallet's receive hook, too little to burn the whole block.
REFUND_GAS: constant(uint256) = 100_000

PRICE_PRECISION: public(constant(uint256)) = 1000
MIN_DEPOSIT: public(constant(uint256)) = 10**14
MIN_PROVEN_TOKENS: public(constant(uint256)) = 100
MIN_PROOF_TIMEOUT: public(constant(uint256)) = 60
MAX_PROOF_TIMEOUT: public(constant(uint256)) = 3600
DEFAULT_PROOF_TIMEOUT: public(constant(uint256)) = 300
MAX_MIN_TOKENS_FEE: public(constant(uint256)) = 10_000

owner: public(address)
paused: public(bool)
nodeRegistry: public(immutable(address))
modelRegistry: public(immutable(address))
proofSystem: public(immutable(address))
hostEarnings: public(immutable(address))
usdcAddress: public(immutable(address))
treasuryAddress: public(immutable(address))
feeBasisPoints: public(immutable(uint256))
disputeWindow: public(immutable(uint256))

minTokensFee: public(uint256)
nextJobId: public(uint256)
acceptedTokens: public(HashMap[address, bool])
tokenMinDeposits: public(HashMap[address, uint256])
tokenMaxDeposits: public(HashMap[address, uint256])
userDepositsNative: public(HashMap[address, uint256])
userDepositsToken: public(HashMap[address, HashMap[address, uint256]])
accumulatedTreasuryNative: public(uint256)
accumulatedTreasuryTokens: public(HashMap[address, uint256])
sessionModel: public(HashMap[uint256, bytes32])
_delegates: HashMap[address, HashMap[address, DelegateConfig]]
userSessions: public(HashMap[address, DynArray[uint256, 1_000_000]])
hostSessions: public(HashMap[address, DynArray[uint256, 1_000_000]])
_sessions: HashMap[uint256, Session]
_proofs: HashMap[uint256, HashMap[uint256, Proof]]
_proofCount: HashMap[uint256, uint256]


@deploy
def __init__(
    registries: address[4],
    usdc: address,
    treasury: address,
    feeBasisPoints_: uint256,
    disputeWindow_: uint256,
    minTokensFee_: uint256,
):
    """
    @param registries node registry, model registry, proof system, host earnings
    @param disputeWindow_ seconds a host waits after its last proof before it may complete
    @param minTokensFee_ tokens a depositor pays who cancels before the first proof
    """
    assert feeBasisPoints_ <= BASIS_POINTS, "Bad fee"
    assert disputeWindow_ > 0 and disputeWindow_ <= 7 * 86_400, "Bad window"
    assert minTokensFee_ <= MAX_MIN_TOKENS_FEE, "Fee too high"
    nodeRegistry = registries[0]
    modelRegistry = registries[1]
    proofSystem = registries[2]
    hostEarnings = registries[3]
    usdcAddress = usdc
    treasuryAddress = treasury
    feeBasisPoints = feeBasisPoints_
    disputeWindow = disputeWindow_
    self.minTokensFee = minTokensFee_
    self.owner = msg.sender
    self.nextJobId = 1
    self.acceptedTokens[usdc] = True
    self.tokenMinDeposits[usdc] = 500_000
    self.tokenMaxDeposits[usdc] = 10**12


# --- assets in and out -------------------------------------------------------


@internal
@view
def _requireRunning():
    assert not self.paused, "Paused"


@internal
def _pull(payer: address, token: address, amount: uint256):
    assert extcall Asset(token).transferFrom(
        payer, self, amount, default_return_value=True
    ), "Transfer failed"


@internal
def _send(to: address, token: address, amount: uint256):
    if token == NATIVE:
        raw_call(to, b"", value=amount)
    else:
        assert extcall Asset(token).transfer(to, amount, default_return_value=True), "Transfer failed"


@internal
def _trySend(to: address, token: address, amount: uint256) -> bool:
    if token == NATIVE:
        return raw_call(to, b"", value=amount, gas=REFUND_GAS, revert_on_failure=False)
    # A blocked or paused asset must not keep the host from its pay.
    success: bool = False
    response: Bytes[32] = b""
    success, response = raw_call(
        token,
        abi_encode(to, amount, method_id=method_id("transfer(address,uint256)")),
        max_outsize=32,
        revert_on_failure=False,
    )
    return success and (len(response) == 0 or convert(response, uint256) == 1)


@internal
def _creditDeposit(depositor: address, token: address, amount: uint256):
    if token == NATIVE:
        self.userDepositsNative[depositor] += amount
    else:
        self.userDepositsToken[depositor][token] += amount


@external
@payable
def depositNative():
    self._requireRunning()
    assert msg.value > 0, "Zero amount"
    self._creditDeposit(msg.sender, NATIVE, msg.value)
    log DepositReceived(depositor=msg.sender, amount=msg.value, token=NATIVE)


@external
@nonreentrant
def depositToken(token: address, amount: uint256):
    self._requireRunning()
    assert self.acceptedTokens[token], "Bad token"
    assert amount > 0, "Zero amount"
    self._pull(msg.sender, token, amount)
    self._creditDeposit(msg.sender, token, amount)
    log DepositReceived(depositor=msg.sender, amount=amount, token=token)


@external
@nonreentrant
def withdrawNative(amount: uint256):
    assert amount > 0, "Zero amount"
    assert self.userDepositsNative[msg.sender] >= amount, "Low balance"
    self.userDepositsNative[msg.sender] -= amount
    self._send(msg.sender, NATIVE, amount)
    log WithdrawalProcessed(depositor=msg.sender, amount=amount, token=NATIVE)


@external
@nonreentrant
def withdrawToken(token: address, amount: uint256):
    assert amount > 0, "Zero amount"
    assert self.userDepositsToken[msg.sender][token] >= amount, "Low balance"
    self.userDepositsToken[msg.sender][token] -= amount
    self._send(msg.sender, token, amount)
    log WithdrawalProcessed(depositor=msg.sender, amount=amount, token=token)


# --- creation ----------------------------------------------------------------


@internal
@view
def _checkDeposit(token: address, deposit: uint256):
    if token == NATIVE:
        assert deposit >= MIN_DEPOSIT, "Low deposit"
        assert deposit <= MAX_NATIVE_DEPOSIT, "Over max"
    else:
        assert self.acceptedTokens[token], "Bad token"
        assert deposit >= self.tokenMinDeposits[token], "Low deposit"
        assert deposit <= self.tokenMaxDeposits[token], "Over max"


@internal
@view
def _checkTerms(host: address, modelId: bytes32, token: address, deposit: uint256, terms: Terms):
    assert staticcall Models(modelRegistry).isModelApproved(modelId), "Bad model"
    assert staticcall Nodes(nodeRegistry).isActiveNode(host), "Host not active"
    assert staticcall Nodes(nodeRegistry).nodeSupportsModel(host, modelId), "No model"
    assert terms.pricePerToken > 0, "Bad price"
    asked: uint256 = staticcall Nodes(nodeRegistry).getModelPricing(host, modelId, token)
    assert terms.pricePerToken >= asked, "Low price"
    assert terms.maxDuration > 0 and terms.maxDuration <= MAX_DURATION, "Bad dur"
    assert terms.proofInterval >= MIN_PROVEN_TOKENS, "Low interval"
    assert terms.proofTimeoutWindow >= MIN_PROOF_TIMEOUT, "Bad timeout"
    assert terms.proofTimeoutWindow <= MAX_PROOF_TIMEOUT, "Bad timeout"
    covered: uint256 = deposit * PRICE_PRECISION // terms.pricePerToken
    assert covered >= terms.proofInterval, "Low deposit"


@internal
def _create(
    depositor: address,
    host: address,
    modelId: bytes32,
    token: address,
    deposit: uint256,
    terms: Terms,
) -> uint256:
    self._requireRunning()
    self._checkDeposit(token, deposit)
    self._checkTerms(host, modelId, token, deposit, terms)
    jobId: uint256 = self.nextJobId
    self.nextJobId = jobId + 1
    self._sessions[jobId].id = jobId
    self._sessions[jobId].depositor = depositor
    self._sessions[jobId].host = host
    self._sessions[jobId].paymentToken = token
    self._sessions[jobId].deposit = deposit
    self._sessions[jobId].pricePerToken = terms.pricePerToken
    self._sessions[jobId].maxDuration = terms.maxDuration
    self._sessions[jobId].startTime = block.timestamp
    self._sessions[jobId].lastProofTime = block.timestamp
    self._sessions[jobId].proofInterval = terms.proofInterval
    self._sessions[jobId].proofTimeoutWindow = terms.proofTimeoutWindow
    self.sessionModel[jobId] = modelId
    self.userSessions[depositor].append(jobId)
    self.hostSessions[host].append(jobId)
    log SessionJobCreated(jobId=jobId, depositor=depositor, host=host, deposit=deposit)
    log SessionJobCreatedForModel(
        jobId=jobId, depositor=depositor, host=host, modelId=modelId, deposit=deposit
    )
    return jobId


@external
@payable
@nonreentrant
def createSessionJobForModel(
    host: address,
    modelId: bytes32,
    pricePerToken: uint256,
    maxDuration: uint256,
    proofInterval: uint256,
    proofTimeoutWindow: uint256,
) -> uint256:
    return self._create(
        msg.sender,
        host,
        modelId,
        NATIVE,
        msg.value,
        Terms(
            pricePerToken=pricePerToken,
            maxDuration=maxDuration,
            proofInterval=proofInterval,
            proofTimeoutWindow=proofTimeoutWindow,
        ),
    )


@external
@nonreentrant
def createSessionJobForModelWithToken(
    host: address,
    modelId: bytes32,
    token: address,
    deposit: uint256,
    pricePerToken: uint256,
    maxDuration: uint256,
    proofInterval: uint256,
    proofTimeoutWindow: uint256,
) -> uint256:
    assert token != NATIVE, "Bad token"
    jobId: uint256 = self._create(
        msg.sender,
        host,
        modelId,
        token,
        deposit,
        Terms(
            pricePerToken=pricePerToken,
            maxDuration=maxDuration,
            proofInterval=proofInterval,
            proofTimeoutWindow=proofTimeoutWindow,
        ),
    )
    self._pull(msg.sender, token, deposit)
    return jobId


@external
@nonreentrant
def createSessionFromDepositForModel(
    modelId: bytes32,
    host: address,
    paymentToken: address,
    deposit: uint256,
    pricePerToken: uint256,
    maxDuration: uint256,
    proofInterval: uint256,
    proofTimeoutWindow: uint256,
) -> uint256:
    if paymentToken == NATIVE:
        assert self.userDepositsNative[msg.sender] >= deposit, "Low balance"
        self.userDepositsNative[msg.sender] -= deposit
    else:
        assert self.userDepositsToken[msg.sender][paymentToken] >= deposit, "Low balance"
        self.userDepositsToken[msg.sender][paymentToken] -= deposit
    jobId: uint256 = self._create(
        msg.sender,
        host,
        modelId,
        paymentToken,
        deposit,
        Terms(
            pricePerToken=pricePerToken,
            maxDuration=maxDuration,
            proofInterval=proofInterval,
            proofTimeoutWindow=proofTimeoutWindow,
        ),
    )
    log SessionCreatedByDepositor(
        sessionId=jobId, depositor=msg.sender, host=host, deposit=deposit
    )
    return jobId


# --- delegates ---------------------------------------------------------------


@internal
@view
def _requireDelegable(delegate: address):
    assert delegate != empty(address), "Zero addr"
    assert delegate != msg.sender, "Self deleg"


@external
def authorizeDelegate(delegate: address, authorized: bool):
    """
    @notice Switch a delegate on or off; its limits and what it spent stay, an expiry is lifted.
    """
    self._requireDelegable(delegate)
    self._delegates[msg.sender][delegate].active = authorized
    if authorized:
        self._delegates[msg.sender][delegate].validUntil = 0
    log DelegateAuthorized(depositor=msg.sender, delegate=delegate, authorized=authorized)


@external
def configureDelegate(
    delegate: address,
    maxPerSession: uint128,
    totalCap: uint128,
    validUntil: uint64,
    allowedHost: address,
    allowedModel: bytes32,
):
    """
    @notice Authorise a delegate within limits; what it spent is counted from zero again.
    """
    self._requireDelegable(delegate)
    self._delegates[msg.sender][delegate] = DelegateConfig(
        maxPerSession=maxPerSession,
        totalCap=totalCap,
        spent=0,
        validUntil=validUntil,
        active=True,
        allowedHost=allowedHost,
        allowedModel=allowedModel,
    )
    log DelegateAuthorized(depositor=msg.sender, delegate=delegate, authorized=True)
    log DelegateConfigured(
        depositor=msg.sender,
        delegate=delegate,
        maxPerSession=maxPerSession,
        totalCap=totalCap,
        validUntil=validUntil,
        allowedHost=allowedHost,
        allowedModel=allowedModel,
    )


@internal
def _spendAsDelegate(payer: address, host: address, modelId: bytes32, amount: uint256):
    limits: DelegateConfig = self._delegates[payer][msg.sender]
    assert limits.active, "Not delegate"
    assert limits.validUntil == 0 or block.timestamp <= convert(limits.validUntil, uint256), "Expired"
    assert amount <= convert(max_value(uint128), uint256), "Overflow"
    spends: uint128 = convert(amount, uint128)
    assert limits.maxPerSession == 0 or spends <= limits.maxPerSession, "Over limit"
    assert limits.totalCap == 0 or limits.spent + spends <= limits.totalCap, "Over cap"
    assert limits.allowedHost in [empty(address), host], "Wrong host"
    assert limits.allowedModel in [empty(bytes32), modelId], "Wrong model"
    self._delegates[payer][msg.sender].spent = limits.spent + spends


@external
@nonreentrant
def createSessionForModelAsDelegate(
    payer: address,
    modelId: bytes32,
    host: address,
    paymentToken: address,
    amount: uint256,
    pricePerToken: uint256,
    maxDuration: uint256,
    proofInterval: uint256,
    proofTimeoutWindow: uint256,
) -> uint256:
    """
    @notice Open a session that `payer` owns and pays from its own wallet (it approved this
            contract). The delegate can neither settle nor touch the refund.
    """
    assert payer != empty(address), "No payer"
    if msg.sender != payer:
        self._spendAsDelegate(payer, host, modelId, amount)
    assert paymentToken != NATIVE, "ERC20 only"
    jobId: uint256 = self._create(
        payer,
        host,
        modelId,
        paymentToken,
        amount,
        Terms(
            pricePerToken=pricePerToken,
            maxDuration=maxDuration,
            proofInterval=proofInterval,
            proofTimeoutWindow=proofTimeoutWindow,
        ),
    )
    self._pull(payer, paymentToken, amount)
    log SessionCreatedByDelegate(
        sessionId=jobId,
        payer=payer,
        delegate=msg.sender,
        host=host,
        modelId=modelId,
        amount=amount,
    )
    return jobId


# --- claims ------------------------------------------------------------------


@internal
@view
def _checkClaim(jobId: uint256, tokensClaimed: uint256):
    assert tokensClaimed >= MIN_PROVEN_TOKENS, "Min tokens"
    used: uint256 = self._sessions[jobId].tokensUsed
    if used == 0:
        assert tokensClaimed >= self._sessions[jobId].proofInterval, "Low first"
    elapsed: uint256 = block.timestamp - self._sessions[jobId].lastProofTime
    limit: uint256 = staticcall Models(modelRegistry).getModelRateLimit(self.sessionModel[jobId])
    assert tokensClaimed <= elapsed * limit, "Too many"
    covered: uint256 = (
        self._sessions[jobId].deposit * PRICE_PRECISION // self._sessions[jobId].pricePerToken
    )
    assert used + tokensClaimed <= covered, "Over dep"


@external
@nonreentrant
def submitProofOfWork(
    jobId: uint256,
    tokensClaimed: uint256,
    proofHash: bytes32,
    proofCID: String[256],
    deltaCID: String[256],
):
    self._requireRunning()
    assert self._isActive(jobId), "Not active"
    assert msg.sender == self._sessions[jobId].host, "Not host"
    assert staticcall Nodes(nodeRegistry).isActiveNode(msg.sender), "Host not active"
    self._checkClaim(jobId, tokensClaimed)
    assert extcall Proofs(proofSystem).markProofUsed(
        proofHash, msg.sender, tokensClaimed, self.sessionModel[jobId]
    ), "Proof already used"
    self._sessions[jobId].tokensUsed += tokensClaimed
    self._sessions[jobId].lastProofTime = block.timestamp
    self._sessions[jobId].lastProofHash = proofHash
    self._sessions[jobId].lastProofCID = proofCID
    index: uint256 = self._proofCount[jobId]
    self._proofs[jobId][index] = Proof(
        proofHash=proofHash,
        tokensClaimed=tokensClaimed,
        timestamp=block.timestamp,
        verified=True,
        deltaCID=deltaCID,
    )
    self._proofCount[jobId] = index + 1
    log ProofSubmitted(
        jobId=jobId,
        host=msg.sender,
        tokensClaimed=tokensClaimed,
        proofHash=proofHash,
        proofCID=proofCID,
        deltaCID=deltaCID,
    )


# --- settlement --------------------------------------------------------------


@internal
@view
def _isActive(jobId: uint256) -> bool:
    return self._sessions[jobId].depositor != empty(address) and (
        self._sessions[jobId].status == ACTIVE
    )


@internal
def _payHost(host: address, token: address, amount: uint256):
    if amount > 0:
        self._send(hostEarnings, token, amount)
        extcall Earnings(hostEarnings).creditEarnings(host, amount, token)


@internal
def _refund(jobId: uint256, depositor: address, token: address, amount: uint256):
    if amount > 0 and not self._trySend(depositor, token, amount):
        self._creditDeposit(depositor, token, amount)
        log RefundCreditedToDeposit(
            jobId=jobId, depositor=depositor, amount=amount, token=token
        )


@internal
@view
def _split(jobId: uint256, cancelled: bool) -> (uint256, uint256):
    """
    @return payment and the treasury's part of it
    """
    price: uint256 = self._sessions[jobId].pricePerToken
    used: uint256 = self._sessions[jobId].tokensUsed
    deposit: uint256 = self._sessions[jobId].deposit
    if used == 0:
        if not cancelled:
            return 0, 0
        # A renter who leaves before the first proof pays a small sum, all of it to the host.
        return min(self.minTokensFee * price // PRICE_PRECISION, deposit), 0
    # The first claim covers one interval, so this floor never lifts a session of this contract.
    billable: uint256 = max(used, self._sessions[jobId].proofInterval)
    payment: uint256 = min(billable * price // PRICE_PRECISION, deposit)
    return payment, payment * feeBasisPoints // BASIS_POINTS


@internal
def _settle(jobId: uint256, status: uint8, cancelled: bool):
    payment: uint256 = 0
    fee: uint256 = 0
    payment, fee = self._split(jobId, cancelled)
    token: address = self._sessions[jobId].paymentToken
    net: uint256 = payment - fee
    refund: uint256 = self._sessions[jobId].deposit - payment
    self._sessions[jobId].status = status
    self._sessions[jobId].withdrawnByHost = net
    self._sessions[jobId].refundedToUser = refund
    if token == NATIVE:
        self.accumulatedTreasuryNative += fee
    else:
        self.accumulatedTreasuryTokens[token] += fee
    self._payHost(self._sessions[jobId].host, token, net)
    self._refund(jobId, self._sessions[jobId].depositor, token, refund)
    used: uint256 = self._sessions[jobId].tokensUsed
    log SessionCompleted(
        jobId=jobId, totalTokensUsed=used, hostEarnings=net, userRefund=refund
    )
    log SessionCompletedBy(
        jobId=jobId,
        completedBy=msg.sender,
        tokensUsed=used,
        # What was proven; the fee of a renter who cancelled is not in it.
        paymentAmount=payment if used > 0 else 0,
        refundAmount=refund,
    )
    if status == TIMED_OUT:
        log SessionTimedOut(jobId=jobId, hostEarnings=net, userRefund=refund)


@external
@nonreentrant
def completeSessionJob(jobId: uint256, conversationCID: String[256]):
    assert self._isActive(jobId), "Not active"
    depositor: address = self._sessions[jobId].depositor
    assert msg.sender in [depositor, self._sessions[jobId].host], "Not depositor or host"
    if msg.sender != depositor:
        opens: uint256 = self._sessions[jobId].lastProofTime + disputeWindow
        assert block.timestamp >= opens, "Dispute wait"
    self._sessions[jobId].conversationCID = conversationCID
    self._settle(jobId, COMPLETED, msg.sender == depositor)


@external
@nonreentrant
def triggerSessionTimeout(jobId: uint256):
    assert self._isActive(jobId), "Not active"
    ends: uint256 = self._sessions[jobId].startTime + self._sessions[jobId].maxDuration
    due: uint256 = self._sessions[jobId].lastProofTime + self._sessions[jobId].proofTimeoutWindow
    assert block.timestamp > min(ends, due), "Not timeout"
    self._settle(jobId, TIMED_OUT, False)


# --- administration ----------------------------------------------------------


@internal
@view
def _requireOwner():
    assert msg.sender == self.owner, "Not owner"


@internal
@view
def _requireAdmin():
    assert msg.sender in [self.owner, treasuryAddress], "Not admin"


@external
def pause():
    self._requireAdmin()
    self._requireRunning()
    self.paused = True
    log Paused(account=msg.sender)
    log ContractPaused(by=msg.sender)


@external
def unpause():
    self._requireAdmin()
    assert self.paused, "Not paused"
    self.paused = False
    log Unpaused(account=msg.sender)
    log ContractUnpaused(by=msg.sender)


@external
def addAcceptedToken(token: address, minDeposit: uint256, maxDeposit: uint256):
    self._requireAdmin()
    assert not self.acceptedTokens[token], "Already set"
    assert minDeposit > 0, "Bad min"
    assert maxDeposit > minDeposit, "Max < min"
    assert token != NATIVE, "Zero addr"
    self.acceptedTokens[token] = True
    self.tokenMinDeposits[token] = minDeposit
    self.tokenMaxDeposits[token] = maxDeposit
    log TokenAccepted(token=token, minDeposit=minDeposit, maxDeposit=maxDeposit)


@external
def updateTokenMinDeposit(token: address, minDeposit: uint256):
    self._requireAdmin()
    assert self.acceptedTokens[token], "Bad token"
    assert minDeposit > 0, "Bad min"
    log TokenMinDepositUpdated(
        token=token, oldMinDeposit=self.tokenMinDeposits[token], newMinDeposit=minDeposit
    )
    self.tokenMinDeposits[token] = minDeposit


@external
def updateTokenMaxDeposit(token: address, maxDeposit: uint256):
    self._requireAdmin()
    assert self.acceptedTokens[token], "Bad token"
    assert maxDeposit > self.tokenMinDeposits[token], "Max < min"
    log TokenMaxDepositUpdated(
        token=token, oldMaxDeposit=self.tokenMaxDeposits[token], newMaxDeposit=maxDeposit
    )
    self.tokenMaxDeposits[token] = maxDeposit


@external
def setMinTokensFee(tokens: uint256):
    self._requireOwner()
    assert tokens <= MAX_MIN_TOKENS_FEE, "Fee too high"
    log MinTokensFeeUpdated(oldFee=self.minTokensFee, newFee=tokens)
    self.minTokensFee = tokens


@external
@nonreentrant
def withdrawTreasuryNative():
    assert msg.sender == treasuryAddress, "Only treasury"
    amount: uint256 = self.accumulatedTreasuryNative
    assert amount > 0, "Zero amount"
    self.accumulatedTreasuryNative = 0
    self._send(treasuryAddress, NATIVE, amount)
    log TreasuryWithdrawal(token=NATIVE, amount=amount)


@external
@nonreentrant
def withdrawTreasuryTokens(token: address):
    assert msg.sender == treasuryAddress, "Only treasury"
    amount: uint256 = self.accumulatedTreasuryTokens[token]
    assert amount > 0, "Zero amount"
    self.accumulatedTreasuryTokens[token] = 0
    self._send(treasuryAddress, token, amount)
    log TreasuryWithdrawal(token=token, amount=amount)


# --- views -------------------------------------------------------------------


# A public HashMap of structs would return one tuple; the marketplace's clients expect flat values.
@external
@view
def sessionJobs(jobId: uint256) -> (
    uint256, address, address, address, uint256, uint256, uint256, uint256, uint256,
    uint256, uint256, uint256, uint8, uint256, uint256, String[256], bytes32, String[256],
):
    s: Session = self._sessions[jobId]
    return (
        s.id, s.depositor, s.host, s.paymentToken, s.deposit, s.pricePerToken, s.tokensUsed,
        s.maxDuration, s.startTime, s.lastProofTime, s.proofInterval, s.proofTimeoutWindow,
        s.status, s.withdrawnByHost, s.refundedToUser, s.conversationCID, s.lastProofHash,
        s.lastProofCID,
    )


@external
@view
def getProofSubmission(
    jobId: uint256, index: uint256
) -> (bytes32, uint256, uint256, bool, String[256]):
    assert index < self._proofCount[jobId], "Bad index"
    p: Proof = self._proofs[jobId][index]
    return p.proofHash, p.tokensClaimed, p.timestamp, p.verified, p.deltaCID


@external
@view
def delegateConfigs(
    depositor: address, delegate: address
) -> (uint128, uint128, uint128, uint64, bool, address, bytes32):
    d: DelegateConfig = self._delegates[depositor][delegate]
    return (
        d.maxPerSession, d.totalCap, d.spent, d.validUntil, d.active, d.allowedHost, d.allowedModel,
    )


@external
@view
def isDelegateAuthorized(depositor: address, delegate: address) -> bool:
    return self._delegates[depositor][delegate].active


@external
@view
def getDepositBalance(account: address, token: address) -> uint256:
    if token == NATIVE:
        return self.userDepositsNative[account]
    return self.userDepositsToken[account][token]
