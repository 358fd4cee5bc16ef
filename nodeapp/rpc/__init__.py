"""What one process may ask of another; one file a process."""
