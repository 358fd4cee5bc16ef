"""EVM adapter: failover, contracts, events, transactions. The only importer of web3."""
