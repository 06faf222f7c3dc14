"""Several independent sets in one run, and the two sources of their spread."""

import csv
import json
from pathlib import Path

import pytest
import torch

from condensation.artefacts import read_synthetic_set, set_path
from condensation.spread import spread_of_sets
from workspace import make_workspace, run_here

STAGES = ("initialize", "baseline --network mlp", "condense", "evaluate --network mlp")


def test_each_set_is_the_one_that_its_seed_gives_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = make_workspace(tmp_path / "together", sets=2, order=1)
    for stage in STAGES:
        run_here(together, stage, monkeypatch)
    for k in range(2):
        alone = make_workspace(tmp_path / f"alone-{k}", seed=k, order=1)
        for stage in ("initialize", "condense"):
            run_here(alone, stage, monkeypatch)
        for home in ("data/initial", "data/condensed"):
            ours = read_synthetic_set(set_path(together / home, k))
            expected = read_synthetic_set(set_path(alone / home, 0))
            torch.testing.assert_close(ours.images, expected.images, rtol=1e-5, atol=1e-5)
    metrics = json.loads((together / "results/evaluate/mlp/metrics.json").read_text())["mlp"]
    with (together / "results/evaluate/mlp/networks.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["iteration"]) for row in rows)
    final = [row for row in rows if int(row["iteration"]) == last]
    assert metrics["sets"] == 2 and metrics["n"] == len(final)
    assert metrics["std_within_sets"] > 0 and "std_between_sets" in metrics
    assert {row["set"] for row in final} == {"0", "1"}


def test_spread_is_separated_into_its_two_sources() -> None:
    # Set means 2 and 6: variance 8; networks: variance 2 in each set; 8 - 2 / 2 = 7.
    assert spread_of_sets([[1.0, 3.0], [5.0, 7.0]]) == (round(7**0.5, 2), round(2**0.5, 2))
    assert spread_of_sets([[1.0, 3.0], [1.0, 3.0]]) == (0.0, round(2**0.5, 2))
    assert spread_of_sets([[1.0, 3.0]]) == (None, round(2**0.5, 2))
    assert spread_of_sets([[1.0], [2.0]]) == (None, None)
