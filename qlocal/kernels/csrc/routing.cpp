#include "routing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

void qlocal::Routing::choose(const float* scores, int64_t num_tokens, int64_t num_experts, int64_t num_chosen) {
    num_chosen_ = num_chosen;
    shares_.resize(size_t(num_tokens * num_chosen));
    first_rows_.assign(size_t(num_experts + 1), 0);
    for (int64_t token = 0; token < num_tokens; ++token)
        choose_one(scores + token * num_experts, num_experts, shares_.data() + token * num_chosen);
    for (const Share& share : shares_)
        ++first_rows_[size_t(share.expert + 1)];
    std::partial_sum(first_rows_.begin(), first_rows_.end(), first_rows_.begin());
    std::vector<int64_t> next(first_rows_.begin(), first_rows_.end() - 1);
    for (Share& share : shares_)
        share.row = next[size_t(share.expert)]++;
}

void qlocal::Routing::choose_one(const float* scores, int64_t num_experts, Share* shares) {
    order_.resize(size_t(num_experts));
    std::iota(order_.begin(), order_.end(), 0);
    const auto is_better = [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; };
    std::partial_sort(order_.begin(), order_.begin() + num_chosen_, order_.end(), is_better);
    const float best = scores[order_[0]];
    float total = 0.0f;
    for (int64_t i = 0; i < num_chosen_; ++i)
        total += std::exp(scores[order_[size_t(i)]] - best);
    std::sort(order_.begin(), order_.begin() + num_chosen_);
    for (int64_t i = 0; i < num_chosen_; ++i) {
        const int64_t expert = order_[size_t(i)];
        shares[i] = {expert, 0, std::exp(scores[expert] - best) / total};
    }
}
