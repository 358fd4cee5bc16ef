"""What is wrong with a CONFIG: file, key, what is the matter and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a CONFIG is not taken over."""

    file: str
    problem: str
    remedy: str
    key: str = ""
    """In the file; "" when it is the file as a whole."""

    def text(self) -> str:
        """One line for people."""
        where = f"{self.file}, {self.key}" if self.key else self.file
        return f"{where}: {self.problem}; {self.remedy}"
