"""The updater process: snapshots of the journal, their verification and retention, versions."""
