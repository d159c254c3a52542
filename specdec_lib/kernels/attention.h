// Attention of a few queries over the cache of their row and head.
//
// A query's result does not depend on which others are computed with it: each adds the same numbers in the same order.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace specdec {

constexpr int64_t kKeysAhead = 32;  // keys are fetched so many positions before they are read

// Rotary position embedding of one head, halves against each other (GPT-NeoX order).
template <typename To>
void rotate(const float* x, const float* cosine, const float* sine, int64_t dim, To* out) {
  for (int64_t i = 0; i < dim / 2; i += kLanes) {
    const Floats a = load(x + i), b = load(x + dim / 2 + i), c = load(cosine + i), s = load(sine + i);
    store(out + i, fms(a, c, b * s));
    store(out + dim / 2 + i, fma(b, c, a * s));
  }
}

// e^(x - the greatest) of scores `begin` to `end` of `padded`, in place, and 0 in the others; returns 1 / their sum.
inline float exponentials(float* scores, int64_t begin, int64_t end, int64_t padded) {
  std::fill(scores, scores + begin, -INFINITY);
  std::fill(scores + end, scores + padded, -INFINITY);
  Floats top = all(-INFINITY), total = {};
  for (int64_t s = 0; s < padded; s += kLanes) top = max(top, load(scores + s));
  const Floats best = all(greatest(top));
  for (int64_t s = 0; s < padded; s += kLanes) {
    const Floats e = exponential(load(scores + s) - best);
    store(scores + s, e);
    total = total + e;
  }
  return 1.0f / sum(total);
}

// R queries `[R, dim]` against keys and values `[capacity, dim]`, of which query r sees the positions begin[r] to end[r];
// dim is a multiple of 32. Keys and values are read once for all queries, and fetched before: they lie in pieces too
// short for the processor to foresee. Result r goes to to(r).
template <int R, typename To>
void attend(const Number* query, const BFloat16* keys, const BFloat16* values, const int64_t* begin, const int64_t* end,
            int64_t dim, float scaling, std::vector<float>& scores, const To& to) {
  const int64_t first = *std::min_element(begin, begin + R), last_begin = *std::max_element(begin, begin + R);
  const int64_t shortest = *std::min_element(end, end + R), longest = *std::max_element(end, end + R);
  const int64_t origin = first / kLanes * kLanes;  // of the scores: a position has the same lane whoever else is here
  const int64_t padded = (longest + kLanes - 1) / kLanes * kLanes - origin;
  scores.resize(std::max<int64_t>(scores.size(), R * padded));
  const auto score = [&](int r, int64_t s) { return &scores[r * padded + s - origin]; };
  const auto fetch = [&](const BFloat16* from, int64_t begin, int64_t end) {
    for (int64_t i = begin * dim; i < std::min(end, longest) * dim; i += 32)
      _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T0);
  };
  const __m128 scale = _mm_set1_ps(scaling);
  __m128 products[R];
  const int64_t start = first / 4 * 4;
  fetch(keys, start, start + kKeysAhead);
  for (int64_t s = start; s < longest; s += 4) {
    fetch(keys, s + kKeysAhead, s + kKeysAhead + 4);
    fetch(values, s, s + 4);
    multiply_tile<R, 0, _MM_HINT_T0>(query, keys + s * dim, dim, nullptr, products);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) _mm_storeu_ps(score(r, s), _mm_mul_ps(products[r], scale));
  }
  float share[R];
  for (int r = 0; r < R; ++r) share[r] = exponentials(score(r, origin), begin[r] - origin, end[r] - origin, padded);
  for (int64_t i = 0; i < dim; i += 2 * kLanes) {
    Floats left[R] = {}, right[R] = {};
    const auto add = [&](int r, int64_t s) {
      const Floats weight = all(*score(r, s));
      left[r] = fma(weight, load(values + s * dim + i), left[r]);
      right[r] = fma(weight, load(values + s * dim + i + kLanes), right[r]);
    };
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      for (int64_t s = begin[r]; s < std::min(last_begin, shortest); ++s) add(r, s);
    for (int64_t s = last_begin; s < shortest; ++s) {  // what all see
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) add(r, s);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      for (int64_t s = std::max(begin[r], shortest); s < end[r]; ++s) add(r, s);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      store(to(r) + i, left[r] * all(share[r]));
      store(to(r) + i + kLanes, right[r] * all(share[r]));
    }
  }
}

}  // namespace specdec
