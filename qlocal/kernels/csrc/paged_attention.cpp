#include "paged_attention.h"

#include <algorithm>
#include <cmath>

#include "thread_pool.h"

namespace {

// Keys that a thread takes at once: few enough that threads share one sequence, many enough to be worth adding up.
// Scores of that many stay in the cache beside the queries.
int64_t chunk_length(int64_t context) {
    constexpr int64_t least = 256, most = 1024, chunks_a_thread = 4;
    const int64_t even = context / (chunks_a_thread * qlocal::get_threads());
    return std::min(std::max(even, least), most) / qlocal::kKeyTile * qlocal::kKeyTile;
}

} // namespace

void qlocal::PagedAttention::run(const Batch& batch, const uint16_t* blocks, float* queries, int64_t stride,
                                 float* out) {
    const float scale = 1.0f / std::sqrt(float(model_.cache.head_dim));
    for (int64_t token = 0; token < batch.num_tokens; ++token)
        for (int64_t i = 0; i < model_.num_heads * model_.cache.head_dim; ++i)
            queries[token * stride + i] *= scale;
    plan(batch, queries, stride);
    blocks_ = blocks;
    const auto body = [](void* context, int64_t first, int64_t last) {
        auto& attention = *static_cast<PagedAttention*>(context);
        for (int64_t item = first; item < last; ++item)
            attention.attend(attention.blocks_, item);
    };
    parallel_rows(int64_t(items_.size()), 1, body, this);
    combine(out);
}

void qlocal::PagedAttention::plan(const Batch& batch, const float* queries, int64_t stride) {
    items_.clear();
    groups_.clear();
    const int64_t group_size = heads_a_group() * model_.cache.head_dim;
    for (const Run* run = batch.runs; run < batch.runs + batch.num_runs; ++run)
        for (int64_t token = 0; token < run->length; ++token, queries += stride) {
            const int64_t context = run->num_past + token + 1, chunk = chunk_length(context);
            for (int64_t head = 0; head < model_.cache.num_kv_heads; ++head) {
                groups_.push_back({int64_t(items_.size()), (context + chunk - 1) / chunk});
                for (int64_t from = 0; from < context; from += chunk)
                    items_.push_back(
                        {run->table, queries + head * group_size, head, from, std::min(from + chunk, context)});
            }
        }
    const size_t heads = items_.size() * size_t(heads_a_group());
    parts_.resize(heads * size_t(model_.cache.head_dim));
    largest_.resize(heads);
    totals_.resize(heads);
}

void qlocal::PagedAttention::attend(const uint16_t* blocks, int64_t item) {
    static thread_local std::vector<float> scores;
    const Item& i = items_[size_t(item)];
    const int64_t heads = heads_a_group();
    scores.resize(size_t(heads * (i.to - i.from + 2 * kKeyTile)));
    float* out = parts_.data() + item * heads * model_.cache.head_dim;
    ops_.attend(model_.cache, {i.queries, blocks, i.table, heads, i.kv_head, i.from, i.to, scores.data(), out,
                               largest_.data() + item * heads, totals_.data() + item * heads});
}

void qlocal::PagedAttention::combine(float* out) const {
    const int64_t heads = heads_a_group(), head_dim = model_.cache.head_dim;
    for (const Group& group : groups_)
        for (int64_t head = 0; head < heads; ++head, out += head_dim) {
            const int64_t first = group.first * heads + head;
            ops_.combine(parts_.data() + first * head_dim, largest_.data() + first, totals_.data() + first, group.count,
                         heads * head_dim, heads, out, head_dim);
        }
}
