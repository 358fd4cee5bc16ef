"""Pure: bytes that cross a boundary, decoded once into typed messages."""
