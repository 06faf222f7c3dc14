"""The published evaluations, and the name that goes with other settings."""

from typing import Any

import pytest

from condensation.augmentation import AUGMENTATIONS
from condensation.params import load_params
from condensation.protocols import PROTOCOLS, Protocol, choose_protocol
from conftest import ROOT
from evaluate import chosen_protocol

PUBLISHED = [
    # Zhao et al. (ICLR 2021), and the code of VICO-UoE/DatasetCondensation
    ("dc", "mnist", 1000, "crop_scale_rotate"),
    ("dc", "fashion_mnist", 300, "none"),
    ("dc", "cifar10", 300, "none"),
    # Zhao and Bilen (ICML 2021)
    ("dsa", "mnist", 1000, "dsa_without_flip"),
    ("dsa", "svhn", 1000, "dsa_without_flip"),
    ("dsa", "fashion_mnist", 1000, "dsa"),
    ("dsa", "cifar100", 1000, "dsa"),
]


@pytest.mark.parametrize("name, dataset, epochs, augmentation", PUBLISHED)
def test_protocols_are_the_published_ones(
    name: str, dataset: str, epochs: int, augmentation: str
) -> None:
    expected = Protocol(
        epochs=epochs,
        batch_size=256,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.0005,
        augmentation=augmentation,
    )
    assert choose_protocol(name, dataset, epochs=None) == (name, expected)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_augmentations_of_protocols_exist(name: str) -> None:
    for dataset in ("mnist", "svhn", "a folder"):
        assert PROTOCOLS[name](dataset).augmentation in AUGMENTATIONS


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 5},
        {"batch_size": 64},
        {"learning_rate": 0.02},
        {"momentum": 0.0},
        {"weight_decay": 0.0},
        {"augmentation": "none"},
        {"epochs": 1000, "augmentation": "dsa"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", PROTOCOLS)
def test_settings_of_ones_own_are_taken_and_called_custom(
    name: str, settings: dict[str, Any]
) -> None:
    label, chosen = choose_protocol(name, "mnist", **settings)
    assert label == "custom"
    published = PROTOCOLS[name]("mnist")
    for key in vars(published):
        assert getattr(chosen, key) == settings.get(key, getattr(published, key))


def test_a_setting_that_is_the_published_one_keeps_the_name() -> None:
    assert choose_protocol("dc", "mnist", epochs=1000, learning_rate=0.01)[0] == "dc"
    assert choose_protocol("dsa", "mnist", epochs=1000)[0] == "dsa"


def test_the_committed_settings_are_the_protocol_dc() -> None:
    label, chosen = chosen_protocol(load_params(ROOT / "params.yaml"))
    assert label == "dc" and chosen == PROTOCOLS["dc"]("mnist")
