"""libp2p adapter: trio thread, host, DHT, streams. The only importer of libp2p and trio."""
