"""Entries against numpy: a set is a bool array in the smallest of five forms; draws of indices."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.regions import Entries
from freezetrain.regions.canonical import fit_as_indices
from freezetrain.regions.entries import ONE_THREAD, draw_indices, narrow, put

SHAPES = [(), (1,), (7,), (200,), (5, 40), (40, 5), (64, 64), (8, 16), (3, 8, 20), (1, 9), (9, 1)]


def patterns(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Sets of every kind for a tensor of ``shape``."""
    rng = np.random.default_rng(len(shape) + sum(shape))
    masks = {"none": np.zeros(shape, bool), "all": np.ones(shape, bool)}
    masks["few"] = np.asarray(rng.random(shape) < 0.02)
    masks["half"] = np.asarray(rng.random(shape) < 0.5)
    masks["last"] = np.zeros(shape, bool)
    masks["last"].flat[-1] = True
    if len(shape) >= 2:
        masks["rows"] = np.zeros(shape, bool)
        masks["rows"][:: max(shape[0] // 2, 1)] = True
        masks["half the rows"] = np.zeros(shape, bool)
        masks["half the rows"][: shape[0] // 2] = True  # of 8 x 16: as many bytes as bits take
        masks["columns"] = np.zeros(shape, bool)
        masks["columns"][..., :: max(shape[-1] // 2, 1)] = True
        masks["most columns"] = np.ones(shape, bool)
        masks["most columns"][..., -1] = False
        # As many entries as whole rows have, without being whole rows.
        masks["shifted row"] = np.roll(masks["rows"].ravel(), 1).reshape(shape)
    return masks


CASES = [
    pytest.param(mask, id=f"{'x'.join(map(str, shape)) or 'scalar'} {name}")
    for shape in SHAPES
    for name, mask in patterns(shape).items()
]


def smallest_kind(mask: np.ndarray) -> str:
    """The kind with the fewest bytes by trying each, in the order that breaks ties."""
    if not mask.any():
        return "indices"
    sizes = {"all": 0} if mask.all() else {}
    if mask.ndim >= 2:
        rows = [row for row in range(mask.shape[0]) if mask[row].all()]
        if sum(mask[row].sum() for row in rows) == mask.sum():
            sizes["rows"] = 4 * len(rows)
        columns = [column for column in range(mask.shape[-1]) if mask[..., column].all()]
        if sum(mask[..., column].sum() for column in columns) == mask.sum():
            sizes["columns"] = 4 * len(columns)
    sizes["indices"] = 4 * int(mask.sum())
    sizes["bits"] = len(np.packbits(mask))
    return min(sizes, key=lambda kind: sizes[kind])  # the first of the smallest


@pytest.mark.parametrize("mask", CASES)
def test_form_is_the_smallest_and_gives_the_set_back(mask):
    entries = Entries.from_mask(torch.from_numpy(mask))
    assert entries.kind == smallest_kind(mask)
    assert entries.count == mask.sum()
    assert entries.numel == mask.size
    np.testing.assert_array_equal(entries.mask().numpy(), mask)
    np.testing.assert_array_equal(entries.indices().numpy(), np.flatnonzero(mask))
    assert entries.indices().dtype == torch.int64
    if entries.kind == "bits":
        np.testing.assert_array_equal(entries.data.numpy(), np.packbits(mask, bitorder="little"))
    assert entries.nbytes <= min(4 * entries.count, -(-mask.size // 8))


@pytest.mark.parametrize("mask", CASES)
def test_one_set_has_one_form_however_it_is_given(mask):
    entries = Entries.from_mask(torch.from_numpy(mask))
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(mask))
    assert Entries.from_indices(mask.shape, torch.from_numpy(shuffled)) == entries
    if mask.ndim >= 2:
        rows = mask.reshape(mask.shape[0], -1).all(1)
        if (mask == rows.reshape(-1, *[1] * (mask.ndim - 1))).all():
            assert Entries.from_rows(mask.shape, np.flatnonzero(rows).tolist()) == entries
        columns = mask.reshape(-1, mask.shape[-1]).all(0)
        if (mask == columns).all():
            assert Entries.from_columns(mask.shape, np.flatnonzero(columns).tolist()) == entries


def test_every_kind_occurs_in_the_cases():
    kinds = {Entries.from_mask(torch.from_numpy(case.values[0])).kind for case in CASES}
    assert kinds == {"all", "rows", "columns", "indices", "bits"}


def layouts(array: np.ndarray) -> dict[str, torch.Tensor]:
    """Tensors of one content with different strides, each with memory of its own."""
    tensor = torch.from_numpy(array)
    backwards = list(reversed(range(tensor.ndim)))
    made = {"contiguous": tensor.clone()}
    reversed_copy = tensor.permute(backwards).clone(memory_format=torch.contiguous_format)
    made["reversed strides"] = reversed_copy.permute(backwards)
    if tensor.ndim:
        wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype)
        made["every other column"] = wide[..., 1::2]
        made["every other column"].copy_(tensor)
    return made


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize("mask", CASES)
@pytest.mark.parametrize("held", ["smallest", "for training"])
def test_read_write_fill_touch_the_entries_alone_for_any_strides(mask, dtype, held):
    entries = Entries.from_mask(torch.from_numpy(mask))
    if held == "for training":
        entries = entries.for_training("cpu")
    before = (np.arange(mask.size, dtype=np.int64) % 100 + 1).astype(dtype).reshape(mask.shape)
    for tensor in layouts(before).values():
        read = entries.read(tensor)
        expected = before.copy()
        expected[mask] = 0
        entries.fill(tensor, 0)
        np.testing.assert_array_equal(read.numpy(), before[mask])  # a copy: fill left it alone
        np.testing.assert_array_equal(tensor.numpy(), expected)

        values = np.arange(mask.sum()).astype(dtype)
        expected[mask] = values
        entries.write(tensor, torch.from_numpy(values))
        np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("shape", [(40, 5), (64, 64), (5, 40)])
def test_a_write_beside_a_view_leaves_the_rest_of_its_storage(shape):
    for mask in patterns(shape).values():
        storage = torch.full((shape[0], 3 * shape[1]), 7.0)
        Entries.from_mask(torch.from_numpy(mask)).fill(storage[:, ::3], 0.0)
        assert int((storage == 0).sum()) == mask.sum()


def test_read_and_write_work_on_leaf_parameters_bit_for_bit():
    parameter = torch.nn.Parameter(torch.tensor([[-0.0, float("nan"), 3.0]] * 40))
    entries = Entries.from_columns(parameter.shape, [0, 1])
    saved = entries.read(parameter)
    bits = parameter.detach().view(torch.int32).clone()
    entries.fill(parameter, 5.0)
    assert parameter[0].tolist() == [5.0, 5.0, 3.0]
    assert not saved.requires_grad
    entries.write(parameter, saved)
    assert torch.equal(parameter.detach().view(torch.int32), bits)


@pytest.mark.parametrize("shape", [(200,), (5, 40), (3, 8, 20)])
def test_set_algebra_equals_numpy(shape):
    masks = list(patterns(shape).values())
    for left in masks:
        for right in masks:
            a, b = (Entries.from_mask(torch.from_numpy(mask)) for mask in (left, right))
            for got, expected in [
                (a | b, left | right),
                (a & b, left & right),
                (a - b, left & ~right),
                (a ^ b, left ^ right),
            ]:
                assert got == Entries.from_mask(torch.from_numpy(expected))
            assert (a == b) == np.array_equal(left, right)


@pytest.mark.parametrize("mask", CASES)
def test_narrow_equals_a_slice_of_the_flat_mask(mask):
    entries, flat = Entries.from_mask(torch.from_numpy(mask)), mask.reshape(-1)
    thirds = [flat.size * part // 3 for part in range(4)]
    cuts = {*pairwise(thirds), (0, flat.size), (0, 0), (flat.size, flat.size)}
    cuts |= {(flat.size // 2, min(flat.size // 2 + 1, flat.size)), (min(3, flat.size), flat.size)}
    for start, end in cuts:
        part = narrow(entries, start, end - start)
        assert part.shape == (end - start,)
        # The very form that the sliced mask has, so that equal sets compare equal.
        assert part == Entries.from_mask(torch.from_numpy(flat[start:end].copy()))
        assert part.count == flat[start:end].sum()


@pytest.mark.parametrize("mask", CASES)
def test_for_training_a_set_holds_no_bits_and_is_still_itself(mask):
    entries = Entries.from_mask(torch.from_numpy(mask))
    held = entries.for_training("cpu")
    assert held.kind == ("indices" if entries.kind == "bits" else entries.kind)
    assert held.nbytes <= 4 * held.count == 4 * entries.count
    assert held == entries
    assert entries == held
    assert held != Entries.from_mask(torch.from_numpy(np.asarray(~mask)))
    np.testing.assert_array_equal(held.mask().numpy(), mask)


def test_where_memory_is_dear_only_few_bits_become_indices():
    for share, kind in [(0.1, "indices"), (0.2, "bits")]:
        mask = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < share
        assert Entries.from_mask(mask).for_training("meta").kind == kind


def test_tensors_without_entries():
    nothing = Entries.empty((0, 4))
    assert Entries.whole((0, 4)) == nothing
    assert Entries.from_mask(torch.zeros(0, 4, dtype=torch.bool)) == nothing
    assert Entries.from_rows((4, 0), [1, 2]) == Entries.empty((4, 0))
    assert nothing.read(torch.zeros(0, 4)).shape == (0,)


def test_indices_are_for_tensors_that_int32_can_index():
    assert fit_as_indices((2**31 - 1,), 1)
    assert not fit_as_indices((2**30, 2), 1)


def test_sets_of_one_content_and_other_shapes_differ():
    assert Entries.from_indices((2, 50), [3]) != Entries.from_indices((50, 2), [3])
    assert Entries.whole((2,)) != "all"


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Entries.from_indices((3, 4), [0, 12]), "0 to 11, got 12"),
        (lambda: Entries.from_indices((3, 4), [-1]), "0 to 11, got -1"),
        (lambda: Entries.from_indices((3, 4), [5, 2, 5]), "got 5 more than once"),
        (lambda: Entries.from_indices((3, 4), torch.tensor([0.0])), "integers"),
        (lambda: Entries.from_indices((3,), torch.tensor([True])), "integers"),
        (lambda: Entries.from_indices((3, 4), [[1, 2]]), "one dimension"),
        (lambda: Entries.from_rows((3, 4), [3]), "0 to 2, got 3"),
        (lambda: Entries.from_columns((3, 4), [1, 1]), "got 1 more than once"),
        (lambda: Entries.from_rows((3,), [1]), "2 dimensions"),
        (lambda: Entries.from_mask(torch.ones(3)), "torch.bool, got torch.float32"),
        (lambda: Entries.whole((3,)) | Entries.whole((4,)), r"\[3\] and \[4\]"),
        (lambda: Entries.whole((3,)).read(torch.zeros(4)), r"shape \[3\], got \[4\]"),
        (lambda: Entries.whole((3,)).fill(torch.zeros(3, 1), 0), r"shape \[3\], got \[3, 1\]"),
        (
            lambda: Entries.whole((3,)).write(torch.zeros(3), torch.zeros(2)),
            r"3 values .* got shape \[2\]",
        ),
        (
            lambda: Entries.whole((3,)).write(torch.zeros(3), torch.zeros(3).half()),
            "torch.float32, got .* torch.float16",
        ),
    ],
)
def test_refusals_say_what_was_expected_and_what_came(build, words):
    with pytest.raises(UserError, match=words):
        build()


SHAPE = (400, 350)
COUNTS = [0, 1, ONE_THREAD - 1, ONE_THREAD, 100_000]


@pytest.fixture
def deterministic():
    """Writing to unique places is deterministic, so that a user may ask for it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bool])
@pytest.mark.parametrize("one_value", [False, True])
@pytest.mark.parametrize("count", COUNTS)
def test_put_writes_what_numpy_writes_and_nothing_else(count, one_value, dtype, transposed):
    rng = np.random.default_rng(count)
    before = torch.from_numpy(rng.standard_normal(SHAPE)).to(dtype)
    index = rng.permutation(before.numel())[:count]
    values = torch.from_numpy(rng.integers(0, 2, count)).to(dtype)
    expected = before.numpy().copy()
    expected.flat[index] = 1 if one_value else values.numpy()
    tensor = before.T.clone(memory_format=torch.contiguous_format).T if transposed else before
    assert tensor.is_contiguous() != transposed

    put(tensor, torch.from_numpy(index), 1 if one_value else values)

    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("count", [0, 1, 30, 50, 51, 70, 99, 100])
def test_distinct_sorted_and_in_range(count):
    drawn = draw_indices(100, count, seed=0, name="weight").tolist()
    assert len(drawn) == count
    assert drawn == sorted(set(drawn))
    assert all(0 <= index < 100 for index in drawn)


@pytest.mark.parametrize("count", [3, 8])
def test_every_pair_is_equally_likely(count):
    trials, numel = 4000, 10
    pairs = torch.zeros(numel, numel)
    for seed in range(trials):
        drawn = draw_indices(numel, count, seed, "weight")
        pairs[drawn.unsqueeze(1), drawn] += 1
    expected = trials * count * (count - 1) / (numel * (numel - 1))
    off_diagonal = pairs[~torch.eye(numel, dtype=torch.bool)]
    # Five standard deviations of a binomial count.
    assert (off_diagonal - expected).abs().max() < 5 * expected**0.5
    assert (pairs.diagonal() - trials * count / numel).abs().max() < 5 * (
        trials * count / 10
    ) ** 0.5


def test_seed_and_name_both_matter():
    draws = {
        tuple(draw_indices(10_000, 5, seed, name).tolist())
        for seed in (0, 1)
        for name in ("a", "b")
    }
    assert len(draws) == 4


def test_the_draw_is_a_fixed_one():
    # A change here changes every seeded region that users have published.
    assert draw_indices(1000, 4, seed=0, name="weight").tolist() == [762, 788, 838, 981]
