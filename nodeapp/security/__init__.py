"""Signatures, encryption to a wallet key, rate limits, sandboxing."""
