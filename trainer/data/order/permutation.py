"""Seeded orders over any number of items without holding them: a keyed bijection on [0, size).

A four-round Feistel network over the next even power of two, walked until the result lies inside
(Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). Costs no memory and no state, so
that the position in an order is the whole state of a reader.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = (1 << 64) - 1
_ROUNDS: Final = 4


def mix(*numbers: int) -> int:
    """Hash whole numbers into 64 bits; the same on every machine (splitmix64's finaliser)."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state + (number & _MASK) * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def permute(index: int, size: int, key: int) -> int:
    """Return where `index` goes under the order that `key` names.

    Args:
        index: From 0 to size - 1.
        size: Number of items.
        key: Names the order.

    Raises:
        IndexError: `index` lies outside.
    """
    if not 0 <= index < size:
        raise IndexError(f"index {index} is outside an order of {size} items")
    half_bits = max(1, ((size - 1).bit_length() + 1) // 2)
    result = _encrypt(index, half_bits, key)
    while result >= size:
        result = _encrypt(result, half_bits, key)
    return result


def _encrypt(value: int, half_bits: int, key: int) -> int:
    half_mask = (1 << half_bits) - 1
    left, right = value >> half_bits, value & half_mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (mix(key, number, right) & half_mask)
    return (left << half_bits) | right
