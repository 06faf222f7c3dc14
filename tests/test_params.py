"""Every mistake in params.yaml is one message that names the key, what it got and what it takes."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from condensation.params import Params, load_params, registry_names, run_stage
from condensation.settings_files import SettingsLoader
from conftest import ROOT

DEFAULTS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
MISSING = object()

MISTAKES: list[tuple[str, Any, str]] = [
    ("ordr", 2, "ordr: unknown key; did you mean 'order'?"),
    ("condense.itertions", 5, "condense.itertions: unknown key; did you mean 'iterations'?"),
    ("evaluate.convnet.nets", 5, "evaluate.convnet.nets: unknown key Takes: num_networks"),
    ("networks.convnet.wdth", 5, "networks.convnet.wdth: unknown key; did you mean 'width'?"),
    ("networks.alexnet2", {}, "networks.alexnet2: unknown key; did you mean 'alexnet'?"),
    ("seed", MISSING, "seed: is missing"),
    ("condense.curvature.form", MISSING, "condense.curvature.form: is missing"),
    ("evaluate.mlp", MISSING, "evaluate.mlp: is missing"),
    ("baseline.lenet", MISSING, "baseline.lenet: is missing"),
    ("networks.convnet", MISSING, "networks.convnet: is missing"),
    ("condense", 3, "condense: got 3, takes a section"),
    ("networks", 3, "networks: got 3, takes a section"),
    ("networks.mlp", 3, "networks.mlp: got 3, takes a section"),
    ("seed", -1, "seed: got -1, takes a whole number from 0"),
    ("seed", True, "seed: got True, takes a whole number from 0"),
    ("seed", 1.5, "seed: got 1.5, takes a whole number from 0"),
    ("ipc", 0, "ipc: got 0, takes a whole number from 1"),
    (
        "ipc",
        "1",
        "ipc: got '1', takes a whole number from 1, or one for each class by its name; w",
    ),
    ("ipc", {}, "ipc: got {}, takes a whole number from 1, or one for each class by its name"),
    ("ipc", {"a": 1, "b": 0}, "ipc.b: got 0, takes a whole number from 1"),
    ("ipc", {"a": "x"}, "ipc.a: got 'x', takes a whole number from 1"),
    (
        "ipc",
        {7: 3, "NA": 5},
        "ipc: got the keys 7, NA, of which 7 is no text for DVC; takes all texts or all numbers: w",
    ),
    ("ipc", {"leaf": 1, None: 2}, "of which null is no text for DVC"),
    ("ipc_shares", "half", "ipc_shares: got 'half', takes equal | proportional"),
    ("order", 3, "order: got 3, takes 1 | 2"),
    ("order", "2", "order: got '2', takes 1 | 2"),
    ("network", "covnet", "network: got 'covnet', takes convnet | lenet | mlp | alexnet | vgg11"),
    ("init", "kmeans++", "init: got 'kmeans++', takes noise | real | black"),
    ("dataset", 7, "dataset: got 7, takes mnist"),
    ("split", "train", "split: got 'train', takes test | validation"),
    ("device", "gpu", "device: got 'gpu', takes auto | cpu | cuda"),
    ("compile", "yes", "compile: got 'yes', takes auto | on | off"),
    ("condense.distance", "cosin", "condense.distance: got 'cosin', takes layerwise_cosine | cosi"),
    ("condense.curvature.form", "hessian", "condense.curvature.form: got 'hessian', takes hvp"),
    ("condense.image_learning_rate", "0.1", "got '0.1', takes a number above 0; write numbers"),
    ("condense.image_learning_rate", 0, "condense.image_learning_rate: got 0.0, takes a number a"),
    ("condense.image_learning_rate", float("nan"), "condense.image_learning_rate: got nan"),
    ("condense.image_learning_rate", float("inf"), "condense.image_learning_rate: got inf"),
    ("condense.image_momentum", 1, "got 1.0, takes a number from 0 below 1"),
    ("condense.outer", "many", "condense.outer: got 'many', takes a whole number from 1 | auto"),
    ("condense.outer", 0, "condense.outer: got 0, takes a whole number from 1 | auto"),
    ("condense.snapshots", 5, "condense.snapshots: got 5, takes a list"),
    ("condense.snapshots", [0, -1], "condense.snapshots: got -1, takes a whole number from 0"),
    ("condense.snapshots", [0, 9999], "condense.snapshots: got 9999, takes iterations from 0 to"),
    ("evaluate.networks", "mlp", "evaluate.networks: got 'mlp', takes a list"),
    ("evaluate.networks", [], "evaluate.networks: got [], takes a list"),
    ("evaluate.networks", ["mlp", "mlp"], "evaluate.networks: got ['mlp', 'mlp'], takes each once"),
    ("evaluate.networks", ["mlpp"], "evaluate.networks: got 'mlpp', takes convnet | lenet | mlp"),
    (
        "evaluate.augmentation",
        "flip",
        "takes none | shift | crop_scale_rotate | dsa | dsa_without_flip",
    ),
    ("evaluate.protocol", "idc", "evaluate.protocol: got 'idc', takes dc | dsa"),
    ("evaluate.protocol", "auto", "evaluate.protocol: got 'auto', takes dc | dsa"),
    ("evaluate.learning_rate", 0, "evaluate.learning_rate: got 0.0, takes a number above 0 | auto"),
    ("evaluate.epochs", 0, "evaluate.epochs: got 0, takes a whole number from 1 | auto"),
    ("networks.convnet.width", 0, "networks.convnet.width: got 0, takes a whole number from 1"),
    ("networks.mlp.width", 2.5, "networks.mlp.width: got 2.5, takes a whole number from 1"),
    ("networks.mlp.activation", "gelu", "networks.mlp.activation: got 'gelu', takes relu | leak"),
    (
        "networks.convnet.norm",
        "batchnorm",
        "got 'batchnorm', takes instance | batch | layer | ",
    ),
    (
        "networks.convnet.pooling",
        "mean",
        "networks.convnet.pooling: got 'mean', takes avg | max",
    ),
    (
        "networks.resnet18.downsampling",
        2,
        "networks.resnet18.downsampling: got 2, takes stride",
    ),
    ("networks.vgg11.width", 0, "networks.vgg11.width: got 0, takes a whole number from 1"),
    ("networks.mlp.norm", "batch", "networks.mlp.norm: unknown key Takes: width, activation"),
    ("render.dpi", None, "render.dpi: got None, takes a whole number from 30"),
]


def load(tmp_path: Path, changes: dict[str, Any]) -> Params:
    """Load the committed params.yaml with some dotted keys changed or taken out."""
    values = copy.deepcopy(DEFAULTS)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = values
        for name in sections:
            section = section[name]
        if value is MISSING:
            del section[last]
        else:
            section[last] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    return load_params(path)


@pytest.mark.parametrize("key, value, message", MISTAKES)
def test_a_mistake_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        load(tmp_path, {key: value})
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert key.split(".")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "steps"), [({"condense.outer": 5}, 5), ({"ipc": 10}, 10), ({"ipc": 4}, 4)]
)
def test_inner_loop_of_nothing_with_several_image_steps(
    tmp_path: Path, changes: dict[str, Any], steps: int
) -> None:
    with pytest.raises(ValueError, match=f"condense.inner: got 0 with {steps} image steps"):
        load(tmp_path, {"condense.inner": 0, **changes})


def test_inner_loop_of_nothing_with_one_image_step(tmp_path: Path) -> None:
    assert load(tmp_path, {"condense.inner": 0}).loops == (1, 0)
    assert load(tmp_path, {"condense.inner": 0, "condense.outer": 1, "ipc": 10}).loops == (1, 0)


def test_the_committed_settings_are_taken_as_they_are() -> None:
    params = load_params(ROOT / "params.yaml")
    assert params.network == DEFAULTS["network"] and params.condense.outer is None
    assert params.condense.snapshots == tuple(DEFAULTS["condense"]["snapshots"])
    assert params.evaluate.by_network["mlp"].num_networks == DEFAULTS["evaluate"]["mlp"][
        "num_networks"
    ]  # fmt: skip
    assert params.networks["convnet"] == DEFAULTS["networks"]["convnet"]


@pytest.mark.parametrize("text", ["0.00002", "2e-05", "2.0e-5"])
def test_small_numbers_are_read_as_dvc_writes_them(tmp_path: Path, text: str) -> None:
    """`dvc exp run -S condense.curvature.weight=0.00002` writes 2e-05 into params.yaml."""
    path = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text()
    path.write_text(re.sub(r"(\n    weight: )\S+", rf"\g<1>{text}", before, count=1))
    assert load_params(path).condense.curvature.weight == 2e-5


def test_a_whole_number_is_taken_for_a_number(tmp_path: Path) -> None:
    rate = load(tmp_path, {"condense.image_learning_rate": 1}).condense.image_learning_rate
    assert rate == 1.0 and isinstance(rate, float)


@pytest.mark.parametrize(
    "content", [b"seed: [", b"\xff\xfe", b"", b"- 1"], ids=["broken", "binary", "empty", "list"]
)
def test_a_file_that_is_no_settings_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        load_params(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"params\.yaml: cannot be read"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "file, registry",
    [
        ("augmentation", "AUGMENTATIONS"),
        ("distances", "DISTANCES"),
        ("initialisers", "INITIALISERS"),
        ("curvature", "CURVATURE_FORMS"),
        ("deep_networks", "DOWNSAMPLINGS"),
        ("layers", "ACTIVATIONS"),
        ("layers", "POOLINGS"),
        ("normalisation", "NORMS"),
        ("networks", "NETWORKS"),
        ("protocols", "PROTOCOLS"),
        ("training", "SCHEDULES"),
        ("raw_data", "DATASETS"),
    ],
)
def test_names_read_from_the_source_are_the_registered_ones(file: str, registry: str) -> None:
    module = __import__(f"condensation.{file}", fromlist=[registry])
    names = registry_names(f"{file}.py", registry)
    assert names == tuple(getattr(module, registry)) and names


def test_a_users_mistake_ends_a_stage_with_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main() -> None:
        raise ValueError("seed: is missing")

    monkeypatch.setattr("sys.argv", ["stages/condense.py"])
    with pytest.raises(SystemExit) as caught:
        run_stage(main)
    assert caught.value.code == "condense: seed: is missing"  # printed to stderr, status 1


def test_too_little_memory_is_one_line_that_names_what_takes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main() -> None:
        raise MemoryError

    monkeypatch.setattr("sys.argv", ["stages/prepare.py"])
    with pytest.raises(SystemExit, match=r"^prepare: there is not enough .*prepare\.image_size"):
        run_stage(main)


def test_a_number_for_each_class(tmp_path: Path) -> None:
    """Names of classes are texts as they are written, also 7 and no; the loops take the mean."""
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    assert "\nipc: 1 " in text
    path.write_text(text.replace("\nipc: 1 ", "\nipc: {'7': 1, no: 40, '2': 4} "))
    params = load_params(path)
    assert params.ipc == {"7": 1, "no": 40, "2": 4}
    path.write_text(text.replace("\nipc: 1 ", "\nipc: {7: 1, 010: 40, 2.5: 4} "))
    assert load_params(path).ipc == {"7": 1, "010": 40, "2.5": 4}
    assert params.loops == load(tmp_path, {"ipc": 15}).loops
    with pytest.raises(ValueError, match="ipc_shares: got proportional with a number for each"):
        load(tmp_path, {"ipc": {"a": 2}, "ipc_shares": "proportional"})


def test_a_section_that_takes_over_another_has_texts_for_keys() -> None:
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}"
    assert yaml.load(text, SettingsLoader)["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("written", ["auto", "on", "off"])
def test_on_and_off_are_texts_as_they_are_for_dvc(tmp_path: Path, written: str) -> None:
    path = tmp_path / "params.yaml"
    text = (ROOT / "params.yaml").read_text()
    path.write_text(text.replace("compile: auto", f"compile: {written}"))
    assert load_params(path).compile == written
