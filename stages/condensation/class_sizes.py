"""Whether the classes of a dataset have images enough."""

from condensation.datasets import Dataset


def require_images(dataset: Dataset, at_least: int) -> None:
    """Check that every class has images enough.

    Raises:
        ValueError: A class has fewer than `at_least`.
    """
    sizes = dataset.labels.bincount(minlength=dataset.num_classes).tolist()
    for size, name in zip(sizes, dataset.class_names, strict=True):
        if size < at_least:
            raise ValueError(
                f"class '{name}': has {size} images, fewer than the {at_least} asked for"
            )
