"""Work whose answer is mostly in the prompt: editing, extracting, repeating code."""

from __future__ import annotations

from dataclasses import dataclass

_LETTER = """The committee met on Tuesday in the old library beside the river. Twelve members were
present and three had sent their excuses. The chair opened the meeting at nine and thanked the
caretaker, who had repaired the heating during the night. The minutes of the last meeting were
read and accepted without a change. The treasurer then reported that the fund had grown by four
percent and that the roof could be paid for before the winter."""
_CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        return self.balance

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        return self.balance
"""
_ORDERS = """order 1041, customer Anna Berg, city Bergen, total 120.50, status paid
order 1042, customer Ivan Petrov, city Sofia, total 88.00, status open
order 1043, customer Maria Lopez, city Madrid, total 412.25, status paid
order 1044, customer John Smith, city Leeds, total 15.75, status paid
order 1045, customer Chen Wei, city Dalian, total 230.10, status open
order 1046, customer Fatima Noor, city Amman, total 64.40, status paid
"""


@dataclass(frozen=True, slots=True)
class CopyTask:
    """A prompt, and how many tokens of the answer are asked for."""

    prompt: str
    tokens: int


COPY_TASKS = (
    CopyTask(f"Text:\n{_LETTER}\n\nThe same text, with the word Tuesday changed to Monday:\n", 96),
    CopyTask(
        f"```python\n{_CODE}```\n\nThe same file with a comment at the end:\n\n```python\n", 128
    ),
    CopyTask(f"All orders:\n{_ORDERS}\nThe list of all orders again:\n", 128),
    CopyTask(f"Original letter:\n{_LETTER}\n\nCopy of the letter for the archive:\n", 96),
)
