"""The benchmark as text tables."""

import re
from collections.abc import Sequence

from benchmarks.measure import Record

HEAD = (
    *("case", "side", "seconds (quartiles)", "n", "first, s", "times as fast"),
    *("peak, MiB", "FLOP/s of ceiling", "operator bytes/s of ceiling"),
)
NOTE = (
    "Shares of the ceilings may be above 100 %: operations are counted as those of direct "
    "convolution, of which Winograd's takes fewer; and operator bytes as if nothing that one "
    "operator leaves in a cache were read there by the next. The ceiling is the product in the "
    "precision of the side's own products."
)
ACCURACY_HEAD = ("way", "iteration", "accuracy, % ± sd", "seeds", "from the reference (95 %)")


def show(written: Record) -> str:
    """Return the table of what `benchmark.py` has written: medians with quartiles."""
    about, most = written["machine"], written["ceilings"]
    products = {
        match[1]: rate["median"]
        for name, rate in most.items()
        if (match := re.fullmatch("matmul_(.*)_flop_per_second", name))
    }
    copy = most["copy_bytes_per_second"]["median"]
    # What the rows without a precision were measured in: all are of a ConvNet.
    usual = "float32" if about["device"].startswith("CPU") else "tf32"
    rows, died = [HEAD], []
    for name, case in written["cases"].items():
        if case is None:
            rows.append((name, "", "not measured", *[""] * 6))
            continue
        if "died" in case:
            rows.append((name, "", "died", *[""] * 6))
            died.append(f"{name}: {case['died']}")
            continue
        slowest = next(iter(case["sides"].values()))["seconds"]["median"]
        for side, found in case["sides"].items():
            spent = found["seconds"]
            low, high = spent["lower_quartile"], spent["upper_quartile"]
            rows.append(
                (
                    name,
                    side,
                    f"{spent['median']:.3g} ({low:.3g} to {high:.3g})",
                    str(spent["n"]),
                    "" if found["first_call"] is None else f"{found['first_call']:.3g}",
                    f"{slowest / spent['median']:.3g}",
                    f"{found['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in found else "",
                    _share(found, products.get(found.get("precision", usual)), "flop_per_second"),
                    # The second name is that of figures of before.
                    _share(found, copy, "operator_bytes_per_second", "bytes_per_second"),
                )
            )
    rates = [f"{rate / 1e9:.4g} GFLOP/s (product in {name})" for name, rate in products.items()]
    ceilings = f"Ceilings: {', '.join(rates)}, {copy / 1e9:.3g} GB/s (copy)"
    return "\n".join([_machine(about), ceilings, NOTE, "", *_aligned(rows), *died])


def show_accuracy(written: Record) -> str:
    """Return the table of what `accuracy.py` has written: means over seeds."""
    rows, images = [ACCURACY_HEAD], []
    for name, found in written["ways"].items():
        if found is None:
            rows.append((name, "", "not measured", "", ""))
            continue
        for column, iteration in enumerate(found["iterations"]):
            mean, apart = f"{found['mean'][column]:.2f}" + _plus_minus(found["sd"][column]), ""
            if "difference" in found:
                half = found["half_width_95"][column]
                apart = f"{found['difference'][column]:+.2f}" + _plus_minus(half)
            rows.append((name, f"{iteration}", mean, f"{found['n']}", apart))
        images += [
            f"{name}: images of iteration {iteration} differ by at most {value:.1e}, relatively"
            for iteration, value in found.get("largest_relative_difference", {}).items()
        ]
        if (value := found.get("largest_relative_rounding")) is not None:
            images.append(f"{name}: those of iteration 1 differ by {value:.1e} from float64's")
    used = written["settings"]
    beyond = f"{beyond}; " if (beyond := beyond_usual(used)) else ""
    what = (
        f"{used['dataset']}, {used['network']}, images a class: {used['ipc']} "
        f"({used['real_per_class']} real ones in a batch); {beyond}"
        f"{used['evaluation']['networks']} networks for each seed and iteration"
    )
    return "\n".join([_machine(written["machine"]), what, "", *_aligned(rows), "", *images])


def beyond_usual(used: Record) -> str:
    """Say what the settings of `accuracy.py` have beside its usual ones, but for numbers of images.

    That is the term of order 2, and the training of the network between image steps.
    """
    said = [f"the term `{used['curvature']['form']}`"] if "curvature" in used else []
    if "outer" in used:
        said += [f"{used['outer']} image steps an iteration, {used['inner']} epochs between two"]
    return " and ".join(said)


def _plus_minus(value: float | None) -> str:
    return "" if value is None else f" ± {value:.2f}"


def _machine(about: Record) -> str:
    return f"{about['device']}, {about['processor']}, PyTorch {about['torch']}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def _share(found: Record, most: float | None, *names: str) -> str:
    # Of the first name that is there; of a ceiling that is not measured there is no share.
    values = [found[name]["median"] for name in names if name in found]
    return f"{values[0] / most:.0%}" if values and most else ""
