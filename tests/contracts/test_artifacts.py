"""The committed artifacts are what the sources compile to, and the adapter's ABIs equal them."""

from __future__ import annotations

import json

import pytest

from nodeapp.devnet.build import ABIS, ARTIFACTS, CONTRACTS, build, stale
from nodeapp.evm.abi import ContractAbi, parse_abi

# Selectors and topics of the marketplace that the SDK and live hosts use.
MARKETPLACE = (
    "createSessionJobForModel(address,bytes32,uint256,uint256,uint256,uint256)->uint256",
    "createSessionJobForModelWithToken(address,bytes32,address,uint256,uint256,uint256,uint256,"
    "uint256)->uint256",
    "createSessionFromDepositForModel(bytes32,address,address,uint256,uint256,uint256,uint256,"
    "uint256)->uint256",
    "depositNative()->",
    "depositToken(address,uint256)->",
    "withdrawNative(uint256)->",
    "withdrawToken(address,uint256)->",
    "submitProofOfWork(uint256,uint256,bytes32,string,string)->",
    "completeSessionJob(uint256,string)->",
    "triggerSessionTimeout(uint256)->",
    "sessionJobs(uint256)->uint256,address,address,address,uint256,uint256,uint256,uint256,"
    "uint256,uint256,uint256,uint256,uint8,uint256,uint256,string,bytes32,string",
    "sessionModel(uint256)->bytes32",
    "getProofSubmission(uint256,uint256)->bytes32,uint256,uint256,bool,string",
    "disputeWindow()->uint256",
    "feeBasisPoints()->uint256",
    "paused()->bool",
    "nextJobId()->uint256",
    "MIN_DEPOSIT()->uint256",
    "MIN_PROVEN_TOKENS()->uint256",
    "PRICE_PRECISION()->uint256",
    "nodeRegistry()->address",
    "proofSystem()->address",
    "hostEarnings()->address",
    "usdcAddress()->address",
    "treasuryAddress()->address",
    "MIN_PROOF_TIMEOUT()->uint256",
    "MAX_PROOF_TIMEOUT()->uint256",
    "DEFAULT_PROOF_TIMEOUT()->uint256",
    "acceptedTokens(address)->bool",
    "tokenMinDeposits(address)->uint256",
    "tokenMaxDeposits(address)->uint256",
    "userDepositsNative(address)->uint256",
    "userDepositsToken(address,address)->uint256",
    "accumulatedTreasuryNative()->uint256",
    "accumulatedTreasuryTokens(address)->uint256",
    "userSessions(address,uint256)->uint256",
    "hostSessions(address,uint256)->uint256",
    "createSessionForModelAsDelegate(address,bytes32,address,address,uint256,uint256,uint256,"
    "uint256,uint256)->uint256",
    "authorizeDelegate(address,bool)->",
    "configureDelegate(address,uint128,uint128,uint64,address,bytes32)->",
    "delegateConfigs(address,address)->uint128,uint128,uint128,uint64,bool,address,bytes32",
    "isDelegateAuthorized(address,address)->bool",
    "getDepositBalance(address,address)->uint256",
    "minTokensFee()->uint256",
    "setMinTokensFee(uint256)->",
    "addAcceptedToken(address,uint256,uint256)->",
    "updateTokenMinDeposit(address,uint256)->",
    "updateTokenMaxDeposit(address,uint256)->",
    "pause()->",
    "unpause()->",
    "withdrawTreasuryNative()->",
    "withdrawTreasuryTokens(address)->",
)
NODE_REGISTRY = (
    "registerNode(string,string,bytes32[],uint256,uint256)->",
    "unregisterNode()->",
    "stake(uint256)->",
    "updateApiUrl(string)->",
    "updateMetadata(string)->",
    "updateSupportedModels(bytes32[])->",
    "setModelTokenPricing(bytes32,address,uint256)->",
    "clearModelTokenPricing(bytes32,address)->",
    "nodes(address)->address,uint256,bool,string,string,uint256,uint256",
    "getNodeFullInfo(address)->address,uint256,bool,string,string,bytes32[],uint256,uint256",
    "isActiveNode(address)->bool",
    "getNodeApiUrl(address)->string",
    "getNodeModels(address)->bytes32[]",
    "nodeSupportsModel(address,bytes32)->bool",
    "getAllActiveNodes()->address[]",
    "getNodesForModel(bytes32)->address[]",
    "getModelPricing(address,bytes32,address)->uint256",
    "getHostModelPrices(address,address)->bytes32[],uint256[]",
    "modelTokenPricing(address,bytes32,address)->uint256",
    "fabToken()->address",
    "modelRegistry()->address",
    "MIN_STAKE()->uint256",
    "slashStake(address,uint256,string,string)->",
    "setSlashingAuthority(address)->",
    "slashingAuthority()->address",
    "lastSlashTime(address)->uint256",
    "MAX_SLASH_PERCENTAGE()->uint256",
    "MIN_STAKE_AFTER_SLASH()->uint256",
    "SLASH_COOLDOWN()->uint256",
)
MODEL_REGISTRY = (
    "getModelId(string,string)->bytes32",
    "isModelApproved(bytes32)->bool",
    "getModelHash(bytes32)->bytes32",
    "getModel(bytes32)->(string,string,bytes32,uint256,bool,uint256)",
    "models(bytes32)->string,string,bytes32,uint256,bool,uint256",
    "getAllModels()->bytes32[]",
    "getModelRateLimit(bytes32)->uint256",
    "addTrustedModel(string,string,bytes32)->",
    "APPROVAL_THRESHOLD()->uint256",
)
PROOF_SYSTEM = (
    "markProofUsed(bytes32,address,uint256,bytes32)->bool",
    "verifiedProofs(bytes32)->bool",
    "setAuthorizedCaller(address,bool)->",
)
HOST_EARNINGS = (
    "getBalance(address,address)->uint256",
    "getBalances(address,address[])->uint256[]",
    "withdraw(uint256,address)->",
    "withdrawAll(address)->",
    "withdrawMultiple(address[])->",
    "creditEarnings(address,uint256,address)->",
    "setAuthorizedCaller(address,bool)->",
)
# "i" marks an indexed parameter.
EVENTS = {
    "JobMarketplace": (
        "SessionJobCreated(uint256 i,address i,address i,uint256)",
        "SessionJobCreatedForModel(uint256 i,address i,address i,bytes32,uint256)",
        "SessionCreatedByDepositor(uint256 i,address i,address i,uint256)",
        "ProofSubmitted(uint256 i,address i,uint256,bytes32,string,string)",
        "SessionCompleted(uint256 i,uint256,uint256,uint256)",
        "SessionCompletedBy(uint256 i,address i,uint256,uint256,uint256)",
        "SessionTimedOut(uint256 i,uint256,uint256)",
        "DepositReceived(address i,uint256,address i)",
        "WithdrawalProcessed(address i,uint256,address i)",
        "SessionCreatedByDelegate(uint256 i,address i,address i,address,bytes32,uint256)",
        "DelegateAuthorized(address i,address i,bool)",
        "DelegateConfigured(address i,address i,uint128,uint128,uint64,address,bytes32)",
        "RefundCreditedToDeposit(uint256 i,address i,uint256,address i)",
        "MinTokensFeeUpdated(uint256,uint256)",
        "TokenAccepted(address i,uint256,uint256)",
        "TokenMinDepositUpdated(address i,uint256,uint256)",
        "TokenMaxDepositUpdated(address i,uint256,uint256)",
        "TreasuryWithdrawal(address i,uint256)",
        "Paused(address)",
        "Unpaused(address)",
        "ContractPaused(address i)",
        "ContractUnpaused(address i)",
    ),
    "NodeRegistry": (
        "NodeRegistered(address i,uint256,string,bytes32[])",
        "NodeUnregistered(address i,uint256)",
        "ApiUrlUpdated(address i,string)",
        "MetadataUpdated(address i,string)",
        "ModelsUpdated(address i,bytes32[])",
        "ModelTokenPricingUpdated(address i,bytes32 i,address i,uint256)",
        "SlashExecuted(address i,uint256,uint256,string,string,address i,uint256)",
        "HostAutoUnregistered(address i,uint256,uint256,string)",
    ),
    "ModelRegistry": ("ModelAdded(bytes32 i,string,string,uint256)",),
    "ProofSystem": ("ProofVerified(bytes32 i,address i,uint256)",),
    "HostEarnings": (
        "EarningsCredited(address i,address i,uint256,uint256)",
        "EarningsWithdrawn(address i,address i,uint256,uint256)",
    ),
}


def _entries(name: str) -> list[dict[str, object]]:
    return json.loads((ABIS / f"{name}.json").read_text())


def _abi(name: str) -> ContractAbi:
    return parse_abi(_entries(name))


def test_artifacts_and_abis_are_what_the_sources_compile_to() -> None:
    assert stale(build()) == []


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_adapters_abi_equals_the_artifacts(name: str) -> None:
    assert _entries(name) == json.loads((ARTIFACTS / f"{name}.json").read_text())["abi"]


@pytest.mark.parametrize("name", CONTRACTS)
def test_code_fits_the_chains_limit(name: str) -> None:
    bytecode = json.loads((ARTIFACTS / f"{name}.json").read_text())["bytecode"]
    assert len(bytecode) // 2 < 24_576


@pytest.mark.parametrize(
    ("name", "signatures"),
    [
        ("JobMarketplace", MARKETPLACE),
        ("NodeRegistry", NODE_REGISTRY),
        ("ModelRegistry", MODEL_REGISTRY),
        ("ProofSystem", PROOF_SYSTEM),
        ("HostEarnings", HOST_EARNINGS),
    ],
)
def test_functions_are_those_of_the_live_marketplace(
    name: str, signatures: tuple[str, ...]
) -> None:
    ours = {
        f"{function.name}({','.join(function.inputs)})->{','.join(function.outputs)}"
        for function in _abi(name).functions.values()
    }
    assert set(signatures) <= ours


@pytest.mark.parametrize("name", list(EVENTS))
def test_events_are_those_of_the_live_marketplace(name: str) -> None:
    ours = {
        f"{entry['name']}("
        + ",".join(p["type"] + (" i" if p["indexed"] else "") for p in entry["inputs"])
        + ")"
        for entry in _entries(name)
        if entry["type"] == "event"
    }
    assert set(EVENTS[name]) <= ours
