#include "step.h"

#include <algorithm>
#include <vector>

#include "cpu.h"
#include "multiply.h"
#include "paged_attention.h"
#include "routing.h"
#include "scratch.h"
#include "thread_pool.h"

namespace {

using namespace qlocal;

// Tokens that a thread takes at once where they are independent; so many are not worth waking another for.
constexpr int64_t kTokensTogether = 8;

class Step {
  public:
    Step(const Kernels& kernels, const StepOps& ops, const Model& model, const Batch& batch)
        : ops_(ops), model_(model), batch_(batch), products_(kernels), attention_(ops, model),
          tokens_(batch.num_tokens), hidden_(model.hidden_size), inner_size_(model.intermediate_size),
          q_size_(model.num_heads * model.cache.head_dim),
          qkv_size_(q_size_ + 2 * model.cache.num_kv_heads * model.cache.head_dim) {
        const int64_t rows = num_rows();
        normed_.resize(size_t(tokens_ * hidden_));
        qkv_.resize(size_t(tokens_ * qkv_size_));
        attended_.resize(size_t(tokens_ * q_size_));
        scores_.resize(size_t(tokens_ * model.num_experts));
        gathered_.resize(model.num_experts ? size_t(rows * hidden_) : 0);
        out_.resize(size_t(rows * hidden_));
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
        int64_t first_token = 0;
        for (const Run* run = batch_.runs; run < batch_.runs + batch_.num_runs; ++run) {
            each(run->length, [&](int64_t token) { rotate_and_store(layer, *run, token, first_token + token); });
            first_token += run->length;
        }
        attention_.run(batch_, layer.cache, qkv_.data(), qkv_size_, attended_.data());
        multiply(layer.o, attended_.data(), out_.data());
        add_to_stream();
    }

    void rotate_and_store(const Layer& layer, const Run& run, int64_t token_of_run, int64_t token) {
        const int64_t head_dim = model_.cache.head_dim, angles = token * head_dim / 2;
        const int64_t kv_size = model_.cache.num_kv_heads * head_dim;
        float *q = qkv_.data() + token * qkv_size_, *k = q + q_size_;
        if (layer.cache.key_bias)
            ops_.add_scaled(k, layer.cache.key_bias, -1.0f, kv_size);
        ops_.rotate(q, model_.num_heads + model_.cache.num_kv_heads, head_dim, batch_.cos + angles,
                    batch_.sin + angles);
        ops_.append(model_.cache, layer.cache, run.table, run.num_past + token_of_run, k, k + kv_size);
    }

    void dense_block(const FeedForward& block) {
        if (products_.can_gate(block.gate_up, block.down, tokens_)) {
            products_.add_gated(block.gate_up, normed_.data(), tokens_, packed_inner_);
            products_.run();
            products_.add_packed(block.down, packed_inner_, tokens_, out_.data());
            products_.run();
        } else {
            make_room();
            multiply(block.gate_up, normed_.data(), wide_.data());
            activate(tokens_);
            multiply(block.down, inner_.data(), out_.data());
        }
        add_to_stream();
    }

    int64_t num_rows() const { return tokens_ * (model_.num_experts ? model_.experts_per_token : 1); }

    // The largest buffers, which prompts can do without.
    void make_room() {
        wide_.resize(size_t(num_rows() * 2 * inner_size_));
        inner_.resize(size_t(num_rows() * inner_size_));
    }

    // The experts' products run together, so that a step has as many parallel loops as a dense one.
    void mixture_block(const Layer& layer) {
        make_room();
        multiply(layer.router, normed_.data(), scores_.data());
        routing_.choose(scores_.data(), tokens_, model_.num_experts, model_.experts_per_token);
        each_share([&](int64_t token, const Routing::Share& share) {
            std::copy_n(normed_.data() + token * hidden_, hidden_, gathered_.data() + share.row * hidden_);
        });
        multiply_experts([&](int64_t expert) { return layer.feed_forwards[expert].gate_up; }, gathered_.data(), hidden_,
                         wide_.data(), 2 * inner_size_);
        activate(routing_.num_rows());
        multiply_experts([&](int64_t expert) { return layer.feed_forwards[expert].down; }, inner_.data(), inner_size_,
                         out_.data(), hidden_);
        each_share([&](int64_t token, const Routing::Share& share) {
            ops_.add_scaled(batch_.hidden_states + token * hidden_, out_.data() + share.row * hidden_, share.weight,
                            hidden_);
        });
    }

    // Multiply the rows of every expert that has any by its own linear. x: (rows, columns), out: (rows, out_columns).
    template <class LinearOf>
    void multiply_experts(const LinearOf& linear_of, const float* x, int64_t columns, float* out, int64_t out_columns) {
        for (int64_t expert = 0; expert < model_.num_experts; ++expert) {
            const int64_t row = routing_.first_row(expert), count = routing_.num_rows(expert);
            if (count)
                products_.add(linear_of(expert), x + row * columns, count, out + row * out_columns);
        }
        products_.run();
    }

    // Call body(token, share) for all tokens and the experts of each.
    template <class Body> void each_share(const Body& body) {
        each(tokens_, [&](int64_t token) {
            for (const Routing::Share* share = routing_.begin(token); share < routing_.end(token); ++share)
                body(token, *share);
        });
    }

    // Call body(token) for 0..count, on all threads when there are many.
    template <class Body> void each(int64_t count, const Body& body) {
        parallel(count, kTokensTogether, [&](int64_t first, int64_t last) {
            for (int64_t token = first; token < last; ++token)
                body(token);
        });
    }

    void normalize(const float* weight) {
        each(tokens_, [&](int64_t token) {
            const int64_t at = token * hidden_;
            ops_.rms_norm(batch_.hidden_states + at, weight, normed_.data() + at, hidden_, model_.rms_norm_eps);
        });
    }

    void multiply(const Linear& linear, const float* x, float* out) {
        products_.add(linear, x, tokens_, out);
        products_.run();
    }

    // inner = silu(gate) * up
    void activate(int64_t rows) {
        each(rows, [&](int64_t row) {
            const float* gate = wide_.data() + row * 2 * inner_size_;
            ops_.silu_multiply(gate, gate + inner_size_, inner_.data() + row * inner_size_, inner_size_);
        });
    }

    void add_to_stream() {
        each(tokens_, [&](int64_t token) {
            ops_.add_scaled(batch_.hidden_states + token * hidden_, out_.data() + token * hidden_, 1.0f, hidden_);
        });
    }

    const StepOps& ops_;
    const Model& model_;
    const Batch& batch_;
    Products products_;
    PagedAttention attention_;
    Routing routing_;
    const int64_t tokens_, hidden_, inner_size_, q_size_, qkv_size_;
    AlignedMemory packed_inner_;
    std::vector<float> normed_, qkv_, attended_, scores_, gathered_, wide_, inner_, out_;
};

const StepOps& ops_of(int32_t isa) {
    if (isa >= ISA_AMX)
        return amx_step_ops;
    return isa >= ISA_AVX512 ? avx512_step_ops : avx2_step_ops;
}

} // namespace

// Run all layers over a batch. isa: one that qlocal_cpu_features allows. model, batch: as step.h says.
extern "C" void qlocal_step(int32_t isa, const Model* model, const Batch* batch) {
    Step(kernels_of(isa), ops_of(isa), *model, *batch).run();
}
