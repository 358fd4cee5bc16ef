"""The prover process: EZKL ledger proofs, their keys and their queue. Only importer of ezkl."""

EZKL_MISSING = (
    "ezkl is not installed: it states no licence, so a package may leave it out. Take one that has "
    'it (Nix: node-ezkl, or withEzkl = true), or run without proofs: chain.proof = "off" and no '
    "prover in node.processes"
)
