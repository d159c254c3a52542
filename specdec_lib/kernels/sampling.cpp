// Distributions over a whole vocabulary, drawing from them and accepting draft tokens, in a few passes over each.

#include "sampling.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "vectors.h"

namespace specdec {

constexpr int64_t kBlock = 512;  // tokens whose weights are summed before the token among them is looked for

// probs = softmax(logits / temperature), 0 where a logit is -inf; a NaN among the logits makes all of them NaN.
void softmax(const float* logits, int64_t n, float temperature, float* probs) {
  const Floats scale = all(std::min(1.0f / temperature, std::numeric_limits<float>::max()));
  const auto lanes = [&](int64_t i) { return load_first(logits + i, n - i, -INFINITY); };
  Floats top = all(-INFINITY), total = {};
  for (int64_t i = 0; i < n; i += kLanes) top = max(top, lanes(i));
  const Floats best = all(greatest(top));
  for (int64_t i = 0; i < n; i += kLanes) {  // their difference is exactly 0 for the largest, however low the temperature
    const Floats e = exponential((lanes(i) - best) * scale);
    store_first(probs + i, e, n - i);
    total = total + e;
  }
  const Floats norm = all(1.0f / sum(total));
  for (int64_t i = 0; i < n; i += kLanes) store_first(probs + i, load_first(probs + i, n - i, 0.0f) * norm, n - i);
}

// The index of the largest of `scores`, the first of equals; `value` becomes 1, or NaN if there is one among them.
int64_t greatest(const float* scores, int64_t n, float& value) {
  Floats top = all(-INFINITY);
  unsigned nan = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats lanes = load_first(scores + i, n - i, -INFINITY);
    nan |= unordered(lanes);
    top = max(top, lanes);
  }
  value = nan ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
  const Floats best = all(greatest(top));
  for (int64_t i = 0; i < n; i += kLanes)
    if (const unsigned found = equal(load_first(scores + i, n - i, NAN), best)) return i + __builtin_ctz(found);
  return 0;
}

namespace {

struct Weights {  // as they are
  const float* p;
  float operator[](int64_t i) const { return p[i]; }
  __m256 eight(int64_t i) const { return _mm256_loadu_ps(p + i); }
};

struct Residual {  // max(0, p - q)
  const float *p, *q;
  float operator[](int64_t i) const { return std::max(0.0f, p[i] - q[i]); }
  __m256 eight(int64_t i) const {
    return _mm256_max_ps(_mm256_sub_ps(_mm256_loadu_ps(p + i), _mm256_loadu_ps(q + i)), _mm256_setzero_ps());
  }
};

template <typename W>
double sum_between(const W& weights, int64_t begin, int64_t end) {
  Doubles even = {}, odd = {};
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    even = even + widened(weights.eight(i));
    odd = odd + widened(weights.eight(i + 8));
  }
  double total = sum(even + odd);
  for (; i < end; ++i) total += weights[i];
  return total;
}

// The index at which the cumulative sum of n weights, in double, passes `uniform` in [0, 1) of its total: never one of
// weight 0; -1 if all are.
template <typename W>
int64_t inverted(const W& weights, int64_t n, double uniform) {
  std::vector<double> ends((n + kBlock - 1) / kBlock);
  double total = 0;
  for (size_t b = 0; b < ends.size(); ++b)
    ends[b] = total += sum_between(weights, b * kBlock, std::min<int64_t>(n, (b + 1) * kBlock));
  const double point = std::min(uniform * total, std::nextafter(total, 0.0));  // below the total even if rounded up
  const size_t block = std::upper_bound(ends.begin(), ends.end(), point) - ends.begin();
  if (block == ends.size()) return -1;
  double cumulative = block ? ends[block - 1] : 0;
  int64_t last = n - 1;  // the rounding of the block's sum may leave the point behind all of its tokens
  for (int64_t i = block * kBlock; i < std::min<int64_t>(n, (block + 1) * kBlock); ++i) {
    if (weights[i] > 0) last = i;
    cumulative += weights[i];
    if (cumulative > point) break;
  }
  return last;
}

}  // namespace

// The same of an array; the last index if all weights are 0.
int64_t invert(const float* weights, int64_t n, double uniform) {
  const int64_t index = inverted(Weights{weights}, n, uniform);
  return index < 0 ? n - 1 : index;
}

// softmax(logits / temperature) of each row of `logits` `[..., V]` float32, at temperature 0 a one-hot of the largest; all
// NaN where there is a NaN among the logits.
Tensor probabilities(const Tensor& logits, double temperature) {
  check(logits, at::kFloat, "logits");
  const int64_t n = logits.size(-1), rows = logits.numel() / n;
  Tensor probs = at::empty_like(logits);
  const float* from = logits.const_data_ptr<float>();
  float* to = probs.mutable_data_ptr<float>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      if (temperature == 0) {
        float value;
        const int64_t best = greatest(from + r * n, n, value);
        std::fill_n(to + r * n, n, value - value);
        to[r * n + best] = value;
      } else {
        softmax(from + r * n, n, temperature, to + r * n);
      }
    }
  });
  return probs;
}

// One token from each row of `weights` `[..., V]` float32, which need not sum to 1, with `uniforms` `[...]` float64.
Tensor draw(const Tensor& weights, const Tensor& uniforms) {
  check(weights, at::kFloat, "weights");
  check(uniforms, at::kDouble, "uniforms");
  const int64_t n = weights.size(-1), rows = weights.numel() / n;
  TORCH_CHECK(uniforms.numel() == rows, "there are ", rows, " rows and ", uniforms.numel(), " random numbers");
  Tensor tokens = at::empty(uniforms.sizes(), uniforms.options().dtype(at::kLong));
  const float* from = weights.const_data_ptr<float>();
  const double* uniform = uniforms.const_data_ptr<double>();
  int64_t* token = tokens.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) token[r] = invert(from + r * n, n, uniform[r]);
  });
  return tokens;
}

// Algorithm 1 of Leviathan et al. 2022 for B rows: how many of `drafted` `[B, gamma]` are accepted, each tested
// with its number of `uniforms` `[B, gamma + 1]`, and the token after them, drawn with the last of these: from
// max(0, target - draft) at that position, from the target alone where nothing is left of that or nothing was drafted.
// target `[B, gamma + 1, V]` and draft `[B, gamma, V]` are float32, random numbers float64.
std::tuple<Tensor, Tensor> verify(const Tensor& target, const Tensor& draft, const Tensor& drafted,
                                  const Tensor& uniforms) {
  check(target, at::kFloat, "target");
  if (draft.size(1) > 0) {  // else every row draws from its target
    check(draft, at::kFloat, "draft");
    check(drafted, at::kLong, "drafted");
  }
  check(uniforms, at::kDouble, "uniforms");
  const int64_t rows = target.size(0), gamma = draft.size(1), n = target.size(2);
  TORCH_CHECK(draft.size(0) == rows && target.size(1) == gamma + 1 && draft.size(2) == n, "the target's ", target.sizes(),
              " and the draft's ", draft.sizes(), " do not belong together");
  TORCH_CHECK(drafted.numel() == rows * gamma && uniforms.numel() == rows * (gamma + 1),
              "one token a position, and one random number more, are needed");
  Tensor num_accepted = at::empty({rows}, drafted.options()), next = at::empty({rows}, drafted.options());
  const float *p = target.const_data_ptr<float>(), *q = draft.const_data_ptr<float>();
  const double* uniform = uniforms.const_data_ptr<double>();
  const int64_t* token = drafted.const_data_ptr<int64_t>();
  int64_t *accepted = num_accepted.mutable_data_ptr<int64_t>(), *behind = next.mutable_data_ptr<int64_t>();
  at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const double* number = uniform + r * (gamma + 1);
      int64_t position = 0;
      for (; position < gamma; ++position) {
        const int64_t x = token[r * gamma + position];
        TORCH_CHECK(x >= 0 && x < n, "token ", x, " is none of ", n);
        const double chance = q[(r * gamma + position) * n + x];
        if (!(chance > 0 && number[position] < p[(r * (gamma + 1) + position) * n + x] / chance)) break;
      }
      accepted[r] = position;
      const float *of_target = p + (r * (gamma + 1) + position) * n, *of_draft = q + (r * gamma + position) * n;
      const int64_t resampled = position < gamma ? inverted(Residual{of_target, of_draft}, n, number[gamma]) : -1;
      behind[r] = resampled < 0 ? invert(of_target, n, number[gamma]) : resampled;
    }
  });
  return {num_accepted, next};
}

TORCH_LIBRARY_FRAGMENT(specdec_lib, library) {
  library.def("draw(Tensor weights, Tensor uniforms) -> Tensor", draw);
  library.def("probabilities(Tensor logits, float temperature) -> Tensor", probabilities);
  library.def("verify(Tensor target, Tensor draft, Tensor drafted, Tensor uniforms) -> (Tensor, Tensor)", verify);
}

}  // namespace specdec
