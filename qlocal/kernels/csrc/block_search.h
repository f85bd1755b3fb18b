// The searches behind GGML's quantized blocks, over as many blocks at once as a vector has lanes.
//
// A lane is a block: element i of all blocks is the vector x[i]. So every sum runs over elements in order within its
// lane, and the results are those of the reference (quantize/methods/block_search.py) to the bit, whatever the width
// of the vectors. Nothing here may be contracted to fused operations.
//
// V is Avx2Lanes or Avx512Lanes; V::F has the operators of a float, comparisons of it give masks for `?:`. In an
// unnamed namespace, as in blocks.h: each including file is compiled for another instruction set.

#pragma once

namespace {

// Blocks whose largest magnitude lies below are all zeros.
constexpr float kTiny = 1e-15f;
// Steps and spans below have reciprocals, times the number of levels, that overflow: taken as 0.
constexpr float kNoStep = 1e-36f;

template <class V> using Floats = typename V::F;
template <class V> using Mask = decltype(Floats<V>{} < Floats<V>{});

template <class V> inline Floats<V> clip(Floats<V> value, float low, float high) {
    return V::min(V::max(value, V::set1(low)), V::set1(high));
}

// The nearest whole number, ties to even, within whole limits below 2^22: adding 1.5 * 2^23 leaves no bits behind the
// point. Limits first, which gives the same.
template <class V> inline Floats<V> nearest(Floats<V> value, float low, float high) {
    constexpr float shift = 12582912.0f;
    return (clip<V>(value, low, high) + shift) - shift;
}

template <class V> inline Floats<V> divide_or_zero(Floats<V> numerator, Floats<V> denominator) {
    return denominator != 0.0f ? numerator / denominator : Floats<V>{};
}

// 1 / step, or 0 where that would be infinite.
template <class V> inline Floats<V> inverse_step(Floats<V> step) {
    return V::abs(step) >= kNoStep ? V::set1(1.0f) / step : Floats<V>{};
}

// The first element of largest magnitude, with its sign; +0 where all are zeros.
template <class V, int N> inline Floats<V> signed_extreme(const Floats<V>* x) {
    Floats<V> largest{}, extreme{};
    for (int i = 0; i < N; ++i) {
        const Floats<V> magnitude = V::abs(x[i]);
        const auto above = magnitude > largest;
        largest = above ? magnitude : largest;
        extreme = above ? x[i] : extreme;
    }
    return extreme;
}

// The first of the smallest, the first of the largest elements.
template <class V, int N> inline Floats<V> smallest(const Floats<V>* x) {
    Floats<V> low = x[0];
    for (int i = 1; i < N; ++i)
        low = x[i] < low ? x[i] : low;
    return low;
}

template <class V, int N> inline Floats<V> largest(const Floats<V>* x) {
    Floats<V> high = x[0];
    for (int i = 1; i < N; ++i)
        high = x[i] > high ? x[i] : high;
    return high;
}

// --- x = scale q with q in -nmax..nmax-1

template <class V> struct SymmetricFit {
    Floats<V> scale, inverse;
    Mask<V> alive;

    Floats<V> code(Floats<V> x, float nmax) const {
        return alive ? nearest<V>(inverse * x, -nmax, nmax - 1) : V::set1(-nmax);
    }
};

// 19 candidates around extreme / -nmax; the first is the plain one, others must be strictly better.
// x, weights: N vectors.
template <class V, int N>
inline SymmetricFit<V> symmetric_search(const Floats<V>* x, const Floats<V>* weights, float nmax) {
    constexpr int steps[] = {0, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    const Floats<V> extreme = signed_extreme<V, N>(x);
    SymmetricFit<V> fit{{}, {}, V::abs(extreme) >= kTiny};
    const Floats<V> safe = fit.alive ? extreme : V::set1(1.0f);
    Floats<V> weighted[N], best{};
    for (int i = 0; i < N; ++i)
        weighted[i] = weights[i] * x[i];
    for (const int step : steps) {
        const Floats<V> inverse = V::set1(-(nmax + 0.1f * float(step))) / safe;
        Floats<V> xq{}, qq{};
        for (int i = 0; i < N; ++i) {
            const Floats<V> q = nearest<V>(inverse * x[i], -nmax, nmax - 1);
            xq += weighted[i] * q;
            qq += weights[i] * q * q;
        }
        const Floats<V> scale = divide_or_zero<V>(xq, qq);
        const auto better = (qq > 0.0f) & (xq * xq > best * qq);
        const auto taken = step == 0 ? ~Mask<V>{} : better;
        fit.inverse = taken ? inverse : fit.inverse;
        fit.scale = taken ? scale : fit.scale;
        best = taken ? scale * xq : best;
    }
    fit.scale = fit.alive ? fit.scale : Floats<V>{};
    return fit;
}

// --- x = scale q + low with q in 0..nmax and low <= 0

// Candidates are grids of start + step * i + nmax levels, i = 0..count.
struct MinimumGrid {
    float nmax, start, step;
    int count;
};

template <class V> struct MinimumFit {
    Floats<V> scale, low;
    Floats<V> inverse, from; // how the best codes came about: those of the low before it was fitted
    Mask<V> alive;

    Floats<V> code(Floats<V> x, float nmax) const {
        return alive ? nearest<V>(inverse * (x - from), 0.0f, nmax) : Floats<V>{};
    }
};

template <class V> struct MinimumSums {
    Floats<V> q{}, qq{}, xq{}; // of w q, w q² and w x q
};

// The two passes that a candidate makes over B blocks of N elements. The blocks take turns, so that no sum waits for
// itself.
template <class V, int N, int B> struct MinimumPasses {
    const Floats<V>* x;
    const Floats<V>* weights;
    Floats<V> q[B * N];

    MinimumPasses(const Floats<V>* x, const Floats<V>* weights) : x(x), weights(weights) {}

    inline void round(const Floats<V>* inverse, const Floats<V>* from, float nmax, MinimumSums<V>* sums) {
        for (int i = 0; i < N; ++i)
            for (int b = 0; b < B; ++b) {
                const int at = b * N + i;
                q[at] = nearest<V>(inverse[b] * (x[at] - from[b]), 0.0f, nmax);
                const Floats<V> weighted = weights[at] * q[at];
                sums[b].q += weighted;
                sums[b].qq += weighted * q[at];
                sums[b].xq += weighted * x[at];
            }
    }

    inline void measure(const Floats<V>* scale, const Floats<V>* low, Floats<V>* error) const {
        for (int i = 0; i < N; ++i)
            for (int b = 0; b < B; ++b) {
                const int at = b * N + i;
                const Floats<V> difference = scale[b] * q[at] + low[b] - x[at];
                error[b] += difference * difference * weights[at];
            }
    }
};

// The scale and low <= 0 that fit given codes best. Returns where there are such.
template <class V>
inline Mask<V> least_squares(Floats<V> sum_w, Floats<V> sum_x, const MinimumSums<V>& sums, Floats<V>& scale,
                             Floats<V>& low) {
    const Floats<V> determinant = sum_w * sums.qq - sums.q * sums.q;
    scale = (sum_w * sums.xq - sum_x * sums.q) / determinant;
    low = (sums.qq * sum_x - sums.q * sums.xq) / determinant;
    const auto above = low > 0.0f;
    scale = above ? divide_or_zero<V>(sums.xq, sums.qq) : scale;
    low = above ? Floats<V>{} : low;
    return determinant > 0.0f;
}

// From the smallest element, or 0, to the largest one. `high`: the largest, written.
template <class V, int N> inline MinimumFit<V> whole_range(const Floats<V>* x, float nmax, Floats<V>& high) {
    const Floats<V> found = smallest<V, N>(x), low = found > 0.0f ? Floats<V>{} : found, one = V::set1(1.0f);
    high = largest<V, N>(x);
    const auto alive = high - low >= kNoStep;
    const Floats<V> inverse = V::set1(nmax) / (alive ? high - low : one);
    return {one / inverse, low, inverse, low, alive};
}

// Least squares from every grid; after a better candidate the next ones start from its low.
// x, weights: B blocks of N vectors behind each other. fits: B, written.
template <class V, int N, int B>
void minimum_search(const Floats<V>* x, const Floats<V>* weights, const MinimumGrid& grid, MinimumFit<V>* fits) {
    MinimumPasses<V, N, B> passes(x, weights);
    Floats<V> high[B], low[B], from[B], inverse[B], scale[B], sum_w[B]{}, sum_x[B]{}, best[B]{};
    for (int b = 0; b < B; ++b) {
        fits[b] = whole_range<V, N>(x + b * N, grid.nmax, high[b]);
        scale[b] = fits[b].scale, low[b] = fits[b].low, inverse[b] = fits[b].inverse;
        for (int i = b * N; i < (b + 1) * N; ++i) {
            sum_w[b] += weights[i];
            sum_x[b] += weights[i] * x[i];
        }
    }
    MinimumSums<V> unused[B];
    passes.round(inverse, low, grid.nmax, unused);
    passes.measure(scale, low, best);
    for (int index = 0; index <= grid.count; ++index) {
        const float levels = grid.start + grid.step * float(index) + grid.nmax;
        for (int b = 0; b < B; ++b) {
            from[b] = fits[b].low;
            inverse[b] = V::set1(levels) / (fits[b].alive ? high[b] - from[b] : V::set1(1.0f));
        }
        MinimumSums<V> sums[B];
        passes.round(inverse, from, grid.nmax, sums);
        Mask<V> solved[B];
        for (int b = 0; b < B; ++b)
            solved[b] = least_squares<V>(sum_w[b], sum_x[b], sums[b], scale[b], low[b]);
        Floats<V> error[B]{};
        passes.measure(scale, low, error);
        for (int b = 0; b < B; ++b) {
            const auto better = solved[b] & (error[b] < best[b]) & fits[b].alive;
            const MinimumFit<V> before = fits[b];
            fits[b] = {better ? scale[b] : before.scale, better ? low[b] : before.low,
                       better ? inverse[b] : before.inverse, better ? from[b] : before.from, before.alive};
            best[b] = better ? error[b] : best[b];
        }
    }
    for (int b = 0; b < B; ++b)
        fits[b].scale = fits[b].alive ? fits[b].scale : Floats<V>{};
}

// --- Non-negative x = scale q with q in 0..nmax

// Move one code at a time to its best value, five rounds. Returns the scale.
template <class V, int N>
inline Floats<V> descend(const Floats<V>* x, const Floats<V>* weights, float nmax, Floats<V>* q) {
    Floats<V> xq{}, qq{};
    for (int i = 0; i < N; ++i) {
        xq += weights[i] * x[i] * q[i];
        qq += weights[i] * q[i] * q[i];
    }
    for (int round = 0; round < 5; ++round)
        for (int i = 0; i < N; ++i) {
            const Floats<V> wx = weights[i] * x[i], w = weights[i];
            const Floats<V> rest_xq = xq - wx * q[i], rest_qq = qq - w * q[i] * q[i];
            const auto movable = (rest_xq > 0.0f) & (rest_qq > 0.0f);
            const Floats<V> moved = nearest<V>(x[i] * rest_qq / (movable ? rest_xq : V::set1(1.0f)), 0.0f, nmax);
            const Floats<V> new_xq = rest_xq + wx * moved, new_qq = rest_qq + w * moved * moved;
            const auto better = movable & (moved != q[i]) & (new_xq * new_xq * qq > xq * xq * new_qq);
            q[i] = better ? moved : q[i];
            xq = better ? new_xq : xq;
            qq = better ? new_qq : qq;
        }
    return qq > 0.0f ? divide_or_zero<V>(xq, qq) : Floats<V>{};
}

template <class V, int N>
inline Floats<V> weighted_error(const Floats<V>* x, const Floats<V>* weights, const Floats<V>* q, Floats<V> scale) {
    Floats<V> sum{};
    for (int i = 0; i < N; ++i) {
        const Floats<V> difference = scale * q[i] - x[i];
        sum += difference * difference * weights[i];
    }
    return sum;
}

// Nine grids, then the descent. x, weights: N vectors; q: N vectors, written. Returns the scale.
template <class V, int N>
inline Floats<V> positive_search(const Floats<V>* x, const Floats<V>* weights, float nmax, Floats<V>* q) {
    constexpr int steps[] = {-4, -3, -2, -1, 1, 2, 3, 4};
    const Floats<V> most = largest<V, N>(x);
    const auto alive = most >= kTiny;
    const Floats<V> safe = alive ? most : V::set1(1.0f), one = V::set1(1.0f);
    const auto error_of = [&](Floats<V> inverse) {
        for (int i = 0; i < N; ++i)
            q[i] = nearest<V>(inverse * x[i], 0.0f, nmax);
        return weighted_error<V, N>(x, weights, q, one / inverse);
    };
    Floats<V> inverse = V::set1(nmax) / safe, best = error_of(inverse);
    for (const int step : steps) {
        const Floats<V> candidate = V::set1(0.1f * float(step) + nmax) / safe, error = error_of(candidate);
        const auto better = error < best;
        inverse = better ? candidate : inverse;
        best = better ? error : best;
    }
    for (int i = 0; i < N; ++i)
        q[i] = nearest<V>(inverse * x[i], 0.0f, nmax);
    const Floats<V> scale = descend<V, N>(x, weights, nmax, q);
    for (int i = 0; i < N; ++i)
        q[i] = alive ? q[i] : Floats<V>{};
    return alive ? scale : Floats<V>{};
}

} // namespace
