"""The process renters meet: libp2p, discovery, admission, the relay of answers."""
