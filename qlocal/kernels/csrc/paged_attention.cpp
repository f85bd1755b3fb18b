#include "paged_attention.h"

#include <algorithm>
#include <cmath>

#include "thread_pool.h"

namespace {

// Rows of queries that go over the keys together: enough to use a key many times while it is in the cache, few enough
// that their scores stay there as well.
constexpr int64_t kRowsTogether = 96;

// Keys that a thread takes at once: few enough that threads share one sequence, many enough to be worth adding up. Of a
// run of few tokens always as many, so that a token's sums are cut at the same places alone and behind others.
int64_t keys_a_part(int64_t context, int64_t groups, int64_t run_length) {
    constexpr int64_t least = 256, pieces_a_thread = 4;
    if (run_length <= qlocal::kFewTokens)
        return least;
    const int64_t pieces = std::max<int64_t>(pieces_a_thread * qlocal::get_threads() / groups, 1);
    return (std::max(context / pieces, least) + qlocal::kKeyTile - 1) / qlocal::kKeyTile * qlocal::kKeyTile;
}

} // namespace

void qlocal::PagedAttention::run(const Batch& batch, const LayerCache& cache, const float* queries, int64_t stride,
                                 float* out) {
    cache_ = &cache;
    queries_ = queries;
    stride_ = stride;
    out_ = out;
    plan(batch);
    parallel(int64_t(group_of_item_.size()), 1, [this](int64_t first, int64_t last) {
        for (int64_t item = first; item < last; ++item)
            attend(item);
    });
    parallel(int64_t(groups_.size()), 8, [this](int64_t first, int64_t last) {
        for (int64_t group = first; group < last; ++group)
            combine(groups_[size_t(group)]);
    });
}

void qlocal::PagedAttention::plan(const Batch& batch) {
    groups_.clear();
    group_of_item_.clear();
    rows_before_item_.clear();
    const int64_t heads = heads_a_group(), together = std::max<int64_t>(kRowsTogether / heads, 1);
    int64_t first = 0, rows = 0;
    for (const Run* run = batch.runs; run < batch.runs + batch.num_runs; first += run->length, ++run)
        for (int64_t token = 0; token < run->length; token += together)
            for (int64_t head = 0; head < model_.cache.num_kv_heads; ++head) {
                const int64_t count = std::min(together, run->length - token);
                groups_.push_back({run, first + token, token, count, head, 0, 0, 0});
            }
    const int64_t num_groups = int64_t(groups_.size());
    for (int64_t i = num_groups - 1; i >= 0; --i) { // the last tokens have most to read: they begin
        Group& group = groups_[size_t(i)];
        const int64_t context = group.run->num_past + group.first + group.num_tokens;
        group.part_keys = keys_a_part(context, num_groups, group.run->length);
        group.parts = (context + group.part_keys - 1) / group.part_keys;
        group.first_part = int64_t(group_of_item_.size());
        for (int64_t part = 0; part < group.parts; ++part, rows += group.num_tokens * heads) {
            group_of_item_.push_back(i);
            rows_before_item_.push_back(rows);
        }
    }
    parts_.resize(size_t(rows * model_.cache.head_dim));
    largest_.resize(size_t(rows));
    totals_.resize(size_t(rows));
}

void qlocal::PagedAttention::attend(int64_t item) {
    static thread_local std::vector<float> scores, queries, unpacked;
    const Group& group = groups_[size_t(group_of_item_[size_t(item)])];
    const int64_t heads = heads_a_group(), head_dim = model_.cache.head_dim, width = key_size(model_.cache, *cache_);
    scores.resize(size_t(group.num_tokens * heads * kScoreRun));
    queries.resize(size_t(group.num_tokens * heads * width));
    unpacked.resize(size_t(unpacked_size(model_.cache, *cache_)));
    const float scale = 1.0f / std::sqrt(float(head_dim));
    for (int64_t row = 0; row < group.num_tokens * heads; ++row) {
        const int64_t head = group.kv_head * heads + row % heads;
        const float* query = queries_ + (group.token + row / heads) * stride_ + head * head_dim;
        ops_.make_query(model_.cache, *cache_, group.kv_head, query, scale, queries.data() + row * width);
    }
    const int64_t past = group.run->num_past + group.first, rows = rows_before_item_[size_t(item)];
    const int64_t from = (item - group.first_part) * group.part_keys;
    const int64_t to = std::min(from + group.part_keys, past + group.num_tokens);
    ops_.attend(model_.cache, {queries.data(), cache_, group.run->table, group.num_tokens, heads, group.kv_head,
                               past + 1, from, to, scores.data(), unpacked.data(), parts_.data() + rows * head_dim,
                               largest_.data() + rows, totals_.data() + rows});
}

void qlocal::PagedAttention::combine(const Group& group) {
    const int64_t heads = heads_a_group(), head_dim = model_.cache.head_dim, rows = group.num_tokens * heads;
    const int64_t first = rows_before_item_[size_t(group.first_part)];
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = group.token + row / heads, head = group.kv_head * heads + row % heads;
        float* out = out_ + (token * model_.num_heads + head) * head_dim;
        ops_.combine(parts_.data() + (first + row) * head_dim, largest_.data() + first + row,
                     totals_.data() + first + row, group.parts, rows * head_dim, rows, out, head_dim);
        ops_.finish(model_.cache, *cache_, group.kv_head, out);
    }
}
