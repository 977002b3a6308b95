"""Fingerprints of arrays: computed on the devices that hold them, the same on any mesh."""

import hashlib
import json
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.training.mesh import path_name

HOST_WORDS = 1 << 20  # of an array in the host's memory that are mixed at a time
Words = TypeVar("Words", jax.Array, np.ndarray)  # uint32


def digests(tree: Any) -> dict[str, str]:
    """Returns a fingerprint of every array by path: 16 hex digits, the same on any mesh; gathers nothing.

    Scrambles every word of an array together with its position and sums the results modulo 2^32, once as they
    are and once times an odd number that depends on the position. The order of summation does not matter, and
    because both maps are one to one, a change of any one word changes both sums.
    """
    return in_hexadecimal(fingerprints(tree))


def fingerprints(tree: Any) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Starts to compute what `digests` returns, as two uint32 on the devices, and does not wait for it."""
    one_by_one = jax.default_backend() == "cpu" and jax.device_count() > 1
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found[path_name(path)] = _fingerprint(leaf)
        if one_by_one:  # CPU devices deadlock when two programs that sum over them are under way
            jax.block_until_ready(found[path_name(path)])
    return found


def in_hexadecimal(found: dict[str, tuple[jax.Array, jax.Array]]) -> dict[str, str]:
    """Waits for `fingerprints` and returns them as `digests` does."""
    return {path: f"{int(a):08x}{int(b):08x}" for path, (a, b) in jax.device_get(found).items()}


def host_digest(array: np.ndarray) -> str:
    """Returns the fingerprint of an array in the host's memory: that of `digests` for the same values."""
    kind = np.dtype(f"u{min(array.dtype.itemsize, 4)}")
    words = np.ascontiguousarray(array).reshape(-1).view(kind)
    total = weighted = 0
    for start in range(0, len(words), HOST_WORDS):
        part = words[start : start + HOST_WORDS].astype(np.uint32)
        position = np.arange(start, start + len(part)).astype(np.uint32)  # modulo 2^32, as on the devices
        mixed = _mix(part ^ _mix(position))
        total += int(mixed.sum(dtype=np.uint32))
        weighted += int((mixed * (position << 1 | 1)).sum(dtype=np.uint32))
    return f"{total % 2**32:08x}{weighted % 2**32:08x}"


def params_digest(params: Any) -> str:
    """Returns one hex digest of all parameters."""
    return combined_digest(digests(params))


def combined_digest(found: dict[str, str]) -> str:
    """Returns one hex digest of what `digests` returned."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


@jax.jit  # compiled once for each shape and sharding, not once for each save
def _fingerprint(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    words = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize])
    words = words.astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    mixed = _mix(words ^ _mix(position))
    odd = jnp.uint32(2) * position + jnp.uint32(1)
    return jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed * odd, dtype=jnp.uint32)


def _mix(x: Words) -> Words:
    """Applies the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
