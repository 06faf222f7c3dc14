"""The first synthetic images: shapes, determinism, and what each method promises."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from condensation.averages import cluster_centers, nearest_images
from condensation.coresets import cover, herd
from condensation.datasets import Dataset
from condensation.features import embed, embedding
from condensation.features import pixels as pixel_features
from condensation.initialisers import INITIALISERS
from condensation.networks import NETWORKS, build_network
from condensation.randomness import generator
from conftest import random_images, tiny_network

CONSTANTS = {"black": 0.0, "grey": 0.5, "white": 1.0}
ANY_NUMBER = ("noise", "zeros", *CONSTANTS)
"""Those that take nothing from the images, and so give any number of them."""

ONE_OUTCOME = ("zeros", *CONSTANTS, "herding", "kcenter")
"""Those that draw nothing where the features are pixels."""

AVERAGES = ("mean", "kmeans_centers", "kmeans")
"""Those that draw nothing for one image a class."""

CHOSEN = ("real", "kmeans", "herding", "kcenter")
"""Those that are real images."""


def initial(name: str, dataset: Dataset, ipc: int, stream: str = "a") -> Tensor:
    """As many images of every class: (C, ipc, ch, h, w)."""
    counts = [ipc] * dataset.num_classes
    images = INITIALISERS[name](dataset, counts, generator(0, stream), pixel_features)
    return images.view(-1, ipc, *dataset.image_shape)


def pixels(dataset: Dataset, images: Tensor) -> Tensor:
    return images * dataset.std.view(-1, 1, 1) + dataset.mean.view(-1, 1, 1)


def make_dataset(images: Tensor, labels: Tensor) -> Dataset:
    """Wrap uint8 images; the statistics leave pixels as they are but for the scale 0 to 1."""
    channels = images.shape[1]
    names = ("zero", "one", "two")[: int(labels.max()) + 1]
    return Dataset(images, labels, torch.zeros(channels), torch.ones(channels), names)


def colours() -> Dataset:
    """Three classes of 10, 11 and 12 random images of 3 x 6 x 5 pixels, and statistics."""
    labels = torch.arange(3).repeat_interleave(torch.tensor([10, 11, 12]))
    images = torch.randint(0, 256, (33, 3, 6, 5), generator=generator(0, "colours"))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    return Dataset(images.to(torch.uint8), labels, mean, std, ("zero", "one", "two"))


@pytest.mark.parametrize("ipc", [1, 3, 10])
@pytest.mark.parametrize("name", INITIALISERS)
def test_shape_type_and_stream(name: str, ipc: int) -> None:
    dataset = colours()
    first, again, other = (initial(name, dataset, ipc, stream) for stream in "aab")
    assert first.shape == (3, ipc, 3, 6, 5) and first.dtype == torch.float32
    assert torch.equal(first, again)
    if name in ONE_OUTCOME:
        assert torch.equal(first, other)
    elif not (name in AVERAGES and ipc == 1) and name not in ("kmeans", "kmeans_centers"):
        assert not torch.equal(first, other)


@pytest.mark.parametrize("name", INITIALISERS)
def test_pixels_are_within_their_range(name: str) -> None:
    dataset = colours()
    values = pixels(dataset, initial(name, dataset, 3))
    assert name == "noise" or (values.min() >= -1e-6 and values.max() <= 1 + 1e-6)


@pytest.mark.parametrize("ipc", [1, 3])
@pytest.mark.parametrize("name", INITIALISERS)
def test_classes_of_equal_images(name: str, ipc: int) -> None:
    """Nothing to tell images apart by: all of the class are its one image."""
    labels = torch.arange(2).repeat(4)
    images = (40 * labels + 7).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    found = initial(name, make_dataset(images, labels), ipc)
    assert found.isfinite().all()
    if name not in ANY_NUMBER:
        for index, value in enumerate((7, 47)):
            torch.testing.assert_close(found[index], torch.full((ipc, 1, 4, 4), value / 255))


@pytest.mark.parametrize("name", INITIALISERS)
def test_more_images_than_the_class_has_is_an_error_that_names_it(
    name: str, tiny_dataset: Dataset
) -> None:
    if name in ANY_NUMBER:
        assert initial(name, tiny_dataset, 6).shape[1] == 6
    else:
        message = "class 'zero': has 5 images, fewer than the 6 asked for"
        with pytest.raises(ValueError, match=message):
            initial(name, tiny_dataset, 6)


@pytest.mark.parametrize("empty", [0, 1, 2])
@pytest.mark.parametrize("name", INITIALISERS)
def test_a_class_without_images_is_an_error_that_names_it(name: str, empty: int) -> None:
    full = colours()
    kept = full.labels != empty
    dataset = Dataset(full.images[kept], full.labels[kept], full.mean, full.std, full.class_names)
    message = f"class '{full.class_names[empty]}': has 0 images, fewer than the 1 asked for"
    with pytest.raises(ValueError, match=message):
        initial(name, dataset, 1)


@pytest.mark.parametrize("name", INITIALISERS)
def test_all_images_of_a_class_can_be_asked_for(name: str) -> None:
    dataset = colours()
    images = initial(name, dataset, 10)[0].flatten(1)
    if name in CHOSEN:
        members = dataset.normalise(dataset.class_images(0)).flatten(1)
        places = [(members == image).all(1).nonzero().item() for image in images]
        assert sorted(places) == list(range(10)), "each image of the class once"


@pytest.mark.parametrize("name", INITIALISERS)
def test_each_class_may_have_a_number_of_its_own(name: str) -> None:
    """One class has all of its 10 images; those of each class are like images of that class."""
    dataset, counts = colours(), (10, 1, 3)
    shades = torch.tensor([0, 100, 200]).view(-1, 1, 1, 1)[dataset.labels]
    apart = replace(dataset, images=(dataset.images // 8 + shades).to(torch.uint8))
    images = INITIALISERS[name](apart, counts, generator(0, "a"), pixel_features)
    assert images.shape == (14, 3, 6, 5) and images.isfinite().all()
    if name not in ANY_NUMBER:
        of_class = pixels(apart, images).flatten(1).mean(1) * 255 // 100
        assert of_class.tolist() == [0] * 10 + [1] + [2] * 3


@pytest.mark.parametrize("name", [name for name in INITIALISERS if name not in ANY_NUMBER])
def test_the_class_that_has_too_few_is_named(name: str) -> None:
    with pytest.raises(ValueError, match="class 'one': has 11 images, fewer than the 12 asked for"):
        INITIALISERS[name](colours(), (1, 12, 1), generator(0, "a"), pixel_features)


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_chosen_are_different_images_of_the_class(name: str, tiny_dataset: Dataset) -> None:
    images = pixels(tiny_dataset, initial(name, tiny_dataset, 4))
    for index in range(3):
        chosen = (images[index] * 255).round().to(torch.uint8).flatten(1)
        members = tiny_dataset.class_images(index).flatten(1)
        places = [(members == image).all(1).nonzero().item() for image in chosen]
        assert len(set(places)) == 4


def test_noise_is_standard_normal(tiny_dataset: Dataset) -> None:
    images = initial("noise", tiny_dataset, 50)
    assert abs(images.mean().item()) < 0.02 and images.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name, value", CONSTANTS.items())
def test_constants_are_true_pixel_values(name: str, value: float) -> None:
    dataset = colours()
    images = pixels(dataset, initial(name, dataset, 2))
    torch.testing.assert_close(images, torch.full_like(images, value), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["mean", "kmeans_centers"])
def test_mean_of_one_image_a_class_is_the_class_mean(name: str, tiny_dataset: Dataset) -> None:
    images = pixels(tiny_dataset, initial(name, tiny_dataset, 1))
    for index in range(3):
        expected = tiny_dataset.class_images(index).double().mean(0) / 255
        torch.testing.assert_close(images[index, 0].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("kmeans_centers", "mean"),
        ("kcenter", "herding"),
        ("kmeans", "herding"),
    ],
)
def test_methods_that_are_the_same_for_one_image_a_class(
    name: str, same: str, tiny_dataset: Dataset
) -> None:
    """In one channel, by pixels: a study measures them once."""
    images, others = (initial(each, tiny_dataset, 1) for each in (name, same))
    torch.testing.assert_close(images, others, rtol=1e-5, atol=1e-5)


def test_means_are_of_parts_that_make_up_the_class(tiny_dataset: Dataset) -> None:
    images = pixels(tiny_dataset, initial("mean", tiny_dataset, 2))
    sizes = torch.tensor([4.0, 3.0])  # class 1 has 7 images
    members = tiny_dataset.class_images(1).float() / 255
    total = (images[1] * sizes.view(2, 1, 1, 1)).sum(0)
    torch.testing.assert_close(total, members.sum(0), rtol=0, atol=1e-5)


# Clusters


def on_a_line(*positions: int) -> Dataset:
    """One class of images of one pixel."""
    images = torch.tensor(positions, dtype=torch.uint8).view(-1, 1, 1, 1)
    return make_dataset(images, torch.zeros(len(positions), dtype=torch.int64))


@pytest.mark.parametrize("stream", "abc")
def test_clusters_that_are_plain_to_see(stream: str) -> None:
    """Around 11, 101 and 201; the largest comes first."""
    dataset = on_a_line(200, 10, 11, 12, 100, 11, 103, 100, 202)
    (centers,) = cluster_centers(dataset, [3], generator(0, stream))
    assert centers.flatten().tolist() == [11.0, 101.0, 201.0]
    chosen = initial("kmeans", dataset, 3, stream).flatten() * 255
    assert chosen.round().tolist() == [11.0, 100.0, 200.0]


def test_an_image_nearest_two_centres_is_taken_once() -> None:
    centers = torch.tensor([50.0, 50.0, 0.0]).view(3, 1, 1, 1)
    (chosen,) = nearest_images(on_a_line(0, 40, 53), [centers])
    assert chosen.flatten().tolist() == [53, 40, 0]


# Coresets, by hand


def test_herding_keeps_the_mean_of_the_chosen_near_the_mean() -> None:
    """Positions 0, 1, 5, 10 with mean 4; every step by hand.

    1: 5 is nearest 4. 2: (5 + 1) / 2 = 3 and (5 + 0) / 2 = 2.5 and (5 + 10) / 2 = 7.5: takes 1.
    3: (6 + 10) / 3 = 5.33 and (6 + 0) / 3 = 2: takes 10. 4: what is left.
    """
    features = torch.tensor([[0.0], [1.0], [5.0], [10.0]])
    assert herd(features, 4).tolist() == [2, 1, 3, 0]


def test_kcenter_goes_to_the_farthest() -> None:
    """Positions 0, 1, 5, 10: begins at 5, nearest the mean; 0 and 10 are as far, then 1."""
    features = torch.tensor([[0.0], [1.0], [5.0], [10.0]])
    assert cover(features, 4).tolist() == [2, 0, 3, 1]


def test_herding_is_the_rule_as_it_is_written() -> None:
    features = torch.randn(12, 3, generator=generator(0, "features"), dtype=torch.float64)
    chosen: list[int] = []
    for k in range(1, 7):
        gaps = {
            i: (features.mean(0) - features[[*chosen, i]].sum(0) / k).norm().item()
            for i in range(12)
            if i not in chosen
        }
        chosen.append(min(gaps, key=gaps.__getitem__))
    assert herd(features, 6).tolist() == chosen


# Features


@pytest.mark.parametrize("name", NETWORKS)
def test_an_embedding_is_what_the_last_layer_sees(name: str) -> None:
    """The last layer applied to it gives the network's logits."""
    network, theta = tiny_network(name)
    layers = network.module.named_modules()
    last = [place for place, layer in layers if isinstance(layer, torch.nn.Linear)][-1]
    images = random_images(4, stream="images")
    seen = embed(network, theta, images)
    logits = seen @ theta[f"{last}.weight"].T + theta[f"{last}.bias"]
    torch.testing.assert_close(logits, network(theta, images))


def test_the_embedding_of_a_trained_network_tells_classes_apart() -> None:
    """Trained, the classes' means lie farther apart, measured by the spread within them."""
    dataset = colours()
    dataset.images[dataset.labels == 1, :, :3] //= 4
    network = build_network("mlp", dataset.image_shape, 3, {"width": 6})

    def separation(epochs: int) -> float:
        features = embedding(network, epochs, 0.05, torch.device("cpu"))
        found = features(dataset, generator(0, "features"))(dataset.images)
        assert found.shape == (33, 6)
        means = torch.stack([found[dataset.labels == c].mean(0) for c in range(3)])
        spread = (found - means[dataset.labels]).square().sum(1).mean()
        return (torch.pdist(means).square().mean() / spread).item()

    assert separation(30) > 2 * separation(0)


@pytest.mark.parametrize("name", ["herding", "kcenter"])
def test_coresets_choose_by_the_features_given(name: str) -> None:
    """By one number for each image, here a pixel's, the number decides and the others do not."""
    dataset = colours()
    dataset.images[:, 0, 0, 0] = torch.arange(33)
    chosen = INITIALISERS[name](
        dataset, (1, 1, 1), generator(0, "a"), lambda *_: lambda images: images[:, 0, 0, :1].float()
    )
    places = [4, 15, 26]  # nearest the mean of 0..9, 10..20, 21..32; of two the first
    assert torch.equal(chosen, dataset.normalise(dataset.images[places]))
