// A decoder as the kernels compute it: what its layers are made of. Functions are described where they are defined.

#pragma once

#include <torch/custom_class.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace specdec {

using at::Tensor;
using Factors = std::optional<Tensor>;  // of a weight of 8 bits, one for each row; bfloat16 has none

struct Weight {
  Tensor rows;  // `[n, k]`, bfloat16 or 8 bits
  Tensor factors, bias;  // `[n]` each, float32 and bfloat16; undefined if there are none
};

// What is added to a state x: out(attention of the norm of x), then out(mlp of the norm of x), each normed itself if the
// layer has a norm for it. All norms are RMSNorm.
struct Layer {
  Weight query, key, value, attention_out, gate, up, down;
  Tensor attention_norm, mlp_norm;
  Tensor query_norm, key_norm, attention_out_norm, mlp_out_norm;  // undefined if there are none
  int64_t window;  // the positions that a token sees, its own the last of them; 0: all before it
  int64_t rotary;  // which of `Layers::rotaries` turns its queries and keys
};

struct Rotary {
  Tensor frequencies;  // `[D / 2]` float32; zeros turn nothing
  double scaling;  // of cosines and sines
};

struct Layers : torch::CustomClassHolder {
  const int64_t heads;
  const double eps, norm_offset;  // a norm multiplies with norm_offset + its weight
  const double scaling;  // of the scores of attention
  const double residual;  // of what is added to a state
  const double slope, curve;  // of the activation x / (1 + e^-(slope x + curve x^3)), which SiLU and GELU are
  std::vector<Layer> layers;
  std::vector<Rotary> rotaries;

  Layers(int64_t heads, double eps, double scaling, double norm_offset, double residual, double slope, double curve)
      : heads(heads), eps(eps), norm_offset(norm_offset), scaling(scaling), residual(residual), slope(slope),
        curve(curve) {}
  void add(c10::Dict<std::string, Tensor> weights, const Tensor& frequencies, double rotary_scaling, int64_t window);
  void run(const Tensor& x, const std::vector<Tensor>& keys, const std::vector<Tensor>& values, const Tensor& slots,
           const Tensor& positions) const;
  std::tuple<Tensor, Tensor> decode(const Tensor& tokens, const Tensor& embeddings, double embedding_scale,
                                    const Tensor& last_norm, const std::vector<int64_t>& taps,
                                    const std::vector<Tensor>& keys, const std::vector<Tensor>& values,
                                    const Tensor& slots, const Tensor& positions) const;
};

Tensor linear(const Tensor& x, const Tensor& weight, const Factors& factors);
Tensor norm_linear(const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& weight, const Factors& factors);
Tensor join(const Tensor& tokens, const Tensor& embeddings, const Tensor& states, double eps, const Tensor& weight);

std::tuple<Tensor, Tensor> draft(const c10::intrusive_ptr<Layers>& layers, const Tensor& text, const Tensor& lengths,
                                 const Tensor& num_new, const Tensor& features, const Tensor& feature_scale,
                                 const Tensor& fuse_weight, const Tensor& embeddings, const Tensor& combine_weight,
                                 const Tensor& keys, const Tensor& values, const Tensor& output_norm,
                                 const Tensor& output_rows, const Tensor& output_factors, const Tensor& scored_ids,
                                 double temperature, const Tensor& uniforms);

}  // namespace specdec
