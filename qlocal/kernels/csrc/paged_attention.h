// Attention of a step's tokens over the block cache, on all threads.

#pragma once

#include <vector>

#include "step.h"

namespace qlocal {

class PagedAttention {
  public:
    PagedAttention(const StepOps& ops, const Model& model) : ops_(ops), model_(model) {}

    // queries: (T, H, head_dim) rotated, rows `stride` floats apart; scaled in place. out: (T, H * head_dim).
    // The tokens' own keys and values are in the cache already.
    void run(const Batch& batch, const uint16_t* blocks, float* queries, int64_t stride, float* out);

  private:
    // One token with one chunk of its context, for the heads of one KV head.
    struct Item {
        const int64_t* table;
        const float* queries;
        int64_t kv_head, from, to;
    };
    // The chunks of one token and KV head: items first..first + count.
    struct Group {
        int64_t first, count;
    };

    int64_t heads_a_group() const { return model_.num_heads / model_.cache.num_kv_heads; }
    void plan(const Batch& batch, const float* queries, int64_t stride);
    void attend(const uint16_t* blocks, int64_t item);
    void combine(float* out) const;

    const StepOps& ops_;
    const Model& model_;
    const uint16_t* blocks_ = nullptr;
    std::vector<Item> items_;
    std::vector<Group> groups_;
    std::vector<float> parts_, largest_, totals_;
};

} // namespace qlocal
