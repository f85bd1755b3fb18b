// The loop over a matrix: rows beside each other in the lanes, one block of columns after another.

#pragma once

#include <cstring>

#include "block_fit.h"

namespace {

using qlocal::QuantizeJob;

// As many rows as there are lanes; at the end of a matrix the last one stands for those that are missing.
template <class V> struct RowGroup {
    const QuantizeJob& job;
    int64_t first;
    int rows; // that exist
    const uint8_t* starts[V::lanes];

    RowGroup(const QuantizeJob& job, int64_t group) : job(job), first(group * V::lanes) {
        const int64_t left = job.num_rows - first;
        rows = left < V::lanes ? int(left) : V::lanes;
        for (int lane = 0; lane < V::lanes; ++lane)
            starts[lane] = job.rows + (first + (lane < rows ? lane : rows - 1)) * job.row_bytes;
    }
};

// `lanes` columns of one row as floats.
template <class V> inline Floats<V> load_row(const uint8_t* row, int64_t column, int32_t storage) {
    if (storage == Storage::BF16)
        return V::load_bf16(row + 2 * column);
    if (storage == Storage::F16)
        return V::load_f16(row + 2 * column);
    return V::load(reinterpret_cast<const float*>(row) + column);
}

// Exchange lanes and vectors: riffling the first half into the second as often as halving takes ends with all in place.
template <class V> inline void transpose(Floats<V>* tile) {
    constexpr int half = V::lanes / 2;
    Floats<V> other[V::lanes];
    for (int left = V::lanes; left > 1; left /= 2) {
        for (int i = 0; i < half; ++i) {
            other[2 * i] = V::interleave_low(tile[i], tile[i + half]);
            other[2 * i + 1] = V::interleave_high(tile[i], tile[i + half]);
        }
        for (int i = 0; i < V::lanes; ++i)
            tile[i] = other[i];
    }
}

// Columns first..first + N of the group: x[i] holds column first + i of all rows.
template <class V, int N> inline void load_columns(const RowGroup<V>& group, int64_t first, Floats<V>* x) {
    for (int i = 0; i < N; i += V::lanes) {
        for (int lane = 0; lane < V::lanes; ++lane)
            x[i + lane] = load_row<V>(group.starts[lane], first + i, group.job.storage);
        transpose<V>(x + i);
    }
}

// The mean square of whole rows.
template <class V> Floats<V> mean_square(const RowGroup<V>& group) {
    Floats<V> sum{}, x[32];
    for (int64_t column = 0; column < group.job.columns; column += 32) {
        load_columns<V, 32>(group, column, x);
        for (int i = 0; i < 32; ++i)
            sum += x[i] * x[i];
    }
    return sum / float(group.job.columns);
}

// Where the fields of the group's blocks go: bytes of one block column, rows block_row_bytes apart.
template <class V> struct BlockSink {
    const RowGroup<V>& group;
    uint8_t* out;

    template <int Bytes> void put(int offset, Ints<V> values) const {
        int32_t lanes[V::lanes];
        V::store(lanes, values);
        for (int lane = 0; lane < group.rows; ++lane)
            std::memcpy(out + lane * group.job.block_row_bytes + offset, lanes + lane, Bytes);
    }
    void word(int offset, Ints<V> values) const { put<4>(offset, values); }
    void half(int offset, Ints<V> values) const { put<2>(offset, values); }
};

// Sums a row in doubles, a block in floats.
template <class V> struct ErrorSums {
    double error[V::lanes]{}, total[V::lanes]{};

    template <class T> void add(const Floats<V>* x, const typename T::Fields& fields, const float* weights) {
        Floats<V> block_error{}, block_total{};
        for (int i = 0; i < T::columns; ++i) {
            const Floats<V> weight = V::set1(weights ? weights[i] : 1.0f), difference = T::value(fields, i) - x[i];
            block_error += weight * (difference * difference);
            block_total += weight * (x[i] * x[i]);
        }
        add_lanes(error, block_error);
        add_lanes(total, block_total);
    }

    static void add_lanes(double* sums, Floats<V> values) {
        float lanes[V::lanes];
        V::store(lanes, values);
        for (int lane = 0; lane < V::lanes; ++lane)
            sums[lane] += double(lanes[lane]);
    }

    void store(const RowGroup<V>& group) const {
        for (int lane = 0; lane < group.rows; ++lane) {
            group.job.errors[2 * (group.first + lane)] = error[lane];
            group.job.errors[2 * (group.first + lane) + 1] = total[lane];
        }
    }
};

template <class V, class T> void quantize_group(const RowGroup<V>& group) {
    const QuantizeJob& job = group.job;
    const bool weighted = job.fit == Fit::WEIGHTED;
    const Floats<V> sigma2 = T::kRowSigma && weighted ? mean_square<V>(group) : Floats<V>{};
    ErrorSums<V> errors;
    Floats<V> x[T::columns], weights[T::columns];
    typename T::Fields fields;
    for (int64_t column = 0; column < job.columns; column += T::columns) {
        load_columns<V, T::columns>(group, column, x);
        if (job.fit != Fit::PLAIN)
            T::weights(x, weighted ? job.importance + column : nullptr, sigma2, weights);
        T::fit(x, weights, job.fit, fields);
        const int64_t at = group.first * job.block_row_bytes + column / T::columns * T::bytes;
        BlockSink<V> sink{group, job.blocks + at};
        T::write(fields, sink);
        errors.template add<T>(x, fields, job.error_weights ? job.error_weights + column : nullptr);
    }
    errors.store(group);
}

template <class V> void quantize(const QuantizeJob& job, int64_t first, int64_t last) {
    with_block_type<V>(job.block_type, [&](auto type) {
        for (int64_t group = first; group < last; ++group)
            quantize_group<V, typename decltype(type)::Type>(RowGroup<V>(job, group));
    });
}

} // namespace
