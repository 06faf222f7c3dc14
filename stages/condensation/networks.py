"""Network architectures as functions of their parameters. One function each, in `NETWORKS`.

A network holds no weights: it is called with `theta`, a dict from parameter name to tensor, so that
derivatives with respect to the parameters are derivatives of an ordinary function.

Shapes: B = batch, C = classes, image = (ch, h, w).
"""

import copy
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from condensation.fused import FusedSequential
from condensation.pooling import AveragePool

Theta = dict[str, Tensor]
"""The parameters of a network, by name."""

NetworkFunction = Callable[[Theta, Tensor], Tensor]
"""`(theta, images (B, ch, h, w)) -> logits (B, C)`."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


class Network:
    """A module without weights, as a function `(theta, images) -> logits`."""

    def __init__(self, module: nn.Module) -> None:
        """Wrap a module; its own parameters give names and shapes only."""
        self.module = module
        self.fused = module
        if type(module) is nn.Sequential:
            self.fused = FusedSequential(OrderedDict(module.named_children()))
        self._of_thread = threading.local()

    def __call__(self, theta: Theta, images: Tensor) -> Tensor:
        """Return the logits (B, C) of images (B, ch, h, w)."""
        return self._call("module", theta, images)

    def first_order(self, theta: Theta, images: Tensor) -> Tensor:
        """Return the same logits, sooner; differentiable once, and not for `torch.func`."""
        return self._call("fused", theta, images)

    def _call(self, kind: str, theta: Theta, images: Tensor) -> Tensor:
        # `functional_call` puts theta into the module while it runs, so each thread needs its own.
        if not hasattr(self._of_thread, kind):
            setattr(self._of_thread, kind, copy.deepcopy(getattr(self, kind)))
        module = getattr(self._of_thread, kind)
        logits: Tensor = torch.func.functional_call(module, theta, (images,))
        return logits


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
            if isinstance(layer, nn.GroupNorm):
                theta[name] = torch.full(parameter.shape, 1.0 if kind == "weight" else 0.0)
            else:
                assert isinstance(layer, nn.Conv2d | nn.Linear), f"no initialisation for {layer}"
                bound = 1 / math.sqrt(layer.weight[0].numel())
                theta[name] = torch.empty(parameter.shape).uniform_(
                    -bound, bound, generator=generator
                )
    return {name: value.to(device) for name, value in theta.items()}


def convnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    width: int = 128,
    depth: int = 3,
    activation: str = "relu",
) -> nn.Module:
    """ConvNet of Gidaris and Komodakis (CVPR 2018), as in Zhao et al. (ICLR 2021).

    `depth` blocks of a 3 x 3 convolution with `width` filters, instance norm (group norm with one
    group a filter), activation and 2 x 2 average pooling, then a linear classifier. Images of
    28 x 28 are padded to 32 x 32 by the first convolution.

    Raises:
        ValueError: The image is too small for so many blocks.
    """
    channels, height, width_px = image_shape
    border = 2 if height == width_px == 28 else 0
    deepest = int(math.log2(min(height, width_px) + 2 * border))
    if depth > deepest:
        raise ValueError(
            f"networks.convnet.depth: got {depth}, too deep for images of {height} x {width_px}: "
            f"each block halves them; takes at most {deepest}"
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block in range(depth):
        inputs = width if block else channels
        padding = 1 if block else 1 + border
        layers[f"conv{block}"] = nn.Conv2d(inputs, width, 3, padding=padding)
        layers[f"norm{block}"] = nn.GroupNorm(width, width)
        layers[f"activation{block}"] = ACTIVATIONS[activation]()
        layers[f"pool{block}"] = AveragePool()
    features = width
    for size in (height, width_px):
        features *= (size + 2 * border) // 2**depth
    layers["flatten"] = nn.Flatten()
    layers["classifier"] = nn.Linear(features, num_classes)
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
    channels, height, width = image_shape
    border = 2 if height == width == 28 else 0
    sides = [((size + 2 * border - 4) // 2 - 4) // 2 for size in (height, width)]
    if min(sides) < 1:
        raise ValueError(f"network 'lenet': cannot take images of {height} x {width}")
    act = ACTIVATIONS[activation]
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv0=nn.Conv2d(channels, 6, 5, padding=border),
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
}
