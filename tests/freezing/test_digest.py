"""The digest of frozen values against big integers of plain Python."""

import random
import struct
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from freezetrain.freezing import layout as module
from freezetrain.freezing.layout import as_hex, combined, value_digest

WORD = 2**64


def mixed(bits: int) -> int:
    """SplitMix64's finalizer as in Vigna's splitmix64.c, with Stafford's constants 13."""
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % WORD
    return bits ^ (bits >> 31)


def expected(values: list[float], number: int, before: int) -> int:
    total = 0
    for place, value in enumerate(values, start=before):
        (bits,) = struct.unpack("<Q", struct.pack("<d", value))
        total += mixed((bits + (number * 2**40 + place) * 0x9E3779B97F4A7C15) % WORD)
    return total % WORD


def random_values(count: int, seed: int = 0) -> Tensor:
    """Exact in bfloat16, of all magnitudes, with zeros of both signs and infinities."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(seed)).bfloat16().double()
    values[::7] *= 2.0**100
    values[1::7] *= 2.0**-100
    for place, special in zip((3, 10, 11, 17), (0.0, -0.0, torch.inf, -torch.inf), strict=True):
        values[place] = special
    return values


@pytest.mark.parametrize(("number", "before"), [(0, 0), (1, 0), (0, 1), (700, 3_000_000_000)])
def test_equals_big_integers(number: int, before: int) -> None:
    values = random_values(100)
    found = value_digest(values, number, before)
    assert (found.dtype, found.shape) == (torch.int64, ())
    assert int(found) % WORD == expected(values.tolist(), number, before)


def test_a_known_value() -> None:
    """Digests stand in checkpoints and logs, so that they must stay what they are."""
    assert as_hex(int(value_digest(torch.tensor([1.0, -2.5]), 3, 4))) == "50f56dfc3a4e4cd5"


def test_parts_add_up_to_the_whole_in_any_order() -> None:
    values = random_values(100)
    whole = int(value_digest(values, 2, 0))
    cuts = [0, 1, 1, 18, 64, 100]
    parts = [int(value_digest(values[start:end], 2, start)) for start, end in pairwise(cuts)]
    random.Random(0).shuffle(parts)
    assert combined(parts) == whole
    assert as_hex(combined(parts)) == f"{expected(values.tolist(), 2, 0):016x}"


def test_chunks_change_nothing(monkeypatch) -> None:
    values = random_values(100)
    whole = int(value_digest(values, 5, 9))
    for size in (1, 33, 100, 101):
        monkeypatch.setattr(module, "_CHUNK", size)
        assert int(value_digest(values, 5, 9)) == whole


def test_the_dtype_does_not_count() -> None:
    values = random_values(100)
    digests = {int(value_digest(values.to(dtype), 1, 0)) for dtype in (torch.double, torch.float)}
    digests.add(int(value_digest(values.bfloat16(), 1, 0)))
    assert len(digests) == 1
    halves = torch.randn(50).half()
    assert int(value_digest(halves, 0, 0)) == int(value_digest(halves.double(), 0, 0))


def swapped(values: Tensor) -> None:
    values[[20, 21]] = values[[21, 20]]


def flipped_in_the_last_bit(values: Tensor) -> None:
    values.view(torch.int64)[50] ^= 1


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        flipped_in_the_last_bit,
        lambda values: values[3].neg_(),  # 0 to -0
        lambda values: values[10].neg_(),  # -0 to 0
        lambda values: values[60].fill_(torch.nan),
        lambda values: values.copy_(values.roll(1)),
    ],
    ids=["two swapped", "last bit", "zero's sign", "minus zero's sign", "nan", "rolled"],
)
def test_sees_a_change(change) -> None:
    values = random_values(100)
    before = value_digest(values, 0, 0)
    change(values)
    assert value_digest(values, 0, 0) != before


def test_the_same_values_elsewhere_have_another_digest() -> None:
    values = torch.ones(4)
    places = [(number, before) for number in range(4) for before in range(4)]
    assert len({int(value_digest(values, *place)) for place in places}) == len(places)


def test_nan_is_equal_to_itself_in_any_dtype() -> None:
    values = torch.tensor([1.0, torch.nan]).bfloat16()  # widened; rounding may renew it
    kinds = (torch.double, torch.float, torch.bfloat16)
    assert len({int(value_digest(values.to(kind), 0, 0)) for kind in kinds}) == 1


def test_nothing_has_the_digest_zero() -> None:
    assert int(value_digest(torch.zeros(0), 3, 7)) == combined([]) == 0


def test_combined_wraps_as_torch_does() -> None:
    source = random.Random(1)
    parts = [source.randrange(-(2**63), 2**63) for _ in range(50)]
    assert combined(parts) == int(torch.tensor(parts).sum())
    assert combined([2**63 - 1, 1]) == -(2**63)


def test_hex_is_unsigned_and_padded() -> None:
    assert [as_hex(digest) for digest in (0, 1, -1, -(2**63))] == [
        "0000000000000000",
        "0000000000000001",
        "ffffffffffffffff",
        "8000000000000000",
    ]
