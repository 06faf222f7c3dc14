"""The synthetic set as something to hand on: pictures, and a card that says what it is.

Shapes: N = number of images, image = (ch, h, w).
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from condensation.artefacts import SyntheticSet
from condensation.counts import counts_text
from condensation.files import write_bytes
from condensation.sources import Source

MOST_BYTES = 200
"""Of the name of a class in a path."""

CARD = """\
# {num_images} synthetic images of {title}

{num_images} images, {ipc} for each of {num_classes} classes, {channels} x {height} x {width} \
(channels, height, width). They are not
chosen from the real images but learned, by matching gradients (Zhao, Mopuri and Bilen, "Dataset
Condensation with Gradient Matching", ICLR 2021), so that a network trained on them alone does well
on real ones.

| file | holds |
|---|---|
| `synthetic.safetensors` | `images` ({num_images}, {channels}, {height}, {width}) float32, \
normalised; `labels` ({num_images}) int64; `mean` and `std` ({channels}) float32 |
| `images/` | the same as PNG, a folder for each class; limited to 0 to 1 and rounded to 8 bits |
| `snapshots/` | the images after fewer iterations, in the same format |

## How to use it

```python
from safetensors.torch import load_file

tensors = load_file("synthetic.safetensors")
images, labels = tensors["images"], tensors["labels"]
```

The images are normalised, as a network is to be given them. Normalise real images alike, from pixel
values between 0 and 1: `(pixels - mean) / std` with `mean` {mean} and `std` {std}. The way back,
`images * std + mean`, may leave 0 to 1 a little: the images were learned without that limit. The
tensors are what to train on; the PNG files are to look at.

`torchvision.datasets.ImageFolder("images")` reads the PNG files with the same labels.

{classes}

## How it was made

{settings}

## Source and licence

Learned from {title} ({origin}), which is under the licence {licence}. What is
derived from it may be handed on under the terms of that licence.
"""


def write_pictures(folder: Path, synthetic: SyntheticSet) -> None:
    """Write each image as PNG with its own pixels: `<class>/<number>.png`.

    The folders begin with the number of the class, so that their order is that of the labels.
    """
    width = len(str(len(synthetic.class_names) - 1))
    for index, (name, images) in enumerate(
        zip(synthetic.class_names, synthetic.pixels_by_class, strict=True)
    ):
        letters = re.sub(r"\W+", "_", name).encode()[:MOST_BYTES].decode(errors="ignore")
        place = folder / f"{index:0{width}d}_{letters}"
        for number, image in enumerate(images):
            write_bytes(place / f"{number:04d}.png", encode_png(image))


def encode_png(image: Tensor) -> bytes:
    """Return a PNG file of an image (ch, h, w) of values from 0 to 1; ch 1 (grey) or 3 (RGB)."""
    values = (image * 255).round().byte().cpu().numpy()
    array: np.ndarray = values[0] if len(values) == 1 else values.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def dataset_card(synthetic: SyntheticSet, source: Source, settings: Mapping[str, object]) -> str:
    """Return the card, in Markdown.

    Args:
        synthetic: The set.
        source: The real images that it was learned from.
        settings: What it was made with, name -> value.
    """
    num_images, channels, height, width = synthetic.images.shape
    made = []
    for name, value in settings.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        made += [f"- {name}{'.' if part else ''}{part}: {shown}" for part, shown in parts]
    return CARD.format(
        title=source.title,
        origin="; ".join(filter(None, [source.authors, source.address])),
        licence=source.licence,
        num_images=num_images,
        ipc=counts_text(synthetic.counts),
        num_classes=len(synthetic.counts),
        channels=channels,
        height=height,
        width=width,
        mean=[round(value, 4) for value in synthetic.mean.tolist()],
        std=[round(value, 4) for value in synthetic.std.tolist()],
        classes=_classes(synthetic),
        settings="\n".join(made),
    )


def _classes(synthetic: SyntheticSet) -> str:
    # The table of the classes; with the number of images of each where the numbers differ.
    rows = [["label", "class"], ["---", "---"]]
    names = (name.replace("|", r"\|") for name in synthetic.class_names)
    rows += [[str(index), name] for index, name in enumerate(names)]
    if len(set(synthetic.counts)) > 1:
        last = ("images", "---", *map(str, synthetic.counts))
        rows = [[*row, text] for row, text in zip(rows, last, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines[1] = f"|{'|'.join(rows[1])}|"
    return "\n".join(lines)


def write_product(
    folder: Path, synthetic: SyntheticSet, source: Source, settings: Mapping[str, object]
) -> None:
    """Write the card and the pictures beside `synthetic.safetensors`."""
    write_bytes(folder / "README.md", dataset_card(synthetic, source, settings).encode())
    write_pictures(folder / "images", synthetic)
