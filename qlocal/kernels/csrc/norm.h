// Element-wise operations of a step, for any vector type V (floats_avx2.h, floats_avx512.h).

#pragma once

#include <cmath>

#include "step_ops.h"

namespace {

// e^x within one unit in the last place, for x up to 88; below -87 it stays at e^-87.
template <class V> inline typename V::F exponential(typename V::F x) {
    const auto c = [](float value) { return V::set1(value); };
    x = V::max(V::min(x, c(88.0f)), c(-87.0f));
    const typename V::F power = V::round(V::mul(x, c(1.44269504f)));
    typename V::F r = V::fma(power, c(-0.693359375f), x); // ln 2 in two parts, the first one exact in few bits
    r = V::fma(power, c(2.12194440e-4f), r);
    typename V::F p = c(1.9875691500e-4f);
    p = V::fma(p, r, c(1.3981999507e-3f));
    p = V::fma(p, r, c(8.3334519073e-3f));
    p = V::fma(p, r, c(4.1665795894e-2f));
    p = V::fma(p, r, c(1.6666665459e-1f));
    p = V::fma(p, r, c(5.0000001201e-1f));
    p = V::fma(V::mul(p, r), r, V::add(r, c(1.0f)));
    return V::scale(p, power);
}

template <class V> void rms_norm(const float* x, const float* weight, float* out, int64_t length, float eps) {
    typename V::F sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
    for (int64_t i = 0, turn = 0; i < length; i += V::lanes, turn = (turn + 1) % 4) {
        const typename V::F value = V::load(x + i);
        sums[turn] = V::fma(value, value, sums[turn]);
    }
    const float squares = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
    const typename V::F scale = V::set1(1.0f / std::sqrt(squares / float(length) + eps));
    for (int64_t i = 0; i < length; i += V::lanes)
        V::store(out + i, V::mul(V::mul(V::load(x + i), scale), V::load(weight + i)));
}

template <class V> void add_scaled(float* x, const float* y, float scale, int64_t length) {
    for (int64_t i = 0; i < length; i += V::lanes)
        V::store(x + i, V::fma(V::set1(scale), V::load(y + i), V::load(x + i)));
}

// gate / (1 + e^-gate) * up
template <class V> inline typename V::F gated(typename V::F gate, typename V::F up) {
    const typename V::F denominator = V::add(V::set1(1.0f), exponential<V>(V::sub(V::zero(), gate)));
    return V::mul(V::div(gate, denominator), up);
}

template <class V> void silu_multiply(const float* gate, const float* up, float* out, int64_t length) {
    for (int64_t i = 0; i < length; i += V::lanes)
        V::store(out + i, gated<V>(V::load(gate + i), V::load(up + i)));
}

template <class V> void rotate(float* heads, int64_t num_heads, int64_t head_dim, const float* cos, const float* sin) {
    const int64_t half = head_dim / 2;
    for (float* head = heads; head < heads + num_heads * head_dim; head += head_dim)
        for (int64_t i = 0; i < half; i += V::lanes) {
            const typename V::F c = V::load(cos + i), s = V::load(sin + i);
            const typename V::F first = V::load(head + i), second = V::load(head + half + i);
            V::store(head + i, V::sub(V::mul(first, c), V::mul(second, s)));
            V::store(head + half + i, V::add(V::mul(second, c), V::mul(first, s)));
        }
}

} // namespace
