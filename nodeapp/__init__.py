"""The Fabstir host node: see README.md for the map."""

__version__ = "0.1.0"
