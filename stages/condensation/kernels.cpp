// What `compiled_blocks.py` computes between its products of matrices, on one core: the same
// formulas as `winograd.py` and `fused.py`, in one pass each, a few channels at a time, so that
// what is computed in between stays in the nearest cache.
//
// Shapes: N images of h x w, o = channels = m * V with V the channels in one vector; P = N * h * w
// / 16 tiles, of which each of the 36 entries is a plane of P x o numbers, `plane` apart. Images are
// (N, h, w, o); what is kept for the backward pass is (N, m, h * w, V). Types: T of what is computed,
// S of what the products of matrices take and give, as it lies in memory: T, or bfloat16 for float.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

template <typename T>
struct Vector {
    typedef T type __attribute__((vector_size(64)));
    static constexpr int size = 64 / sizeof(T);
};

template <typename T>
using Vec = typename Vector<T>::type;

template <typename T>
inline Vec<T> load(const T *from) {
    Vec<T> value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <typename T>
inline void store(T *to, Vec<T> value) {
    std::memcpy(to, &value, sizeof value);
}

// The upper half of a float.
struct bfloat16 {
    std::uint16_t bits;
};

inline Vec<float> load(const bfloat16 *from) {
    typedef std::uint16_t half __attribute__((vector_size(32)));
    typedef std::uint32_t word __attribute__((vector_size(64)));
    half bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Vec<float>)(__builtin_convertvector(bits, word) << 16);
}

// Rounded to the nearest, to an even last bit where two are as near; for numbers that are finite.
inline void store(bfloat16 *to, Vec<float> value) {
    typedef std::uint16_t half __attribute__((vector_size(32)));
    typedef std::uint32_t word __attribute__((vector_size(64)));
    word bits = (word)value;
    half upper = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, half);
    std::memcpy(to, &upper, sizeof upper);
}

template <typename V, typename T>
inline V maximum(V a, T zero) {
    return a > zero ? a : V{} + zero;
}

// Lavin and Gray, F(4 x 4, 3 x 3): B' d, A' m and A g along one axis.
template <typename V>
inline void input_axis(const V *d, int step, V *out, int out_step) {
    V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step],
      d5 = d[5 * step];
    V even = d4 - 4 * d2, odd = d3 - 4 * d1, even2 = d4 - d2, odd2 = 2 * (d3 - d1);
    out[0] = 4 * d0 - 5 * d2 + d4;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = even2 + odd2;
    out[4 * out_step] = even2 - odd2;
    out[5 * out_step] = 4 * d1 - 5 * d3 + d5;
}

template <typename V>
inline void output_axis(const V *m, int step, V *out, int out_step) {
    V sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    V sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    out[0] = m[0] + sum1 + sum2;
    out[out_step] = difference1 + 2 * difference2;
    out[2 * out_step] = sum1 + 4 * sum2;
    out[3 * out_step] = difference1 + 8 * difference2 + m[5 * step];
}

template <typename V>
inline void slope_axis(const V *g, int step, V *out, int out_step) {
    V g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    V even = g0 + g2, odd = g1 + g3, even4 = g0 + 4 * g2, odd8 = 2 * g1 + 8 * g3;
    out[0] = g0;
    out[out_step] = even + odd;
    out[2 * out_step] = even - odd;
    out[3 * out_step] = even4 + odd8;
    out[4 * out_step] = even4 - odd8;
    out[5 * out_step] = g3;
}

// B' d B of the 6 x 6 window at `d`, whose pixels are `Step` vectors apart and whose rows `row`.
template <typename T, typename S, int Step = 1>
inline void transform_window(const Vec<T> *d, int row, S *out, long plane) {
    Vec<T> half[36], whole[36];
    for (int x = 0; x < 6; x++) input_axis(d + x * Step, row, half + x, 6);
    for (int y = 0; y < 6; y++) input_axis(half + 6 * y, 1, whole + 6 * y, 1);
    for (int e = 0; e < 36; e++) store(out + e * plane, whole[e]);
}

// A g A' of the 4 x 4 tile at `g`.
template <typename T, typename S>
inline void transform_tile(const Vec<T> *g, int row, S *out, long plane) {
    Vec<T> half[24], whole[36];
    for (int x = 0; x < 4; x++) slope_axis(g + x, row, half + x, 4);
    for (int y = 0; y < 6; y++) slope_axis(half + 4 * y, 1, whole + 6 * y, 1);
    for (int e = 0; e < 36; e++) store(out + e * plane, whole[e]);
}

// A' m A of the 36 products at `m`, into a tile of pixels `Step` vectors apart and rows `row`.
template <typename T, typename S, int Step = 1>
inline void inverse_tile(const S *m, long plane, Vec<T> *out, int row) {
    Vec<T> products[36], half[24];
    for (int e = 0; e < 36; e++) products[e] = load(m + e * plane);
    for (int x = 0; x < 6; x++) output_axis(products + x, 6, half + x, 6);
    for (int y = 0; y < 4; y++) output_axis(half + 6 * y, 1, out + y * row, Step);
}

template <typename T, typename S>
void input_transform(const T *images, S *tiles, long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long padded = w + 2;
    std::vector<Vec<T>> scratch((h + 2) * padded, Vec<T>{});
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            for (long y = 0; y < h; y++)
                for (long x = 0; x < w; x++)
                    scratch[(y + 1) * padded + x + 1] = load(images + ((n * h + y) * w + x) * o + j);
            S *out = tiles + n * h * w / 16 * o + j;
            for (long y = 0; y < h; y += 4)
                for (long x = 0; x < w; x += 4, out += o)
                    transform_window<T, S>(&scratch[y * padded + x], padded, out, plane);
        }
}

template <typename T, typename S>
void output_transform(const S *products, T *images, long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    Vec<T> tile[16];
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            const S *from = products + n * h * w / 16 * o + j;
            for (long y = 0; y < h; y += 4)
                for (long x = 0; x < w; x += 4, from += o) {
                    inverse_tile<T, S>(from, plane, tile, 4);
                    for (int e = 0; e < 16; e++)
                        store(images + ((n * h + y + e / 4) * w + x + e % 4) * o + j, tile[e]);
                }
        }
}

// Normalise p vectors in place; return their mean and 1 / standard deviation.
template <typename T>
inline void normalise(Vec<T> *pixels, long p, T eps, Vec<T> &inverse) {
    Vec<T> sums[4] = {};
    for (long i = 0; i < p; i++) sums[i & 3] += pixels[i];
    Vec<T> mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / T(p), squares[4] = {};
    for (long i = 0; i < p; i++) {
        pixels[i] -= mean;
        squares[i & 3] += pixels[i] * pixels[i];
    }
    Vec<T> variance = ((squares[0] + squares[1]) + (squares[2] + squares[3])) / T(p);
    for (int v = 0; v < Vector<T>::size; v++) inverse[v] = 1 / __builtin_sqrt(variance[v] + eps);
    for (long i = 0; i < p; i++) pixels[i] *= inverse;
}

// ReLU of scale * pixels + shift, and the mean of each 2 x 2; `pooled` is (h / 2, w / 2, o) at j.
template <typename T>
inline void pool(const Vec<T> *pixels, Vec<T> scale, Vec<T> shift, T *pooled, long h, long w,
                 long o) {
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, pooled += o) {
            const Vec<T> *at = pixels + y * w + x;
            Vec<T> upper = maximum(at[0] * scale + shift, T(0)) + maximum(at[1] * scale + shift, T(0));
            Vec<T> lower =
                maximum(at[w] * scale + shift, T(0)) + maximum(at[w + 1] * scale + shift, T(0));
            store(pooled, (upper + lower) * T(0.25));
        }
}

// Replace normalised pixels, rows `row` vectors apart, by the slope with respect to what was
// normalised; `slope` is (h / 2, w / 2, o) at j. Adds to the slopes of scale, shift and bias.
template <typename T>
inline void norm_backward(Vec<T> *pixels, long row, const T *slope, Vec<T> inverse, Vec<T> scale,
                          Vec<T> shift, long h, long w, long o, T *of_scale, T *of_shift,
                          T *of_bias) {
    Vec<T> total[2] = {}, aligned[2] = {}, zero = {};
    const T *from = slope;
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, from += o) {
            Vec<T> value = load(from) * T(0.25);
            for (int e = 0; e < 4; e++) {
                Vec<T> at = pixels[(y + e / 2) * row + x + e % 2];
                Vec<T> kept = at * scale + shift > zero ? value : zero;
                total[e & 1] += kept;
                aligned[e & 1] += kept * at;
            }
        }
    Vec<T> sum = total[0] + total[1], along = aligned[0] + aligned[1];
    store(of_shift, load(of_shift) + sum);
    store(of_scale, load(of_scale) + along);
    Vec<T> factor = scale * inverse, offset = factor * sum / T(h * w),
           slant = factor * along / T(h * w), bias = {};
    from = slope;
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, from += o) {
            Vec<T> value = load(from) * T(0.25) * factor;
            for (int e = 0; e < 4; e++) {
                Vec<T> &at = pixels[(y + e / 2) * row + x + e % 2];
                Vec<T> kept = at * scale + shift > zero ? value : zero;
                at = kept - offset - at * slant;
                bias += at;
            }
        }
    store(of_bias, load(of_bias) + bias);
}

template <typename T, typename S>
void block_forward(const S *products, const T *bias, const T *scale, const T *shift, T eps,
                   T *normalised, T *inverses, T *pooled, long plane, long N, long h, long w,
                   long o) {
    constexpr int V = Vector<T>::size;
    std::vector<Vec<T>> scratch(h * w);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            const S *from = products + n * h * w / 16 * o + j;
            for (long y = 0; y < h; y += 4)
                for (long x = 0; x < w; x += 4, from += o)
                    inverse_tile<T, S>(from, plane, &scratch[y * w + x], w);
            // The bias only moves the mean; it is added so that rounding is that of the definition.
            Vec<T> moved = load(bias + j), inverse;
            for (auto &pixel : scratch) pixel += moved;
            normalise<T>(scratch.data(), h * w, eps, inverse);
            store(inverses + n * o + j, inverse);
            std::memcpy(normalised + (n * o + j) * h * w, scratch.data(), h * w * sizeof(Vec<T>));
            pool<T>(scratch.data(), load(scale + j), load(shift + j),
                    pooled + n * h * w / 4 * o + j, h, w, o);
        }
}

template <typename T, typename S>
void block_backward(const T *slope, const T *normalised, const T *inverses, const T *scale,
                    const T *shift, S *of_products, S *tiles, T *of_scale, T *of_shift, T *of_bias,
                    long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long row = w + 2;
    std::vector<Vec<T>> scratch((h + 2) * row, Vec<T>{});
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            const T *kept = normalised + (n * o + j) * h * w;
            for (long y = 0; y < h; y++)
                std::memcpy(&scratch[(y + 1) * row + 1], kept + y * w * V, w * sizeof(Vec<T>));
            norm_backward<T>(&scratch[row + 1], row, slope + n * h * w / 4 * o + j,
                             load(inverses + n * o + j), load(scale + j), load(shift + j), h, w, o,
                             of_scale + j, of_shift + j, of_bias + j);
            long place = n * h * w / 16 * o + j;
            for (long y = 0; y < h; y += 4)
                for (long x = 0; x < w; x += 4, place += o) {
                    transform_tile<T, S>(&scratch[(y + 1) * row + x + 1], row, of_products + place,
                                      plane);
                    transform_window<T, S>(&scratch[y * row + x], row, tiles + place, plane);
                }
        }
}

// The first block: a direct convolution of few channels c, padded: (N, c, h, w), borders included.
// The vectors of what comes out are `Step` apart.
template <typename T, int Step = 1>
inline void convolve(const T *image, const T *weight, Vec<T> bias, Vec<T> *out, long c, long h,
                     long w, long o) {
    long H = h - 2, W = w - 2;
    for (long i = 0; i < H * W; i++) out[i * Step] = bias;
    for (long a = 0; a < c; a++) {
        Vec<T> taps[9];
        for (int t = 0; t < 9; t++) taps[t] = load(weight + (a * 9 + t) * o);
        for (long y = 0; y < H; y++)
            for (long x = 0; x < W; x++) {
                const T *at = image + (a * h + y) * w + x;
                Vec<T> sum = out[(y * W + x) * Step];
                for (int t = 0; t < 9; t++) sum += taps[t] * at[t / 3 * w + t % 3];
                out[(y * W + x) * Step] = sum;
            }
    }
}

// Add to the slopes of the nine weights of a channel, whose image is `w` numbers wide.
template <typename T>
inline void add_products(const Vec<T> *slopes, const T *image, T *of_weight, long w, long H, long W,
                         long o) {
    Vec<T> sums[9] = {};
    for (long y = 0; y < H; y++)
        for (long x = 0; x < W; x++) {
            const T *at = image + y * w + x;
            Vec<T> value = slopes[y * W + x];
            for (int t = 0; t < 9; t++) sums[t] += value * at[t / 3 * w + t % 3];
        }
    for (int t = 0; t < 9; t++) store(of_weight + t * o, load(of_weight + t * o) + sums[t]);
}

template <typename T>
void first_forward(const T *images, const T *weight, const T *bias, const T *scale, const T *shift,
                   T eps, T *pooled, long N, long c, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2;
    std::vector<Vec<T>> scratch(H * W);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            Vec<T> inverse;
            convolve<T>(images + n * c * h * w, weight + j, load(bias + j), scratch.data(), c, h, w,
                        o);
            normalise<T>(scratch.data(), H * W, eps, inverse);
            pool<T>(scratch.data(), load(scale + j), load(shift + j),
                    pooled + n * H * W / 4 * o + j, H, W, o);
        }
}

template <typename T>
void first_backward(const T *slope, const T *images, const T *weight, const T *bias,
                    const T *scale, const T *shift, T eps, T *of_weight, T *of_scale, T *of_shift,
                    T *of_bias, long N, long c, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2;
    std::vector<Vec<T>> scratch(H * W);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            // Computed again: that takes less time than to keep it in memory.
            Vec<T> inverse;
            convolve<T>(images + n * c * h * w, weight + j, load(bias + j), scratch.data(), c, h, w,
                        o);
            normalise<T>(scratch.data(), H * W, eps, inverse);
            norm_backward<T>(scratch.data(), W, slope + n * H * W / 4 * o + j, inverse,
                             load(scale + j), load(shift + j), H, W, o, of_scale + j, of_shift + j,
                             of_bias + j);
            for (long a = 0; a < c; a++)
                add_products<T>(scratch.data(), images + (n * c + a) * h * w,
                                of_weight + a * 9 * o + j, w, H, W, o);
        }
}

// The same blocks with the slopes of all along one direction of the parameters (`dual_blocks.py`).

// Replace slopes of p vectors by those of the normalised ones; `along` is what of each normalised
// vector is taken off for it, 1 / standard deviation times the mean of normalised * slope.
template <typename T>
inline void normalise_slopes(const Vec<T> *normalised, Vec<T> *slopes, long p, Vec<T> inverse,
                             Vec<T> &along) {
    Vec<T> sums[4] = {}, aligned[4] = {};
    for (long i = 0; i < p; i++) {
        sums[i & 3] += slopes[i];
        aligned[i & 3] += normalised[i] * slopes[i];
    }
    Vec<T> mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / T(p);
    along = ((aligned[0] + aligned[1]) + (aligned[2] + aligned[3])) / T(p) * inverse;
    for (long i = 0; i < p; i++) slopes[i] = (slopes[i] - mean) * inverse - normalised[i] * along;
}

// The slope of `pool`: the mean of each 2 x 2 where ReLU lets it through.
template <typename T>
inline void pool_slopes(const Vec<T> *pixels, const Vec<T> *slopes, Vec<T> scale, Vec<T> shift,
                        Vec<T> scale_slope, Vec<T> shift_slope, T *pooled, long h, long w, long o) {
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, pooled += o) {
            Vec<T> sum = {};
            for (int e = 0; e < 4; e++) {
                long place = (y + e / 2) * w + x + e % 2;
                Vec<T> at = pixels[place];
                Vec<T> slope = slopes[place] * scale + at * scale_slope + shift_slope;
                sum += at * scale + shift > Vec<T>{} ? slope : Vec<T>{};
            }
            store(pooled, sum * T(0.25));
        }
}

// Normalised pixels and their slopes are replaced by the slopes of a sum <a, pooled> + <b, slopes
// of pooled> with respect to what was normalised and to its slope; rows are `row` vectors apart.
// With n, n' for them, s for `inverse`, k for `along`, means over the pixels, and a, b spread over
// those of each 2 x 2 that ReLU lets through:
//     p = scale a + scale' b,  q = scale b
//     of n's origin: s (p - mean p - k (q - mean q) - n' mean(q n) - n (mean(q n' + p n) - k mean(q n)))
//     of n''s:       s (q - mean q - n mean(q n))
template <typename T>
inline void dual_norm_backward(Vec<T> *pixels, Vec<T> *slopes, long row, const T *a, const T *b,
                               Vec<T> inverse, Vec<T> along, Vec<T> scale, Vec<T> shift,
                               Vec<T> scale_slope, long h, long w, long o, T *const *sums, long j) {
    Vec<T> of_a = {}, of_b = {}, a_n = {}, b_n = {}, b_slope = {}, zero = {};
    long place = 0;
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, place += o) {
            Vec<T> from_a = load(a + place) * T(0.25), from_b = load(b + place) * T(0.25);
            for (int e = 0; e < 4; e++) {
                long pixel = (y + e / 2) * row + x + e % 2;
                Vec<T> n = pixels[pixel];
                auto open = n * scale + shift > zero;
                Vec<T> kept_a = open ? from_a : zero, kept_b = open ? from_b : zero;
                of_a += kept_a;
                of_b += kept_b;
                a_n += kept_a * n;
                b_n += kept_b * n;
                b_slope += kept_b * slopes[pixel];
            }
        }
    auto add = [&](int which, Vec<T> value) {
        store(sums[which] + j, load(sums[which] + j) + value);
    };
    add(0, a_n + b_slope);
    add(1, of_a);
    add(3, b_n);
    add(4, of_b);
    Vec<T> mean_p = (scale * of_a + scale_slope * of_b) / T(h * w), mean_q = scale * of_b / T(h * w),
           q_n = scale * b_n / T(h * w),
           rest = (scale * b_slope + scale * a_n + scale_slope * b_n) / T(h * w) - along * q_n;
    Vec<T> factor_a = inverse * scale, factor_b = inverse * (scale_slope - along * scale),
           factor_slope = inverse * q_n, factor_n = inverse * rest,
           offset = inverse * (mean_p - along * mean_q), offset_q = inverse * mean_q;
    Vec<T> bias = {}, bias_slope = {};
    place = 0;
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, place += o) {
            Vec<T> from_a = load(a + place) * T(0.25), from_b = load(b + place) * T(0.25);
            Vec<T> both = from_a * factor_a + from_b * factor_b, other = from_b * factor_a;
            for (int e = 0; e < 4; e++) {
                long pixel = (y + e / 2) * row + x + e % 2;
                Vec<T> n = pixels[pixel], slope = slopes[pixel];
                auto open = n * scale + shift > zero;
                Vec<T> first = (open ? both : zero) - slope * factor_slope - n * factor_n - offset;
                Vec<T> second = (open ? other : zero) - n * factor_slope - offset_q;
                bias += first;
                bias_slope += second;
                pixels[pixel] = first;
                slopes[pixel] = second;
            }
        }
    add(2, bias);
    add(5, bias_slope);
}

template <typename T>
void dual_forward(const T *products, const T *product_slopes, const T *parameters, T eps,
                  T *normalised, T *slopes, T *inverses, T *alongs, T *pooled, T *pooled_slopes,
                  long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    std::vector<Vec<T>> pixels(h * w), moving(h * w);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            Vec<T> p[6], inverse, along;
            for (int e = 0; e < 6; e++) p[e] = load(parameters + e * o + j);
            long place = n * h * w / 16 * o + j;
            for (long y = 0; y < h; y += 4)
                for (long x = 0; x < w; x += 4, place += o) {
                    inverse_tile<T, T>(products + place, plane, &pixels[y * w + x], w);
                    inverse_tile<T, T>(product_slopes + place, plane, &moving[y * w + x], w);
                }
            for (auto &pixel : pixels) pixel += p[2];
            normalise<T>(pixels.data(), h * w, eps, inverse);
            normalise_slopes<T>(pixels.data(), moving.data(), h * w, inverse, along);
            store(inverses + n * o + j, inverse);
            store(alongs + n * o + j, along);
            std::memcpy(normalised + (n * o + j) * h * w, pixels.data(), h * w * sizeof(Vec<T>));
            std::memcpy(slopes + (n * o + j) * h * w, moving.data(), h * w * sizeof(Vec<T>));
            long out = n * h * w / 4 * o + j;
            pool<T>(pixels.data(), p[0], p[1], pooled + out, h, w, o);
            pool_slopes<T>(pixels.data(), moving.data(), p[0], p[1], p[3], p[4],
                           pooled_slopes + out, h, w, o);
        }
}

// Null for `of_products` and `of_product_slopes` where the slopes of weights are not asked for.
template <typename T>
void dual_backward(const T *a, const T *b, const T *normalised, const T *slopes, const T *inverses,
                   const T *alongs, const T *parameters, T *of_products, T *of_product_slopes,
                   T *tiles, T *tile_slopes, T *sums, long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long row = w + 2;
    T *each[6];
    for (int e = 0; e < 6; e++) each[e] = sums + e * o;
    std::vector<Vec<T>> pixels((h + 2) * row, Vec<T>{}), moving((h + 2) * row, Vec<T>{});
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            long kept = (n * o + j) * h * w, out = n * h * w / 4 * o + j;
            for (long y = 0; y < h; y++) {
                std::memcpy(&pixels[(y + 1) * row + 1], normalised + kept + y * w * V,
                            w * sizeof(Vec<T>));
                std::memcpy(&moving[(y + 1) * row + 1], slopes + kept + y * w * V,
                            w * sizeof(Vec<T>));
            }
            dual_norm_backward<T>(&pixels[row + 1], &moving[row + 1], row, a + out, b + out,
                                  load(inverses + n * o + j), load(alongs + n * o + j),
                                  load(parameters + j), load(parameters + o + j),
                                  load(parameters + 3 * o + j), h, w, o, each, j);
            long place = n * h * w / 16 * o + j;
            for (long y = 0; y < h; y += 4)
                for (long x = 0; x < w; x += 4, place += o) {
                    long tile = (y + 1) * row + x + 1, window = y * row + x;
                    if (of_products) {
                        transform_tile<T, T>(&pixels[tile], row, of_products + place, plane);
                        transform_tile<T, T>(&moving[tile], row, of_product_slopes + place, plane);
                    }
                    transform_window<T, T>(&pixels[window], row, tiles + place, plane);
                    transform_window<T, T>(&moving[window], row, tile_slopes + place, plane);
                }
        }
}

// The first block, whose images have no slope: `weights` and `parameters` with their slopes behind them.
template <typename T>
inline void first_dual(const T *image, const T *weights, const T *parameters, T eps,
                       Vec<T> *pixels, Vec<T> *moving, Vec<T> &inverse, Vec<T> &along, long c,
                       long h, long w, long o) {
    long p = (h - 2) * (w - 2);
    convolve<T>(image, weights, load(parameters + 2 * o), pixels, c, h, w, o);
    convolve<T>(image, weights + 9 * c * o, load(parameters + 5 * o), moving, c, h, w, o);
    normalise<T>(pixels, p, eps, inverse);
    normalise_slopes<T>(pixels, moving, p, inverse, along);
}

template <typename T>
void first_dual_forward(const T *images, const T *weights, const T *parameters, T eps, T *pooled,
                        T *pooled_slopes, long N, long c, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2;
    std::vector<Vec<T>> pixels(H * W), moving(H * W);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            Vec<T> inverse, along;
            first_dual<T>(images + n * c * h * w, weights + j, parameters + j, eps, pixels.data(),
                          moving.data(), inverse, along, c, h, w, o);
            Vec<T> scale = load(parameters + j), shift = load(parameters + o + j);
            long out = n * H * W / 4 * o + j;
            pool<T>(pixels.data(), scale, shift, pooled + out, H, W, o);
            pool_slopes<T>(pixels.data(), moving.data(), scale, shift, load(parameters + 3 * o + j),
                           load(parameters + 4 * o + j), pooled_slopes + out, H, W, o);
        }
}

// What image n is filtered to by the filters from j on, and its slopes; then, in their places, what
// a and b say of them, and of the parameters, added to `each`.
template <typename T>
void first_dual_slopes(const T *a, const T *b, const T *images, const T *weights,
                       const T *parameters, T eps, Vec<T> *pixels, Vec<T> *moving, long c, long h,
                       long w, long o, long n, long j, T *const *each) {
    long H = h - 2, W = w - 2, out = n * H * W / 4 * o + j;
    Vec<T> inverse, along;
    first_dual<T>(images + n * c * h * w, weights + j, parameters + j, eps, pixels, moving, inverse,
                  along, c, h, w, o);
    dual_norm_backward<T>(pixels, moving, W, a + out, b + out, inverse, along, load(parameters + j),
                          load(parameters + o + j), load(parameters + 3 * o + j), H, W, o, each, j);
}

template <typename T>
void first_dual_backward(const T *a, const T *b, const T *images, const T *weights,
                         const T *parameters, T eps, T *of_weights, T *sums, long N, long c, long h,
                         long w, long o) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2;
    T *each[6];
    for (int e = 0; e < 6; e++) each[e] = sums + e * o;
    std::vector<Vec<T>> pixels(H * W), moving(H * W);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            first_dual_slopes<T>(a, b, images, weights, parameters, eps, pixels.data(),
                                 moving.data(), c, h, w, o, n, j, each);
            for (long channel = 0; channel < c; channel++) {
                const T *image = images + (n * c + channel) * h * w;
                T *to = of_weights + channel * 9 * o + j;
                add_products<T>(pixels.data(), image, to, w, H, W, o);
                add_products<T>(moving.data(), image, to + 9 * c * o, w, H, W, o);
            }
        }
}

// The first block again, its images learned: of_images is (N, c, h - 2 p, w - 2 p), without borders
// of p = `padding` >= 1 pixels.
template <typename T>
void first_dual_images(const T *a, const T *b, const T *images, const T *weights,
                       const T *parameters, T *of_images, T eps, long N, long c, long h, long w,
                       long o, long padding) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2, row = W + 2, height = h - 2 * padding, width = w - 2 * padding;
    std::vector<T> sums(6 * o);  // of the parameters, which are not asked for
    T *each[6];
    for (int e = 0; e < 6; e++) each[e] = sums.data() + e * o;
    std::vector<Vec<T>> pixels(H * W), moving(H * W), whole(c * height * width);
    // With a border of one pixel, so that each pixel of an image has all that it was filtered to.
    std::vector<Vec<T>> wide((H + 2) * row, Vec<T>{}), wide_moving((H + 2) * row, Vec<T>{});
    for (long n = 0; n < N; n++) {
        for (auto &pixel : whole) pixel = Vec<T>{};
        for (long j = 0; j < o; j += V) {
            first_dual_slopes<T>(a, b, images, weights, parameters, eps, pixels.data(),
                                 moving.data(), c, h, w, o, n, j, each);
            for (long y = 0; y < H; y++) {
                std::memcpy(&wide[(y + 1) * row + 1], &pixels[y * W], W * sizeof(Vec<T>));
                std::memcpy(&wide_moving[(y + 1) * row + 1], &moving[y * W], W * sizeof(Vec<T>));
            }
            for (long channel = 0; channel < c; channel++) {
                const T *weight = weights + channel * 9 * o + j;
                Vec<T> taps[9], tap_slopes[9], *to = &whole[channel * height * width];
                for (int t = 0; t < 9; t++) {
                    taps[t] = load(weight + t * o);
                    tap_slopes[t] = load(weight + 9 * c * o + t * o);
                }
                for (long y = 0; y < height; y++)
                    for (long x = 0; x < width; x++, to++) {
                        long last = (y + padding + 1) * row + x + padding + 1;
                        Vec<T> sum = *to, other = {};
                        for (int t = 0; t < 9; t++) {
                            long place = last - t / 3 * row - t % 3;
                            sum += taps[t] * wide[place];
                            other += tap_slopes[t] * wide_moving[place];
                        }
                        *to = sum + other;
                    }
            }
        }
        T *to = of_images + n * c * height * width;
        for (const auto &pixel : whole) {
            T sum = 0;
            for (int v = 0; v < V; v++) sum += pixel[v];
            *to++ = sum;
        }
    }
}

// The same blocks with the slopes of all along two directions of the parameters, and along both
// (`mixed_blocks.py`): in numbers a + b e + c f + d e f with e e = f f = 0, whose four parts are
// `apart` from each other in memory. What goes back is in such numbers, too, the slope of each part
// at the place of its complement (of a at e f, of b at f, of c at e, of d at 1): forward and back,
// the formulas are then those of the block itself.

template <typename T>
struct Mixed {
    Vec<T> part[4];
};

// Of several numbers, that part of each: every fourth vector.
template <typename T>
inline Vec<T> *every(Mixed<T> *numbers, int part) {
    return reinterpret_cast<Vec<T> *>(numbers) + part;
}

template <typename T>
inline Mixed<T> load_parts(const T *from, long apart) {
    return {load(from), load(from + apart), load(from + 2 * apart), load(from + 3 * apart)};
}

template <typename T>
inline void store_parts(T *to, long apart, const Mixed<T> &value) {
    for (int e = 0; e < 4; e++) store(to + e * apart, value.part[e]);
}

template <typename T>
inline Mixed<T> operator+(const Mixed<T> &a, const Mixed<T> &b) {
    return {a.part[0] + b.part[0], a.part[1] + b.part[1], a.part[2] + b.part[2],
            a.part[3] + b.part[3]};
}

template <typename T>
inline Mixed<T> operator-(const Mixed<T> &a, const Mixed<T> &b) {
    return {a.part[0] - b.part[0], a.part[1] - b.part[1], a.part[2] - b.part[2],
            a.part[3] - b.part[3]};
}

template <typename T>
inline Mixed<T> operator*(const Mixed<T> &a, const Mixed<T> &b) {
    return {a.part[0] * b.part[0], a.part[0] * b.part[1] + a.part[1] * b.part[0],
            a.part[0] * b.part[2] + a.part[2] * b.part[0],
            a.part[0] * b.part[3] + a.part[3] * b.part[0] + a.part[1] * b.part[2] +
                a.part[2] * b.part[1]};
}

template <typename T>
inline Mixed<T> operator*(const Mixed<T> &a, T b) {
    return {a.part[0] * b, a.part[1] * b, a.part[2] * b, a.part[3] * b};
}

// 1 / square root.
template <typename T>
inline Mixed<T> inverse_root(const Mixed<T> &a) {
    Vec<T> root = {};
    for (int v = 0; v < Vector<T>::size; v++) root[v] = 1 / __builtin_sqrt(a.part[0][v]);
    Vec<T> square = root * root, first = root * square * T(-0.5), second = first * square * T(-1.5);
    return {root, first * a.part[1], first * a.part[2],
            first * a.part[3] + second * a.part[1] * a.part[2]};
}

// Where ReLU lets through what scale and shift make of a normalised number.
template <typename T>
inline Mixed<T> where_open(const Mixed<T> &active, const Mixed<T> &value) {
    Vec<T> zero = {};
    auto open = active.part[0] > zero;
    return {open ? value.part[0] : zero, open ? value.part[1] : zero, open ? value.part[2] : zero,
            open ? value.part[3] : zero};
}

// As `normalise`.
template <typename T>
inline void normalise_mixed(Mixed<T> *pixels, long p, T eps, Mixed<T> &inverse) {
    Mixed<T> sum = {}, squares = {};
    for (long i = 0; i < p; i++) sum = sum + pixels[i];
    Mixed<T> mean = sum * (1 / T(p));
    for (long i = 0; i < p; i++) {
        pixels[i] = pixels[i] - mean;
        squares = squares + pixels[i] * pixels[i];
    }
    Mixed<T> variance = squares * (1 / T(p));
    variance.part[0] += eps;
    inverse = inverse_root<T>(variance);
    for (long i = 0; i < p; i++) pixels[i] = pixels[i] * inverse;
}

// As `pool`.
template <typename T>
inline void pool_mixed(const Mixed<T> *pixels, const Mixed<T> &scale, const Mixed<T> &shift,
                       T *pooled, long apart, long h, long w, long o) {
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, pooled += o) {
            Mixed<T> sum = {};
            for (int e = 0; e < 4; e++) {
                Mixed<T> active = pixels[(y + e / 2) * w + x + e % 2] * scale + shift;
                sum = sum + where_open<T>(active, active);
            }
            store_parts<T>(pooled, apart, sum * T(0.25));
        }
}

// As `norm_backward`, of the pixels alone; rows are `row` numbers apart.
template <typename T>
inline void norm_backward_mixed(Mixed<T> *pixels, long row, const T *slope, long apart,
                                const Mixed<T> &inverse, const Mixed<T> &scale,
                                const Mixed<T> &shift, long h, long w, long o) {
    Mixed<T> total = {}, aligned = {};
    const T *from = slope;
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, from += o) {
            Mixed<T> value = load_parts<T>(from, apart) * T(0.25);
            for (int e = 0; e < 4; e++) {
                const Mixed<T> &at = pixels[(y + e / 2) * row + x + e % 2];
                Mixed<T> kept = where_open<T>(at * scale + shift, value);
                total = total + kept;
                aligned = aligned + kept * at;
            }
        }
    Mixed<T> factor = scale * inverse, offset = factor * total * (1 / T(h * w)),
             slant = factor * aligned * (1 / T(h * w));
    from = slope;
    for (long y = 0; y < h; y += 2)
        for (long x = 0; x < w; x += 2, from += o) {
            Mixed<T> value = load_parts<T>(from, apart) * T(0.25) * factor;
            for (int e = 0; e < 4; e++) {
                Mixed<T> &at = pixels[(y + e / 2) * row + x + e % 2];
                at = where_open<T>(at * scale + shift, value) - offset - at * slant;
            }
        }
}

// Parameters: scale, shift and bias, (4, 3, o). All else has the four parts of `block_forward`'s.
template <typename T>
void mixed_forward(const T *products, const T *parameters, T *normalised, T *inverses, T *pooled,
                   T eps, long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    std::vector<Mixed<T>> pixels(h * w);
    long kept = N * o * h * w;
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            for (int e = 0; e < 4; e++) {
                const T *from = products + e * 36 * plane + n * h * w / 16 * o + j;
                for (long y = 0; y < h; y += 4)
                    for (long x = 0; x < w; x += 4, from += o)
                        inverse_tile<T, T, 4>(from, plane, every<T>(&pixels[y * w + x], e), 4 * w);
            }
            Mixed<T> bias = load_parts<T>(parameters + 2 * o + j, 3 * o), inverse;
            for (auto &pixel : pixels) pixel = pixel + bias;
            normalise_mixed<T>(pixels.data(), h * w, eps, inverse);
            store_parts<T>(inverses + n * o + j, N * o, inverse);
            T *to = normalised + (n * o + j) * h * w;
            for (const auto &pixel : pixels) {
                store_parts<T>(to, kept, pixel);
                to += V;
            }
            pool_mixed<T>(pixels.data(), load_parts<T>(parameters + j, 3 * o),
                          load_parts<T>(parameters + o + j, 3 * o), pooled + n * h * w / 4 * o + j,
                          N * h * w / 4 * o, h, w, o);
        }
}

template <typename T>
void mixed_backward(const T *slope, const T *normalised, const T *inverses, const T *parameters,
                    T *tiles, long plane, long N, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long row = w + 2, kept = N * o * h * w;
    std::vector<Mixed<T>> pixels((h + 2) * row, Mixed<T>{});
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            const T *from = normalised + (n * o + j) * h * w;
            for (long y = 0; y < h; y++)
                for (long x = 0; x < w; x++, from += V)
                    pixels[(y + 1) * row + x + 1] = load_parts<T>(from, kept);
            norm_backward_mixed<T>(&pixels[row + 1], row, slope + n * h * w / 4 * o + j,
                                   N * h * w / 4 * o, load_parts<T>(inverses + n * o + j, N * o),
                                   load_parts<T>(parameters + j, 3 * o),
                                   load_parts<T>(parameters + o + j, 3 * o), h, w, o);
            for (int e = 0; e < 4; e++) {
                T *to = tiles + e * 36 * plane + n * h * w / 16 * o + j;
                for (long y = 0; y < h; y += 4)
                    for (long x = 0; x < w; x += 4, to += o)
                        transform_window<T, T, 4>(every<T>(&pixels[y * row + x], e), 4 * row, to,
                                                  plane);
            }
        }
}

// The first block: its images have no slopes, and its weights, (3, c * 9, o), none along both.
template <typename T>
inline void first_mixed(const T *image, const T *weights, const T *parameters, T eps,
                        Mixed<T> *pixels, Mixed<T> &inverse, long c, long h, long w, long o) {
    long p = (h - 2) * (w - 2);
    for (int e = 0; e < 3; e++)
        convolve<T, 4>(image, weights + e * c * 9 * o, load(parameters + (3 * e + 2) * o),
                       every<T>(pixels, e), c, h, w, o);
    for (long i = 0; i < p; i++) pixels[i].part[3] = Vec<T>{};
    normalise_mixed<T>(pixels, p, eps, inverse);
}

template <typename T>
void first_mixed_forward(const T *images, const T *weights, const T *parameters, T *pooled, T eps,
                         long N, long c, long h, long w, long o) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2;
    std::vector<Mixed<T>> pixels(H * W);
    for (long n = 0; n < N; n++)
        for (long j = 0; j < o; j += V) {
            Mixed<T> inverse;
            first_mixed<T>(images + n * c * h * w, weights + j, parameters + j, eps, pixels.data(),
                           inverse, c, h, w, o);
            pool_mixed<T>(pixels.data(), load_parts<T>(parameters + j, 3 * o),
                          load_parts<T>(parameters + o + j, 3 * o), pooled + n * H * W / 4 * o + j,
                          N * H * W / 4 * o, H, W, o);
        }
}

// of_images is that of `first_dual_images`; the images' own part is the complement of all slopes.
template <typename T>
void first_mixed_images(const T *slope, const T *images, const T *weights, const T *parameters,
                        T *of_images, T eps, long N, long c, long h, long w, long o, long padding) {
    constexpr int V = Vector<T>::size;
    long H = h - 2, W = w - 2, row = W + 2, height = h - 2 * padding, width = w - 2 * padding;
    std::vector<Mixed<T>> pixels(H * W), wide((H + 2) * row, Mixed<T>{});
    std::vector<Vec<T>> whole(c * height * width);
    for (long n = 0; n < N; n++) {
        for (auto &pixel : whole) pixel = Vec<T>{};
        for (long j = 0; j < o; j += V) {
            Mixed<T> inverse;
            first_mixed<T>(images + n * c * h * w, weights + j, parameters + j, eps, pixels.data(),
                           inverse, c, h, w, o);
            norm_backward_mixed<T>(pixels.data(), W, slope + n * H * W / 4 * o + j,
                                   N * H * W / 4 * o, inverse,
                                   load_parts<T>(parameters + j, 3 * o),
                                   load_parts<T>(parameters + o + j, 3 * o), H, W, o);
            for (long y = 0; y < H; y++)
                std::memcpy(&wide[(y + 1) * row + 1], &pixels[y * W], W * sizeof(Mixed<T>));
            for (long channel = 0; channel < c; channel++) {
                Vec<T> taps[3][9], *to = &whole[channel * height * width];
                for (int e = 0; e < 3; e++)
                    for (int t = 0; t < 9; t++)
                        taps[e][t] = load(weights + ((e * c + channel) * 9 + t) * o + j);
                for (long y = 0; y < height; y++)
                    for (long x = 0; x < width; x++, to++) {
                        long last = (y + padding + 1) * row + x + padding + 1;
                        Vec<T> sums[3] = {*to};
                        for (int t = 0; t < 9; t++) {
                            const Mixed<T> &at = wide[last - t / 3 * row - t % 3];
                            for (int e = 0; e < 3; e++) sums[e] += taps[e][t] * at.part[3 - e];
                        }
                        *to = sums[0] + (sums[1] + sums[2]);
                    }
            }
        }
        T *to = of_images + n * c * height * width;
        for (const auto &pixel : whole) {
            T sum = 0;
            for (int v = 0; v < V; v++) sum += pixel[v];
            *to++ = sum;
        }
    }
}

}  // namespace

#define FOR_PRODUCTS(T, S, name)                                                                   \
    extern "C" void input_transform_##name(const T *a, S *b, long p, long N, long h, long w,       \
                                           long o) {                                               \
        input_transform<T, S>(a, b, p, N, h, w, o);                                                \
    }                                                                                              \
    extern "C" void output_transform_##name(const S *a, T *b, long p, long N, long h, long w,      \
                                            long o) {                                              \
        output_transform<T, S>(a, b, p, N, h, w, o);                                               \
    }                                                                                              \
    extern "C" void block_forward_##name(const S *a, const T *b, const T *c, const T *d, T *e,     \
                                         T *f, T *g, double eps, long p, long N, long h, long w,   \
                                         long o) {                                                 \
        block_forward<T, S>(a, b, c, d, eps, e, f, g, p, N, h, w, o);                              \
    }                                                                                              \
    extern "C" void block_backward_##name(const T *a, const T *b, const T *c, const T *d,          \
                                          const T *e, S *f, S *g, T *i, T *j, T *k, long p,        \
                                          long N, long h, long w, long o) {                        \
        block_backward<T, S>(a, b, c, d, e, f, g, i, j, k, p, N, h, w, o);                         \
    }

#define FOR_TYPE(T, name)                                                                          \
    FOR_PRODUCTS(T, T, name)                                                                       \
    extern "C" void first_forward_##name(const T *a, const T *b, const T *c, const T *d,           \
                                         const T *e, T *f, double eps, long N, long ch, long h,    \
                                         long w, long o) {                                         \
        first_forward<T>(a, b, c, d, e, eps, f, N, ch, h, w, o);                                   \
    }                                                                                              \
    extern "C" void first_backward_##name(const T *a, const T *b, const T *c, const T *d,          \
                                          const T *e, const T *f, T *g, T *i, T *j, T *k,          \
                                          double eps, long N, long ch, long h, long w, long o) {   \
        first_backward<T>(a, b, c, d, e, f, eps, g, i, j, k, N, ch, h, w, o);                      \
    }                                                                                              \
    extern "C" void dual_forward_##name(const T *a, const T *b, const T *c, T *d, T *e, T *f,      \
                                        T *g, T *i, T *j, double eps, long p, long N, long h,      \
                                        long w, long o) {                                          \
        dual_forward<T>(a, b, c, eps, d, e, f, g, i, j, p, N, h, w, o);                            \
    }                                                                                              \
    extern "C" void dual_backward_##name(const T *a, const T *b, const T *c, const T *d,           \
                                         const T *e, const T *f, const T *g, T *i, T *j, T *k,     \
                                         T *l, T *m, long p, long N, long h, long w, long o) {     \
        dual_backward<T>(a, b, c, d, e, f, g, i, j, k, l, m, p, N, h, w, o);                       \
    }                                                                                              \
    extern "C" void first_dual_forward_##name(const T *a, const T *b, const T *c, T *d, T *e,      \
                                              double eps, long N, long ch, long h, long w,         \
                                              long o) {                                            \
        first_dual_forward<T>(a, b, c, eps, d, e, N, ch, h, w, o);                                 \
    }                                                                                              \
    extern "C" void first_dual_backward_##name(const T *a, const T *b, const T *c, const T *d,     \
                                               const T *e, T *f, T *g, double eps, long N,         \
                                               long ch, long h, long w, long o) {                  \
        first_dual_backward<T>(a, b, c, d, e, eps, f, g, N, ch, h, w, o);                          \
    }                                                                                              \
    extern "C" void first_dual_images_##name(const T *a, const T *b, const T *c, const T *d,       \
                                             const T *e, T *f, double eps, long N, long ch,        \
                                             long h, long w, long o, long p) {                     \
        first_dual_images<T>(a, b, c, d, e, f, eps, N, ch, h, w, o, p);                            \
    }                                                                                              \
    extern "C" void mixed_forward_##name(const T *a, const T *b, T *c, T *d, T *e, double eps,     \
                                         long p, long N, long h, long w, long o) {                 \
        mixed_forward<T>(a, b, c, d, e, eps, p, N, h, w, o);                                       \
    }                                                                                              \
    extern "C" void mixed_backward_##name(const T *a, const T *b, const T *c, const T *d, T *e,    \
                                          long p, long N, long h, long w, long o) {                \
        mixed_backward<T>(a, b, c, d, e, p, N, h, w, o);                                           \
    }                                                                                              \
    extern "C" void first_mixed_forward_##name(const T *a, const T *b, const T *c, T *d,           \
                                               double eps, long N, long ch, long h, long w,        \
                                               long o) {                                           \
        first_mixed_forward<T>(a, b, c, d, eps, N, ch, h, w, o);                                   \
    }                                                                                              \
    extern "C" void first_mixed_images_##name(const T *a, const T *b, const T *c, const T *d,      \
                                              T *e, double eps, long N, long ch, long h, long w,   \
                                              long o, long p) {                                    \
        first_mixed_images<T>(a, b, c, d, e, eps, N, ch, h, w, o, p);                              \
    }

FOR_TYPE(float, float32)
FOR_TYPE(double, float64)
FOR_PRODUCTS(float, bfloat16, float32_bfloat16)
