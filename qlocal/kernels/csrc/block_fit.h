// GGML's block types: from the elements of a block and their weights to the fields that are stored.
//
// A lane is a block, as in block_search.h. A type T<V> offers:
//   columns, bytes  elements and stored bytes of a block
//   Fields          what is stored, codes as floats; `half` fields as bits and as the values that they mean
//   weights(x, importance, sigma2, w)  what the search minimizes; importance: a float a column or null; sigma2: the
//                   mean square of the row, for types that ask for it (kRowSigma)
//   fit(x, w, how, fields)    the reference's steps (quantize/methods/{legacy_quant,kquant}.py), to the bit
//   value(fields, i)          element i as it is read back
//   recode(fields, i, x)      the code nearest to x for element i, the scales as they are; returns the new value
//   refine(x, w, fields)      where kRefines: scales moved to where the error of their own block is least
//   write(fields, sink)       sink.half(offset, I), sink.word(offset, I): bytes of the block, as docs/formats.md has it
// x and w hold `columns` vectors.

#pragma once

#include <cstdint>

#include "block_search.h"
#include "matrix.h"
#include "quantize_blocks.h"

namespace {

using qlocal::Fit;
using qlocal::Storage;

template <class V> using Ints = typename V::I;

// A float16 field: its bits, and the value that a reader finds.
template <class V> struct Half {
    Ints<V> bits;
    Floats<V> value;
};

template <class V> inline Half<V> to_half(Floats<V> value) {
    const Ints<V> bits = V::half_bits(value);
    return {bits, V::half_value(bits)};
}

// The nearest multiple of a step, from low to high steps; 0 where there is no step.
template <class V> inline Floats<V> nearest_step(Floats<V> x, Floats<V> step, int low, int high) {
    const auto alive = step != 0.0f;
    return alive ? nearest<V>(x / (alive ? step : V::set1(1.0f)), float(low), float(high)) : Floats<V>{};
}

// Four codes 0..255, one byte each, the first lowest.
template <class V> inline Ints<V> four_bytes(Ints<V> a, Ints<V> b, Ints<V> c, Ints<V> d) {
    return a | b << 8 | c << 16 | d << 24;
}

// Call make(j) for four bytes in turn, for every word of `count` bytes from `offset` on.
template <class V, class Sink, class Make>
inline void write_bytes(Sink& sink, int offset, int count, const Make& make) {
    for (int j = 0; j < count; j += 4)
        sink.word(offset + j, four_bytes<V>(make(j), make(j + 1), make(j + 2), make(j + 3)));
}

// The lower nibbles of codes 0..15 and 16..31: 16 bytes.
template <class V, class Sink> inline void write_nibbles(Sink& sink, int offset, const Ints<V>* codes) {
    write_bytes<V>(sink, offset, 16, [&](int j) { return (codes[j] & 15) | (codes[j + 16] & 15) << 4; });
}

// Bit j is bit 4 of code j: 4 bytes.
template <class V, class Sink> inline void write_fifth_bits(Sink& sink, int offset, const Ints<V>* codes) {
    Ints<V> bits{};
    for (int j = 0; j < 32; ++j)
        bits |= (codes[j] >> 4 & 1) << j;
    sink.word(offset, bits);
}

template <class V, int N> inline void to_ints(const Floats<V>* codes, Ints<V>* ints) {
    for (int i = 0; i < N; ++i)
        ints[i] = V::to_int(codes[i]);
}

// importance sqrt(sigma2 + x²), and ones without importance.
template <class V, int N>
inline void root_weights(const Floats<V>* x, const float* importance, Floats<V> sigma2, Floats<V>* w) {
    for (int i = 0; i < N; ++i)
        w[i] = importance ? V::set1(importance[i]) * V::sqrt(sigma2 + x[i] * x[i]) : V::set1(1.0f);
}

// --- Blocks of 32. sigma2 is the row's.

// Q4_0 (8) and Q5_0 (16): d (q - Levels).
template <class V, int Levels> struct SymmetricBlock {
    static constexpr int columns = 32, bytes = Levels == 8 ? 18 : 22;
    static constexpr bool kRowSigma = true, kRefines = false;

    struct Fields {
        Half<V> d;
        Floats<V> q[32];
    };

    static void weights(const Floats<V>* x, const float* importance, Floats<V> sigma2, Floats<V>* w) {
        root_weights<V, 32>(x, importance, sigma2, w);
    }

    static void fit(const Floats<V>* x, const Floats<V>* w, Fit how, Fields& fields) {
        if (how == Fit::PLAIN)
            return round(x, fields);
        const SymmetricFit<V> found = symmetric_search<V, 32>(x, w, Levels);
        fields.d = to_half<V>(found.scale);
        for (int i = 0; i < 32; ++i)
            fields.q[i] = found.code(x[i], Levels) + float(Levels);
    }

    // The inverse is taken before d becomes a float16.
    static void round(const Floats<V>* x, Fields& fields) {
        const Floats<V> d = signed_extreme<V, 32>(x) / -float(Levels), inverse = inverse_step<V>(d);
        fields.d = to_half<V>(d);
        for (int i = 0; i < 32; ++i) {
            const Floats<V> q = V::to_float(V::truncate(x[i] * inverse + (float(Levels) + 0.5f)));
            fields.q[i] = V::min(q, V::set1(2 * Levels - 1));
        }
    }

    static Floats<V> value(const Fields& fields, int i) { return fields.d.value * (fields.q[i] - float(Levels)); }

    static Floats<V> recode(Fields& fields, int i, Floats<V> x) {
        fields.q[i] = nearest_step<V>(x, fields.d.value, -Levels, Levels - 1) + float(Levels);
        return value(fields, i);
    }

    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        Ints<V> q[32];
        to_ints<V, 32>(fields.q, q);
        sink.half(0, fields.d.bits);
        if (Levels == 16)
            write_fifth_bits<V>(sink, 2, q);
        write_nibbles<V>(sink, bytes - 16, q);
    }
};

// Q4_1 (15) and Q5_1 (31): d q + m.
template <class V, int Largest> struct MinimumBlock {
    static constexpr int columns = 32, bytes = Largest == 15 ? 20 : 24;
    static constexpr bool kRowSigma = true, kRefines = false;
    static constexpr MinimumGrid kGrid{Largest, -0.9f, 0.05f, 36};

    struct Fields {
        Half<V> d, m;
        Floats<V> q[32];
    };

    static void weights(const Floats<V>* x, const float* importance, Floats<V> sigma2, Floats<V>* w) {
        root_weights<V, 32>(x, importance, sigma2, w);
    }

    static void fit(const Floats<V>* x, const Floats<V>* w, Fit how, Fields& fields) {
        if (how == Fit::PLAIN)
            return round(x, fields);
        MinimumFit<V> found;
        minimum_search<V, 32, 1>(x, w, kGrid, &found);
        fields.d = to_half<V>(found.scale);
        fields.m = to_half<V>(found.low);
        for (int i = 0; i < 32; ++i)
            fields.q[i] = found.code(x[i], Largest);
    }

    static void round(const Floats<V>* x, Fields& fields) {
        const Floats<V> low = smallest<V, 32>(x), d = (largest<V, 32>(x) - low) / float(Largest);
        const Floats<V> inverse = inverse_step<V>(d);
        fields.d = to_half<V>(d);
        fields.m = to_half<V>(low);
        for (int i = 0; i < 32; ++i) {
            const Floats<V> q = V::to_float(V::truncate((x[i] - low) * inverse + 0.5f));
            fields.q[i] = V::min(q, V::set1(Largest));
        }
    }

    static Floats<V> value(const Fields& fields, int i) { return fields.d.value * fields.q[i] + fields.m.value; }

    static Floats<V> recode(Fields& fields, int i, Floats<V> x) {
        fields.q[i] = nearest_step<V>(x - fields.m.value, fields.d.value, 0, Largest);
        return value(fields, i);
    }

    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        Ints<V> q[32];
        to_ints<V, 32>(fields.q, q);
        sink.half(0, fields.d.bits);
        sink.half(2, fields.m.bits);
        if (Largest == 31)
            write_fifth_bits<V>(sink, 4, q);
        write_nibbles<V>(sink, bytes - 16, q);
    }
};

// Q8_0: d q, always plain.
template <class V> struct ByteBlock {
    static constexpr int columns = 32, bytes = 34;
    static constexpr bool kRowSigma = false, kRefines = false;

    struct Fields {
        Half<V> d;
        Floats<V> q[32];
    };

    static void weights(const Floats<V>*, const float*, Floats<V>, Floats<V>*) {}

    static void fit(const Floats<V>* x, const Floats<V>*, Fit, Fields& fields) {
        const Floats<V> d = V::abs(signed_extreme<V, 32>(x)) / 127.0f, inverse = inverse_step<V>(d);
        fields.d = to_half<V>(d);
        for (int i = 0; i < 32; ++i) {
            const Floats<V> scaled = x[i] * inverse; // half a step goes away from zero
            fields.q[i] = V::to_float(V::truncate(scaled + (scaled < 0.0f ? V::set1(-0.5f) : V::set1(0.5f))));
        }
    }

    static Floats<V> value(const Fields& fields, int i) { return fields.d.value * fields.q[i]; }

    static Floats<V> recode(Fields& fields, int i, Floats<V> x) {
        fields.q[i] = nearest_step<V>(x, fields.d.value, -127, 127);
        return value(fields, i);
    }

    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        sink.half(0, fields.d.bits);
        write_bytes<V>(sink, 2, 32, [&](int j) { return V::to_int(fields.q[j]) & 255; });
    }
};

// --- Super-blocks of 256. sigma2 is the super-block's, and found here.

constexpr int kSuper = 256;
constexpr float kScaleLevels = 63.0f;

// Quantize eight non-negative values to 0..63 by their largest. Returns the step.
template <class V> inline Floats<V> by_largest(const Floats<V>* values, Floats<V>* codes) {
    const Floats<V> found = largest<V, 8>(values), most = found > 0.0f ? found : Floats<V>{};
    const Floats<V> inverse = most >= kNoStep ? V::set1(kScaleLevels) / most : Floats<V>{};
    for (int j = 0; j < 8; ++j)
        codes[j] = nearest<V>(inverse * values[j], 0.0f, kScaleLevels);
    return most / kScaleLevels;
}

// Q4_K (15) and Q5_K (31): d scale q - dmin min, eight sub-blocks of 32.
template <class V, int Largest> struct MinimumSuperBlock {
    static constexpr int columns = kSuper, bytes = Largest == 15 ? 144 : 176;
    static constexpr bool kRowSigma = false, kRefines = true;
    static constexpr MinimumGrid kGrid =
        Largest == 15 ? MinimumGrid{15, -1.0f, 0.1f, 20} : MinimumGrid{31, -0.5f, 0.1f, 15};
    static constexpr MinimumGrid kWeightedGrid{Largest, -0.9f, 0.05f, 36};

    struct Fields {
        Half<V> d, dmin;
        Floats<V> scales[8], mins[8], q[kSuper];
    };

    static void weights(const Floats<V>* x, const float* importance, Floats<V>, Floats<V>* w) {
        if (!importance)
            return own_weights(x, w);
        Floats<V> sum{};
        for (int i = 0; i < kSuper; ++i)
            sum += x[i] * x[i];
        root_weights<V, kSuper>(x, importance, 2.0f * sum / float(kSuper), w);
    }

    static void own_weights(const Floats<V>* x, Floats<V>* w) {
        for (int first = 0; first < kSuper; first += 32) {
            Floats<V> sum{};
            for (int i = first; i < first + 32; ++i)
                sum += x[i] * x[i];
            const Floats<V> root = V::sqrt(sum / 32.0f);
            for (int i = first; i < first + 32; ++i)
                w[i] = root + V::abs(x[i]);
        }
    }

    static void fit(const Floats<V>* x, const Floats<V>* w, Fit how, Fields& fields) {
        MinimumFit<V> found[8];
        Floats<V> scales[8], minima[8];
        if (how == Fit::PLAIN)
            for (int j = 0; j < 8; ++j)
                found[j] = plain(x + 32 * j);
        else
            for (int j = 0; j < 8; j += 4)
                minimum_search<V, 32, 4>(x + 32 * j, w + 32 * j, how == Fit::WEIGHTED ? kWeightedGrid : kGrid,
                                         found + j);
        for (int j = 0; j < 8; ++j) {
            scales[j] = found[j].scale;
            minima[j] = -found[j].low;
        }
        if (how == Fit::WEIGHTED) {
            Floats<V> sums[8]{};
            for (int i = 0; i < kSuper; ++i)
                sums[i / 32] += w[i];
            fields.d = to_half<V>(positive_search<V, 8>(scales, sums, kScaleLevels, fields.scales));
            fields.dmin = to_half<V>(positive_search<V, 8>(minima, sums, kScaleLevels, fields.mins));
        } else {
            fields.d = to_half<V>(by_largest<V>(scales, fields.scales));
            fields.dmin = to_half<V>(by_largest<V>(minima, fields.mins));
        }
        encode(x, found, fields);
    }

    static MinimumFit<V> plain(const Floats<V>* x) {
        const Floats<V> zero{}, found = smallest<V, 32>(x), low = found > 0.0f ? zero : found;
        const Floats<V> span = largest<V, 32>(x) - low;
        return {(span > 0.0f ? span : zero) / float(Largest), low, zero, low, Mask<V>{}};
    }

    // Make codes with the scales as stored; where a scale has become 0 the searched ones stay.
    static void encode(const Floats<V>* x, const MinimumFit<V>* found, Fields& fields) {
        for (int j = 0; j < 8; ++j) {
            const Floats<V> scale = fields.d.value * fields.scales[j], minimum = fields.dmin.value * fields.mins[j];
            const auto alive = scale != 0.0f;
            const Floats<V> safe = alive ? scale : V::set1(1.0f);
            for (int i = 32 * j; i < 32 * (j + 1); ++i) {
                const Floats<V> fresh = nearest<V>((x[i] + minimum) / safe, 0.0f, Largest);
                fields.q[i] = alive ? fresh : found[j].code(x[i], Largest);
            }
        }
    }

    // Beyond the reference: scale and minimum of a sub-block are rounded apart from each other there, and their codes
    // chosen after that; here all neighbours of both are tried by the error that the codes then leave.
    static void refine(const Floats<V>* x, const Floats<V>* w, Fields& fields) {
        constexpr int reach = 2;
        for (int j = 0; j < 8; ++j) {
            const Floats<V> scale = fields.scales[j], minimum = fields.mins[j];
            Floats<V> best = error_of(x + 32 * j, w + 32 * j, fields, scale, minimum);
            for (int up = -reach; up <= reach; ++up)
                for (int down = -reach; down <= reach; ++down) {
                    const Floats<V> other = clip<V>(scale + float(up), 1.0f, kScaleLevels);
                    const Floats<V> low = clip<V>(minimum + float(down), 0.0f, kScaleLevels);
                    const Floats<V> error = error_of(x + 32 * j, w + 32 * j, fields, other, low);
                    const auto better = error < best;
                    fields.scales[j] = better ? other : fields.scales[j];
                    fields.mins[j] = better ? low : fields.mins[j];
                    best = better ? error : best;
                }
            for (int i = 32 * j; i < 32 * (j + 1); ++i)
                recode(fields, i, x[i]);
        }
    }

    // The weighted error of a sub-block with these codes of scale and minimum.
    static Floats<V> error_of(const Floats<V>* x, const Floats<V>* w, const Fields& fields, Floats<V> scale_code,
                              Floats<V> min_code) {
        const Floats<V> scale = fields.d.value * scale_code, minimum = fields.dmin.value * min_code;
        const Floats<V> inverse = inverse_step<V>(scale);
        Floats<V> sum{};
        for (int i = 0; i < 32; ++i) {
            const Floats<V> q = nearest<V>((x[i] + minimum) * inverse, 0.0f, Largest);
            const Floats<V> difference = scale * q - minimum - x[i];
            sum = V::fused_add(difference * difference, w[i], sum);
        }
        return sum;
    }

    static Floats<V> value(const Fields& fields, int i) {
        const Floats<V> scale = fields.d.value * fields.scales[i / 32];
        return scale * fields.q[i] - fields.dmin.value * fields.mins[i / 32];
    }

    static Floats<V> recode(Fields& fields, int i, Floats<V> x) {
        const Floats<V> minimum = fields.dmin.value * fields.mins[i / 32];
        fields.q[i] = nearest_step<V>(x + minimum, fields.d.value * fields.scales[i / 32], 0, Largest);
        return value(fields, i);
    }

    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        Ints<V> scales[8], mins[8], q[kSuper];
        to_ints<V, 8>(fields.scales, scales);
        to_ints<V, 8>(fields.mins, mins);
        to_ints<V, kSuper>(fields.q, q);
        sink.half(0, fields.d.bits);
        sink.half(2, fields.dmin.bits);
        write_bytes<V>(sink, 4, 4, [&](int j) { return scales[j] | (scales[j + 4] >> 4) << 6; });
        write_bytes<V>(sink, 8, 4, [&](int j) { return mins[j] | (mins[j + 4] >> 4) << 6; });
        write_bytes<V>(sink, 12, 4, [&](int j) { return (scales[j + 4] & 15) | (mins[j + 4] & 15) << 4; });
        if (Largest == 31)
            write_bytes<V>(sink, 16, 32, [&](int j) { return fifth_bits(q, j); });
        for (int run = 0; run < 4; ++run)
            write_bytes<V>(sink, bytes - 128 + 32 * run, 32,
                           [&](int j) { return (q[64 * run + j] & 15) | (q[64 * run + 32 + j] & 15) << 4; });
    }

    // Bit i is the fifth bit of element j of sub-block i.
    static Ints<V> fifth_bits(const Ints<V>* q, int j) {
        Ints<V> bits{};
        for (int i = 0; i < 8; ++i)
            bits |= q[32 * i + j] >> 4 << i;
        return bits;
    }
};

// Q6_K: d scale (q - 32), sixteen sub-blocks of 16, scales signed.
template <class V> struct SymmetricSuperBlock {
    static constexpr int columns = kSuper, bytes = 210;
    static constexpr bool kRowSigma = false, kRefines = false;

    struct Fields {
        Half<V> d;
        Floats<V> scales[16], q[kSuper];
    };

    static void weights(const Floats<V>* x, const float* importance, Floats<V>, Floats<V>* w) {
        for (int i = 0; i < kSuper; ++i)
            w[i] = importance ? V::set1(importance[i]) : x[i] * x[i];
    }

    static void fit(const Floats<V>* x, const Floats<V>* w, Fit how, Fields& fields) {
        SymmetricFit<V> found[16];
        Floats<V> scales[16];
        for (int j = 0; j < 16; ++j) {
            found[j] = how == Fit::PLAIN ? plain(x + 16 * j) : symmetric_search<V, 16>(x + 16 * j, w + 16 * j, 32);
            scales[j] = found[j].scale;
        }
        const Floats<V> zero{}, one = V::set1(1.0f), extreme = signed_extreme<V, 16>(scales);
        const auto alive = V::abs(extreme) >= kTiny;
        const Floats<V> inverse = V::set1(-128.0f) / (alive ? extreme : one);
        fields.d = to_half<V>(alive ? one / inverse : zero);
        for (int j = 0; j < 16; ++j) {
            fields.scales[j] = alive ? nearest<V>(inverse * scales[j], -128.0f, 127.0f) : zero;
            encode(x, found[j], j, alive, fields);
        }
    }

    static SymmetricFit<V> plain(const Floats<V>* x) {
        const Floats<V> extreme = signed_extreme<V, 16>(x);
        return {V::abs(extreme) / 31.0f, Floats<V>{}, ~Mask<V>{}};
    }

    // Make codes with the scale as stored; where it has become 0 the searched ones stay, and a super-block of zeros
    // has codes 0.
    static void encode(const Floats<V>* x, const SymmetricFit<V>& found, int j, Mask<V> alive, Fields& fields) {
        const Floats<V> step = fields.d.value * fields.scales[j];
        const auto has_step = step != 0.0f;
        const Floats<V> safe = has_step ? step : V::set1(1.0f);
        for (int i = 16 * j; i < 16 * (j + 1); ++i) {
            const Floats<V> fresh = nearest<V>(x[i] / safe, -32.0f, 31.0f);
            const Floats<V> q = (has_step ? fresh : found.code(x[i], 32)) + 32.0f;
            fields.q[i] = alive ? q : Floats<V>{};
        }
    }

    static Floats<V> value(const Fields& fields, int i) {
        return fields.d.value * fields.scales[i / 16] * (fields.q[i] - 32.0f);
    }

    static Floats<V> recode(Fields& fields, int i, Floats<V> x) {
        fields.q[i] = nearest_step<V>(x, fields.d.value * fields.scales[i / 16], -32, 31) + 32.0f;
        return value(fields, i);
    }

    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        Ints<V> scales[16], q[kSuper];
        to_ints<V, 16>(fields.scales, scales);
        to_ints<V, kSuper>(fields.q, q);
        for (int half = 0; half < 2; ++half) {
            const Ints<V>* of_half = q + 128 * half; // runs of 32: the third and fourth lie above the first two
            write_bytes<V>(sink, 64 * half, 64, [&](int j) { return (of_half[j] & 15) | (of_half[j + 64] & 15) << 4; });
            write_bytes<V>(sink, 128 + 32 * half, 32, [&](int j) {
                return of_half[j] >> 4 | (of_half[j + 32] >> 4) << 2 | (of_half[j + 64] >> 4) << 4 |
                       (of_half[j + 96] >> 4) << 6;
            });
        }
        write_bytes<V>(sink, 192, 16, [&](int j) { return scales[j] & 255; });
        sink.half(208, fields.d.bits);
    }
};

template <class Block> struct BlockType {
    using Type = Block;
};

// Call visit(BlockType<T>{}) for the type of this number of matrix.h; whether it is one of these, the caller knows.
template <class V, class Visit> inline void with_block_type(int32_t block_type, Visit&& visit) {
    switch (block_type) {
    case Storage::Q4_0:
        return visit(BlockType<SymmetricBlock<V, 8>>{});
    case Storage::Q5_0:
        return visit(BlockType<SymmetricBlock<V, 16>>{});
    case Storage::Q4_1:
        return visit(BlockType<MinimumBlock<V, 15>>{});
    case Storage::Q5_1:
        return visit(BlockType<MinimumBlock<V, 31>>{});
    case Storage::Q8_0:
        return visit(BlockType<ByteBlock<V>>{});
    case Storage::Q4_K:
        return visit(BlockType<MinimumSuperBlock<V, 15>>{});
    case Storage::Q5_K:
        return visit(BlockType<MinimumSuperBlock<V, 31>>{});
    default:
        return visit(BlockType<SymmetricSuperBlock<V>>{});
    }
}

} // namespace
