// Columns of a matrix rounded one after another, each error carried to those that follow; rows lie in the lanes.
//
// The published way (GPTQ, arXiv 2210.17323) within a block of columns, then rounds that move one code at a time to
// where the block's remaining loss is least. Types are those of block_fit.h and affine_fit.h, with
//   fit(x, w, fields)      scales from the values that the columns have when their group is reached
//   recode(fields, i, x)   the code nearest to x for element i, its scales as they are; returns the value

#pragma once

#include "affine_fit.h"
#include "feedback_blocks.h"
#include "quantize_rows.h"

namespace {

using qlocal::FeedbackJob;
using qlocal::kFeedbackColumns;

// Types of block_fit.h with the names that this file uses.
template <class T> struct BlockGroup : T {
    template <class F> static void fit(const F* x, const F* w, int, typename T::Fields& fields) {
        T::fit(x, w, Fit::WEIGHTED, fields);
        if constexpr (T::kRefines)
            T::refine(x, w, fields);
    }
};

template <class V, class T> struct FeedbackGroup {
    static constexpr int kGroups = kFeedbackColumns / T::columns;

    const FeedbackJob& job;
    const RowGroup<V> rows;
    const int columns;
    Floats<V> target[kFeedbackColumns], work[kFeedbackColumns], value[kFeedbackColumns];
    typename T::Fields fields[kGroups];

    FeedbackGroup(const FeedbackJob& job, int64_t group)
        : job(job), rows(job.matrix, group), columns(int(job.matrix.columns)) {}

    void solve() {
        load();
        for (int step = 0; step < columns; ++step)
            round(step);
        descend();
        store();
    }

    void load() {
        for (int first = 0; first < columns; first += 32)
            load_columns<V, 32>(rows, first, target + first);
        for (int step = 0; step < columns; ++step)
            work[step] = target[step];
    }

    void round(int step) {
        const int column = job.order[step];
        if (step % T::columns == 0)
            fit(step);
        value[step] = T::recode(fields[column / T::columns], column % T::columns, work[step]);
        const float* spread = job.spread + int64_t(step) * columns;
        const Floats<V> error = (work[step] - value[step]) * (1.0f / spread[step]);
        for (int later = step + 1; later < columns; ++later)
            work[later] = V::fused_less(error, V::set1(spread[later]), work[later]);
    }

    // Fit the group that the columns from `step` on belong to.
    void fit(int step) {
        const int first = job.order[step] / T::columns * T::columns;
        Floats<V> x[T::columns], w[T::columns];
        for (int i = 0; i < T::columns; ++i) {
            x[job.order[step + i] - first] = work[step + i];
            w[i] = V::set1(job.matrix.importance[first + i]);
        }
        T::fit(x, w, job.min_zero, fields[first / T::columns]);
    }

    // Move single codes to where the loss (target - value) gram (target - value)^T is least. `work` becomes its slope.
    void descend() {
        for (int i = 0; i < columns; ++i)
            work[i] = Floats<V>{};
        for (int j = 0; j < columns; ++j)
            spread_change(j, target[j] - value[j]);
        for (int pass = 0; pass < job.rounds; ++pass)
            for (int step = 0; step < columns; ++step) {
                const int column = job.order[step];
                const Floats<V> before = value[step];
                const Floats<V> wanted = before + work[step] * (1.0f / job.gram[int64_t(step) * columns + step]);
                value[step] = T::recode(fields[column / T::columns], column % T::columns, wanted);
                if (V::any(before != value[step]))
                    spread_change(step, before - value[step]);
            }
    }

    void spread_change(int step, Floats<V> change) {
        const float* row = job.gram + int64_t(step) * columns;
        for (int i = 0; i < columns; ++i)
            work[i] = V::fused_add(change, V::set1(row[i]), work[i]);
    }

    void store() {
        Floats<V> loss{};
        for (int step = 0; step < columns; ++step)
            loss += (target[step] - value[step]) * work[step];
        ErrorSums<V> sums;
        sums.add_lanes(sums.error, loss);
        sums.store(rows);
        for (int group = 0; group * T::columns < columns; ++group) {
            const int64_t row = rows.first * job.matrix.block_row_bytes;
            BlockSink<V> sink{rows, job.matrix.blocks + row + group * T::bytes};
            T::write(fields[group], sink);
        }
        for (int first = 0; first < columns; first += V::lanes) {
            transpose<V>(value + first);
            for (int lane = 0; lane < rows.rows; ++lane)
                V::store(job.values + (rows.first + lane) * columns + first, value[first + lane]);
        }
    }
};

template <class V, class T> void solve_groups(const FeedbackJob& job, int64_t first, int64_t last) {
    for (int64_t group = first; group < last; ++group)
        FeedbackGroup<V, T>(job, group).solve();
}

template <class V> void solve_feedback(const FeedbackJob& job, int64_t first, int64_t last) {
    switch (job.matrix.block_type) {
    case qlocal::SYMMETRIC_32:
        return solve_groups<V, SymmetricGroup<V, 32>>(job, first, last);
    case qlocal::SYMMETRIC_64:
        return solve_groups<V, SymmetricGroup<V, 64>>(job, first, last);
    case qlocal::SYMMETRIC_128:
        return solve_groups<V, SymmetricGroup<V, 128>>(job, first, last);
    case qlocal::ASYMMETRIC_32:
        return solve_groups<V, AsymmetricGroup<V, 32>>(job, first, last);
    case qlocal::ASYMMETRIC_64:
        return solve_groups<V, AsymmetricGroup<V, 64>>(job, first, last);
    case qlocal::ASYMMETRIC_128:
        return solve_groups<V, AsymmetricGroup<V, 128>>(job, first, last);
    default:
        return with_block_type<V>(job.matrix.block_type, [&](auto type) {
            solve_groups<V, BlockGroup<typename decltype(type)::Type>>(job, first, last);
        });
    }
}

} // namespace
