// Products with a weight alone: output rows, and what a draft head fuses and joins.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "decoder.h"
#include "products.h"

namespace specdec {

// x `[R, K]` bfloat16 times weight `[N, K]`, bfloat16 or int8 with factors `[N]` float32, to `[R, N]` float32.
Tensor linear(const Tensor& x, const Tensor& rows, const Factors& factors) {
  const Weight weight{rows, factors.value_or(Tensor()), {}};
  check(x, at::kBFloat16, "x");
  check_weight(weight, x.size(1));
  Tensor out = at::empty({x.size(0), rows.size(0)}, x.options().dtype(at::kFloat));
  float* to = out.mutable_data_ptr<float>();
  std::vector<Number> store;
  const Number* from = to_multiply(x.const_data_ptr<BFloat16>(), x.numel(), store);
  of_type(rows, [&](auto number) {
    const Matrix<decltype(number)> matrix(weight);
#pragma omp parallel num_threads(at::get_num_threads())
    multiply_share(from, x.size(0), matrix, to);
  });
  return out;
}

// The same of x `[R, K]` float32 after RMSNorm with weights `norm_weight` `[K]`.
Tensor norm_linear(const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& of_weight,
                   const Factors& factors) {
  const Weight weight{of_weight, factors.value_or(Tensor()), {}};
  const int64_t rows = x.size(0), k = x.size(1);
  check(x, at::kFloat, "x");
  check(norm_weight, at::kBFloat16, "norm_weight");
  check_weight(weight, k);
  Tensor out = at::empty({rows, of_weight.size(0)}, x.options());
  float* to = out.mutable_data_ptr<float>();
  of_type(of_weight, [&](auto number) {
    const Matrix<decltype(number)> matrix(weight);
#pragma omp parallel num_threads(at::get_num_threads())
    {
      std::vector<Number> normed(rows * k);
      for (int64_t r = 0; r < rows; ++r)
        norm(x.const_data_ptr<float>() + r * k, norm_weight.const_data_ptr<BFloat16>(), eps, k, &normed[r * k]);
      multiply_share(normed.data(), rows, matrix, to);
    }
  });
  return out;
}

// The input of a draft head: embeddings of `tokens` `[R]` beside states `[R, H]` float32, each after RMSNorm without
// weights, times weight `[H, 2 H]` to `[R, H]` float32.
Tensor join(const Tensor& tokens, const Tensor& embeddings, const Tensor& states, double eps, const Tensor& weight) {
  const int64_t rows = tokens.size(0), width = states.size(1);
  check(tokens, at::kLong, "tokens");
  check(embeddings, at::kBFloat16, "embeddings");
  check(states, at::kFloat, "states");
  check_weight({weight, {}, {}}, 2 * width);
  TORCH_CHECK(tokens.numel() == rows && embeddings.size(1) == width, "embeddings ", embeddings.sizes(), " and states ",
              states.sizes(), " of ", rows, " tokens do not belong together");
  check_tokens(tokens, embeddings.size(0));
  Tensor out = at::empty({rows, weight.size(0)}, states.options());
  const BFloat16* table = embeddings.const_data_ptr<BFloat16>();
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  const Matrix<BFloat16, kAgain> matrix(Weight{weight, {}, {}});
#pragma omp parallel num_threads(at::get_num_threads())
  {
    std::vector<Number> both(rows * 2 * width);
    std::vector<BFloat16> ones(width, BFloat16(1.0f));
    std::vector<float> embedded(width);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < width; i += kLanes) store(&embedded[i], load(table + token[r] * width + i));
      norm(embedded.data(), ones.data(), eps, width, &both[r * 2 * width]);
      norm(states.const_data_ptr<float>() + r * width, ones.data(), eps, width, &both[r * 2 * width + width]);
    }
    multiply_share(both.data(), rows, matrix, to);
  }
  return out;
}

TORCH_LIBRARY_FRAGMENT(specdec_lib, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? factors=None) -> Tensor", linear);
  library.def(
      "norm_linear(Tensor x, Tensor norm_weight, float eps, Tensor weight, Tensor? factors=None) -> Tensor", norm_linear);
  library.def("join(Tensor tokens, Tensor embeddings, Tensor states, float eps, Tensor weight) -> Tensor", join);
}

}  // namespace specdec
