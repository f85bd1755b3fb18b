// The 4-bit groups of AWQ and GPTQ, in the form of block_fit.h's types: a lane is a group.
//
// Fields hold what is stored; `fit` looks for scale and zero point by the weighted error of the group's own columns,
// as quantize/methods/grids.py does.

#pragma once

#include "block_fit.h"

namespace {

constexpr float kEmptyScale = 6.103515625e-05f; // 2^-14: groups of zeros, small so that no kernel cancels large terms
constexpr float kSmallestScale = 5.960464477539063e-08f; // 2^-24, the smallest float16

template <class V, int Columns> struct AffineFields {
    Half<V> scale;
    Floats<V> zero;
    Floats<V> q[Columns];
};

template <class V, int Columns> inline Floats<V> affine_value(const AffineFields<V, Columns>& fields, int i) {
    return fields.scale.value * (fields.q[i] - fields.zero);
}

template <class V, int Columns, class Sink>
inline void write_affine(const AffineFields<V, Columns>& fields, Sink& sink) {
    sink.word(0, (fields.scale.bits & 0xffff) | V::to_int(fields.zero) << 16);
    write_bytes<V>(sink, 4, Columns, [&](int j) { return V::to_int(fields.q[j]); });
}

template <class V, int Columns> inline Floats<V> affine_recode(AffineFields<V, Columns>& fields, int i, Floats<V> x) {
    // Limits are those of the code without its zero point, so that they are whole numbers.
    fields.q[i] =
        V::min(V::max(nearest<V>(x / fields.scale.value, -15.0f, 15.0f) + fields.zero, V::set1(0.0f)), V::set1(15.0f));
    return affine_value<V, Columns>(fields, i);
}

// Zero point 8. The element of largest magnitude may have either sign, so the scale has one too: -8 is a code, 8 is
// not.
template <class V, int Columns> struct SymmetricGroup {
    static constexpr int columns = Columns, bytes = 4 + Columns;
    using Fields = AffineFields<V, Columns>;

    static void fit(const Floats<V>* x, const Floats<V>* w, int, Fields& fields) {
        const SymmetricFit<V> found = symmetric_search<V, Columns>(x, w, 8);
        const Half<V> scale = to_half<V>(found.scale);
        fields.scale = to_half<V>(scale.value != 0.0f ? scale.value : V::set1(kEmptyScale));
        fields.zero = V::set1(8.0f);
    }

    static Floats<V> value(const Fields& fields, int i) { return affine_value<V, Columns>(fields, i); }
    static Floats<V> recode(Fields& fields, int i, Floats<V> x) { return affine_recode<V, Columns>(fields, i, x); }
    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        write_affine<V, Columns>(fields, sink);
    }
};

// Zero points min_zero..15: both ends of the range are drawn in by steps, then the scale is fitted to the codes.
template <class V, int Columns> struct AsymmetricGroup {
    static constexpr int columns = Columns, bytes = 4 + Columns;
    using Fields = AffineFields<V, Columns>;

    struct Candidate {
        Half<V> scale;
        Floats<V> zero, error;
    };

    static void fit(const Floats<V>* x, const Floats<V>* w, int min_zero, Fields& fields) {
        constexpr int steps = 6, apart = 3; // shares 1, 0.95 ... 0.75 of each end, at most 0.15 apart
        const Floats<V> zero{}, low = V::min(smallest<V, Columns>(x), zero),
                                high = V::max(largest<V, Columns>(x), zero);
        Candidate best{};
        for (int down = 0; down < steps; ++down)
            for (int up = 0; up < steps; ++up)
                if (down - up <= apart && up - down <= apart) {
                    const Candidate one = ranged(x, w, low * (1.0f - 0.05f * float(down)),
                                                 high * (1.0f - 0.05f * float(up)), float(min_zero));
                    keep_better(best, one, down + up == 0);
                }
        for (int round = 0; round < 2; ++round)
            keep_better(best, refitted(x, w, best), false);
        const auto empty = high - low <= 0.0f;
        fields.scale = to_half<V>(empty ? V::set1(kEmptyScale) : best.scale.value);
        fields.zero = empty ? V::set1(8.0f) : best.zero;
    }

    static Candidate ranged(const Floats<V>* x, const Floats<V>* w, Floats<V> low, Floats<V> high, float min_zero) {
        Floats<V> span = high - low;
        if (min_zero > 0.0f) // above such a zero point there are fewer codes
            span = V::max(span, high * (15.0f / (15.0f - min_zero)));
        Candidate one;
        one.scale = to_half<V>(span / 15.0f);
        one.scale = to_half<V>(V::max(one.scale.value, V::set1(kSmallestScale)));
        one.zero = nearest<V>(-low / one.scale.value, min_zero, 15.0f);
        one.error = error_of(x, w, one);
        return one;
    }

    // The scale that fits the codes best.
    static Candidate refitted(const Floats<V>* x, const Floats<V>* w, const Candidate& from) {
        Floats<V> xq{}, qq{};
        for (int i = 0; i < Columns; ++i) {
            const Floats<V> q = step_of(x[i], from);
            xq += w[i] * x[i] * q;
            qq += w[i] * q * q;
        }
        Candidate one = from;
        one.scale = to_half<V>(divide_or_zero<V>(xq, qq));
        one.scale = to_half<V>(V::max(one.scale.value, V::set1(kSmallestScale)));
        one.error = error_of(x, w, one);
        return one;
    }

    // The code less the zero point.
    static Floats<V> step_of(Floats<V> x, const Candidate& grid) {
        const Floats<V> q = nearest<V>(x / grid.scale.value, -15.0f, 15.0f);
        return V::min(V::max(q, -grid.zero), 15.0f - grid.zero);
    }

    static Floats<V> error_of(const Floats<V>* x, const Floats<V>* w, const Candidate& grid) {
        Floats<V> sum{};
        for (int i = 0; i < Columns; ++i) {
            const Floats<V> difference = grid.scale.value * step_of(x[i], grid) - x[i];
            sum += difference * difference * w[i];
        }
        return sum;
    }

    static void keep_better(Candidate& best, const Candidate& one, bool first) {
        const auto better = first ? ~Mask<V>{} : one.error < best.error;
        best.scale.value = better ? one.scale.value : best.scale.value;
        best.zero = better ? one.zero : best.zero;
        best.error = better ? one.error : best.error;
    }

    static Floats<V> value(const Fields& fields, int i) { return affine_value<V, Columns>(fields, i); }
    static Floats<V> recode(Fields& fields, int i, Floats<V> x) { return affine_recode<V, Columns>(fields, i, x); }
    template <class Sink> static void write(const Fields& fields, Sink& sink) {
        write_affine<V, Columns>(fields, sink);
    }
};

} // namespace
