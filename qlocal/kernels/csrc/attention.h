// Attention over the block cache for any vector type V: rows of queries together that share a KV head (tokens of
// a prompt, heads of a token), keys 32 at a time.

#pragma once

#include <immintrin.h>

#include "kv_pack.h"
#include "least.h"
#include "norm.h"

namespace {

using qlocal::AttendJob;
using qlocal::kNothingSeen;
using qlocal::kScoreRun;
using qlocal::kValueRun;

constexpr int64_t kKeyPair = 2 * kKeyTile;

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

// The keys or values of one head in the block that holds token `at`, from the tile of it on. type, tile: of the side.
inline uint8_t* tile_of(const CacheLayout& layout, uint8_t* memory, KvType type, int64_t tile, const int64_t* table,
                        int64_t at, int64_t head) {
    const int64_t bytes = token_bytes(type, layout.head_dim);
    const int64_t block = table[at / layout.block_size] * layout.num_kv_heads + head;
    return memory + (block * layout.block_size + at % layout.block_size / tile * tile) * bytes;
}

// The 16 keys of which token `at` (a multiple of 16) is the first.
inline const uint8_t* key_tile(const CacheLayout& layout, const AttendJob& job, int64_t at) {
    return tile_of(layout, job.cache->keys, job.cache->key_type, kKeyTile, job.table, at, job.kv_head);
}

inline const uint8_t* value_row(const CacheLayout& layout, const AttendJob& job, int64_t at) {
    return tile_of(layout, job.cache->values, job.cache->value_type, 1, job.table, at, job.kv_head);
}

inline const uint16_t* halves(const uint8_t* at) { return reinterpret_cast<const uint16_t*>(at); }

template <class V> void store_keys_f16(const float* k, int64_t head_dim, int64_t lane, uint16_t* keys) {
    uint16_t converted[V::lanes];
    for (int64_t i = 0; i < head_dim; i += V::lanes) {
        V::store_f16(converted, V::load(k + i));
        for (int64_t at = 0; at < V::lanes; ++at)
            keys[(i + at) * kKeyTile + lane] = converted[at];
    }
}

template <class V>
void store_key(const CacheLayout& layout, const LayerCache& cache, int64_t head, float* k, int64_t lane,
               uint8_t* tile) {
    const int64_t head_dim = layout.head_dim;
    if (cache.key_type == qlocal::kF16)
        return store_keys_f16<V>(k, head_dim, lane, reinterpret_cast<uint16_t*>(tile));
    for (int64_t i = 0; cache.key_scale && i < head_dim; ++i)
        k[i] *= cache.key_scale[head * head_dim + i];
    hadamard(k, head_dim);
    store_packed<V>(cache.key_type, k, head_dim, kKeyTile, lane, tile);
}

template <class V>
void store_value(const CacheLayout& layout, const LayerCache& cache, int64_t head, float* v, uint8_t* row) {
    const int64_t head_dim = layout.head_dim, first = head * head_dim;
    if (cache.value_type == qlocal::kF16) {
        for (int64_t i = 0; i < head_dim; i += V::lanes)
            V::store_f16(reinterpret_cast<uint16_t*>(row) + i, V::load(v + i));
        return;
    }
    for (int64_t i = 0; cache.value_mean && i < head_dim; ++i)
        v[i] = (v[i] - cache.value_mean[first + i]) * cache.value_scale[first + i];
    hadamard(v, head_dim);
    store_packed<V>(cache.value_type, v, head_dim, 1, 0, row);
}

template <class V>
void append(const CacheLayout& layout, const LayerCache& cache, const int64_t* table, int64_t at, float* k, float* v) {
    for (int64_t head = 0; head < layout.num_kv_heads; ++head, k += layout.head_dim, v += layout.head_dim) {
        uint8_t* keys = tile_of(layout, cache.keys, cache.key_type, kKeyTile, table, at, head);
        store_key<V>(layout, cache, head, k, at % kKeyTile, keys);
        store_value<V>(layout, cache, head, v, tile_of(layout, cache.values, cache.value_type, 1, table, at, head));
    }
}

// Ask for line `line` of what lies behind `from`: it arrives while the arithmetic goes on. Past the end of the cache
// this does nothing.
inline void prefetch(const uint16_t* from, int64_t line) {
    _mm_prefetch(reinterpret_cast<const char*>(from) + 64 * line, _MM_HINT_T0);
}
inline void prefetch(const float*, int64_t) {} // was unpacked just now

// Numbers of the cache: float16 as it is stored, floats where it was unpacked.
template <class V> inline typename V::F load_stored(const uint16_t* at) { return V::load_f16(at); }
template <class V> inline typename V::F load_stored(const float* at) { return V::load(at); }

// A tile of packed keys as floats, with the angles that the bias meets, (key_size, 16).
template <class V> void unpack_tile(const CacheLayout& layout, const AttendJob& job, int64_t at, float* out) {
    unpack_keys<V>(job.cache->key_type, key_tile(layout, job, at), layout.head_dim, out);
    if (job.cache->key_bias)
        unpack_angles<V>(layout, at, out + layout.head_dim * kKeyTile);
}

// Scores of N rows with the 32 keys of two tiles. The next two tiles usually lie behind the second one.
template <class V, int N, class T>
inline void score_pair(const float* queries, const T* first, const T* second, int64_t head_dim, float* scores) {
    constexpr int vectors = int(kKeyTile / V::lanes); // of one tile
    typename V::F sums[N][2 * vectors];
    for (int n = 0; n < N; ++n)
        for (int i = 0; i < 2 * vectors; ++i)
            sums[n][i] = V::zero();
    const T* next = second + head_dim * kKeyTile;
    for (int64_t d = 0; d < head_dim; ++d, first += kKeyTile, second += kKeyTile) {
        prefetch(next, d);
        typename V::F keys[2 * vectors];
        for (int i = 0; i < vectors; ++i) {
            keys[i] = load_stored<V>(first + i * V::lanes);
            keys[vectors + i] = load_stored<V>(second + i * V::lanes);
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

// Scores of all rows with the 32 keys of two tiles, kScoreRun apart.
template <class V, class T>
void score_rows(const AttendJob& job, const T* first, const T* second, int64_t size, float* scores) {
    const int64_t rows = job.num_tokens * job.heads;
    for (int64_t row = 0; row < rows; row += V::row_tile)
        with_count<V::row_tile>(least(rows - row, V::row_tile), [&](auto n) {
            score_pair<V, decltype(n)::value>(job.queries + row * size, first, second, size, scores + row * kScoreRun);
        });
}

// Scores of all rows with the keys from..to, kScoreRun apart.
template <class V> void score(const CacheLayout& layout, const AttendJob& job, int64_t from, int64_t to) {
    const int64_t size = key_size(layout, *job.cache);
    for (int64_t at = from; at < to; at += kKeyPair) {
        const bool has_second = at + kKeyTile < to;
        float* scores = job.scores + (at - from);
        if (job.cache->key_type == qlocal::kF16) {
            const uint16_t* first = halves(key_tile(layout, job, at));
            const uint16_t* second = has_second ? halves(key_tile(layout, job, at + kKeyTile)) : first;
            score_rows<V>(job, first, second, size, scores);
            continue;
        }
        float *first = job.unpacked, *second = has_second ? first + size * kKeyTile : first;
        unpack_tile<V>(layout, job, at, first);
        if (has_second)
            unpack_tile<V>(layout, job, at + kKeyTile, second);
        score_rows<V>(job, first, second, size, scores);
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
template <class V, int N, class T>
inline void add_values(const T* values, int64_t count, int64_t head_dim, const float* scores, float* out) {
    for (int64_t d = 0; d < head_dim; d += 2 * V::lanes) {
        typename V::F sums[N][2];
        for (int n = 0; n < N; ++n)
            for (int i = 0; i < 2; ++i)
                sums[n][i] = V::load(out + n * head_dim + d + i * V::lanes);
        for (int64_t token = 0; token < count; ++token) {
            if (d % 32 == 0) // a line of every 32 dimensions
                prefetch(values + kValueRun * head_dim, d / 32 * kValueRun + token);
            const T* row = values + token * head_dim + d;
            const typename V::F first = load_stored<V>(row), second = load_stored<V>(row + V::lanes);
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

template <class V, class T>
void add_to_rows(const AttendJob& job, const T* values, int64_t count, int64_t head_dim, const float* scores) {
    const int64_t rows = job.num_tokens * job.heads;
    for (int64_t row = 0; row < rows; row += V::row_tile)
        with_count<V::row_tile>(least(rows - row, V::row_tile), [&](auto n) {
            add_values<V, decltype(n)::value>(values, count, head_dim, scores + row * kScoreRun,
                                              job.out + row * head_dim);
        });
}

template <class V> void unpack_values(KvType type, int64_t head_dim, const uint8_t* values, int64_t count, float* out) {
    const int64_t bytes = token_bytes(type, head_dim);
    for (int64_t token = 0; token < count; ++token, values += bytes)
        for (int64_t group = 0; group < head_dim / kGroup; ++group, out += kGroup)
            unpack_value_group<V>(type, values, head_dim, group, out);
}

template <class V> void add_all_values(const CacheLayout& layout, const AttendJob& job, int64_t from, int64_t to) {
    for (int64_t at = from; at < to;) {
        const int64_t count = least(least(kValueRun, layout.block_size - at % layout.block_size), to - at);
        const uint8_t* values = value_row(layout, job, at);
        const float* scores = job.scores + (at - from);
        if (job.cache->value_type == qlocal::kF16) {
            add_to_rows<V>(job, halves(values), count, layout.head_dim, scores);
        } else {
            unpack_values<V>(job.cache->value_type, layout.head_dim, values, count, job.unpacked);
            add_to_rows<V>(job, static_cast<const float*>(job.unpacked), count, layout.head_dim, scores);
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
constexpr qlocal::StepOps step_ops = {rms_norm<V>, add_scaled<V>, silu_multiply<V>, rotate<V>, append<V>,
                                      make_query,  finish,        Attend,           combine<V>};

} // namespace
