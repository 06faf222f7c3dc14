"""Counts of what is taken for what."""

import pytest
import torch

from condensation.confusion import class_accuracy, confusion_matrix, overall_accuracy
from condensation.randomness import generator


def test_counts_against_a_loop() -> None:
    labels = torch.randint(0, 4, (200,), generator=generator(0, "labels"))
    predicted = torch.randint(0, 4, (200,), generator=generator(0, "predicted"))
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for true, taken in zip(labels.tolist(), predicted.tolist(), strict=True):
        expected[true, taken] += 1
    counts = confusion_matrix(predicted, labels, 4)
    assert torch.equal(counts, expected)
    assert overall_accuracy(counts) == pytest.approx(
        100 * (labels == predicted).double().mean().item()
    )


def test_accuracy_by_class_and_a_class_without_images() -> None:
    counts = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    by_class = class_accuracy(torch.stack([counts, counts.T.contiguous()]))
    assert by_class[0, :2].tolist() == [75, 100] and by_class[0, 2].isnan()
    assert by_class[1, :2].tolist() == pytest.approx([100, 200 / 3])
