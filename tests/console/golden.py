"""Writes tests/console/golden anew: `python -m tests.console.golden`; look at it before a commit."""

from nodeapp.console.screen import plain_lines
from nodeapp.console.status import status_of
from tests.console.samples import SAMPLES
from tests.console.test_console import GOLDEN, SIZES, drawn

if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, seen in SAMPLES.items():
        for size in SIZES:
            path = GOLDEN / f"{name}-{size[0]}x{size[1]}.txt"
            path.write_text(drawn(name, *size), "utf-8")
        lines = plain_lines(None, status_of(seen))
        (GOLDEN / f"{name}.serial.txt").write_text("\n".join(lines) + "\n", "utf-8")
