"""A digest of frozen values that adds up: shards on many ranks give the digest of the whole."""

import torch
from torch import Tensor

_CHUNK = 1 << 20  # values at a time, so that the int64 temporaries stay small
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd, as a signed integer
# Finalizer of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators"
# (OOPSLA 2014), in Stafford's variant 13.
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


def value_digest(values: Tensor, number: int, before: int) -> Tensor:
    """Digest of ``values`` [n], a part of one parameter's frozen values: an int64 scalar.

    The sum over values of a 64-bit mix of the value's bits and its place, modulo 2^64. The place
    is the parameter's ``number`` in the region and the value's among all frozen ones of that
    parameter, of which ``before`` come earlier. So digests of parts add up to the digest of the
    whole, wherever the parts lie. Values are widened to float64, which is exact: the digest does
    not depend on the dtype that holds them. One changed value goes unseen with probability 2^-64;
    it is no defence against forgery.
    """
    if values.is_complex():
        values, before = torch.view_as_real(values).flatten(), 2 * before
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        first = before + start + (number << 40)
        place = torch.arange(first, first + len(part), device=part.device)
        total += _mix(part.double().view(torch.int64) + place * _GOLDEN).sum()
    return total


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def combined(digests: list[int]) -> int:
    """Sum modulo 2^64 as a signed integer, as torch wraps it."""
    total = sum(digests) & (2**64 - 1)
    return total - 2**64 if total >= 2**63 else total


def as_hex(digest: int) -> str:
    """16 hexadecimal digits."""
    return f"{digest & (2**64 - 1):016x}"
