"""The process that holds the wallet key: ledger, chain watcher, transactions, claims."""
