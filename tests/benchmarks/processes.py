"""Memory and processor time of a set of processes, as the kernel counts them.

Memory: PSS (shared pages divided among their users) from /proc/<pid>/smaps. The mapped GGUF is
told apart by its path, so "without the model" leaves its pages out, whoever holds them resident.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB of one process; `model` is the part of the PSS that belongs to the mapped GGUF."""

    name: str
    pss: float
    rss: float
    model: float

    @property
    def own(self) -> float:
        """PSS without the model."""
        return self.pss - self.model


def memory_of(pid: int, model_path: Path) -> Memory:
    """Read one process; it must be ours and alive."""
    pss = rss = model = 0
    is_model = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        mapping = _MAPPING.match(line)
        if mapping is not None:
            is_model = mapping[1] == str(model_path)
        elif line.startswith("Pss:"):
            kib = int(line.split()[1])
            pss += kib
            model += kib * is_model
        elif line.startswith("Rss:"):
            rss += int(line.split()[1])
    return Memory(name_of(pid), pss / 1024, rss / 1024, model / 1024)


def name_of(pid: int) -> str:
    """The program's short name: `p2p` for `-m nodeapp.p2p.main`, `supervisord`, a file's stem."""
    words = psutil.Process(pid).cmdline()
    for word in words:
        if word.startswith("nodeapp.") and word.endswith(".main"):
            return {"storage": "s5"}.get(word.split(".")[1], word.split(".")[1])
        if word.startswith("tests.benchmarks."):
            return word.rpartition(".")[2]
        if word.endswith("supervisord"):
            return "supervisord"
        if word.endswith(".py"):
            return Path(word).stem
    return words[0] if words else "?"


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """User and system time of each process that lives, its ended children included."""
    used: dict[int, float] = {}
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        used[pid] = times.user + times.system + times.children_user + times.children_system
    return used


def machine_cpu_seconds() -> float:
    """Processor time that anybody has used since boot; a hypervisor's share is not idle either."""
    times = psutil.cpu_times()
    return times.user + times.system + times.irq + times.softirq + times.steal


def cpu_spent(before: dict[int, float], after: dict[int, float]) -> dict[str, float]:
    """Seconds by program name between two readings."""
    spent: dict[str, float] = {}
    for pid, seconds in after.items():
        try:
            name = name_of(pid)
        except psutil.NoSuchProcess:
            continue
        spent[name] = spent.get(name, 0.0) + seconds - before.get(pid, 0.0)
    return spent
