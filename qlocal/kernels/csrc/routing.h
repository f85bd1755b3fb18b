// Which experts of a mixture a step's tokens go to.

#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace qlocal {

class Routing {
  public:
    // One token at one expert: its output counts `weight`, and is row `row` of all that the experts compute.
    struct Share {
        int64_t expert, row;
        float weight;
    };

    // Give every token the `num_chosen` experts with its best scores, weighted by a softmax over all scores and
    // renormalized to one. scores: (num_tokens, num_experts).
    void choose(const float* scores, int64_t num_tokens, int64_t num_experts, int64_t num_chosen);

    // The shares of a token, experts ascending.
    const Share* begin(int64_t token) const { return shares_.data() + token * num_chosen_; }
    const Share* end(int64_t token) const { return begin(token + 1); }

    // The rows of an expert stand one after another, tokens ascending.
    int64_t first_row(int64_t expert) const { return first_rows_[static_cast<size_t>(expert)]; }
    int64_t num_rows(int64_t expert) const { return first_row(expert + 1) - first_row(expert); }
    int64_t num_rows() const { return first_rows_.back(); }

  private:
    void choose_one(const float* scores, int64_t num_experts, Share* shares);

    int64_t num_chosen_ = 0;
    std::vector<Share> shares_;
    std::vector<int64_t> first_rows_, order_;
};

} // namespace qlocal
