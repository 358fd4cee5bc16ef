"""The Debian-userland test image: built and booted by tests/benchmarks/appliance.py."""
