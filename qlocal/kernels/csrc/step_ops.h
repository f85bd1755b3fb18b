// What one step does beside multiplying by weights, as a table an instruction set offers.
//
// Plain data and no inline functions: this header is seen by files compiled for different instruction sets.

#pragma once

#include <cstdint>

namespace qlocal {

// Where one layer's keys and values lie. blocks: (P, 2, Hk, block_size * head_dim) float16. Values of a head lie as
// (block_size, head_dim), keys as (block_size / 16, head_dim, 16): 16 tokens beside each other, so that scores of 16
// keys are made in one register without adding across lanes (storage.py has the same).
//   block_size: a multiple of 16. head_dim: a multiple of 32.
struct CacheLayout {
    int64_t num_kv_heads;
    int64_t block_size;
    int64_t head_dim;
};

constexpr int64_t kKeyTile = 16;

// Tokens of one sequence, one after another, with all query heads of one KV head, against its keys from..to.
//   queries: (num_tokens, heads, head_dim), rotated and scaled, a row a token and head. Token t sees the keys before
//   first_seen + t. table: the sequence's blocks. from: a multiple of kKeyTile.
//   scores: scratch of num_tokens * heads * kScoreRun.
//   out: as queries, sums of exp(score - largest) * value. largest, total: a row each. A row that sees none of the keys
//   has kNothingSeen for its largest.
struct AttendJob {
    const float* queries;
    const uint16_t* blocks;
    const int64_t* table;
    int64_t num_tokens, heads, kv_head, first_seen, from, to;
    float* scores;
    float* out;
    float* largest;
    float* total;
};

constexpr int64_t kScoreRun = 512; // keys whose scores are held at once
constexpr float kNothingSeen = -1e30f;

// Lengths are multiples of 32. All are safe to call from several threads on disjoint outputs.
//   rms_norm: out = x / sqrt(mean(x²) + eps) * weight. add_scaled: x += scale * y.
//   silu_multiply: out = gate / (1 + exp(-gate)) * up; out may be gate.
//   rotate: (num_heads, head_dim) in place; cos and sin (head_dim / 2), for the halves of a head.
//   append: one token's k and v, (num_kv_heads, head_dim), to position `at` of the sequence.
//   attend: see AttendJob.
//   combine: parts of the softmax of one head into out (head_dim): parts (num_parts, part_stride), each `head_dim`
//   sums; largest and total `stat_stride` apart.
struct StepOps {
    void (*rms_norm)(const float* x, const float* weight, float* out, int64_t length, float eps);
    void (*add_scaled)(float* x, const float* y, float scale, int64_t length);
    void (*silu_multiply)(const float* gate, const float* up, float* out, int64_t length);
    void (*rotate)(float* heads, int64_t num_heads, int64_t head_dim, const float* cos, const float* sin);
    void (*append)(const CacheLayout&, uint16_t* blocks, const int64_t* table, int64_t at, const float* k,
                   const float* v);
    void (*attend)(const CacheLayout&, const AttendJob&);
    void (*combine)(const float* parts, const float* largest, const float* total, int64_t num_parts,
                    int64_t part_stride, int64_t stat_stride, float* out, int64_t head_dim);
};

extern const StepOps avx2_step_ops;
extern const StepOps avx512_step_ops;
extern const StepOps amx_step_ops;

} // namespace qlocal
