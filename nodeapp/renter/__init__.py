"""The other side of the market: find a host, pay, stream, acknowledge, verify."""
