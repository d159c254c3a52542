// What the draft shares with the decoder; each is described where it is defined.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace specdec {

using Factors = std::optional<at::Tensor>;  // of a weight of 8 bits, one for each row; bfloat16 has none

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const Factors& factors);
at::Tensor norm_linear(const at::Tensor& x, const at::Tensor& norm_weight, double eps, const at::Tensor& weight,
                       const Factors& factors);
at::Tensor join(const at::Tensor& tokens, const at::Tensor& embeddings, const at::Tensor& states, double eps,
                const at::Tensor& weight);
void decoder_layers(at::Tensor& x, at::TensorList weights, at::TensorList factors, at::TensorList keys,
                    at::TensorList values, const at::Tensor& slots, const at::Tensor& positions,
                    const at::Tensor& frequencies, double rotary_scaling, int64_t heads, double eps, double scaling);

}  // namespace specdec
