"""S5 adapter: content identifiers, blob store, embedded portal and client."""
