"""A span of every day in which something may happen, as `02:00-05:00`, UTC; pure.

It may go over midnight. The beginning belongs to it, the end does not. "" is the whole day, and so
is a span that ends as it begins.
"""

from __future__ import annotations

DAY_SECONDS = 86_400


def seconds_until(window: str, unix_seconds: float) -> float:
    """Until it begins; 0 inside it. Args: `window` was checked by the settings."""
    if not window:
        return 0.0
    begin, end = (_seconds(part) for part in window.split("-"))
    now = unix_seconds % DAY_SECONDS
    length = (end - begin) % DAY_SECONDS or DAY_SECONDS
    if (now - begin) % DAY_SECONDS < length:
        return 0.0
    return (begin - now) % DAY_SECONDS


def _seconds(time: str) -> int:
    hours, minutes = time.split(":")
    return int(hours) * 3600 + int(minutes) * 60
