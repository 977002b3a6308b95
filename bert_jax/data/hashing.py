"""Draws random numbers without state: a counter hash on uint64 arrays, and permutations made from it.

Every random choice of the data is `bits(key(seed, epoch, "what"), where)`, which gives the same result
on every machine, in any order and for any part of the data.
"""

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MASK = 2**64 - 1
_ROUNDS = 8  # four suffice for large n, but leave a bias of 7% for n below 10


def key(*words: int | str) -> np.uint64:
    """Makes a key for `bits` from ints and the first 8 bytes of names: key(seed, epoch, "mask")."""
    state = 0
    for word in words:
        number = int.from_bytes(word.encode()[:8], "little") if isinstance(word, str) else word
        state = int(_mix(np.array([(state * _GOLDEN + number + _GOLDEN) & _MASK], np.uint64))[0])
    return np.uint64(state)


def bits(key: np.ndarray | np.uint64, where: np.ndarray) -> np.ndarray:
    """Draws 64 bits for each place: output number `where` of the splitmix64 generator seeded with `key`.

    Args:
        key: uint64 scalar or array, broadcast against `where`; an array of bits may serve as keys.
        where: array of non-negative ints.

    Returns:
        uint64 array.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
    """
    return _mix((np.asarray(where).astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN) + key)


def below(bits: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Turns uint64 bits into random int64 from 0 to n - 1 (0 where n is 0); n < 2^32."""
    n = np.asarray(n).astype(np.uint64)
    return (((bits >> np.uint64(32)) * n) >> np.uint64(32)).astype(np.int64)


def uniform(bits: np.ndarray) -> np.ndarray:
    """Turns uint64 bits into random float64 from 0 to 1, 1 excluded."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(
    key: np.ndarray | np.uint64, x: np.ndarray, n: np.ndarray | int, *, inverse: bool = False
) -> np.ndarray:
    """Returns the place of x in a pseudorandom permutation of range(n), without computing other places.

    A Feistel network on pairs (x // side, x % side) with side = ceil(sqrt(n)); a result of n or more is
    permuted again until it falls into range(n).

    Args:
        key: uint64 scalar or array; different keys give different permutations.
        x: ints in range(n).
        n: int or ints below 2^32; key, x and n are broadcast.
        inverse: undoes the permutation: permute(key, permute(key, x, n), n, inverse=True) == x.

    Returns:
        int64 array.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002.
    """
    key, x, n = np.broadcast_arrays(key, x, np.asarray(n, np.int64))
    side = np.ceil(np.sqrt(n)).astype(np.int64)
    result = _feistel(key, x, side, inverse)
    while (outside := result >= n).any():
        result[outside] = _feistel(key[outside], result[outside], side[outside], inverse)
    return result


def _feistel(key: np.ndarray, x: np.ndarray, side: np.ndarray, inverse: bool) -> np.ndarray:
    left, right = np.divmod(x, side)
    for turn in reversed(range(_ROUNDS)) if inverse else range(_ROUNDS):
        known, moved = (left, right) if inverse else (right, left)
        shift = below(bits(key, known * _ROUNDS + turn), side)
        moved = moved + (side - shift if inverse else shift)
        moved -= side * (moved >= side)
        left, right = (moved, known) if inverse else (known, moved)
    return left * side + right


def _mix(x: np.ndarray) -> np.ndarray:
    """Applies the finaliser of splitmix64 to a uint64 array, in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_MULTIPLIERS[0])
    x ^= x >> np.uint64(27)
    x *= np.uint64(_MULTIPLIERS[1])
    x ^= x >> np.uint64(31)
    return x
