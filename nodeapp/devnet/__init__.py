"""Local chain: our own contracts, their deployment, and a funded host and renter."""
