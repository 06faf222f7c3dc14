"""The metrics of a stage, as another one reads them."""

import json
from pathlib import Path
from typing import Any

from condensation.errors import one_line


def read_metrics(path: Path, network: str, needed: tuple[str, ...]) -> dict[str, Any]:
    """Read the metrics of one network.

    Args:
        path: A `metrics.json` of a stage that runs once for each network.
        network: Whose metrics they are.
        needed: Names of metrics that have to be there as numbers.

    Raises:
        ValueError: The file is missing or damaged, or a metric is missing.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({one_line(error)})") from None
    metrics = found.get(network) if isinstance(found, dict) else None
    for name in needed:
        value = metrics.get(name) if isinstance(metrics, dict) else None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{path}: has no number {network}.{name}")
    return dict(metrics or {})
