// Keys and values in 8 or 4 bits for any vector type V: written as cache/packed.py rounds them, and read as floats.

#pragma once

#include <cmath>
#include <cstring>
#include <immintrin.h>

#include "step_ops.h"

namespace {

using qlocal::CacheLayout;
using qlocal::kGroup;
using qlocal::kKeyTile;
using qlocal::KvType;
using qlocal::LayerCache;

constexpr float kBend = 0.007f; // levels of q4: u (1 + kBend u²) for u = -7.5, -6.5, ..., 7.5
constexpr float level_of(float step) { return step * (1.0f + kBend * step * step); }
constexpr float kLargestRange = 1.25f;
constexpr int kNumRanges = 6;

// Multiply (length) by the normalized Hadamard matrix, in pieces of the largest power of two in it.
inline void hadamard(float* x, int64_t length) {
    const int64_t size = length & -length;
    for (int64_t width = 1; width < size; width *= 2)
        for (int64_t at = 0; at < length; at += 2 * width)
            for (int64_t i = at; i < at + width; ++i) {
                const float first = x[i], second = x[i + width];
                x[i] = first + second;
                x[i + width] = first - second;
            }
    const float scale = 1.0f / std::sqrt(float(size));
    for (int64_t i = 0; i < length; ++i)
        x[i] *= scale;
}

// Codes, one a value, and the scale of 32 values (q8, float16) or of 16 (q4, 8 bits).
struct Packed {
    uint8_t codes[kGroup];
    uint16_t scale;
};

template <class V> inline typename V::F magnitude(typename V::F value) {
    return V::max(value, V::sub(V::zero(), value));
}

template <class V> inline float largest_of(const float* x, int64_t length) {
    typename V::F most = V::zero();
    for (int64_t i = 0; i < length; i += V::lanes)
        most = V::max(most, magnitude<V>(V::load(x + i)));
    return V::largest(most);
}

inline uint16_t to_half(float value) { return uint16_t(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)); }

template <class V> inline void pack_8(const float* x, Packed& out) {
    out.scale = to_half(largest_of<V>(x, kGroup) / 127.0f);
    const float scale = _cvtsh_ss(out.scale), divisor = scale == 0.0f ? 1.0f : scale;
    for (int64_t i = 0; i < kGroup; i += V::lanes) {
        float rounded[V::lanes];
        const typename V::F code = V::round(V::div(V::load(x + i), V::set1(divisor)));
        V::store(rounded, V::max(V::min(code, V::set1(127.0f)), V::set1(-127.0f)));
        for (int64_t lane = 0; lane < V::lanes; ++lane)
            out.codes[i + lane] = uint8_t(int8_t(rounded[lane]));
    }
}

// How many levels of a positive value lie below the nearest one.
template <class V> inline typename V::F level_number(typename V::F value) {
    typename V::F count = V::zero();
    for (int i = 1; i < 8; ++i) {
        const float bound = (level_of(float(i) - 0.5f) + level_of(float(i) + 0.5f)) / 2;
        count = V::add(count, V::at_least(value, V::set1(bound)));
    }
    return count;
}

inline float scale_of(uint8_t byte) { return _cvtsh_ss(uint16_t(byte << 7)); }

// Try a few neighbouring scales and keep the one whose levels are nearest, for 16 values.
template <class V> inline void pack_4(const float* x, Packed& out) {
    const float largest = largest_of<V>(x, kGroup / 2);
    const int widest = to_half(largest * (kLargestRange / level_of(7.5f))) >> 7;
    float best = INFINITY, numbers[kGroup / 2] = {};
    for (int below = 0; below < kNumRanges; ++below) {
        const auto tried = uint8_t(widest > below ? widest - below : 0);
        const typename V::F scale = V::set1(scale_of(tried));
        const typename V::F divisor = V::set1(tried ? scale_of(tried) : 1.0f);
        typename V::F error = V::zero();
        float number[kGroup / 2];
        for (int64_t i = 0; i < kGroup / 2; i += V::lanes) {
            const typename V::F at = magnitude<V>(V::load(x + i));
            const typename V::F found = level_number<V>(V::div(at, divisor));
            const typename V::F step = V::add(found, V::set1(0.5f));
            const typename V::F level = V::mul(step, V::fma(V::mul(step, step), V::set1(kBend), V::set1(1.0f)));
            const typename V::F missed = V::sub(at, V::mul(level, scale));
            error = V::fma(missed, missed, error);
            V::store(number + i, found);
        }
        const float sum = V::sum(error);
        if (!(sum < best))
            continue;
        best = sum;
        out.scale = tried;
        std::memcpy(numbers, number, sizeof(numbers));
    }
    for (int64_t i = 0; i < kGroup / 2; ++i)
        out.codes[i] = uint8_t(std::signbit(x[i]) ? 7 - int(numbers[i]) : 8 + int(numbers[i]));
}

// Write one head's vector to token `lane` of a tile of `tokens`.
template <class V>
inline void store_packed(KvType type, const float* x, int64_t head_dim, int64_t tokens, int64_t lane, uint8_t* tile) {
    constexpr int64_t half = kGroup / 2;
    const int64_t groups = head_dim / kGroup;
    uint8_t* codes = tile + 2 * groups * tokens;
    Packed lower{}, upper{};
    for (int64_t group = 0; group < groups; ++group, x += kGroup) {
        if (type == qlocal::kQ8) {
            pack_8<V>(x, lower);
            std::memcpy(tile + 2 * (group * tokens + lane), &lower.scale, 2);
            for (int64_t i = 0; i < kGroup; ++i)
                codes[(group * kGroup + i) * tokens + lane] = lower.codes[i];
            continue;
        }
        pack_4<V>(x, lower);
        pack_4<V>(x + half, upper);
        tile[2 * group * tokens + lane] = uint8_t(lower.scale);
        tile[(2 * group + 1) * tokens + lane] = uint8_t(upper.scale);
        for (int64_t i = 0; i < half; ++i)
            codes[(group * half + i) * tokens + lane] = uint8_t(lower.codes[i] | upper.codes[i] << 4);
    }
}

// Values of q4 by their numbers 0..15. bend: scale * kBend.
template <class V> inline typename V::F bent(typename V::F number, typename V::F scale, typename V::F bend) {
    const typename V::F step = V::sub(number, V::set1(7.5f));
    return V::mul(step, V::fma(V::mul(step, step), bend, scale));
}

// A tile of 16 keys as floats, (head_dim, 16).
template <class V> inline void unpack_keys(KvType type, const uint8_t* tile, int64_t head_dim, float* out) {
    constexpr int64_t half = kGroup / 2;
    const int64_t groups = head_dim / kGroup;
    const uint8_t* codes = tile + 2 * groups * kKeyTile;
    for (int64_t group = 0; group < groups; ++group, out += kGroup * kKeyTile)
        for (int64_t lane = 0; lane < kKeyTile; lane += V::lanes) {
            if (type == qlocal::kQ8) {
                const uint8_t* at = codes + group * kGroup * kKeyTile + lane;
                const typename V::F scale =
                    V::load_f16(reinterpret_cast<const uint16_t*>(tile) + group * kKeyTile + lane);
                for (int64_t i = 0; i < kGroup; ++i)
                    V::store(out + i * kKeyTile + lane, V::mul(V::load_i8(at + i * kKeyTile), scale));
                continue;
            }
            const uint8_t *at = codes + group * half * kKeyTile + lane, *scales = tile + 2 * group * kKeyTile + lane;
            const typename V::F lower = V::load_scales(scales), upper = V::load_scales(scales + kKeyTile);
            const typename V::F lower_bend = V::mul(lower, V::set1(kBend)), upper_bend = V::mul(upper, V::set1(kBend));
            for (int64_t i = 0; i < half; ++i) {
                float* to = out + i * kKeyTile + lane;
                V::store(to, bent<V>(V::lower_halves(at + i * kKeyTile), lower, lower_bend));
                V::store(to + half * kKeyTile, bent<V>(V::upper_halves(at + i * kKeyTile), upper, upper_bend));
            }
        }
}

// Values of one group of a token as 32 floats.
template <class V>
inline void unpack_value_group(KvType type, const uint8_t* token, int64_t head_dim, int64_t group, float* out) {
    constexpr int64_t half = kGroup / 2;
    const uint8_t* codes = token + 2 * (head_dim / kGroup);
    if (type == qlocal::kQ8) {
        uint16_t stored;
        std::memcpy(&stored, token + 2 * group, 2);
        const typename V::F scale = V::set1(_cvtsh_ss(stored));
        for (int64_t i = 0; i < kGroup; i += V::lanes)
            V::store(out + i, V::mul(V::load_i8(codes + group * kGroup + i), scale));
        return;
    }
    const float lower = scale_of(token[2 * group]), upper = scale_of(token[2 * group + 1]);
    for (int64_t i = 0; i < half; i += V::lanes) {
        const uint8_t* at = codes + group * half + i;
        V::store(out + i, bent<V>(V::lower_halves(at), V::set1(lower), V::set1(lower * kBend)));
        V::store(out + half + i, bent<V>(V::upper_halves(at), V::set1(upper), V::set1(upper * kBend)));
    }
}

// Cosines and sines of the 16 positions from `at` on, (head_dim, 16): what the bias in a query meets. The angles of a
// tile's first position and of the lanes are added.
template <class V> inline void unpack_angles(const CacheLayout& layout, int64_t at, float* out) {
    const int64_t half = layout.head_dim / 2;
    const float* first = layout.tile_angles + at / kKeyTile * layout.head_dim;
    for (int64_t i = 0; i < half; ++i) {
        const typename V::F cosine = V::set1(first[i]), sine = V::set1(first[half + i]);
        for (int64_t lane = i * kKeyTile; lane < (i + 1) * kKeyTile; lane += V::lanes) {
            const typename V::F c = V::load(layout.lane_angles + lane);
            const typename V::F s = V::load(layout.lane_angles + half * kKeyTile + lane);
            V::store(out + lane, V::sub(V::mul(cosine, c), V::mul(sine, s)));
            V::store(out + half * kKeyTile + lane, V::fma(sine, c, V::mul(cosine, s)));
        }
    }
}

// StepOps::make_query. A key is R(m) bias + H stored / key_scale.
inline void make_query(const CacheLayout& layout, const LayerCache& cache, int64_t kv_head, const float* query,
                       float scale, float* out) {
    const int64_t head_dim = layout.head_dim, half = head_dim / 2;
    const float* by = cache.key_scale ? cache.key_scale + kv_head * head_dim : nullptr;
    for (int64_t i = 0; i < head_dim; ++i)
        out[i] = by ? query[i] * scale / by[i] : query[i] * scale;
    if (cache.key_type == qlocal::kF16)
        return;
    hadamard(out, head_dim);
    if (!cache.key_bias)
        return;
    const float* bias = cache.key_bias + kv_head * head_dim;
    for (int64_t i = 0; i < half; ++i) {
        out[head_dim + i] = scale * (query[i] * bias[i] + query[half + i] * bias[half + i]);
        out[head_dim + half + i] = scale * (query[half + i] * bias[i] - query[i] * bias[half + i]);
    }
}

// StepOps::finish.
inline void finish(const CacheLayout& layout, const LayerCache& cache, int64_t kv_head, float* out) {
    if (cache.value_type == qlocal::kF16)
        return;
    hadamard(out, layout.head_dim);
    if (!cache.value_mean)
        return;
    const float* mean = cache.value_mean + kv_head * layout.head_dim;
    const float* scale = cache.value_scale + kv_head * layout.head_dim;
    for (int64_t i = 0; i < layout.head_dim; ++i)
        out[i] = out[i] / scale[i] + mean[i];
}

} // namespace
