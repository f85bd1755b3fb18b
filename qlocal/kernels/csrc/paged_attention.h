// Attention of a step's tokens over the block cache, on all threads.

#pragma once

#include <vector>

#include "step.h"

namespace qlocal {

class PagedAttention {
  public:
    PagedAttention(const StepOps& ops, const Model& model) : ops_(ops), model_(model) {}

    // queries: (T, H, head_dim) rotated, rows `stride` floats apart. out: (T, H * head_dim). The tokens' own keys and
    // values are in the cache already.
    void run(const Batch& batch, const LayerCache& cache, const float* queries, int64_t stride, float* out);

  private:
    // Neighbouring tokens of a run with the heads of one KV head. parts: into how many its context is divided; they are
    // the items first_part and following.
    struct Group {
        const Run* run;
        int64_t token, first, num_tokens, kv_head, part_keys, parts, first_part;
    };

    int64_t heads_a_group() const { return model_.num_heads / model_.cache.num_kv_heads; }
    void plan(const Batch& batch);
    void attend(int64_t item);
    void combine(const Group& group);

    const StepOps& ops_;
    const Model& model_;
    const LayerCache* cache_ = nullptr;
    const float* queries_ = nullptr;
    float* out_ = nullptr;
    int64_t stride_ = 0;
    std::vector<Group> groups_;
    std::vector<int64_t> group_of_item_;
    std::vector<int64_t> rows_before_item_;
    std::vector<float> parts_, largest_, totals_;
};

} // namespace qlocal
