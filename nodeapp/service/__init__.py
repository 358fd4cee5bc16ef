"""The shell every process shares: config, lifecycle, Unix-socket HTTP, logs, metrics, clock."""
