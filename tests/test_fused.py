"""Winograd's convolution and the fused blocks, against PyTorch's own operators."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from condensation import compilation, fused, kernels, winograd
from condensation.compilation import choose_kernels, choose_transform
from condensation.derivatives import (
    classification_loss,
    constant_gradient_and_product,
    constant_loss_gradient,
)
from condensation.networks import NETWORKS, build_network, init_theta
from condensation.randomness import generator
from condensation.sgd import pays_to_record

SOURCE = Path(kernels.__file__).with_name("kernels.cpp")
SHAPES = [(2, 8, 8, 3, 5), (3, 4, 12, 40, 33), (1, 16, 4, 1, 1)]


def gradients(convolved: Tensor, inputs: tuple[Tensor, ...], slope: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(convolved, inputs, slope)


@pytest.mark.parametrize("shape", SHAPES)
def test_winograd_convolution_and_its_gradient_are_those_of_the_direct_sum(
    shape: tuple[int, int, int, int, int],
) -> None:
    number, height, width, channels, filters = shape
    stream = generator(0, "winograd")
    draw = {"generator": stream, "dtype": torch.float64}
    images = torch.randn(number, height, width, channels, **draw).requires_grad_()  # type: ignore[call-overload]
    weight = torch.randn(filters, channels, 3, 3, **draw).requires_grad_()  # type: ignore[call-overload]
    bias = torch.randn(filters, **draw).requires_grad_()  # type: ignore[call-overload]
    slope = torch.randn(number, height, width, filters, **draw)  # type: ignore[call-overload]
    inputs = (images, weight, bias)
    ours = winograd.convolve(*inputs)
    direct = F.conv2d(images.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours, direct, rtol=1e-12, atol=1e-12)
    for got, expected in zip(
        gradients(ours, inputs, slope), gradients(direct, inputs, slope), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-11)


def test_winograd_convolution_in_float32_is_right_to_a_few_millionths() -> None:
    stream = generator(0, "winograd")
    images = torch.randn(4, 16, 16, 64, generator=stream)
    weight, bias = torch.randn(64, 64, 3, 3, generator=stream), torch.zeros(64)
    exact = F.conv2d(images.double().permute(0, 3, 1, 2), weight.double(), padding=1)
    error = winograd.convolve(images, weight, bias) - exact.permute(0, 2, 3, 1)
    assert error.norm() < 1e-5 * exact.norm()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_images", [1, 5])
@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 32)])
def test_first_order_is_the_network_itself(
    name: str, num_images: int, image_shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the small network of the test takes every path that the real one takes.
    monkeypatch.setattr(fused, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(fused, "FEWEST_TILES", 8)
    options = {"width": 8} if name == "convnet" else {}
    network = build_network(name, image_shape, 10, options)
    theta = init_theta(network, generator(0, "theta"), "cpu")
    theta = {key: value.double().requires_grad_() for key, value in theta.items()}
    images = torch.randn(num_images, *image_shape, generator=generator(1), dtype=torch.float64)
    images.requires_grad_()
    labels = torch.arange(num_images)
    torch.testing.assert_close(
        network.first_order(theta, images), network(theta, images), rtol=1e-10, atol=1e-10
    )
    inputs = [*theta.values(), images]
    ours, expected = (
        torch.autograd.grad(classification_loss(theta, function, images, labels), inputs)
        for function in (network.first_order, network)
    )
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-12)


def test_fused_blocks_are_used_where_they_are_meant() -> None:
    """ConvNet of the published size, both kinds of convolution: no other operator convolves."""
    network = build_network("convnet", (1, 28, 28), 10)
    theta = init_theta(network, generator(0, "theta"), "cpu")
    real = torch.randn(16, 1, 28, 28, generator=generator(1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        constant_loss_gradient(theta, network, real, torch.zeros(16, dtype=torch.int64), 16)
    operators = {event.key for event in profile.key_averages()}
    assert "aten::conv2d" not in operators and "aten::group_norm" not in operators
    assert "_Convolution" in operators


@pytest.fixture(scope="module")
def library() -> Iterator[None]:
    """The kernels as this machine's compiler builds them."""
    if reason := kernels.build():
        pytest.skip(reason)
    yield
    kernels.discard()


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (3, 32, 16)])
@pytest.mark.parametrize("num_images", [1, 5])
def test_compiled_blocks_are_the_network_itself(
    num_images: int,
    image_shape: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
    library: None,
) -> None:
    monkeypatch.setattr(fused, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    network = build_network("convnet", image_shape, 10, {"width": 16})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    norms = {key: value + 0.1 for key, value in theta.items() if "norm" in key}
    theta = {key: value.double() for key, value in (theta | norms).items()}
    images = torch.randn(num_images, *image_shape, generator=generator(1), dtype=torch.float64)
    labels = torch.arange(num_images)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours = constant_loss_gradient(theta, network, images, labels, num_images)
    assert {"FirstBlock", "WinogradBlock"} <= {event.key for event in profile.key_averages()}
    leaves = {key: value.requires_grad_() for key, value in theta.items()}
    loss = classification_loss(leaves, network, images, labels)
    for key, expected in zip(ours, torch.autograd.grad(loss, [*leaves.values()]), strict=True):
        torch.testing.assert_close(ours[key], expected, rtol=1e-8, atol=1e-12)


def test_compiled_blocks_give_the_slope_of_their_input(
    monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    """Images that are learned go through the other operators in the first block alone."""
    monkeypatch.setattr(fused, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    network = build_network("convnet", (1, 16, 16), 10, {"width": 16})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    theta = {key: value.double() for key, value in theta.items()}
    images = torch.randn(3, 1, 16, 16, generator=generator(1), dtype=torch.float64)
    images.requires_grad_()
    slopes = [
        torch.autograd.grad(classification_loss(theta, f, images, torch.arange(3)), images)[0]
        for f in (network.first_order, network)
    ]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-8, atol=1e-12)


def test_compiled_blocks_give_the_same_bytes_each_time(library: None) -> None:
    network = build_network("convnet", (1, 16, 16), 10, {"width": 32})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    images = torch.randn(16, 1, 16, 16, generator=generator(1))
    labels = torch.zeros(16, dtype=torch.int64)
    first, second = (constant_loss_gradient(theta, network, images, labels, 8) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("width", [16, 32])
def test_in_bfloat16_compiled_blocks_are_a_rounded_network(
    width: int, monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    """The oracle of each block is the float64 network; by how much bfloat16 may be off is known."""
    monkeypatch.setattr(fused, "FEWEST_CHANNELS", 8)
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    lower: list[torch.dtype] = []
    call = kernels.call

    def watched(name: str, *arguments: Tensor | float, sizes: tuple[int, ...]) -> None:
        lower.extend(each.dtype for each in arguments if isinstance(each, Tensor))
        call(name, *arguments, sizes=sizes)

    monkeypatch.setattr(kernels, "call", watched)
    network = build_network("convnet", (1, 28, 28), 10, {"width": width})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    images = torch.randn(8, 1, 28, 28, generator=generator(1))
    labels = torch.zeros(8, dtype=torch.int64)

    def flat(dtype: torch.dtype, autocast: torch.dtype | None) -> Tensor:
        lower.clear()
        at = {key: value.to(dtype) for key, value in theta.items()}
        gradient = constant_loss_gradient(
            at, network, images.to(dtype), labels, 4, autocast=autocast
        )
        assert {value.dtype for value in gradient.values()} == {dtype}
        return torch.cat([value.double().flatten() for value in gradient.values()])

    exact = flat(torch.float64, None)
    # What is not float32 is not lowered, as elsewhere under `torch.autocast`.
    assert torch.equal(flat(torch.float64, torch.bfloat16), exact)
    assert {*lower} == {torch.float64}
    rounded = flat(torch.float32, torch.bfloat16)
    assert {*lower} == {torch.float32, torch.bfloat16}
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.1


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_what_keeps_planes_apart_is_in_no_result(
    autocast: torch.dtype | None, monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    """Memory that nothing is written to has no numbers here: they would come out of products."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    network = build_network("convnet", (1, 28, 28), 10, {"width": 32})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    images = torch.randn(8, 1, 28, 28, generator=generator(1))
    arguments = theta, network, images, torch.zeros(8, dtype=torch.int64)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        found = [constant_loss_gradient(*arguments, 8, autocast=autocast)]
        if autocast is None:
            found += constant_gradient_and_product(*arguments, theta, 8)
    finally:
        torch.use_deterministic_algorithms(before)
    assert all(value.isfinite().all() for part in found for value in part.values())


def test_kernels_round_to_bfloat16_as_pytorch_does(library: None) -> None:
    images = torch.randn(1, 4, 4, 32, generator=generator(1))
    tiles = {dtype: torch.empty(36, 1, 32, dtype=dtype) for dtype in (torch.float32, kernels.LOWER)}
    for each in tiles.values():
        kernels.call("input_transform", images, each, sizes=(32, *images.shape))
    assert torch.equal(tiles[torch.float32].to(kernels.LOWER), tiles[kernels.LOWER])
    back = {dtype: torch.empty_like(images) for dtype in tiles}
    for dtype, result in back.items():
        products = tiles[kernels.LOWER].to(dtype)
        kernels.call("output_transform", products, result, sizes=(32, *images.shape))
    assert torch.equal(back[torch.float32], back[kernels.LOWER])


ON = "compile: on; "
AUTO = "compile: auto; "
DONE = "compiled: 3 x 3 convolution, norm and pooling on the CPU"


@pytest.mark.parametrize(
    ("setting", "name", "device", "num_images", "said"),
    [
        ("on", "convnet", "cpu", 1, ON + DONE),
        ("auto", "convnet", "cpu", 10**6, AUTO + DONE),
        ("auto", "convnet", "cpu", 9, AUTO + "not compiled: too little work, 9 images"),
        ("off", "convnet", "cpu", 10**6, "compile: off; not compiled: off in params.yaml"),
        ("on", "mlp", "cpu", 1, ON + "not compiled: the network has no block"),
        ("off", "convnet", "cuda", 1, "compile: off; no kernels for blocks: off in params.yaml"),
        ("on", "mlp", "cuda", 1, ON + "no kernels for blocks: the network has no block"),
        ("on", "convnet", "meta", 1, ON + "not compiled: they are for the CPU and for CUDA"),
    ],
)
def test_one_line_says_what_is_compiled_and_why(
    setting: str,
    name: str,
    device: str,
    num_images: int,
    said: str,
    request: pytest.FixtureRequest,
) -> None:
    if said.endswith(DONE):
        request.getfixturevalue("library")  # is skipped where there is no compiler
    network = build_network(name, (1, 16, 16), 10, {"width": 16})
    line = choose_kernels(setting, network, torch.device(device), num_images)
    kernels.discard()
    assert line.startswith(said) and "\n" not in line


def test_without_triton_one_line_says_that_there_are_no_kernels_on_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    network = build_network("convnet", (1, 16, 16), 10, {"width": 16})
    line = choose_kernels("on", network, torch.device("cuda"), 1)
    assert line == f"{ON}no kernels for blocks: there is no Triton"


@pytest.mark.parametrize(
    ("setting", "device", "num_steps", "compiled", "said"),
    [
        ("auto", "cpu", 10**6, False, ""),
        ("on", "cuda", 1, True, ON + "compiled: the image step"),
        ("auto", "cuda", 500, True, AUTO + "compiled: the image step"),
        ("auto", "cuda", 499, False, AUTO + "not compiled: too little work, 499 image steps"),
        ("off", "cuda", 10**6, False, ""),
    ],
)
def test_the_transform_is_compiled_on_cuda_for_long_runs(
    setting: str, device: str, num_steps: int, compiled: bool, said: str
) -> None:
    chosen, line = choose_transform(
        setting, build_network("mlp", (1, 28, 28), 10), torch.device(device), num_steps
    )
    assert chosen == compiled and line.startswith(said) and bool(line) == bool(said)


def test_training_is_recorded_from_100_steps_on() -> None:
    cuda = torch.device("cuda")
    assert [pays_to_record("auto", cuda, steps) for steps in (99, 100)] == [False, True]


AUTO_PRECISION = "real_precision: auto; "


def pretend(monkeypatch: pytest.MonkeyPatch, built: bool, able: bool, error: float) -> None:
    """Let there be kernels of CUDA, and whether others are built, how wrong, and bfloat16."""
    monkeypatch.setattr(kernels, "built", lambda: built)
    monkeypatch.setattr(compilation, "has_bfloat16", lambda device: able)
    monkeypatch.setattr(compilation, "largest_error", lambda precision: error)
    monkeypatch.setattr(compilation, "has_kernels", lambda module, device: True)


@pytest.mark.parametrize(
    ("setting", "device", "built", "able", "error", "chosen", "said"),
    [
        ("float32", "cpu", True, True, 0.01, "float32", ""),
        (None, "cpu", True, True, 0.01, "bfloat16", AUTO_PRECISION + "bfloat16 on the real"),
        (None, "cpu", True, False, 0.01, "float32", AUTO_PRECISION + "float32: the device has"),
        (None, "cpu", False, True, 0.01, "float32", ""),
        (None, "cpu", True, True, 0.5, "float32", AUTO_PRECISION + "float32: the compiled kernels"),
        (None, "cuda", False, True, 0.01, "bfloat16", AUTO_PRECISION + "bfloat16 on the real"),
        (
            None,
            "cuda",
            False,
            False,
            0.01,
            "float32",
            AUTO_PRECISION + "float32: the device has",
        ),
        ("bfloat16", "cuda", False, True, 0.01, "bfloat16", "real_precision: bfloat16; bfloat16"),
        ("bfloat16", "cpu", False, True, 0.01, "bfloat16", "real_precision: bfloat16; bfloat16"),
        ("bfloat16", "cpu", True, True, 0.5, "float32", "real_precision: bfloat16; float32: the"),
    ],
)
def test_the_precision_of_the_real_side_is_chosen_and_said(
    setting: str | None,
    device: str,
    built: bool,
    able: bool,
    error: float,
    chosen: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, built, able, error)
    network = build_network("convnet", (1, 28, 28), 10, {"width": 32})
    name, line = compilation.choose_real_precision(setting, network, torch.device(device))
    assert name == chosen and line.startswith(said) and bool(line) == bool(said)
    narrow = build_network("convnet", (1, 28, 28), 10, {"width": 16})
    name, line = compilation.choose_real_precision(setting, narrow, torch.device(device))
    if setting is None and device == "cpu":
        assert (name, line) == ("float32", "")


@pytest.mark.parametrize(
    ("setting", "device", "able", "chosen", "said"),
    [
        ("float32", "cpu", True, "float32", ""),
        (None, "cpu", True, "bfloat16", "network_precision: auto; bfloat16 between image steps"),
        (None, "cpu", False, "float32", "network_precision: auto; float32: the device has"),
        (None, "cuda", True, "float32", ""),
        ("bfloat16", "cuda", True, "bfloat16", "network_precision: bfloat16; bfloat16 between"),
    ],
)
def test_the_precision_of_the_training_is_chosen_and_said(
    setting: str | None,
    device: str,
    able: bool,
    chosen: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, True, able, 0.01)
    network = build_network("convnet", (1, 28, 28), 10, {"width": 32})
    name, line = compilation.choose_network_precision(setting, network, torch.device(device))
    assert name == chosen and line.startswith(said) and bool(line) == bool(said)


def test_a_precision_that_is_emulated_is_used_where_it_is_asked_for_and_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "has_bfloat16", lambda device: False)
    network = build_network("mlp", (1, 28, 28), 10)
    name, line = compilation.choose_real_precision("bfloat16", network, torch.device("cpu"))
    assert name == "bfloat16" and line.endswith("emulated here, and slow")


def test_where_the_real_gradients_come_with_products_they_are_float32(
    monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    monkeypatch.setattr(compilation, "has_bfloat16", lambda device: True)
    assert kernels.build() == ""  # tests above put them out of use
    network, cpu = build_network("convnet", (1, 28, 28), 10, {"width": 32}), torch.device("cpu")
    assert compilation.choose_real_precision(None, network, cpu)[0] == "bfloat16"
    name, line = compilation.choose_real_precision(None, network, cpu, in_one_pass=True)
    assert name == "float32" and "pass of the curvature's products" in line


@pytest.mark.parametrize("threads", [1, 8])
def test_the_precision_does_not_depend_on_the_number_of_threads(
    threads: int, monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    """Classes are matched on threads of one core each, where the kernels pay."""
    monkeypatch.setattr(compilation, "has_bfloat16", lambda device: True)
    assert kernels.build() == ""  # tests above put them out of use
    network, cpu = build_network("convnet", (1, 28, 28), 10, {"width": 32}), torch.device("cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert kernels.usable(torch.float32, 32) == (threads == 1)
        assert compilation.choose_real_precision(None, network, cpu)[0] == "bfloat16"
    finally:
        torch.set_num_threads(before)


KERNELS = sorted(set(re.findall(r'extern "C" void (\w+)_##name', SOURCE.read_text())))


@pytest.mark.parametrize("factor", [1.01, float("nan")])
@pytest.mark.parametrize("broken", KERNELS)
def test_every_kernel_that_is_wrong_is_noticed(
    broken: str, factor: float, monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    call = kernels.call

    def wrong(name: str, *arguments: Tensor | float, sizes: tuple[int, ...]) -> None:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        before = [value.clone() for value in tensors]
        call(name, *arguments, sizes=sizes)
        for value, was in zip(tensors, before, strict=True):
            if name == broken and not torch.equal(value, was):
                value.mul_(factor)  # what it fills

    assert kernels.build() == ""  # tests above put them out of use
    assert compilation.largest_error() < compilation.TOLERANCE
    monkeypatch.setattr(kernels, "call", wrong)
    assert not compilation.largest_error() <= compilation.TOLERANCE


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (("which", lambda name: None), "there is no C++ compiler"),
        (("which", lambda name: "/bin/false"), "/bin/false failed"),
    ],
)
def test_without_a_compiler_that_works_nothing_is_compiled(
    break_it: tuple[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, *break_it)
    network = build_network("convnet", (1, 16, 16), 10, {"width": 16})
    line = choose_kernels("on", network, torch.device("cpu"), 1)
    assert line.startswith(f"{ON}not compiled: {said}")
    assert not kernels.usable(torch.float32, 16)


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_kernels_that_are_wrong_are_not_used(
    error: float, monkeypatch: pytest.MonkeyPatch, library: None
) -> None:
    monkeypatch.setattr(compilation, "largest_error", lambda *_: error)
    network = build_network("convnet", (1, 16, 16), 10, {"width": 16})
    line = choose_kernels("on", network, torch.device("cpu"), 1)
    assert line == f"{ON}not compiled: their results differ by {error:.1g} from PyTorch's"
    assert not kernels.usable(torch.float32, 16)


@pytest.mark.parametrize("num_images", [1, 3, 7])
def test_chunks_do_not_change_the_result(num_images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_network("convnet", (1, 8, 8), 4, {"width": 8, "depth": 2})
    theta = init_theta(network, generator(0, "theta"), "cpu")
    images = torch.randn(num_images, 1, 8, 8, generator=generator(1))
    labels = torch.zeros(num_images, dtype=torch.int64)
    whole = constant_loss_gradient(theta, network, images, labels, num_images)
    monkeypatch.setattr(fused, "CACHED", 2 * 8 * 64)
    parts = constant_loss_gradient(theta, network, images, labels, num_images)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 8])
def test_the_kernels_are_checked_as_they_are_used(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the main thread has too many threads to use them itself."""
    if kernels.build():
        pytest.skip("no C++ compiler")
    calls: list[str] = []
    call = kernels.call

    def counted(name: str, *arguments: Tensor | float, sizes: tuple[int, ...]) -> None:
        calls.append(name)
        call(name, *arguments, sizes=sizes)

    monkeypatch.setattr(kernels, "call", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert compilation.largest_error() < compilation.TOLERANCE and calls
        calls.clear()
        error = compilation.largest_error("bfloat16")
        assert 1e-4 < error < compilation.LOWER_TOLERANCE and calls
    finally:
        torch.set_num_threads(before)
        kernels.discard()
