// All draft tokens of a draft head in one call: what `HeadProposer` and `DraftHead` do step by step.

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "decoder.h"
#include "sampling.h"
#include "vectors.h"

namespace specdec {

namespace {

// Features `[R, F]` bfloat16, each layer's H of them after RMSNorm and times `scale` `[F]`, to `[R, F]` bfloat16.
Tensor scaled_features(const Tensor& features, const Tensor& scale, int64_t width, double eps) {
  Tensor out = at::empty_like(features);
  const BFloat16 *from = features.const_data_ptr<BFloat16>(), *factor = scale.const_data_ptr<BFloat16>();
  BFloat16* to = out.mutable_data_ptr<BFloat16>();
  const int64_t size = features.size(1);
  for (int64_t start = 0; start < features.numel(); start += width) {
    Floats squares = {};
    for (int64_t i = start; i < start + width; i += kLanes) squares = fma(load(from + i), load(from + i), squares);
    const Floats norm = all(1.0f / std::sqrt(sum(squares) / width + eps));
    for (int64_t i = start; i < start + width; i += kLanes)
      store(to + i, load(from + i) * norm * load(factor + i % size));
  }
  return out;
}

}  // namespace

// Draft gamma tokens for B rows of `lengths` `[B]` known tokens in `text` `[B, capacity]`. The last `num_new` `[B]` of them
// and what stands behind them, with `features` `[B, m, F]`, are m pairs that the head has not read yet; the first num_new
// count, and drafting begins behind those (behind the first pair where none does). Temperature 0 takes the most likely
// token, any other inverts with `uniforms` `[B, gamma]`.
// Returns the tokens `[B, gamma]` and the distributions that they come from, `[B, gamma, V]` float32, zero outside
// `scored_ids` `[S]`.
std::tuple<Tensor, Tensor> draft(const c10::intrusive_ptr<Layers>& layers, const Tensor& text, const Tensor& lengths,
                                 const Tensor& num_new, const Tensor& features, const Tensor& feature_scale,
                                 const Tensor& fuse_weight, const Tensor& embeddings, const Tensor& combine_weight,
                                 const Tensor& keys, const Tensor& values, const Tensor& output_norm,
                                 const Tensor& output_rows, const Tensor& output_factors, const Tensor& scored_ids,
                                 double temperature, const Tensor& uniforms) {
  check(text, at::kLong, "text");
  check(features, at::kBFloat16, "features");
  check(feature_scale, at::kBFloat16, "feature_scale");
  check(lengths, at::kLong, "lengths");
  check(num_new, at::kLong, "num_new");
  check(scored_ids, at::kLong, "scored_ids");
  check(uniforms, at::kDouble, "uniforms");
  const int64_t batch = text.size(0), capacity = text.size(1), pairs = features.size(1), gamma = uniforms.size(1);
  const int64_t width = embeddings.size(1);
  const int64_t num_scored = scored_ids.numel(), vocabulary = embeddings.size(0);
  TORCH_CHECK(features.size(0) == batch && features.size(2) == feature_scale.numel() && uniforms.size(0) == batch &&
                  lengths.numel() == batch && num_new.numel() == batch,
              "text ", text.sizes(), ", lengths ", lengths.sizes(), ", num_new ", num_new.sizes(), ", features ",
              features.sizes(), " and uniforms ", uniforms.sizes(), " do not belong together");
  const int64_t *length = lengths.const_data_ptr<int64_t>(), *added = num_new.const_data_ptr<int64_t>();
  const int64_t* ids = scored_ids.const_data_ptr<int64_t>();
  const double* uniform = uniforms.const_data_ptr<double>();
  const double eps = layers->eps;
  const auto run = [&](const Tensor& x, const Tensor& slots) { layers->run(x, {keys}, {values}, slots, slots); };

  Tensor slots = at::empty({batch, pairs}, lengths.options()), tokens = at::empty({batch * pairs}, text.options());
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t known = length[b] - 1 - added[b];  // pairs that it has read
    TORCH_CHECK(known >= 0 && known + pairs < capacity && added[b] >= 0 && added[b] <= pairs, "of ", length[b],
                " tokens in room for ", capacity, ", ", added[b], " cannot be new, with features of ", pairs);
    int64_t *slot = slots.mutable_data_ptr<int64_t>() + b * pairs, *token = tokens.mutable_data_ptr<int64_t>() + b * pairs;
    std::iota(slot, slot + pairs, known);
    std::copy_n(text.const_data_ptr<int64_t>() + b * capacity + known + 1, pairs, token);
  }
  const Tensor scaled = scaled_features(features.view({batch * pairs, -1}), feature_scale, width, eps);
  Tensor x = join(tokens, embeddings, specdec::linear(scaled, fuse_weight, {}), eps, combine_weight);
  run(x, slots);
  Tensor state = at::empty({batch, width}, x.options());
  slots = at::empty({batch, 1}, lengths.options());
  for (int64_t b = 0; b < batch; ++b) {
    state[b].copy_(x[b * pairs + std::max<int64_t>(added[b] - 1, 0)]);
    slots.mutable_data_ptr<int64_t>()[b] = length[b] - 1;
  }

  Tensor drafted = at::empty({batch, gamma}, text.options()), last = at::empty({batch}, text.options());
  Tensor probs = at::zeros({batch, gamma, vocabulary}, x.options());
  std::vector<float> scored(num_scored);
  for (int64_t position = 0; position < gamma; ++position) {
    const Tensor scores = norm_linear(state, output_norm, eps, output_rows, output_factors);
    for (int64_t b = 0; b < batch; ++b) {
      const float* of_row = scores.const_data_ptr<float>() + b * num_scored;
      float* to = probs.mutable_data_ptr<float>() + (b * gamma + position) * vocabulary;
      int64_t chosen;
      if (temperature == 0) {
        float value;
        chosen = greatest(of_row, num_scored, value);
        to[ids[chosen]] = value;
      } else {
        softmax(of_row, num_scored, temperature, scored.data());
        chosen = invert(scored.data(), num_scored, uniform[b * gamma + position]);
        for (int64_t i = 0; i < num_scored; ++i) to[ids[i]] = scored[i];
      }
      drafted.mutable_data_ptr<int64_t>()[b * gamma + position] = last.mutable_data_ptr<int64_t>()[b] = ids[chosen];
    }
    if (position + 1 == gamma) break;
    state = join(last, embeddings, state, eps, combine_weight);
    run(state, slots);
    slots.add_(1);
  }
  return {drafted, probs};
}

}  // namespace specdec
