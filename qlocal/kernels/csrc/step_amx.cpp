// The step's operations for AMX: attention of many rows in tiles of bfloat16, everything else as with AVX-512.
//
// A product of two bfloat16 has 8 bits of each factor, too few for scores. So every factor is split into two, the upper
// bits and what they leave, and three of the four products are made: the keys and values, float16, are split without a
// loss, queries and probabilities to 16 bits. That is as exact as the float32 sums it replaces, at a third of the time.

#include "amx_layout.h"
#include "attention.h"
#include "floats_avx512.h"
#include "scratch.h"
#include "use_tiles.h"

namespace {

using V = Avx512Floats;

constexpr int64_t kDepth = 32; // columns of a row of 16-bit values in a tile

// One thread's scratch for a job of up to `rows` rows, in bytes from its start. Tiles come in pairs: upper bits, rest.
struct Workspace {
    int64_t rows, depth_tiles, head_dim; // rows padded to 32; depth: of keys
    uint8_t* base;

    Workspace(int64_t num_rows, int64_t key_size, int64_t head_size)
        : rows((num_rows + 31) / 32 * 32), depth_tiles(key_size / kDepth), head_dim(head_size) {
        base = static_cast<uint8_t*>(qlocal::thread_scratch(end()));
    }

    int64_t queries_bytes() const { return rows / kTileRows * depth_tiles * 2 * kTileBytes; }
    int64_t keys_bytes() const { return 2 * depth_tiles * 2 * kTileBytes; }
    int64_t weights_bytes() const { return rows / kTileRows * (kScoreRun / kDepth) * 2 * kTileBytes; }
    int64_t values_bytes() const { return kScoreRun / kDepth * 2 * 2 * kTileBytes; }
    int64_t scores_bytes() const { return rows * kScoreRun * 4; }
    int64_t sums_bytes() const { return rows * head_dim * 4; }
    int64_t end() const {
        return queries_bytes() + keys_bytes() + weights_bytes() + values_bytes() + scores_bytes() + sums_bytes();
    }

    uint8_t* queries(int64_t row_tile, int64_t depth) const {
        return base + (row_tile * depth_tiles + depth) * 2 * kTileBytes;
    }
    uint8_t* keys(int64_t tile, int64_t depth) const {
        return base + queries_bytes() + (tile * depth_tiles + depth) * 2 * kTileBytes;
    }
    uint8_t* weights(int64_t row_tile, int64_t key_group) const {
        return base + queries_bytes() + keys_bytes() + (row_tile * (kScoreRun / kDepth) + key_group) * 2 * kTileBytes;
    }
    uint8_t* values(int64_t key_group, int64_t tile) const {
        return base + queries_bytes() + keys_bytes() + weights_bytes() + (key_group * 2 + tile) * 2 * kTileBytes;
    }
    float* scores() const {
        return reinterpret_cast<float*>(base + queries_bytes() + keys_bytes() + weights_bytes() + values_bytes());
    }
    float* sums() const { return scores() + rows * kScoreRun; }
};

inline __m512i upper_bits(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(int(0xffff0000)));
}

inline __m512 rest(__m512 x) { return _mm512_sub_ps(x, _mm512_castsi512_ps(upper_bits(x))); }

// Pairs of 16-bit values: even in the lower half of every lane, odd in the upper one.
inline __m512i pairs(__m512 even, __m512 odd) {
    return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(even), 16), upper_bits(odd));
}

// One row of a B tile, and of the tile of rests behind it.
inline void store_pairs(uint8_t* tile, int64_t row, __m512 even, __m512 odd) {
    _mm512_store_si512(tile + row * 64, pairs(even, odd));
    _mm512_store_si512(tile + kTileBytes + row * 64, pairs(rest(even), rest(odd)));
}

inline __m256i upper_halves(__m512 x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16)); }

// 32 columns of one row of an A tile, and of the tile of rests behind it.
inline void store_row(uint8_t* tile, int64_t row, __m512 first, __m512 second) {
    auto* upper = reinterpret_cast<__m256i*>(tile + row * 64);
    auto* lower = reinterpret_cast<__m256i*>(tile + kTileBytes + row * 64);
    _mm256_store_si256(upper, upper_halves(first));
    _mm256_store_si256(upper + 1, upper_halves(second));
    _mm256_store_si256(lower, upper_halves(rest(first)));
    _mm256_store_si256(lower + 1, upper_halves(rest(second)));
}

void split_queries(const Workspace& space, const AttendJob& job, int64_t size) {
    const int64_t rows = job.num_tokens * job.heads;
    for (int64_t row = 0; row < space.rows; ++row)
        for (int64_t d = 0; d < size; d += kDepth) {
            const float* at = job.queries + row * size + d;
            const bool is_there = row < rows;
            store_row(space.queries(row / kTileRows, d / kDepth), row % kTileRows, is_there ? V::load(at) : V::zero(),
                      is_there ? V::load(at + 16) : V::zero());
        }
}

// keys: (size, 16).
template <class T> void split_keys(const Workspace& space, int64_t tile, const T* keys, int64_t size) {
    for (int64_t d = 0; d < size; d += 2, keys += 2 * kKeyTile)
        store_pairs(space.keys(tile, d / kDepth), d % kDepth / 2, load_stored<V>(keys),
                    load_stored<V>(keys + kKeyTile));
}

// The keys from `at` on.
void split_key_tile(const CacheLayout& layout, const Workspace& space, const AttendJob& job, int64_t tile, int64_t at) {
    if (job.cache->key_type == qlocal::kF16)
        return split_keys(space, tile, halves(key_tile(layout, job, at)), layout.head_dim);
    unpack_tile<V>(layout, job, at, job.unpacked);
    split_keys(space, tile, static_cast<const float*>(job.unpacked), key_size(layout, *job.cache));
}

// 32 values of one token, the columns from d on.
struct ValuePart {
    __m512 first, second;

    ValuePart() : first(V::zero()), second(V::zero()) {}
    ValuePart(KvType type, int64_t head_dim, const uint8_t* row, int64_t d) {
        if (type == qlocal::kF16) {
            first = V::load_f16(halves(row) + d);
            second = V::load_f16(halves(row) + d + V::lanes);
            return;
        }
        float values[kGroup];
        unpack_value_group<V>(type, row, head_dim, d / kGroup, values);
        first = V::load(values);
        second = V::load(values + V::lanes);
    }
};

// Probabilities, `keys` (a multiple of 32) of each row.
void split_weights(const Workspace& space, int64_t keys) {
    for (int64_t row = 0; row < space.rows; ++row)
        for (int64_t k = 0; k < keys; k += kDepth) {
            const float* at = space.scores() + row * kScoreRun + k;
            store_row(space.weights(row / kTileRows, k / kDepth), row % kTileRows, V::load(at), V::load(at + 16));
        }
}

// Columns d..d + 32 of the values from..to, zeros behind the last: what lies there was never written.
void split_values(const CacheLayout& layout, const Workspace& space, const AttendJob& job, int64_t from, int64_t to,
                  int64_t d) {
    const KvType type = job.cache->value_type;
    const int64_t bytes = token_bytes(type, layout.head_dim); // of a row; blocks are even: the odd one follows
    for (int64_t at = from; at < from + padded_keys(to - from); at += 2) {
        const int64_t group = (at - from) / kDepth, row = (at - from) % kDepth / 2;
        const uint8_t* row_of_even = at < to ? value_row(layout, job, at) : nullptr;
        const ValuePart even = at < to ? ValuePart(type, layout.head_dim, row_of_even, d) : ValuePart();
        const ValuePart odd = at + 1 < to ? ValuePart(type, layout.head_dim, row_of_even + bytes, d) : ValuePart();
        store_pairs(space.values(group, 0), row, even.first, odd.first);
        store_pairs(space.values(group, 1), row, even.second, odd.second);
    }
}

// Tiles 0..3 += the split rows at a0 and a1 times the split columns at b0 and b1, the rests' product left out.
inline void multiply_split(const uint8_t* a0, const uint8_t* a1, const uint8_t* b0, const uint8_t* b1) {
    const auto all = [] {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    };
    _tile_loadd(4, a0 + kTileBytes, 64);
    _tile_loadd(5, a1 + kTileBytes, 64);
    _tile_loadd(6, b0, 64);
    _tile_loadd(7, b1, 64);
    all();
    _tile_loadd(4, a0, 64);
    _tile_loadd(5, a1, 64);
    all();
    _tile_loadd(6, b0 + kTileBytes, 64);
    _tile_loadd(7, b1 + kTileBytes, 64);
    all();
}

inline void store_tiles(float* out, int64_t stride) {
    const int64_t bytes = stride * 4;
    _tile_stored(0, out, bytes);
    _tile_stored(1, out + 16, bytes);
    _tile_stored(2, out + 16 * stride, bytes);
    _tile_stored(3, out + 16 * stride + 16, bytes);
}

// Scores of all rows with the keys from..to.
void score_tiles(const CacheLayout& layout, const Workspace& space, const AttendJob& job, int64_t from, int64_t to) {
    for (int64_t at = from; at < to; at += kKeyPair) {
        split_key_tile(layout, space, job, 0, at);
        split_key_tile(layout, space, job, 1, at + kKeyTile < to ? at + kKeyTile : at);
        for (int64_t tile = 0; tile < space.rows / kTileRows; tile += 2) {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t depth = 0; depth < space.depth_tiles; ++depth)
                multiply_split(space.queries(tile, depth), space.queries(tile + 1, depth), space.keys(0, depth),
                               space.keys(1, depth));
            store_tiles(space.scores() + tile * kTileRows * kScoreRun + (at - from), kScoreRun);
        }
    }
}

// Add probability * value to the sums of all rows.
void add_value_tiles(const CacheLayout& layout, const Workspace& space, const AttendJob& job, int64_t from,
                     int64_t to) {
    const int64_t head_dim = layout.head_dim, groups = padded_keys(to - from) / kDepth;
    split_weights(space, groups * kDepth);
    for (int64_t d = 0; d < head_dim; d += kDepth) {
        split_values(layout, space, job, from, to, d);
        for (int64_t tile = 0; tile < space.rows / kTileRows; tile += 2) {
            float* sums = space.sums() + tile * kTileRows * head_dim + d;
            _tile_loadd(0, sums, head_dim * 4);
            _tile_loadd(1, sums + 16, head_dim * 4);
            _tile_loadd(2, sums + 16 * head_dim, head_dim * 4);
            _tile_loadd(3, sums + 16 * head_dim + 16, head_dim * 4);
            for (int64_t group = 0; group < groups; ++group)
                multiply_split(space.weights(tile, group), space.weights(tile + 1, group), space.values(group, 0),
                               space.values(group, 1));
            store_tiles(sums, head_dim);
        }
    }
}

// StepOps::attend.
void attend_tiles(const CacheLayout& layout, const AttendJob& job) {
    const int64_t rows = job.num_tokens * job.heads, head_dim = layout.head_dim;
    if (rows < kTileRows || job.num_tokens <= qlocal::kFewTokens)
        return attend<V>(layout, job); // a guess that is checked must score as it would alone
    const UseTiles tiles;
    const int64_t size = key_size(layout, *job.cache);
    const Workspace space(rows, size, head_dim);
    split_queries(space, job, size);
    AttendJob padded = job; // the same with scratch for whole tiles
    padded.scores = space.scores();
    padded.out = space.sums();
    clear<V>(space.sums(), space.rows * head_dim);
    reset_rows(job);
    for (int64_t from = job.from; from < job.to; from += kScoreRun) {
        const int64_t to = least(from + kScoreRun, job.to);
        score_tiles(layout, space, padded, from, to);
        mask(padded, from, to);
        exponentiate_rows<V>(padded, head_dim, to - from);
        add_value_tiles(layout, space, padded, from, to);
    }
    for (int64_t i = 0; i < rows * head_dim; i += V::lanes)
        V::store(job.out + i, V::load(space.sums() + i));
}

} // namespace

const qlocal::StepOps qlocal::amx_step_ops = step_ops<V, attend_tiles>;
