"""One option of a line of iptables-save, as matches and targets take it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """`! --dport 80`: name, words and whether it is negated."""

    name: str
    words: tuple[str, ...] = ()
    negated: bool = False

    @property
    def word(self) -> str:
        """Its only word; ValueError when it has another number of words."""
        (word,) = self.words
        return word

    @property
    def text(self) -> str:
        """As written."""
        return " ".join((*("!",) * self.negated, self.name, *self.words))


def masked(word: str, width: int = 32) -> tuple[int, int]:
    """`0x4000/0x4000` → (value, mask); without a mask, one of `width` bits."""
    value, _, mask = word.partition("/")
    return int(value, 0), int(mask, 0) if mask else (1 << width) - 1
