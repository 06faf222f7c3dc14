"""Real images where they are used: uint8 all along, normalised only as a batch.

On a device that has room for them they lie there whole. Otherwise they stay in the host's memory,
where the file is mapped rather than read, and what a batch takes of them is copied.

Shapes: n = number of images, B = batch, image = (ch, h, w).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from condensation.datasets import Dataset, normalised
from condensation.devices import to_device

SHARE = 0.5
"""Part of a device's free memory that the images may take: the rest is for the work."""


def fits(num_bytes: int, device: torch.device) -> bool:
    """Tell whether so much is to lie on the device; to the CPU, what is mapped is at hand."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return num_bytes <= SHARE * free


class RealImages:
    """All images of a dataset; indexing and splitting give them normalised, on the device.

    Attributes:
        device: Where batches come.
        on_device: Whether all images lie there.
    """

    def __init__(
        self, dataset: Dataset, device: torch.device, on_device: bool | None = None
    ) -> None:
        """Put the images where they are to be.

        Args:
            dataset: The images and their statistics.
            device: Where batches are needed.
            on_device: Whether all images are put there; None: if they fit.
        """
        if on_device is None:
            on_device = fits(dataset.images.nbytes, device)
        self.device, self.on_device = device, on_device
        self._dataset = dataset
        self._images = dataset.images.to(device) if on_device else dataset.images
        # There once: an image step that is recorded must not read the host's memory.
        self._mean, self._std = dataset.mean.to(device), dataset.std.to(device)

    @property
    def shape(self) -> torch.Size:
        """(n, ch, h, w)."""
        return self._images.shape

    def __len__(self) -> int:
        """N."""
        return len(self._images)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return the chosen images, (B, ch, h, w) float32, normalised."""
        return self.normalise(self.rows(index))

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in blocks of `size`, normalised, like `Tensor.split`."""
        for begin in range(0, len(self), size):
            yield self[begin : begin + size]

    def rows(self, index: Tensor | slice) -> Tensor:
        """Return the chosen images as they are, (B, ch, h, w) uint8.

        Neither the copy of the index nor that of the images holds up whoever asks for them, if the
        index is in the host's memory; one that is on the device is for images that are there.
        """
        if isinstance(index, Tensor):
            index = to_device(index, self._images.device)
        return to_device(self._images[index], self.device)

    def normalise(self, rows: Tensor) -> Tensor:
        """Return uint8 images as float32 with mean 0 and standard deviation 1."""
        return normalised(rows, self._mean, self._std)
