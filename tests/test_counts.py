"""How many images each class gets: as asked for, or in proportion, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from condensation.counts import class_counts, class_labels, counts_text, mean_ipc
from condensation.counts import proportional_counts as proportional

NAMES = ("cat", "dog", "7")


@pytest.mark.parametrize(
    "ipc, shares, expected",
    [
        (2, "equal", (2, 2, 2)),
        ({"7": 5, "cat": 1, "dog": 30}, "equal", (1, 30, 5)),
        (2, "proportional", (1, 2, 3)),
    ],
)
def test_counts(ipc: int | dict[str, int], shares: str, expected: tuple[int, ...]) -> None:
    assert class_counts(ipc, shares, NAMES, (10, 20, 30)) == expected
    assert class_labels(expected).bincount().tolist() == list(expected)


@pytest.mark.parametrize(
    "ipc, sizes, message",
    [
        ({"cat": 1, "dgo": 2}, (9, 9, 9), "ipc: unknown class 'dgo'; the dataset has classes "),
        ({"cat": 1}, (9, 9, 9), "ipc: has no number for classes 'dog', '7'; takes one for every"),
        (1, (9, 0, 0), "ipc: there are no real images of classes 'dog', '7'"),
    ],
)
def test_what_does_not_fit_the_classes_is_named(
    ipc: int | dict[str, int], sizes: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        class_counts(ipc, "equal", NAMES, sizes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "total, sizes, expected",
    [
        (30, (100, 100, 100), (10, 10, 10)),
        (10, (50, 30, 20), (5, 3, 2)),
        (7, (1, 1, 1), (3, 2, 2)),  # of equal remainders the first
        (10, (10000, 1, 1, 1), (7, 1, 1, 1)),  # one at least
        (8, (47, 16, 15, 12, 7, 3), (3, 1, 1, 1, 1, 1)),
        (10, (5, 3, 2), (5, 3, 2)),  # all there are
    ],
)
def test_proportions_by_hand(total: int, sizes: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert proportional(total, sizes) == expected


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=30), st.integers(1, 100))
def test_proportions_keep_the_mean_and_the_order(sizes: list[int], ipc: int) -> None:
    counts = proportional(ipc * len(sizes), sizes)
    assert sum(counts) == ipc * len(sizes) and min(counts) >= 1
    assert all(counts[a] >= counts[b] for a, b in zip(*orders(sizes), strict=True))
    if sum(counts) <= sum(sizes):
        assert all(count <= size for count, size in zip(counts, sizes, strict=True))


def orders(sizes: list[int]) -> tuple[list[int], list[int]]:
    """Classes next to each other by size: the larger ones, and the smaller beside each."""
    largest_first = sorted(range(len(sizes)), key=lambda c: -sizes[c])
    return largest_first[:-1], largest_first[1:]


def test_means_and_texts() -> None:
    assert mean_ipc(10) == 10 and mean_ipc({"a": 1, "b": 4}) == 2.5
    assert counts_text((3, 3)) == "3" and counts_text((7, 1, 4)) == "1 to 7"
