#include "step.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu.h"
#include "multiply.h"
#include "paged_attention.h"
#include "thread_pool.h"

namespace {

using namespace qlocal;

// Which tokens go to which expert, and how much each of their outputs counts.
struct Routing {
    struct Share {
        int64_t token;
        float weight;
    };
    std::vector<std::vector<Share>> experts;
};

// The experts with the best scores, weighted by a softmax over all scores and renormalized to one.
void route(const float* scores, int64_t token, int64_t num_experts, int64_t num_chosen, Routing& routing) {
    std::vector<int64_t> order(static_cast<size_t>(num_experts));
    for (int64_t e = 0; e < num_experts; ++e)
        order[size_t(e)] = e;
    std::partial_sort(order.begin(), order.begin() + num_chosen, order.end(),
                      [&](int64_t a, int64_t b) { return scores[a] != scores[b] ? scores[a] > scores[b] : a < b; });
    float total = 0.0f;
    for (int64_t i = 0; i < num_chosen; ++i)
        total += std::exp(scores[order[size_t(i)]] - scores[order[0]]);
    for (int64_t i = 0; i < num_chosen; ++i) {
        const int64_t expert = order[size_t(i)];
        routing.experts[size_t(expert)].push_back({token, std::exp(scores[expert] - scores[order[0]]) / total});
    }
}

class Step {
  public:
    Step(const Kernels& kernels, const StepOps& ops, const Model& model, const Batch& batch)
        : ops_(ops), model_(model), batch_(batch), products_(kernels), attention_(ops, model),
          tokens_(batch.num_tokens) {
        const int64_t chosen = std::max<int64_t>(model.num_experts ? model.experts_per_token : 1, 1);
        q_size_ = model.num_heads * model.cache.head_dim;
        kv_size_ = model.cache.num_kv_heads * model.cache.head_dim;
        normed_.resize(size_t(tokens_ * model.hidden_size));
        qkv_.resize(size_t(tokens_ * (q_size_ + 2 * kv_size_)));
        attended_.resize(size_t(tokens_ * q_size_));
        scores_.resize(size_t(tokens_ * model.num_experts));
        gathered_.resize(model.num_experts ? size_t(tokens_ * chosen * model.hidden_size) : 0);
        wide_.resize(size_t(tokens_ * chosen * 2 * model.intermediate_size));
        inner_.resize(size_t(tokens_ * chosen * model.intermediate_size));
        out_.resize(size_t(tokens_ * chosen * model.hidden_size));
        routing_.experts.resize(size_t(model.num_experts));
    }

    void run() {
        for (const Layer* layer = model_.layers; layer < model_.layers + model_.num_layers; ++layer) {
            attention_block(*layer);
            normalize(layer->post_attention_norm);
            if (model_.num_experts)
                mixture_block(*layer);
            else
                dense_block(layer->feed_forwards[0]);
        }
    }

  private:
    void attention_block(const Layer& layer) {
        normalize(layer.input_norm);
        multiply(layer.qkv, normed_.data(), qkv_.data());
        const int64_t stride = q_size_ + 2 * kv_size_, head_dim = model_.cache.head_dim;
        int64_t token = 0;
        for (const Run* run = batch_.runs; run < batch_.runs + batch_.num_runs; ++run)
            for (int64_t i = 0; i < run->length; ++i, ++token) {
                float *q = qkv_.data() + token * stride, *k = q + q_size_;
                const int64_t angles = token * head_dim / 2;
                ops_.rotate(q, model_.num_heads + model_.cache.num_kv_heads, head_dim, batch_.cos + angles,
                            batch_.sin + angles);
                ops_.append(model_.cache, layer.blocks, run->table, run->num_past + i, k, k + kv_size_);
            }
        attention_.run(batch_, layer.blocks, qkv_.data(), stride, attended_.data());
        multiply(layer.o, attended_.data(), out_.data());
        ops_.add(batch_.hidden_states, out_.data(), tokens_ * model_.hidden_size);
    }

    void dense_block(const FeedForward& block) {
        multiply(block.gate_up, normed_.data(), wide_.data());
        activate(tokens_);
        multiply(block.down, inner_.data(), out_.data());
        ops_.add(batch_.hidden_states, out_.data(), tokens_ * model_.hidden_size);
    }

    // The experts' products run together, so that a step has as many parallel loops as a dense one.
    void mixture_block(const Layer& layer) {
        multiply(layer.router, normed_.data(), scores_.data());
        for (auto& shares : routing_.experts)
            shares.clear();
        for (int64_t token = 0; token < tokens_; ++token)
            route(scores_.data() + token * model_.num_experts, token, model_.num_experts, model_.experts_per_token,
                  routing_);
        const int64_t hidden = model_.hidden_size, inner = model_.intermediate_size;
        const int64_t rows = each_expert([&](int64_t expert, int64_t row, int64_t count) {
            float* x = gathered_.data() + row * hidden;
            for (int64_t i = 0; i < count; ++i)
                std::copy_n(normed_.data() + routing_.experts[size_t(expert)][size_t(i)].token * hidden, hidden,
                            x + i * hidden);
            products_.add(layer.feed_forwards[expert].gate_up, x, count, wide_.data() + row * 2 * inner);
        });
        products_.run();
        activate(rows);
        each_expert([&](int64_t expert, int64_t row, int64_t count) {
            products_.add(layer.feed_forwards[expert].down, inner_.data() + row * inner, count,
                          out_.data() + row * hidden);
        });
        products_.run();
        each_expert([&](int64_t expert, int64_t row, int64_t count) {
            for (int64_t i = 0; i < count; ++i) {
                const Routing::Share& share = routing_.experts[size_t(expert)][size_t(i)];
                for (int64_t d = 0; d < hidden; ++d)
                    batch_.hidden_states[share.token * hidden + d] +=
                        share.weight * out_[size_t((row + i) * hidden + d)];
            }
        });
    }

    // Call body(expert, first row of its tokens, their number) for experts that have any; returns all rows.
    template <class Body> int64_t each_expert(const Body& body) {
        int64_t row = 0;
        for (int64_t expert = 0; expert < model_.num_experts; ++expert) {
            const int64_t count = int64_t(routing_.experts[size_t(expert)].size());
            if (count)
                body(expert, row, count);
            row += count;
        }
        return row;
    }

    void normalize(const float* weight) {
        for (int64_t at = 0; at < tokens_ * model_.hidden_size; at += model_.hidden_size)
            ops_.rms_norm(batch_.hidden_states + at, weight, normed_.data() + at, model_.hidden_size,
                          model_.rms_norm_eps);
    }

    void multiply(const Linear& linear, const float* x, float* out) {
        products_.add(linear, x, tokens_, out);
        products_.run();
    }

    // inner = silu(gate) * up
    void activate(int64_t rows) {
        const int64_t inner = model_.intermediate_size;
        for (int64_t row = 0; row < rows; ++row) {
            const float* gate = wide_.data() + row * 2 * inner;
            ops_.silu_multiply(gate, gate + inner, inner_.data() + row * inner, inner);
        }
    }

    const StepOps& ops_;
    const Model& model_;
    const Batch& batch_;
    Products products_;
    PagedAttention attention_;
    int64_t tokens_, q_size_, kv_size_;
    std::vector<float> normed_, qkv_, attended_, scores_, gathered_, wide_, inner_, out_;
    Routing routing_;
};

} // namespace

// Run all layers over at most 8 tokens. isa: one that qlocal_cpu_features allows. model, batch: as step.h says.
extern "C" void qlocal_step(int32_t isa, const Model* model, const Batch* batch) {
    const bool wide = isa >= ISA_AVX512;
    Step(kernels_of(isa), wide ? avx512_step_ops : avx2_step_ops, *model, *batch).run();
}
