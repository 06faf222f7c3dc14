"""Norm, ReLU and pooling on CUDA in one pass, with the first convolution; written in Triton.

A program takes an image and some of the filters, and keeps all their pixels in registers: the
statistics of the norm, the normalised and the pooled pixels come from one reading. Programs add
nothing up between them, so that the results are the same bytes each time.

Shapes: N = images, h x w = their size after the convolution, c = input channels, o = filters,
places = h w / 4 pooled pixels, each the mean of a square of four. A program has `PLACES` of them,
the least power of two that is enough, and `FILTERS` filters: its tensors are (4 PLACES, FILTERS),
the four of a place a quarter apart, where they are in the same thread. `EXACT` says that there are
neither more places than the image has nor more filters than there are, so that nothing is masked.
"""

import triton
import triton.language as tl


@triton.jit
def _read(source, inside, COMPUTE: tl.constexpr, EXACT: tl.constexpr):
    """Numbers from memory; 0 outside."""
    if EXACT:
        return tl.load(source).to(COMPUTE)
    return tl.load(source, inside, other=0.0).to(COMPUTE)


@triton.jit
def _write(target, values, inside, EXACT: tl.constexpr):
    """Numbers into memory, as what is there."""
    if EXACT:
        tl.store(target, values)
    else:
        tl.store(target, values, inside)


@triton.jit
def _pixels(inner, places, PLACES: tl.constexpr):
    """Row and column of each of the program's pixels, and whether it is one."""
    index = tl.arange(0, 4 * PLACES)
    place, corner = index % PLACES, index // PLACES
    return 2 * (place // inner) + corner // 2, 2 * (place % inner) + corner % 2, place < places


@triton.jit
def _first(
    corners, taps, there, known, count, eps,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, ROW: tl.constexpr,
    PIXELS: tl.constexpr, FILTERS: tl.constexpr, COMPUTE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """A padded image (c, ROWS, ROW) convolved and normalised (FILTERS, PIXELS), 1 / deviation.

    Filters before pixels: a thread then has all filters of its pixels, which it reads itself.
    """
    values = tl.zeros([FILTERS, PIXELS], dtype=COMPUTE)
    for channel in tl.static_range(CHANNELS):
        for tap in tl.static_range(9):
            offset = (channel * ROWS + tap // 3) * ROW + tap % 3
            seen = _read(corners + offset, there, COMPUTE, EXACT)
            weight = _read(taps + channel * 9 + tap, known, COMPUTE, EXACT)
            values += weight[:, None] * seen[None, :]
    centred = values - (tl.sum(values, 1) / count)[:, None]
    if not EXACT:
        centred = tl.where(there[None, :], centred, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / count + eps)
    return centred * inverse[:, None], inverse


@triton.jit
def first_forward(
    images, taps, scales, shifts, pooled, eps, number, inner: tl.constexpr, places: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, ROW: tl.constexpr,
    PLACES: tl.constexpr, FILTERS: tl.constexpr, COMPUTE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Padded images (N, c, ROWS, ROW), taps (o, c, 3, 3) -> pooled (N, places, o)."""
    image = tl.program_id(0).to(tl.int64)
    filters = tl.program_id(1) * FILTERS + tl.arange(0, FILTERS)
    known = filters < number
    row, column, there = _pixels(inner, places, PLACES)
    normalised, _ = _first(
        images + image * (CHANNELS * ROWS * ROW) + (row * ROW + column),
        taps + filters * (9 * CHANNELS), there, known, 4 * places, eps,
        CHANNELS, ROWS, ROW, 4 * PLACES, FILTERS, COMPUTE, EXACT,
    )  # fmt: skip
    scale = _read(scales + filters, known, COMPUTE, EXACT)
    shift = _read(shifts + filters, known, COMPUTE, EXACT)
    active = tl.maximum(normalised * scale[:, None] + shift[:, None], 0.0)
    result = tl.sum(tl.reshape(active, [FILTERS, 4, PLACES]), 1) / 4
    place = tl.arange(0, PLACES)
    target = pooled + image * places * number + (place[None, :] * number + filters[:, None])
    _write(target, result, (place < places)[None, :] & known[:, None], EXACT)


@triton.jit
def first_backward(
    slopes, images, taps, scales, shifts, sums, eps, number,
    inner: tl.constexpr, places: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, ROW: tl.constexpr,
    PLACES: tl.constexpr, FILTERS: tl.constexpr, COMPUTE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Of each image, the slopes of taps, scale and shift: sums (N, 9 c + 2, o).

    The convolution is calculated again: its result is the largest tensor of the network.
    """
    image = tl.program_id(0).to(tl.int64)
    filters = tl.program_id(1) * FILTERS + tl.arange(0, FILTERS)
    known = filters < number
    row, column, there = _pixels(inner, places, PLACES)
    corners = images + image * (CHANNELS * ROWS * ROW) + (row * ROW + column)
    count = 4 * places
    normalised, inverse = _first(
        corners, taps + filters * (9 * CHANNELS), there, known, count, eps,
        CHANNELS, ROWS, ROW, 4 * PLACES, FILTERS, COMPUTE, EXACT,
    )  # fmt: skip
    scale = _read(scales + filters, known, COMPUTE, EXACT)
    shift = _read(shifts + filters, known, COMPUTE, EXACT)
    place = tl.arange(0, PLACES)
    source = slopes + image * places * number + (place[None, :] * number + filters[:, None])
    slope = _read(source, (place < places)[None, :] & known[:, None], COMPUTE, EXACT) / 4
    spread = tl.broadcast_to(slope[:, None, :], [FILTERS, 4, PLACES])
    of_active = tl.reshape(spread, [FILTERS, 4 * PLACES])
    of_norm = tl.where(normalised * scale[:, None] + shift[:, None] > 0, of_active, 0.0)
    of_shift, of_scale = tl.sum(of_norm, 1), tl.sum(of_norm * normalised, 1)
    centred = of_norm - (of_shift / count)[:, None] - normalised * (of_scale / count)[:, None]
    of_convolved = centred * (scale * inverse)[:, None]
    target = sums + image * (9 * CHANNELS + 2) * number + filters
    for channel in tl.static_range(CHANNELS):
        for tap in tl.static_range(9):
            offset = (channel * ROWS + tap // 3) * ROW + tap % 3
            seen = _read(corners + offset, there, COMPUTE, EXACT)  # 0 where there is no pixel
            of_tap = tl.sum(of_convolved * seen[None, :], 1)
            _write(target + (channel * 9 + tap) * number, of_tap, known, EXACT)
    _write(target + 9 * CHANNELS * number, of_scale, known, EXACT)
    _write(target + (9 * CHANNELS + 1) * number, of_shift, known, EXACT)


@triton.jit
def _normalised(values, there, count, eps, EXACT: tl.constexpr):
    """Instance norm without scale and shift, and 1 / deviation; 0 where there is no pixel."""
    centred = values - (tl.sum(values, 0) / count)[None, :]
    if not EXACT:
        centred = tl.where(there[:, None], centred, 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 0) / count + eps)
    return centred * inverse[None, :], inverse


@triton.jit
def _pooled(normalised, scale, shift, PLACES: tl.constexpr, FILTERS: tl.constexpr):
    """Scale and shift, ReLU, and the mean of each four."""
    active = tl.maximum(normalised * scale[None, :] + shift[None, :], 0.0)
    return tl.sum(tl.reshape(active, [4, PLACES, FILTERS]), 0) / 4


@triton.jit
def _back(
    slope, normalised, inverse, scale, shift, there, count,
    PLACES: tl.constexpr, FILTERS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """From the slope of what was pooled, those of what was convolved, of scale and of shift."""
    spread = tl.broadcast_to((slope / 4)[None, :, :], [4, PLACES, FILTERS])
    of_active = tl.reshape(spread, [4 * PLACES, FILTERS])
    of_norm = tl.where(normalised * scale[None, :] + shift[None, :] > 0, of_active, 0.0)
    if not EXACT:
        of_norm = tl.where(there[:, None], of_norm, 0.0)
    of_shift, of_scale = tl.sum(of_norm, 0), tl.sum(of_norm * normalised, 0)
    centred = of_norm - (of_shift / count)[None, :] - normalised * (of_scale / count)[None, :]
    of_convolved = centred * (scale * inverse)[None, :]
    if not EXACT:
        of_convolved = tl.where(there[:, None], of_convolved, 0.0)
    return of_convolved, of_scale, of_shift


@triton.jit
def pool_forward(
    images, scales, shifts, pooled, eps, number, inner: tl.constexpr, places: tl.constexpr,
    PLACES: tl.constexpr, FILTERS: tl.constexpr, COMPUTE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Convolved images (N, h, w, o) -> pooled (N, places, o)."""
    image = tl.program_id(0).to(tl.int64)
    filters = tl.program_id(1) * FILTERS + tl.arange(0, FILTERS)
    known = filters < number
    row, column, there = _pixels(inner, places, PLACES)
    offsets = (row * 2 * inner + column)[:, None] * number + filters[None, :]
    source = images + image * 4 * places * number + offsets
    values = _read(source, there[:, None] & known[None, :], COMPUTE, EXACT)
    normalised, _ = _normalised(values, there, 4 * places, eps, EXACT)
    scale = _read(scales + filters, known, COMPUTE, EXACT)
    shift = _read(shifts + filters, known, COMPUTE, EXACT)
    result = _pooled(normalised, scale, shift, PLACES, FILTERS)
    place = tl.arange(0, PLACES)
    target = pooled + image * places * number + (place[:, None] * number + filters[None, :])
    _write(target, result, (place < places)[:, None] & known[None, :], EXACT)


@triton.jit
def pool_backward(
    slopes, images, scales, shifts, of_images, sums, eps, number,
    inner: tl.constexpr, places: tl.constexpr,
    PLACES: tl.constexpr, FILTERS: tl.constexpr, COMPUTE: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """The slopes of convolved images (N, h, w, o); of scale and shift of each, sums (N, 2, o)."""
    image = tl.program_id(0).to(tl.int64)
    filters = tl.program_id(1) * FILTERS + tl.arange(0, FILTERS)
    known = filters < number
    row, column, there = _pixels(inner, places, PLACES)
    offsets = (row * 2 * inner + column)[:, None] * number + filters[None, :]
    own = image * 4 * places * number
    inside = there[:, None] & known[None, :]
    values = _read(images + own + offsets, inside, COMPUTE, EXACT)
    normalised, inverse = _normalised(values, there, 4 * places, eps, EXACT)
    scale = _read(scales + filters, known, COMPUTE, EXACT)
    shift = _read(shifts + filters, known, COMPUTE, EXACT)
    place = tl.arange(0, PLACES)
    source = slopes + image * places * number + (place[:, None] * number + filters[None, :])
    slope = _read(source, (place < places)[:, None] & known[None, :], COMPUTE, EXACT)
    of_convolved, of_scale, of_shift = _back(
        slope, normalised, inverse, scale, shift, there, 4 * places, PLACES, FILTERS, EXACT
    )
    _write(of_images + own + offsets, of_convolved, inside, EXACT)
    target = sums + image * 2 * number + filters
    _write(target, of_scale, known, EXACT)
    _write(target + number, of_shift, known, EXACT)
