"""EVM adapter: providers with failover, contracts, events, transactions. The only importer of web3."""
