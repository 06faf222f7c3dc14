"""AlexNet, VGG11 and ResNet18 for images of 32 x 32, as the condensation literature has them.

Layers as in the code of Zhao, Mopuri and Bilen (ICLR 2021, VICO-UoE/DatasetCondensation), which
took them from the usual CIFAR versions. Images of 28 x 28 are padded to 32 x 32 by the first
convolution (ResNet18 takes them as they are). Larger images are taken where the last layer can:
it grows with them.

Shapes: B = batch, image = (ch, h, w).
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from condensation.layers import ACTIVATIONS, AveragePool, MaxPool, mnist_border, require_size
from condensation.normalisation import NORMS, Norm

Shape = tuple[int, int, int]


def alexnet(
    image_shape: Shape,
    num_classes: int,
    *,
    width: int = 64,
    norm: str = "none",
    activation: str = "relu",
) -> nn.Module:
    """AlexNet (Krizhevsky, Sutskever and Hinton, 2012) for 32 x 32, as in Zhao et al.

    Convolutions of 2, 3, 4, 3 and 3 times `width` filters, the first two of 5 x 5 and the others of
    3 x 3, each with norm and activation; 2 x 2 maximum pooling after the first, second and last;
    one linear classifier. The published one has no norm.

    Raises:
        ValueError: The image is too small.
    """
    require_size("alexnet", image_shape, 8)
    filters = [2 * width, 3 * width, 4 * width, 3 * width, 3 * width]
    return _plain(
        image_shape, num_classes, filters, [5, 5, 3, 3, 3], {0, 1, 4}, NORMS[norm], activation
    )


def vgg11(
    image_shape: Shape,
    num_classes: int,
    *,
    width: int = 64,
    norm: str = "instance",
    activation: str = "relu",
) -> nn.Module:
    """VGG11 (Simonyan and Zisserman, ICLR 2015) for 32 x 32, as in Zhao et al.

    Eight 3 x 3 convolutions of 1, 2, 4, 4, 8, 8, 8 and 8 times `width` filters, each with norm and
    activation; 2 x 2 maximum pooling after the first, second, fourth, sixth and last; one linear
    classifier.

    Raises:
        ValueError: The image is too small.
    """
    require_size("vgg11", image_shape, 32)
    filters = [width * times for times in (1, 2, 4, 4, 8, 8, 8, 8)]
    return _plain(
        image_shape, num_classes, filters, [3] * 8, {0, 1, 3, 5, 7}, NORMS[norm], activation
    )


def _plain(
    image_shape: Shape,
    num_classes: int,
    filters: list[int],
    kernels: list[int],
    pooled: set[int],
    norm: Norm,
    activation: str,
) -> nn.Module:
    # Convolutions one after the other, with 2 x 2 maximum pooling after those in `pooled`.
    border = mnist_border(image_shape)
    channels, height, width = image_shape[0], *(side + 2 * border for side in image_shape[1:])
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (outputs, kernel) in enumerate(zip(filters, kernels, strict=True)):
        padding = kernel // 2 + (0 if index else border)
        layers[f"conv{index}"] = nn.Conv2d(channels, outputs, kernel, padding=padding)
        layers[f"norm{index}"] = norm((outputs, height, width))
        layers[f"activation{index}"] = ACTIVATIONS[activation]()
        channels = outputs
        if index in pooled:
            layers[f"pool{index}"] = MaxPool()
            height, width = height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(channels * height * width, num_classes)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with a norm, beside a shortcut (He et al., CVPR 2016).

    A block that halves the image does it in the first convolution and in the shortcut, by stride 2
    or, where `averaged`, by 2 x 2 average pooling after them.
    """

    def __init__(
        self,
        shape: Shape,
        outputs: int,
        *,
        halves: bool,
        averaged: bool,
        norm: Norm,
        activation: Callable[[], nn.Module],
    ) -> None:
        """Build the block.

        Args:
            shape: (ch, h, w) of what it gets.
            outputs: Channels of what it gives.
            halves: Whether it halves height and width.
            averaged: Whether it does so by average pooling.
            norm: Makes the norms.
            activation: Makes the activations.
        """
        super().__init__()
        channels, height, width = shape
        stride = 2 if halves and not averaged else 1
        before = (outputs, -(-height // stride), -(-width // stride))
        after = (outputs, height // 2, width // 2) if halves and averaged else before
        self.shape: Shape = after
        self.conv0 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.norm0 = norm(before)
        self.activation0 = activation()
        self.pool = AveragePool() if halves and averaged else nn.Identity()
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1 = norm(after)
        self.activation1 = activation()
        self.shortcut: nn.Module = nn.Identity()
        if halves or channels != outputs:
            self.shortcut = nn.Sequential(
                OrderedDict[str, nn.Module](
                    conv=nn.Conv2d(channels, outputs, 1, stride, bias=False),
                    pool=AveragePool() if halves and averaged else nn.Identity(),
                    norm=norm(after),
                )
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return the activations (B, outputs, h, w), halved where the block halves."""
        inner = self.pool(self.activation0(self.norm0(self.conv0(images))))
        total: Tensor = self.activation1(self.norm1(self.conv1(inner)) + self.shortcut(images))
        return total


class GlobalAverage(nn.Module):
    """The mean of each channel over the image."""

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, ch) of (B, ch, h, w)."""
        return images.mean((-2, -1))


def resnet18(
    image_shape: Shape,
    num_classes: int,
    *,
    width: int = 64,
    norm: str = "instance",
    activation: str = "relu",
    downsampling: str = "stride",
) -> nn.Module:
    """ResNet18 (He et al., CVPR 2016) for 32 x 32, as in Zhao et al.

    A 3 x 3 convolution of `width` filters, then four pairs of residual blocks of 1, 2, 4 and 8
    times `width` channels; the first block of the last three pairs halves the image. With
    `downsampling: stride` the mean of what is left (4 x 4 at 32 x 32) goes to a linear classifier.
    `avg` is the variant that Zhao et al. condense with ("ResNet18_AP"): it halves by average
    pooling, so that no pixel is skipped, and classifies what is left without a mean.

    Raises:
        ValueError: The image is too small.
    """
    averaged = DOWNSAMPLINGS[downsampling]
    require_size("resnet18", image_shape, 16)
    make_norm, make_activation = NORMS[norm], ACTIVATIONS[activation]
    shape = (width, image_shape[1], image_shape[2])
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False),
        norm=make_norm(shape),
        activation=make_activation(),
    )
    for pair, times in enumerate((1, 2, 4, 8)):
        for member in range(2):
            block = ResidualBlock(
                shape,
                times * width,
                halves=pair > 0 and member == 0,
                averaged=averaged,
                norm=make_norm,
                activation=make_activation,
            )
            layers[f"block{2 * pair + member}"] = block
            shape = block.shape
    channels, height, width_px = shape
    layers["flatten"] = nn.Flatten() if averaged else GlobalAverage()
    features = channels * height * width_px if averaged else channels
    layers["classifier"] = nn.Linear(features, num_classes)
    return nn.Sequential(layers)


DOWNSAMPLINGS: dict[str, bool] = {"stride": False, "avg": True}
"""How `resnet18` halves images; the value: by average pooling."""
