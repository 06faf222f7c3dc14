"""Network architectures as functions of their parameters. One function each, in `NETWORKS`.

A network holds no weights: it is called with `theta`, a dict from parameter name to tensor, so that
derivatives with respect to the parameters are derivatives of an ordinary function.

Shapes: B = batch, C = classes, image = (ch, h, w).
"""

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from condensation.deep_networks import alexnet, resnet18, vgg11
from condensation.devices import to_device
from condensation.fused import fused
from condensation.layers import ACTIVATIONS, POOLINGS, mnist_border, require_size
from condensation.mixed_tangents import mixed_pass
from condensation.normalisation import NORMS, BatchNorm, channel_statistics
from condensation.tangents import has_rules, in_kernels, tangent_pass

Theta = dict[str, Tensor]
"""The parameters of a network, by name."""

NetworkFunction = Callable[[Theta, Tensor], Tensor]
"""`(theta, images (B, ch, h, w)) -> logits (B, C)`."""


class Network:
    """A module without weights, as a function `(theta, images) -> logits`.

    With batch norm the logits of an image depend on the others of its batch, until `frozen` gives
    the function in which the statistics are constants.
    """

    def __init__(self, module: nn.Module, statistics: Theta | None = None) -> None:
        """Wrap a module; its own parameters give names and shapes only.

        Args:
            module: The architecture.
            statistics: What is constant: what its batch norms use, as `batch_statistics` returns
                it (they have to be frozen then), and parameters that are not in theta.
        """
        self.module = module
        self.fused = fused(module)
        self.statistics = statistics or {}
        self._of_thread = threading.local()

    def __call__(self, theta: Theta, images: Tensor) -> Tensor:
        """Return the logits (B, C) of images (B, ch, h, w)."""
        return self._call(self.module, theta, images)

    def first_order(self, theta: Theta, images: Tensor) -> Tensor:
        """Return the same logits, sooner; differentiable once, and not for `torch.func`."""
        return self._call(self.fused, theta, images)

    @property
    def has_tangents(self) -> bool:
        """Whether `with_tangent` takes it."""
        return has_rules(self.module)

    def in_kernels(self, images: Tensor) -> bool:
        """Whether what takes time with images (B, ch, h, w) goes by kernels; it `has_tangents`."""
        return in_kernels(self.module, images)

    def with_tangent(self, theta: Theta, vector: Theta, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits and their derivative along a direction, both differentiable once.

        Args:
            theta: Parameters.
            vector: The direction, of the shape of theta.
            images: (B, ch, h, w).
        """
        assert isinstance(self.module, nn.Sequential)
        values = {**theta, **self.statistics}
        logits, slope = tangent_pass(self.module, values, vector, images)
        return logits, torch.zeros_like(logits) if slope is None else slope

    def with_two_tangents(
        self, theta: Theta, first: Theta, second: Theta, images: Tensor
    ) -> Tensor:
        """Return the logits, their derivatives along two directions, and that along both.

        Args:
            theta: Parameters.
            first: A direction, of the shape of theta.
            second: The other.
            images: (B, ch, h, w), `in_kernels`.

        Returns:
            (4, B, C), differentiable once, by the images.
        """
        assert isinstance(self.module, nn.Sequential)
        return mixed_pass(self.module, {**theta, **self.statistics}, first, second, images)

    def _call(self, module: nn.Module, theta: Theta, images: Tensor) -> Tensor:
        # `functional_call` puts theta into the module while it runs, so each thread needs its own.
        copies: dict[nn.Module, nn.Module] = self._of_thread.__dict__.setdefault("copies", {})
        if module not in copies:
            copies[module] = copy.deepcopy(module)
        values = {**theta, **self.statistics}
        logits: Tensor = torch.func.functional_call(copies[module], values, (images,))
        return logits

    @property
    def batch_norms(self) -> dict[str, BatchNorm]:
        """Its batch norms, by name."""
        layers = self.module.named_modules()
        return {name: layer for name, layer in layers if isinstance(layer, BatchNorm)}

    def frozen(self, statistics: Theta) -> "Network":
        """Return the same network with constants for the statistics of its batch norms."""
        network = Network(copy.deepcopy(self.module), statistics)
        for layer in network.batch_norms.values():
            layer.frozen = True
        return network

    def holding(self, fixed: Theta) -> "Network":
        """Return the network as a function of the other parameters."""
        network = copy.copy(self)
        network.statistics = {**self.statistics, **fixed}
        return network


def last_layers(theta: Theta, number: int) -> list[str]:
    """Return the names of the parameters of the last layers, in theta's order.

    Args:
        theta: Parameters.
        number: Layers with parameters, norms among them; all, where there are fewer.
    """
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in theta))
    return [name for name in theta if name.rpartition(".")[0] in layers[-number:]]


def part_of(values: Theta, names: Iterable[str]) -> Theta:
    """Return what has the shape of theta, of some parameters alone."""
    return {name: values[name] for name in names}


def batch_statistics(network: Network, theta: Theta, images: Tensor) -> Theta:
    """Return the mean and the variance (ch,) that each batch norm sees, as constants.

    The images (B, ch, h, w) go through the network once, each batch norm normalising by what it
    sees; with these statistics the frozen network gives the same logits for the same images.
    A function of theta: it goes through `torch.func.vmap`.
    """
    watched = Network(copy.deepcopy(network.module))
    statistics: Theta = {}

    def record(name: str, inputs: tuple[Tensor]) -> None:
        mean, variance = channel_statistics(inputs[0])
        statistics[f"{name}.mean"] = mean.detach()
        statistics[f"{name}.variance"] = variance.detach()

    for name, layer in watched.batch_norms.items():
        layer.register_forward_pre_hook(lambda _, inputs, name=name: record(name, inputs))
    torch.func.functional_call(watched.module, theta, (images,))
    return statistics


def freeze_statistics(network: Network, theta: Theta, images: Tensor) -> Network:
    """Return the network with the statistics of these images; without batch norm, itself.

    For condensing, the images are real ones of all classes: one class's synthetic images are too
    few and too alike to be normalised by themselves. Zhao et al. (ICLR 2021) freeze running
    averages of 16 real images a class, which after one batch are a tenth of the way to its
    statistics; here they are those of the batch. For scoring, they are the training images.
    """
    if not network.batch_norms:
        return network
    with torch.no_grad():
        return network.frozen(batch_statistics(network, theta, images))


def build_network(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    options: Mapping[str, int | float | str] | None = None,
) -> Network:
    """Build a network by its registered name, on the meta device: it takes no memory.

    Args:
        name: A key of `NETWORKS`.
        image_shape: (ch, h, w) of the images it will see.
        num_classes: C.
        options: Keyword arguments of the network's function; what is left out has its default.

    Raises:
        ValueError: The network cannot take images of that size.
    """
    with torch.device("meta"):
        module = NETWORKS[name](image_shape, num_classes, **(options or {}))
    return Network(module)


def init_theta(network: Network, generator: torch.Generator, device: torch.device | str) -> Theta:
    """Draw fresh parameters, distributed as PyTorch's own layers draw theirs.

    Weights and biases of convolutions and linear layers are uniform within 1 / sqrt(fan in)
    (`torch.nn.Linear.reset_parameters`); norms begin as the identity. The numbers are drawn on the
    CPU, so that they are the same on every device.
    """
    theta: Theta = {}
    for prefix, layer in network.module.named_modules():
        for kind, parameter in layer.named_parameters(recurse=False):
            name = f"{prefix}.{kind}" if prefix else kind
            if isinstance(layer, nn.GroupNorm | nn.LayerNorm | BatchNorm):
                theta[name] = torch.full(parameter.shape, 1.0 if kind == "weight" else 0.0)
            else:
                assert isinstance(layer, nn.Conv2d | nn.Linear), f"no initialisation for {layer}"
                bound = 1 / math.sqrt(layer.weight[0].numel())
                theta[name] = torch.empty(parameter.shape).uniform_(
                    -bound, bound, generator=generator
                )
    return {name: to_device(value, device) for name, value in theta.items()}


def convnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    norm: str = "instance",
    activation: str = "relu",
    pooling: str = "avg",
) -> nn.Module:
    """ConvNet of Gidaris and Komodakis (CVPR 2018), as in Zhao et al. (ICLR 2021).

    `depth` blocks of a 3 x 3 convolution with `width` filters, norm, activation and 2 x 2 pooling,
    then a linear classifier. The published one has instance norm (group norm with one group a
    filter) and average pooling. Images of 28 x 28 are padded to 32 x 32 by the first convolution.

    Raises:
        ValueError: The image is too small for so many blocks.
    """
    border = mnist_border(image_shape)
    channels, height, width_px = image_shape
    shape = (channels, height + 2 * border, width_px + 2 * border)
    deepest = int(math.log2(min(shape[1:])))
    if depth > deepest and pooling != "none":
        raise ValueError(
            f"networks.convnet.depth: got {depth}, too deep for images of {height} x {width_px}: "
            f"each block halves them; takes at most {deepest}"
        )

    def block(index: int, shape: tuple[int, int, int]) -> dict[str, nn.Module]:
        padding = 1 if index else 1 + border
        return {
            f"conv{index}": nn.Conv2d(shape[0], width, 3, padding=padding),
            f"norm{index}": NORMS[norm]((width, *shape[1:])),
            f"activation{index}": ACTIVATIONS[activation](),
            f"pool{index}": POOLINGS[pooling](),
        }

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(depth):
        layers |= block(index, shape)
        factor = 1 if pooling == "none" else 2
        shape = (width, shape[1] // factor, shape[2] // factor)
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(math.prod(shape), num_classes)
    return nn.Sequential(layers)


def lenet(
    image_shape: tuple[int, int, int], num_classes: int, *, activation: str = "relu"
) -> nn.Module:
    """LeNet (LeCun et al., 1998), as in Zhao et al. (ICLR 2021), with max pooling.

    Convolutions of 6 and 16 filters of 5 x 5, then linear layers of 120, 84 and C units. The first
    convolution pads images of 28 x 28 to 32 x 32.

    Raises:
        ValueError: The image is too small.
    """
    require_size("lenet", image_shape, 16)
    border = mnist_border(image_shape)
    sides = [((side + 2 * border - 4) // 2 - 4) // 2 for side in image_shape[1:]]
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv0=nn.Conv2d(image_shape[0], 6, 5, padding=border),
            activation0=act(),
            pool0=nn.MaxPool2d(2),
            conv1=nn.Conv2d(6, 16, 5),
            activation1=act(),
            pool1=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            linear0=nn.Linear(16 * sides[0] * sides[1], 120),
            activation2=act(),
            linear1=nn.Linear(120, 84),
            activation3=act(),
            classifier=nn.Linear(84, num_classes),
        )
    )


def mlp(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 128,
    activation: str = "relu",
) -> nn.Module:
    """Perceptron with two hidden layers of `width` units, as in Zhao et al. (ICLR 2021)."""
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            flatten=nn.Flatten(),
            linear0=nn.Linear(math.prod(image_shape), width),
            activation0=act(),
            linear1=nn.Linear(width, width),
            activation1=act(),
            classifier=nn.Linear(width, num_classes),
        )
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "convnet": convnet,
    "lenet": lenet,
    "mlp": mlp,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
}
