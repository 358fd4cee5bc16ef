"""The watchdog: a supervisor event listener that restarts what runs but does not answer."""
