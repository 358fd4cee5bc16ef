"""Durable state on SQLite: the journal and its snapshots. The only importer of sqlite3."""
