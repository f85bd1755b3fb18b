// Attention over the block cache for any vector type V: rows of queries together that share a KV head (tokens of
// a prompt, heads of a token), keys 32 at a time.

#pragma once

#include <immintrin.h>

#include "least.h"
#include "norm.h"

namespace {

using qlocal::AttendJob;
using qlocal::CacheLayout;
using qlocal::kKeyTile;
using qlocal::kNothingSeen;
using qlocal::kScoreRun;

constexpr int64_t kKeyPair = 2 * kKeyTile;
// Tokens whose values stay in the nearest cache while the dimensions take turns.
constexpr int64_t kValueRun = 64;

template <class V> inline void clear(float* out, int64_t length) {
    for (int64_t i = 0; i < length; i += V::lanes)
        V::store(out + i, V::zero());
}

template <int N> struct Count {
    static constexpr int value = N;
};

// Call body(Count<count>{}), for counts from 1 to N.
template <int N, class Body> inline void with_count(int64_t count, const Body& body) {
    if constexpr (N > 0) {
        if (count == N)
            return body(Count<N>{});
        with_count<N - 1>(count, body);
    }
}

inline int64_t padded_keys(int64_t count) { return (count + kKeyPair - 1) / kKeyPair * kKeyPair; }

inline int64_t part_size(const CacheLayout& layout) { return layout.block_size * layout.head_dim; }

// The keys (which = 0) or values (1) of one head in the block that holds token `at`.
inline uint16_t* head_block(const CacheLayout& layout, uint16_t* blocks, const int64_t* table, int64_t at,
                            int64_t which, int64_t head) {
    const int64_t block = table[at / layout.block_size];
    return blocks + ((2 * block + which) * layout.num_kv_heads + head) * part_size(layout);
}

inline const uint16_t* head_block(const CacheLayout& layout, const AttendJob& job, int64_t at, int64_t which) {
    return head_block(layout, const_cast<uint16_t*>(job.blocks), job.table, at, which, job.kv_head);
}

// The 16 keys of which token `at` (a multiple of 16) is the first: (head_dim, 16).
inline const uint16_t* key_tile(const CacheLayout& layout, const AttendJob& job, int64_t at) {
    return head_block(layout, job, at, 0) + at % layout.block_size * layout.head_dim;
}

inline const uint16_t* value_row(const CacheLayout& layout, const AttendJob& job, int64_t at) {
    return head_block(layout, job, at, 1) + at % layout.block_size * layout.head_dim;
}

template <class V>
void append(const CacheLayout& layout, uint16_t* blocks, const int64_t* table, int64_t at, const float* k,
            const float* v) {
    const int64_t slot = at % layout.block_size, head_dim = layout.head_dim;
    uint16_t converted[V::lanes];
    for (int64_t head = 0; head < layout.num_kv_heads; ++head, k += head_dim, v += head_dim) {
        uint16_t* keys = head_block(layout, blocks, table, at, 0, head) + slot / kKeyTile * kKeyTile * head_dim;
        uint16_t* values = head_block(layout, blocks, table, at, 1, head) + slot * head_dim;
        for (int64_t i = 0; i < head_dim; i += V::lanes) {
            V::store_f16(values + i, V::load(v + i));
            V::store_f16(converted, V::load(k + i));
            for (int64_t lane = 0; lane < V::lanes; ++lane)
                keys[(i + lane) * kKeyTile + slot % kKeyTile] = converted[lane];
        }
    }
}

// Ask for line `line` of what lies behind `from`: it arrives while the arithmetic goes on. Past the end of the cache
// this does nothing.
inline void prefetch(const uint16_t* from, int64_t line) {
    _mm_prefetch(reinterpret_cast<const char*>(from) + 64 * line, _MM_HINT_T0);
}

// Scores of N rows with the 32 keys of two tiles. The next two tiles usually lie behind the second one.
template <class V, int N>
inline void score_pair(const float* queries, const uint16_t* first, const uint16_t* second, int64_t head_dim,
                       float* scores) {
    constexpr int vectors = int(kKeyTile / V::lanes); // of one tile
    typename V::F sums[N][2 * vectors];
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < 2 * vectors; ++i)
            sums[n][i] = V::zero();
    const uint16_t* next = second + head_dim * kKeyTile;
    for (int64_t d = 0; d < head_dim; ++d, first += kKeyTile, second += kKeyTile) {
        prefetch(next, d);
        typename V::F keys[2 * vectors];
        for (int i = 0; i < vectors; ++i) {
            keys[i] = V::load_f16(first + i * V::lanes);
            keys[vectors + i] = V::load_f16(second + i * V::lanes);
        }
        for (int n = 0; n < N; ++n) {
            const typename V::F query = V::set1(queries[n * head_dim + d]);
            for (int i = 0; i < 2 * vectors; ++i)
                sums[n][i] = V::fma(query, keys[i], sums[n][i]);
        }
    }
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < 2 * vectors; ++i)
            V::store(scores + n * kScoreRun + i * V::lanes, sums[n][i]);
}

// Scores of all rows with the keys from..to, kScoreRun apart.
template <class V> void score(const CacheLayout& layout, const AttendJob& job, int64_t from, int64_t to) {
    const int64_t rows = job.num_tokens * job.heads;
    for (int64_t at = from; at < to; at += kKeyPair) {
        const uint16_t* first = key_tile(layout, job, at);
        const uint16_t* second = at + kKeyTile < to ? key_tile(layout, job, at + kKeyTile) : first;
        for (int64_t row = 0; row < rows; row += V::row_tile) {
            const float* queries = job.queries + row * layout.head_dim;
            float* scores = job.scores + row * kScoreRun + (at - from);
            with_count<V::row_tile>(least(rows - row, V::row_tile), [&](auto n) {
                score_pair<V, decltype(n)::value>(queries, first, second, layout.head_dim, scores);
            });
        }
    }
}

// Scores of keys that a row does not see, and of what fills the last pair: kNothingSeen.
inline void mask(const AttendJob& job, int64_t from, int64_t to) {
    for (int64_t row = 0; row < job.num_tokens * job.heads; ++row) {
        const int64_t seen = least(job.first_seen + row / job.heads, to) - from;
        for (int64_t i = seen > 0 ? seen : 0; i < padded_keys(to - from); ++i)
            job.scores[row * kScoreRun + i] = kNothingSeen;
    }
}

// Scores of one row to exp(score - largest), in place; what was summed before is brought to the new largest.
template <class V>
void exponentiate(float* scores, int64_t length, float* out, int64_t head_dim, float& largest, float& total) {
    typename V::F most = V::set1(largest);
    for (int64_t i = 0; i < length; i += V::lanes)
        most = V::max(most, V::load(scores + i));
    const float before = largest;
    largest = V::largest(most);
    typename V::F sum = V::zero();
    for (int64_t i = 0; i < length; i += V::lanes) {
        const typename V::F value = exponential<V>(V::sub(V::load(scores + i), V::set1(largest)));
        V::store(scores + i, value);
        sum = V::add(sum, value);
    }
    const float kept = std::exp(before - largest);
    total = total * kept + V::sum(sum);
    if (kept != 1.0f)
        for (int64_t d = 0; d < head_dim; d += V::lanes)
            V::store(out + d, V::mul(V::load(out + d), V::set1(kept)));
}

// Add probability * value of `count` tokens to N rows, 32 (AVX2: 16) dimensions at a time.
template <class V, int N>
inline void add_values(const uint16_t* values, int64_t count, int64_t head_dim, const float* scores, float* out) {
    for (int64_t d = 0; d < head_dim; d += 2 * V::lanes) {
        typename V::F sums[N][2];
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < 2; ++i)
                sums[n][i] = V::load(out + n * head_dim + d + i * V::lanes);
        for (int64_t token = 0; token < count; ++token) {
            if (d % 32 == 0) // a line of every 32 dimensions
                prefetch(values + kValueRun * head_dim, d / 32 * kValueRun + token);
            const uint16_t* row = values + token * head_dim + d;
            const typename V::F first = V::load_f16(row), second = V::load_f16(row + V::lanes);
            for (int n = 0; n < N; ++n) {
                const typename V::F weight = V::set1(scores[n * kScoreRun + token]);
                sums[n][0] = V::fma(weight, first, sums[n][0]);
                sums[n][1] = V::fma(weight, second, sums[n][1]);
            }
        }
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < 2; ++i)
                V::store(out + n * head_dim + d + i * V::lanes, sums[n][i]);
    }
}

template <class V> void add_all_values(const CacheLayout& layout, const AttendJob& job, int64_t from, int64_t to) {
    const int64_t rows = job.num_tokens * job.heads;
    for (int64_t at = from; at < to;) {
        const int64_t count = least(least(kValueRun, layout.block_size - at % layout.block_size), to - at);
        const uint16_t* values = value_row(layout, job, at);
        for (int64_t row = 0; row < rows; row += V::row_tile) {
            const float* scores = job.scores + row * kScoreRun + (at - from);
            float* out = job.out + row * layout.head_dim;
            with_count<V::row_tile>(least(rows - row, V::row_tile), [&](auto n) {
                add_values<V, decltype(n)::value>(values, count, layout.head_dim, scores, out);
            });
        }
        at += count;
    }
}

inline void reset_rows(const AttendJob& job) {
    for (int64_t row = 0; row < job.num_tokens * job.heads; ++row) {
        job.largest[row] = kNothingSeen;
        job.total[row] = 0.0f;
    }
}

template <class V> void exponentiate_rows(const AttendJob& job, int64_t head_dim, int64_t keys) {
    for (int64_t row = 0; row < job.num_tokens * job.heads; ++row)
        exponentiate<V>(job.scores + row * kScoreRun, padded_keys(keys), job.out + row * head_dim, head_dim,
                        job.largest[row], job.total[row]);
}

template <class V> void attend(const CacheLayout& layout, const AttendJob& job) {
    clear<V>(job.out, job.num_tokens * job.heads * layout.head_dim);
    reset_rows(job);
    for (int64_t from = job.from; from < job.to; from += kScoreRun) {
        const int64_t to = least(from + kScoreRun, job.to);
        score<V>(layout, job, from, to);
        mask(job, from, to);
        exponentiate_rows<V>(job, layout.head_dim, to - from);
        add_all_values<V>(layout, job, from, to);
    }
}

template <class V>
void combine(const float* parts, const float* largest, const float* total, int64_t num_parts, int64_t part_stride,
             int64_t stat_stride, float* out, int64_t head_dim) {
    float most = largest[0], sum = 0.0f;
    for (int64_t part = 1; part < num_parts; ++part)
        most = largest[part * stat_stride] > most ? largest[part * stat_stride] : most;
    clear<V>(out, head_dim);
    for (int64_t part = 0; part < num_parts; ++part) {
        const float weight = std::exp(largest[part * stat_stride] - most);
        sum += weight * total[part * stat_stride];
        for (int64_t d = 0; d < head_dim; d += V::lanes)
            V::store(out + d, V::fma(V::set1(weight), V::load(parts + part * part_stride + d), V::load(out + d)));
    }
    const typename V::F scale = V::set1(1.0f / sum);
    for (int64_t d = 0; d < head_dim; d += V::lanes)
        V::store(out + d, V::mul(V::load(out + d), scale));
}

template <class V, void (*Attend)(const CacheLayout&, const AttendJob&)>
constexpr qlocal::StepOps step_ops = {rms_norm<V>, add_scaled<V>, silu_multiply<V>, rotate<V>,
                                      append<V>,   Attend,        combine<V>};

} // namespace
