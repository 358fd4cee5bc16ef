"""A status as text: a whole screen with a code, or what changed, for a serial line. Pure."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace

import segno

from nodeapp.console.status import ConsoleStatus, Phase

LABEL_COLUMNS = 11
LEAST_TEXT_COLUMNS = 40
BORDER = 2
"""Light modules around the code; readers want some."""
COLOURS = {
    Phase.SERVING: 32,
    Phase.FAULT: 31,
    Phase.ROLLED_BACK: 33,
    Phase.WAITING: 33,
    Phase.STOPPED: 33,
}
"""Of the phase's line (ECMA-48 SGR)."""
PHASE_LINE = 2


def code_lines(text: str) -> tuple[str, ...]:
    """A QR code of half blocks, light on a dark screen; no lines for an empty text."""
    if not text:
        return ()
    matrix = [bytes(row) for row in segno.make(text, error="l", micro=False).matrix]
    side = len(matrix) + 2 * BORDER

    def is_light(row: int, column: int) -> bool:
        y, x = row - BORDER, column - BORDER
        inside = 0 <= y < len(matrix) and 0 <= x < len(matrix)
        return row < side and not (inside and matrix[y][x])

    blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
    return tuple(
        "".join(blocks[is_light(row, x), is_light(row + 1, x)] for x in range(side))
        for row in range(0, side, 2)
    )


def screen(status: ConsoleStatus, *, width: int, height: int) -> tuple[str, ...]:
    """At most `height` lines of at most `width` columns; short of room, without code."""
    status = _printable(status)
    code = code_lines(status.code)
    text_columns = width - (len(code[0]) + 2 if code else 0)
    if code and text_columns >= LEAST_TEXT_COLUMNS and height > PHASE_LINE + 2 + len(code):
        body = list(_body(status, text_columns))
        side = (*code, status.code_label.center(len(code[0])).rstrip())
        if PHASE_LINE + 2 + max(len(body), len(side)) <= height:
            return (*_head(status, width), *_beside(body, side, text_columns + 2))
    lines = [*_head(status, width), *_body(status, width)]
    if len(lines) > height:
        lines = [*lines[: height - 1], "…"]
    return tuple(line[:width] for line in lines)


def _printable(status: ConsoleStatus) -> ConsoleStatus:
    """A process or a file may have said it: no text moves the cursor or writes elsewhere."""
    return replace(
        status,
        title=_plain_text(status.title),
        hostname=_plain_text(status.hostname),
        detail=_plain_text(status.detail),
        facts=tuple((label, _plain_text(value)) for label, value in status.facts),
        next_steps=tuple(map(_plain_text, status.next_steps)),
    )


def _plain_text(text: str) -> str:
    return "".join(
        one if one.isprintable() and unicodedata.east_asian_width(one) not in "WF" else "?"
        for one in " ".join(text.split())
    )


def _head(status: ConsoleStatus, width: int) -> Iterator[str]:
    gap = width - len(status.title)
    yield (
        status.title + status.hostname.rjust(gap) if gap > len(status.hostname) else status.title
    )
    yield "─" * width
    progress = f"  {status.progress}" if status.progress else ""
    yield f"{status.phase.upper()}{progress}"[:width]
    yield ""


def _body(status: ConsoleStatus, width: int) -> Iterator[str]:
    if status.detail:
        yield from _wrapped(status.detail, width)
        yield ""
    for label, value in status.facts:
        if value:
            yield from _wrapped(value, width, label)
    if status.next_steps:
        yield ""
    for number, step in enumerate(status.next_steps, start=1):
        name = "next" if number == 1 else ""
        text = f"{number}. {step}" if len(status.next_steps) > 1 else step
        yield from _wrapped(text, width, name)


def _wrapped(text: str, width: int, label: str | None = None) -> Iterator[str]:
    indent = "" if label is None else " " * LABEL_COLUMNS
    columns = max(1, width - len(indent))
    lines = textwrap.wrap(text, columns, break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        first = "" if label is None else label.ljust(LABEL_COLUMNS)
        yield (indent if number else first) + line


def _beside(left: Sequence[str], right: Sequence[str], columns: int) -> Iterator[str]:
    for number in range(max(len(left), len(right))):
        text = left[number] if number < len(left) else ""
        code = right[number] if number < len(right) else ""
        yield (text.ljust(columns) + code).rstrip() if code else text


def coloured(lines: Sequence[str], phase: Phase) -> str:
    """The whole screen for a terminal, drawn from its upper left corner."""
    shown = [f"{line}\x1b[K" for line in lines]
    if len(shown) > PHASE_LINE:
        colour = COLOURS.get(phase, 36)
        shown[PHASE_LINE] = f"\x1b[1;{colour}m{lines[PHASE_LINE]}\x1b[0m\x1b[K"
    return "\x1b[H" + "\r\n".join(shown) + "\x1b[J"


def plain_lines(before: ConsoleStatus | None, now: ConsoleStatus) -> tuple[str, ...]:
    """What a line-by-line console is told: everything at first, then what is new."""
    known = set() if before is None else set(_plain(_printable(before)))
    return tuple(f"fabstir: {line}" for line in _plain(_printable(now)) if line not in known)


def _plain(status: ConsoleStatus) -> Iterator[str]:
    yield f"{status.title} {status.hostname}".rstrip()
    yield f"{status.phase}{': ' if status.detail else ''}{status.detail}"
    yield from (f"{label} {value}" for label, value in status.facts if value)
    yield from (f"next: {step}" for step in status.next_steps)
