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
  Doubles eight(int64_t i) const { return widened(_mm256_loadu_ps(p + i)); }
};

struct Residual {  // max(0, p - q)
  const float *p, *q;
  float operator[](int64_t i) const { return std::max(0.0f, p[i] - q[i]); }
  Doubles eight(int64_t i) const {
    return widened(_mm256_max_ps(_mm256_sub_ps(_mm256_loadu_ps(p + i), _mm256_loadu_ps(q + i)), _mm256_setzero_ps()));
  }
};

struct Remainder {  // max(0, joint p - q)
  const float *p, *q;
  double joint;
  double operator[](int64_t i) const { return std::max(0.0, joint * p[i] - q[i]); }
  Doubles eight(int64_t i) const {
    return positive(widened(_mm256_loadu_ps(p + i)) * joint - widened(_mm256_loadu_ps(q + i)));
  }
};

template <typename W>
double sum_between(const W& weights, int64_t begin, int64_t end) {
  Doubles even = {}, odd = {};
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    even = even + weights.eight(i);
    odd = odd + weights.eight(i + 8);
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

namespace {

struct Drafted {  // one row of a verification
  const float *target, *draft;  // [gamma + 1, n] and [gamma, n]
  const int64_t* tokens;        // [gamma]
  const double* uniforms;       // [gamma + 1]
  int64_t gamma, n;
  int64_t token(int64_t i) const {
    TORCH_CHECK(tokens[i] >= 0 && tokens[i] < n, "token ", tokens[i], " is none of ", n);
    return tokens[i];
  }
  double chance_of_target(int64_t i) const { return target[i * n + token(i)]; }
  double chance_of_draft(int64_t i) const { return draft[i * n + token(i)]; }
  const float* target_at(int64_t i) const { return target + i * n; }
  const float* draft_at(int64_t i) const { return draft + i * n; }
};

struct Kept {
  int64_t num_accepted, next_token;
};

// Algorithm 1 of Leviathan et al. 2022: the token after those that stay is drawn from max(0, target - draft), from the
// target alone where nothing is left of that or nothing was drafted.
Kept token_by_token(const Drafted& row) {
  int64_t i = 0;
  for (; i < row.gamma; ++i) {
    const double chance = row.chance_of_draft(i);
    if (!(chance > 0 && row.uniforms[i] < row.chance_of_target(i) / chance)) break;
  }
  const double uniform = row.uniforms[row.gamma];
  const int64_t next = i < row.gamma ? inverted(Residual{row.target_at(i), row.draft_at(i)}, row.n, uniform) : -1;
  return {i, next < 0 ? invert(row.target_at(i), row.n, uniform) : next};
}

// Algorithm 2 of Sun et al. 2024; see decoding/verification/block.py, whose names these are.
Kept as_a_block(const Drafted& row) {
  int64_t kept = 0;
  double joint = 1, joint_of_kept = 1;
  for (int64_t i = 0; i < row.gamma; ++i) {  // after token i, what is left to draw from stands at position i + 1
    const double chance = row.chance_of_draft(i);
    joint = chance > 0 ? std::min(1.0, joint * row.chance_of_target(i) / chance) : 0.0;
    if (joint == 0) break;
    const double total = i + 1 < row.gamma
                             ? sum_between(Remainder{row.target_at(i + 1), row.draft_at(i + 1), joint}, 0, row.n)
                             : joint * sum_between(Weights{row.target_at(i + 1)}, 0, row.n);
    const double either = total + 1 - joint;
    if (either > 0 && !(row.uniforms[i] < total / either)) continue;
    kept = i + 1, joint_of_kept = joint;
  }
  const double uniform = row.uniforms[row.gamma];
  const int64_t next =
      kept < row.gamma ? inverted(Remainder{row.target_at(kept), row.draft_at(kept), joint_of_kept}, row.n, uniform) : -1;
  return {kept, next < 0 ? invert(row.target_at(kept), row.n, uniform) : next};
}

// How many of `drafted` `[B, gamma]` stay by `rule`, and the token after them. Each draft token is tested with its
// number of `uniforms` `[B, gamma + 1]`, and the token after them drawn with the last of these. target
// `[B, gamma + 1, V]` and draft `[B, gamma, V]` are float32, random numbers float64.
std::tuple<Tensor, Tensor> verified(Kept (*rule)(const Drafted&), const Tensor& target, const Tensor& draft,
                                    const Tensor& drafted, const Tensor& uniforms) {
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
      const int64_t first = r * gamma, first_of_target = r * (gamma + 1);
      const Kept kept = rule({p + first_of_target * n, q + first * n, token + first, uniform + first_of_target, gamma, n});
      accepted[r] = kept.num_accepted;
      behind[r] = kept.next_token;
    }
  });
  return {num_accepted, next};
}

}  // namespace

std::tuple<Tensor, Tensor> verify(const Tensor& target, const Tensor& draft, const Tensor& drafted,
                                  const Tensor& uniforms) {
  return verified(token_by_token, target, draft, drafted, uniforms);
}

std::tuple<Tensor, Tensor> verify_block(const Tensor& target, const Tensor& draft, const Tensor& drafted,
                                        const Tensor& uniforms) {
  return verified(as_a_block, target, draft, drafted, uniforms);
}

TORCH_LIBRARY_FRAGMENT(specdec_lib, library) {
  library.def("draw(Tensor weights, Tensor uniforms) -> Tensor", draw);
  library.def("probabilities(Tensor logits, float temperature) -> Tensor", probabilities);
  library.def("verify(Tensor target, Tensor draft, Tensor drafted, Tensor uniforms) -> (Tensor, Tensor)", verify);
  library.def("verify_block(Tensor target, Tensor draft, Tensor drafted, Tensor uniforms) -> (Tensor, Tensor)",
              verify_block);
}

}  // namespace specdec
