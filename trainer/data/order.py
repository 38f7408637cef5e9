"""The order of documents: a seeded permutation per source, and the mixture of sources."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from stabilizer.errors import ConfigurationError

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
    """Return the place of `index` in the permutation that `key` selects.

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


_MIXTURE = 1  # purpose of a key, so that no two orders are equal
_DOCUMENTS = 2
_SUBSTITUTES = 3
_INSIDE = 4
_NEAR_SUBSTITUTES = 4  # from where the document lies; a damaged stretch may be all that is there
_KEPT_LAYOUTS = 4  # passes whose blocks are laid out; ranks and workers read one or two at a time


class Place(NamedTuple):
    """A document by its source and its number in it."""

    source: str
    number: int


class MixtureOrder:
    """Sources, mixed by weight."""

    def __init__(
        self,
        blocks: Mapping[str, Sequence[int]],
        weights: Mapping[str, int],
        seed: int,
        *,
        shuffle_blocks: int = 0,
    ) -> None:
        """Take blocks and weight of each source.

        Args:
            blocks: Documents in each stretch that is read at once, by source.
            weights: By source.
            seed: Names the order.
            shuffle_blocks: Blocks that are shuffled with each other; 0: all.

        Raises:
            ConfigurationError: A weight names no source.
        """
        absent = sorted(set(weights) - set(blocks))
        if absent:
            raise ConfigurationError(f"data.sources: {absent[0]!r} is not in the corpus")
        self._names = sorted(weights)
        self._orders = [_SourceOrder(blocks[name], shuffle_blocks) for name in self._names]
        self._weights = [weights[name] for name in self._names]
        self._ends = list(accumulate(self._weights))
        self._seed = seed

    @property
    def documents(self) -> int:
        """Number of documents in all sources."""
        return sum(order.size for order in self._orders)

    def locate(self, position: int) -> Place:
        """Return the document at a position."""
        source, turn = self._turn(position)
        order = self._orders[source]
        number_of_pass, index = divmod(turn, order.size)
        return Place(self._names[source], order.number(index, self._key(source, number_of_pass)))

    def substitute(self, position: int, attempt: int) -> Place:
        """Return the substitute for the document of this position, which is unusable.

        It is drawn at random from what is shuffled together with that document: damage often lies
        side by side, and what is near is cheap to read. From the fifth attempt on it is drawn from
        the whole source, since all that is near may be damaged.

        Args:
            position: Position of the document.
            attempt: From 1; each gives another draw.
        """
        source, turn = self._turn(position)
        order = self._orders[source]
        number_of_pass, index = divmod(turn, order.size)
        draw = mix(self._seed, _SUBSTITUTES, position, attempt)
        if attempt > _NEAR_SUBSTITUTES:
            return Place(self._names[source], draw % order.size)
        key = self._key(source, number_of_pass)
        return Place(self._names[source], order.substitute(index, key, draw))

    def _key(self, source: int, number_of_pass: int) -> int:
        return mix(self._seed, _DOCUMENTS, source, number_of_pass)

    def _turn(self, position: int) -> tuple[int, int]:
        """Return the source at a position, and how many documents of it came before."""
        period, offset = divmod(position, self._ends[-1])
        slot = permute(offset, self._ends[-1], mix(self._seed, _MIXTURE, period))
        source = bisect_right(self._ends, slot)
        weight = self._weights[source]
        return source, period * weight + slot - (self._ends[source] - weight)


class _Layout(NamedTuple):
    """The blocks of one pass, in the order in which they come."""

    blocks: list[int]
    """Numbers of the blocks."""
    ends: list[int]
    """Documents up to the end of each."""


class _SourceOrder:
    """The documents of one source in one pass: blocks in random order, some shuffled together.

    Without `together` there is one block, the whole source.
    """

    def __init__(self, blocks: Sequence[int], together: int) -> None:
        self._blocks = [count for count in blocks if count] if together else [sum(blocks)]
        self._starts = [0, *accumulate(self._blocks)]
        self._together = max(together, 1)
        self.size = self._starts[-1]
        self._layouts: dict[int, _Layout] = {}

    def number(self, index: int, key: int) -> int:
        """Return the number of the document that comes index-th in the pass that `key` names."""
        if len(self._blocks) == 1:
            return permute(index, self.size, key)
        start, end = self._chunk(index, key)
        inside = permute(index - start, end - start, mix(key, _INSIDE, start))
        return self._resolve(start + inside, key)

    def substitute(self, index: int, key: int, draw: int) -> int:
        """Return another document of those that are shuffled together with this one."""
        start, end = self._chunk(index, key)
        return self._resolve(start + draw % (end - start), key)

    def _chunk(self, index: int, key: int) -> tuple[int, int]:
        """Return where the blocks that are shuffled together begin and end in this pass."""
        ends = self._layout(key).ends
        first = bisect_right(ends, index) // self._together * self._together
        last = min(first + self._together, len(ends)) - 1
        return (ends[first - 1] if first else 0), ends[last]

    def _resolve(self, place: int, key: int) -> int:
        """Return the document at a place of the pass, before those of a chunk are shuffled."""
        layout = self._layout(key)
        block = bisect_right(layout.ends, place)
        before = layout.ends[block - 1] if block else 0
        return self._starts[layout.blocks[block]] + place - before

    def _layout(self, key: int) -> _Layout:
        if key not in self._layouts:
            if len(self._layouts) == _KEPT_LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            count = len(self._blocks)
            blocks = [permute(i, count, key) for i in range(count)]
            ends = list(accumulate(self._blocks[block] for block in blocks))
            self._layouts[key] = _Layout(blocks, ends)
        return self._layouts[key]
