"""What the operator may ask `chain` about the host's listing, and what p2p follows of it."""

from __future__ import annotations

from typing import Annotated

import msgspec

from nodeapp.core.ids import Address, ModelId, TxHash
from nodeapp.core.listing import Bounds, Listing, Purse, Wish
from nodeapp.core.units import BaseUnits, BlockNumber, PricePerToken, Wei
from nodeapp.wire.ipc import Message

MAX_WAIT_SECONDS = 60.0


class AssetBalance(Message, frozen=True):
    """Credited earnings that are not withdrawn yet."""

    asset: Address
    amount: BaseUnits


class ListingView(Message, frozen=True):
    """The listing, read from the chain now, and all that is needed to change it."""

    address: Address
    public_key: bytes
    chain_id: int
    usdc: Address
    listing: Listing
    wish: Wish
    """What the settings say; see `findings` for the difference."""
    bounds: Bounds
    purse: Purse
    gas_balance: Wei
    earnings: tuple[AssetBalance, ...]
    findings: tuple[str, ...]


class ListingRequest(Message, frozen=True):
    """Bring the listing to this wish."""

    wish: Wish


class PlannedStep(Message, frozen=True):
    """One transaction that would be sent; `metadata` is the new registration JSON, if it is that.

    Stakes are over 2**64 base units, which MessagePack cannot carry: they are in the text.
    """

    text: str
    metadata: str = ""


class ListingPlan(Message, frozen=True):
    """What would be done, in order."""

    steps: tuple[PlannedStep, ...]


class ListingDone(Message, frozen=True):
    """One transaction of a change, mined and, where it changed the listing, read back."""

    text: str
    key: str
    tx_hash: TxHash
    gas_used: int
    block_number: BlockNumber


class UnregisterRequest(Message, frozen=True):
    """Leave the marketplace."""

    force: bool = False
    """Also while sessions are open, whose claims the marketplace may refuse afterwards."""


class WithdrawRequest(Message, frozen=True):
    """Pull all credited earnings of one asset."""

    asset: Address


class ListingVersionRequest(Message, frozen=True):
    """Answer when the listing is another than `version`, or after `wait_seconds`."""

    version: Annotated[int, msgspec.Meta(ge=0)]
    wait_seconds: Annotated[float, msgspec.Meta(ge=0, le=MAX_WAIT_SECONDS)]


class ListingVersion(Message, frozen=True):
    """Counts the changes that were seen on chain since the process started."""

    version: int


class MarketRequest(Message, frozen=True):
    """What do others take for a model."""

    model_id: ModelId
    asset: Address


class MarketPrice(Message, frozen=True):
    """One active host's price."""

    host: Address
    price: PricePerToken


class Market(Message, frozen=True):
    """Every active host that sells the model for the asset, cheapest first; ours included."""

    prices: tuple[MarketPrice, ...]
    fee_basis_points: int
    """The treasury's part of a payment, 1/10000."""
