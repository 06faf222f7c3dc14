"""The benchmark as text tables."""

from collections.abc import Sequence

from benchmarks.measure import Record

HEAD = (
    *("case", "side", "seconds (quartiles)", "n", "first, s", "times as fast"),
    *("peak, MiB", "FLOP/s of ceiling", "bytes/s of ceiling"),
)
ACCURACY_HEAD = ("way", "iteration", "accuracy, % ± sd", "seeds", "from the reference (95 %)")


def show(written: Record) -> str:
    """Return the table of what `benchmark.py` has written: medians with quartiles."""
    about, most = written["machine"], written["ceilings"]
    product, copy = (
        most[name]["median"] for name in ("matmul_float32_flop_per_second", "copy_bytes_per_second")
    )
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
                    _share(found, "flop_per_second", product),
                    _share(found, "bytes_per_second", copy),
                )
            )
    ceilings = (
        f"Ceilings: {product / 1e9:.4g} GFLOP/s (product in float32), {copy / 1e9:.3g} GB/s (copy)"
    )
    return "\n".join([_machine(about), ceilings, "", *_aligned(rows), *died])


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
    what = (
        f"{used['dataset']}, {used['network']}, images a class: {used['ipc']}; "
        f"{used['evaluation']['networks']} networks for each seed and iteration"
    )
    return "\n".join([_machine(written["machine"]), what, "", *_aligned(rows), "", *images])


def _plus_minus(value: float | None) -> str:
    return "" if value is None else f" ± {value:.2f}"


def _machine(about: Record) -> str:
    return f"{about['device']}, {about['processor']}, PyTorch {about['torch']}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows)
    return [line.rstrip() for line in lines]


def _share(found: Record, name: str, most: float) -> str:
    return f"{found[name]['median'] / most:.0%}" if name in found else ""
