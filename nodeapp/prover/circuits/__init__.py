"""Circuits as they are used: compiled once, committed, never rebuilt by a node."""
