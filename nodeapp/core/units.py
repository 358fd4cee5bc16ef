"""NewTypes for every number that has a unit; money is an int in the asset's base unit."""

from __future__ import annotations

from typing import NewType

Wei = NewType("Wei", int)
"""Native coin, 1e-18."""
BaseUnits = NewType("BaseUnits", int)
"""ERC-20 asset in its smallest unit (USDC: 1e-6)."""
PricePerToken = NewType("PricePerToken", int)
"""Base units per token, times 1000 (the marketplace's PRICE_PRECISION)."""
Tokens = NewType("Tokens", int)
"""Count of LLM tokens."""
TokenId = NewType("TokenId", int)
"""Index into a model's vocabulary."""
Bytes = NewType("Bytes", int)
Seconds = NewType("Seconds", float)
BlockNumber = NewType("BlockNumber", int)
BlockTime = NewType("BlockTime", int)
"""Unix seconds as the block header states them."""
