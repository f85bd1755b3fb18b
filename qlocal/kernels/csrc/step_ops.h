// What one step does beside multiplying by weights, as a table an instruction set offers.
//
// Plain data, and inline functions of constant expressions alone: this header is seen by files compiled for different
// instruction sets.

#pragma once

#include <cstdint>

namespace qlocal {

// How keys or values are held; numbers as in native_step.py. Packed vectors are rotated by a Hadamard matrix and lie in
// groups of 32 (cache/packed.py says how they are rounded).
enum KvType : int64_t { kF16 = 0, kQ8 = 1, kQ4 = 2 };

// What all layers' caches share; their types are their own. Tokens of a head come in tiles: 16 keys beside each other,
// so that their scores are made in one register without adding across lanes, or one value (storage.py has the same). A
// tile is
//   f16: (head_dim, tokens). q8: scales (head_dim / 32, tokens) float16, then (head_dim, tokens) bytes.
//   q4: scales (head_dim / 16, tokens) of 8 bits, upper halves of float16 without the sign, then (head_dim / 32, 16,
//   tokens) bytes: lower halves hold the first 16 values of a group of 32.
// tile_angles: (tiles, head_dim) cosines, then sines, of the first position of every tile; lane_angles: (head_dim, 16)
// of the positions 0 to 15. Both float32, null where no layer has a key bias that is kept out.
//   block_size: a multiple of 16. head_dim: a multiple of 32.
struct CacheLayout {
    int64_t num_kv_heads;
    int64_t block_size;
    int64_t head_dim;
    const float* tile_angles;
    const float* lane_angles;
};

// One layer's keys and values, each (P, Hk, bytes of block_size tokens). key_bias, key_scale, value_mean, value_scale:
// (Hk, head_dim) float32 or null, for packed types alone: what is taken off before rounding (cache/conditioning.py).
struct LayerCache {
    uint8_t* keys;
    uint8_t* values;
    KvType key_type;
    KvType value_type;
    const float* key_bias;
    const float* key_scale;
    const float* value_mean;
    const float* value_scale;
};

constexpr int64_t kKeyTile = 16;
constexpr int64_t kGroup = 32;
constexpr int64_t kValueRun = 64; // tokens whose values stay in the nearest cache while the dimensions take turns

// Bytes of one token and head.
inline constexpr int64_t token_bytes(KvType type, int64_t head_dim) {
    return type == kF16 ? 2 * head_dim : (type == kQ8 ? head_dim : head_dim / 2) + 2 * (head_dim / kGroup);
}

// Numbers that a key has in a score: behind the stored ones cosines and sines, which meet the bias in the query.
inline constexpr int64_t key_size(const CacheLayout& layout, const LayerCache& cache) {
    return cache.key_bias ? 2 * layout.head_dim : layout.head_dim;
}

// Floats of two tiles of keys, or of a run of values.
inline constexpr int64_t unpacked_size(const CacheLayout& layout, const LayerCache& cache) {
    const int64_t keys = 2 * kKeyTile * key_size(layout, cache), values = kValueRun * layout.head_dim;
    return keys > values ? keys : values;
}

// Tokens of one sequence, one after another, with all query heads of one KV head, against its keys from..to.
//   queries: (num_tokens, heads, key_size), rotated and scaled, a row a token and head; for packed keys as
//   StepOps::make_query leaves them. Token t sees the keys before first_seen + t. table: the sequence's blocks. from: a
//   multiple of kKeyTile.
//   scores: scratch of num_tokens * heads * kScoreRun. unpacked: scratch of unpacked_size, for packed types.
//   out: (num_tokens, heads, head_dim), sums of exp(score - largest) * value. largest, total: a row each. A row that
//   sees none of the keys has kNothingSeen for its largest.
struct AttendJob {
    const float* queries;
    const LayerCache* cache;
    const int64_t* table;
    int64_t num_tokens, heads, kv_head, first_seen, from, to;
    float* scores;
    float* unpacked;
    float* out;
    float* largest;
    float* total;
};

constexpr int64_t kFewTokens = 8;  // up to so many of a run are computed bit by bit as they would be one by one
constexpr int64_t kScoreRun = 512; // keys whose scores are held at once
constexpr float kNothingSeen = -1e30f;

// Lengths are multiples of 32. All are safe to call from several threads on disjoint outputs.
//   rms_norm: out = x / sqrt(mean(x²) + eps) * weight. add_scaled: x += scale * y.
//   silu_multiply: out = gate / (1 + exp(-gate)) * up; out may be gate.
//   rotate: (num_heads, head_dim) in place; cos and sin (head_dim / 2), for the halves of a head.
//   append: one token's k and v, (num_kv_heads, head_dim), to position `at` of the sequence. k is without its bias
//   where that is kept out; both are overwritten. make_query: of one head's query (head_dim), rotated to its position,
//   what meets the keys of kv_head (key_size). finish: one head's sum of values (head_dim) to what it stands for, in
//   place. attend: see AttendJob. combine: parts of the softmax of one head into out (head_dim): parts (num_parts,
//   part_stride), each `head_dim` sums; largest and total `stat_stride` apart.
struct StepOps {
    void (*rms_norm)(const float* x, const float* weight, float* out, int64_t length, float eps);
    void (*add_scaled)(float* x, const float* y, float scale, int64_t length);
    void (*silu_multiply)(const float* gate, const float* up, float* out, int64_t length);
    void (*rotate)(float* heads, int64_t num_heads, int64_t head_dim, const float* cos, const float* sin);
    void (*append)(const CacheLayout&, const LayerCache&, const int64_t* table, int64_t at, float* k, float* v);
    void (*make_query)(const CacheLayout&, const LayerCache&, int64_t kv_head, const float* query, float scale,
                       float* out);
    void (*finish)(const CacheLayout&, const LayerCache&, int64_t kv_head, float* out);
    void (*attend)(const CacheLayout&, const AttendJob&);
    void (*combine)(const float* parts, const float* largest, const float* total, int64_t num_parts,
                    int64_t part_stride, int64_t stat_stride, float* out, int64_t head_dim);
};

extern const StepOps avx2_step_ops;
extern const StepOps avx512_step_ops;
extern const StepOps amx_step_ops;

} // namespace qlocal
