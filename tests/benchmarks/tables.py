"""The benchmark as a text table."""

from benchmarks.measure import Record

HEAD = (
    *("case", "side", "seconds (quartiles)", "n", "first, s", "times as fast"),
    *("peak, MiB", "FLOP/s of ceiling", "bytes/s of ceiling"),
)


def show(written: Record) -> str:
    """Return the table of what `benchmark.py` has written: medians with quartiles."""
    about, most = written["machine"], written["ceilings"]
    product, copy = (
        most[name]["median"] for name in ("matmul_float32_flop_per_second", "copy_bytes_per_second")
    )
    rows = [HEAD]
    for name, case in written["cases"].items():
        if case is None:
            rows.append((name, "", "not measured", *[""] * 6))
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
                    f"{found['first_call']:.3g}",
                    f"{slowest / spent['median']:.3g}",
                    f"{found['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in found else "",
                    _share(found, "flop_per_second", product),
                    _share(found, "bytes_per_second", copy),
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) for row in rows]
    head = (
        f"{about['device']}, {about['processor']}, PyTorch {about['torch']}\n"
        f"Ceilings: {product / 1e9:.4g} GFLOP/s (product in float32), {copy / 1e9:.3g} GB/s (copy)"
    )
    return "\n".join([head, "", *(line.rstrip() for line in lines)])


def _share(found: Record, name: str, most: float) -> str:
    return f"{found[name]['median'] / most:.0%}" if name in found else ""
