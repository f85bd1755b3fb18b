// All decoder layers over the tokens of a step, decoding or reading prompts, in one call: the same computation as
// layers/decoder.py.
//
// The structs are filled by Python (native_step.py, which checks everything below); layouts must match.

#pragma once

#include <cstdint>

#include "products.h"
#include "step_ops.h"

namespace qlocal {

// The gated block of a dense layer or of one expert. gate_up: 2 F rows, down: D rows.
struct FeedForward {
    Linear gate_up, down;
};

// Norms are (D,) float32. qkv: q_size + 2 kv_size rows. router: num_experts rows, unused when there are none; then
// there is one feed-forward.
struct Layer {
    const float* input_norm;
    const float* post_attention_norm;
    Linear qkv, o, router;
    const FeedForward* feed_forwards;
    LayerCache cache;
};

// hidden_size, intermediate_size: multiples of 32. num_heads: a multiple of the KV heads.
struct Model {
    const Layer* layers;
    int64_t num_layers, hidden_size, intermediate_size, num_heads, num_experts, experts_per_token;
    CacheLayout cache;
    float rms_norm_eps;
};

// `length` tokens of one sequence after `num_past` cached ones; table: its blocks, enough for all of them.
struct Run {
    int64_t length, num_past;
    const int64_t* table;
};

// The runs stand one after another in T. hidden_states: (T, D) float32, embeddings in, residual stream out. cos, sin:
// (T, head_dim / 2) float32.
struct Batch {
    float* hidden_states;
    const float* cos;
    const float* sin;
    const Run* runs;
    int64_t num_runs, num_tokens;
};

} // namespace qlocal
