"""How image steps are calculated on this machine: what `compile` and the precisions come to."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from condensation import kernels
from condensation.derivatives import (
    classification_loss,
    constant_gradient_and_product,
    constant_loss_gradient,
    inner_product,
    loss_curvature,
    loss_slope,
)
from condensation.devices import has_bfloat16
from condensation.fused import (
    FEWEST_CHANNELS,
    FEWEST_TILES,
    FusedSequential,
    discard_cuda_blocks,
    has_kernels,
    load_cuda_blocks,
)
from condensation.layers import AveragePool
from condensation.networks import Network, Theta
from condensation.precisions import PRECISIONS

LOWERED_TRAINING = ("cpu",)
"""Types of device on which `auto` also trains in bfloat16: where that has been measured."""

FEWEST_IMAGES = 5000
"""Images through the network from which `auto` builds: a ConvNet of the published width saves about
0.8 ms an image on two cores, and the build takes 1 to 4 seconds. The time of the build is not in
the seconds of the stages."""

FEWEST_STEPS = 500
"""Image steps from which `auto` compiles on CUDA: a round number among those from which it pays. On
an H100 (`results/benchmarks`; ConvNet, order 1, ten classes of one image and 256 real ones) a step
in TF32 takes 7.3 ms, where one transform of all classes that is not compiled takes 45; the first
takes 10 to 32 s, there 7: it pays from 80 to 660 steps on. In bfloat16 the first step took 52 s
with ten images a class, by which it pays from 1100 on. No row tells it of another network or of
order 2, whose first step takes 39 s (`lookahead`) and 77 s (`hvp`)."""

TOLERANCE = 1e-4
"""Largest difference from PyTorch's operators, relative to the largest number, in float32."""

LOWER_TOLERANCE = 0.1
"""The same where products are in bfloat16, whose numbers have 8 bits; Winograd's transforms enlarge
their rounding. What is wrong differs by about 1."""


def choose_kernels(setting: str, network: Network, device: torch.device, num_images: int) -> str:
    """Build the kernels if that is wanted and pays, check them, and say in one line what was done.

    Args:
        setting: auto, on or off.
        network: What will be differentiated.
        device: Where.
        num_images: That will go through it, each as often as it does.
    """
    kernels.discard()
    discard_cuda_blocks()
    reason = _against(setting, network, device, num_images)
    if device.type == "cuda":
        if reason := reason or load_cuda_blocks(device):
            return f"compile: {setting}; no kernels for blocks: {reason}"
        return f"compile: {setting}; kernels for blocks of 3 x 3 convolution, norm and pooling"
    reason = reason or kernels.build()
    if not reason and not (error := largest_error()) <= TOLERANCE:
        kernels.discard()
        reason = f"their results differ by {error:.1g} from PyTorch's"
    if reason:
        return f"compile: {setting}; not compiled: {reason}"
    return f"compile: {setting}; compiled: 3 x 3 convolution, norm and pooling on the CPU"


def choose_transform(
    setting: str, network: Network, device: torch.device, num_steps: int
) -> tuple[bool, str]:
    """Whether `torch.compile` is used for image steps and the training between them, and why.

    It is on CUDA: gradients on real images, where no kernels are for them, and the synthetic side
    of all classes; each image step then is one CUDA graph. Training is one some steps at a time,
    compiled or not (`pays_to_record`). On the CPU it gains a fifth of the synthetic side (ConvNet,
    one image a class, one thread: 20 ms become 16 ms), and the first call takes 17 s of the
    processor's time.

    Args:
        setting: auto, on or off.
        network: What will be differentiated.
        device: Where.
        num_steps: Image steps of the run.
    """
    if device.type == "cpu" or setting == "off":
        return False, ""
    if network.batch_norms:
        # Its statistics are constants of the network, which so is another one at each step.
        return False, f"compile: {setting}; not compiled: batch norms change with each step"
    if setting == "auto" and num_steps < FEWEST_STEPS:
        return False, f"compile: auto; not compiled: too little work, {num_steps} image steps"
    return True, f"compile: {setting}; compiled: the image step and the training between two"


def choose_real_precision(
    setting: str | None, network: Network, device: torch.device, in_one_pass: bool = False
) -> tuple[str, str]:
    """In what precision gradients on real images are calculated, and why; after `choose_kernels`.

    Args:
        setting: A key of `PRECISIONS`; None: bfloat16 where it is known to be faster, on a device
            that has it and with kernels for blocks: on the CPU compiled ones, of many channels.
        network: What will be differentiated.
        device: Where.
        in_one_pass: Whether a form of order 2 has them in the same pass as its products, which is
            in float32 (`hvp` on ConvNet, ten classes of 64 real images, two cores: at one synthetic
            image a class 1.43 s, and 1.51 by themselves in bfloat16; at ten, where the synthetic
            side then goes by kernels, 2.48 and 1.99).

    Returns:
        A key of `PRECISIONS`; and what was chosen, in a line, if it was not float32 that was asked,
        and there was a choice.
    """
    against = ""
    if in_one_pass and device.type == "cpu":
        against = "the real gradients come in the pass of the curvature's products"
    return _choose_precision(
        "real_precision", "on the real images", setting, network, device, against
    )


def choose_network_precision(
    setting: str | None, network: Network, device: torch.device
) -> tuple[str, str]:
    """In what precision the network is trained between image steps; after `choose_kernels`.

    Args:
        setting: As of `choose_real_precision`; None: likewise on a type of `LOWERED_TRAINING`,
            float32 on others.
        network: What will be trained.
        device: Where.

    Returns:
        As `choose_real_precision`.
    """
    if setting is None and device.type not in LOWERED_TRAINING:
        return "float32", ""
    return _choose_precision("network_precision", "between image steps", setting, network, device)


def _choose_precision(
    key: str,
    where: str,
    setting: str | None,
    network: Network,
    device: torch.device,
    against: str = "",
) -> tuple[str, str]:
    # For the setting of this key; `against` is a reason for float32 where nothing was asked for.
    lower = next(name for name, dtype in PRECISIONS.items() if dtype == kernels.LOWER)
    if setting == "float32" or setting is None and not _gains(network, device):
        return "float32", ""
    reason, said = "", f"{key}: {setting or 'auto'}; "
    if setting is None:
        reason = against or ("" if has_bfloat16(device) else f"the device has no {lower}")
    if not reason and kernels.built() and not (error := largest_error(lower)) <= LOWER_TOLERANCE:
        reason = f"the compiled kernels differ by {error:.1g} from PyTorch's operators"
    if reason:
        return "float32", f"{said}float32: {reason}"
    emulated = "" if has_bfloat16(device) else ", which is emulated here, and slow"
    return lower, f"{said}{lower} {where}{emulated}"


def _gains(network: Network, device: torch.device) -> bool:
    # Whether kernels are there for some convolution of many channels. On the CPU classes are
    # matched on threads of one core each, however many cores the thread that asks here has.
    if device.type != "cpu":
        return has_kernels(network.fused, device)
    return any(
        layer.in_channels >= FEWEST_CHANNELS
        and all(
            kernels.takes(torch.float32, number)
            for number in (layer.in_channels, layer.out_channels)
        )
        for layer in _convolutions(network)
    )


def _convolutions(network: Network) -> list[nn.Conv2d]:
    # Of a network whose blocks are fused; else none.
    layers = network.fused.children() if isinstance(network.fused, FusedSequential) else ()
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _against(setting: str, network: Network, device: torch.device, num_images: int) -> str:
    # Why not even to try.
    if setting == "off":
        return "off in params.yaml"
    if device.type not in ("cpu", "cuda"):
        return "they are for the CPU and for CUDA"
    channels = kernels.VECTOR_BYTES // torch.float32.itemsize if device.type == "cpu" else 1
    if not any(layer.out_channels % channels == 0 for layer in _convolutions(network)):
        return (
            "the network has no block of 3 x 3 convolution, instance norm, ReLU and average "
            f"pooling{f' with a multiple of {channels} filters' if channels > 1 else ''}"
        )
    if setting == "auto" and num_images < FEWEST_IMAGES:
        return f"too little work, {num_images} images through the network"
    return ""


def largest_error(precision: str = "float32") -> float:
    """Compare the kernels, as built, with PyTorch's operators in float32 on a small network.

    Args:
        precision: A key of `PRECISIONS`, of the kernels. Products with second derivatives, and the
            slopes by the images of <g, v> and of <u, H v>, which are in float32 always, are
            compared too, if it is that.

    Returns:
        The largest difference of the slopes of all parameters, relative to the largest slope; of
        the others likewise; the largest of all.
    """
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (1, 32):
        convolution, norm = nn.Conv2d(channels, 32, 3, padding=1), nn.GroupNorm(32, 32)
        layers += [convolution, norm, nn.ReLU(), AveragePool()]
    plain = Network(nn.Sequential(*layers, nn.Flatten()))
    theta, vector, other = (
        {
            name: torch.randn(parameter.shape, generator=generator).requires_grad_()
            for name, parameter in plain.module.named_parameters()
        }
        for _ in range(3)
    )
    images = torch.randn(2 * FEWEST_TILES // 4, 1, 16, 16, generator=generator)
    labels = torch.zeros(len(images), dtype=torch.int64)

    def error(found: Theta, expected: Theta) -> float:
        # Not by `max` of Python, which passes over what is no number.
        largest = torch.stack([value.abs().max() for value in expected.values()]).max()
        gaps = [(found[name] - value).abs().max() for name, value in expected.items()]
        return (torch.stack(gaps).max() / largest).item()

    def of_theta(value: Tensor, *, again: bool = False) -> Theta:
        parts = torch.autograd.grad(value, [*theta.values()], create_graph=again)
        return dict(zip(theta, parts, strict=True))

    def errors() -> Iterator[float]:
        # Not by `torch.func`: to load it takes a second, and other stages than condense need not.
        arguments = (theta, plain, images, labels)
        learned = images.clone().requires_grad_()
        exact = of_theta(classification_loss(theta, plain, learned, labels), again=True)
        lower = PRECISIONS[precision]
        yield error(constant_loss_gradient(*arguments, len(images), autocast=lower), exact)
        if lower is None:
            expected = inner_product(exact, vector)
            (by_images,) = torch.autograd.grad(expected, learned, retain_graph=True)
            at, first, second = (
                {name: value.detach() for name, value in each.items()}
                for each in (theta, vector, other)
            )
            along = loss_slope(at, plain, learned, labels, first)
            (found,) = torch.autograd.grad(along, learned)
            yield error({"images": found}, {"images": by_images})
            product = of_theta(expected, again=True)
            both = constant_gradient_and_product(*arguments, vector, len(images))
            yield from map(error, both, (exact, product))
            (by_images,) = torch.autograd.grad(inner_product(product, other), learned)
            along = loss_curvature(at, plain, learned, labels, second, first)
            (found,) = torch.autograd.grad(along, learned)
            yield error({"images": found}, {"images": by_images})

    # On one thread, as they are used: with many the operators would be compared with themselves.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as worker:
        return torch.tensor(worker.submit(lambda: list(errors())).result()).max().item()
