"""The prover process: EZKL ledger proofs, their keys and their queue. Only importer of ezkl."""
