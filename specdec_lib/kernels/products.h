// Products of a few rows with a weight matrix: what reads every weight once, at the speed at which memory delivers them.
//
// Decoding and verification multiply a handful of rows with every weight of the model, so the time is the time to read
// the weights. Each thread streams its share of the rows of a weight matrix, four at a time, and multiplies them with
// all rows of the input while they are in registers. Weights are used where PyTorch keeps them, `[out, in]`, row by row:
// nothing is packed or copied. They are bfloat16, or 8 bits with a factor for each row, which are multiplied with inputs
// of 16 bits, in whole numbers: to make bfloat16 of them would take longer than to read them.
//
// A row's result does not depend on how many other rows are computed with it.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "decoder.h"
#include "vectors.h"

namespace specdec {

constexpr int kTile = 6;  // input rows multiplied with four weight rows at a time; or queries

// Weights are fetched before they are needed, far ahead and in the order of memory. Tiles share that, so that memory
// delivers evenly while they compute. Those that are read once a step go past the larger caches, and leave them to those
// that are read again for the next draft token.
constexpr int64_t kFarBytes = 8192;
constexpr auto kOnce = _MM_HINT_NTA, kAgain = _MM_HINT_T0;

// Call `with` with a number of rows that the compiler knows, up to kTile.
template <typename With>
inline void of_size(int rows, const With& with) {
  switch (rows) {
    case 1: return with(std::integral_constant<int, 1>());
    case 2: return with(std::integral_constant<int, 2>());
    case 3: return with(std::integral_constant<int, 3>());
    case 4: return with(std::integral_constant<int, 4>());
    case 5: return with(std::integral_constant<int, 5>());
    case 6: return with(std::integral_constant<int, 6>());
  }
}

// A weight `[n, k]`; of 8 bits the products of row i are to be multiplied with factors[i].
template <typename W, _mm_hint kHint = sizeof(W) == 1 ? kAgain : kOnce>
struct Matrix {
  const W* rows;
  int64_t n, k;
  const float* factors;
  const BFloat16* bias;
  explicit Matrix(const Weight& weight)
      : rows(weight.rows.const_data_ptr<W>()), n(weight.rows.size(0)), k(weight.rows.size(1)),
        factors(sizeof(W) == 1 ? weight.factors.const_data_ptr<float>() : nullptr),
        bias(weight.bias.defined() ? weight.bias.const_data_ptr<BFloat16>() : nullptr) {}
};

// Input rows `[rows, k]` as they are multiplied with weights of type W: with bfloat16 as they are; with 8 bits as whole
// numbers, as large as sums of their products in 32 bits allow, with a factor for each row.
template <typename W>
struct Input {
  const Number* numbers;
  Input(const Number* x, int64_t, int64_t) : numbers(x) {}
  __m128 scaled(int64_t, __m128 products, const float*, int64_t) const { return products; }
};

template <>
struct Input<int8_t> {
  std::vector<int16_t> whole;
  std::vector<float> factors;
  const int16_t* numbers;
  Input(const Number* x, int64_t rows, int64_t k) : whole(rows * k), factors(rows), numbers(whole.data()) {
    const float most = std::min<int64_t>(INT16_MAX, INT32_MAX / (INT8_MAX * 2 * (k / (2 * kLanes))));
    for (int64_t r = 0; r < rows; ++r) {
      Floats largest = {}, nothing = {};
      for (int64_t i = r * k; i < (r + 1) * k; i += kLanes) {
        largest = max(largest, abs(load(x + i)));
        nothing = fma(load(x + i), Floats{}, nothing);  // NaN for NaN and infinity
      }
      const float top = greatest(largest) + sum(nothing);
      factors[r] = top / most;
      const Floats scale = all(top > 0 ? most / top : 0.0f);
      for (int64_t i = r * k; i < (r + 1) * k; i += kLanes) store(&whole[i], load(x + i) * scale);
    }
  }
  __m128 scaled(int64_t r, __m128 products, const float* of_weight, int64_t i) const {
    return _mm_mul_ps(_mm_mul_ps(products, _mm_loadu_ps(of_weight + i)), _mm_set1_ps(factors[r]));
  }
};

// A tile of `rows` input rows, fetching `lines`: one of 0, 1, 2 and 4.
template <_mm_hint kHint, typename X, typename W>
[[gnu::noinline]] void multiply_rows(int rows, int lines, const X* x, const W* w, int64_t k, const char* ahead,
                                     __m128* products) {
  of_size(rows, [&](auto size) {
    switch (lines) {
      case 0: return multiply_tile<size, 0, kHint>(x, w, k, ahead, products);
      case 1: return multiply_tile<size, 1, kHint>(x, w, k, ahead, products);
      case 2: return multiply_tile<size, 2, kHint>(x, w, k, ahead, products);
      case 4: return multiply_tile<size, 4, kHint>(x, w, k, ahead, products);
    }
  });
}

// All `rows` input rows with the weight rows i to i + 3, which stay in the first-level cache between tiles of about equal
// size.
template <typename W, _mm_hint kHint, typename To>
inline void multiply(const Input<W>& input, int64_t rows, const Matrix<W, kHint>& weight, int64_t i, const To& to) {
  constexpr int kLines = 2 * sizeof(W);  // of the caches: 32 numbers of four rows
  const int64_t k = weight.k;
  const W* w = weight.rows + i * k;
  const char* ahead = reinterpret_cast<const char*>(w) + kFarBytes;
  const __m128 bias = weight.bias ? load_4(weight.bias + i) : _mm_setzero_ps();
  const int64_t tiles = (rows + kTile - 1) / kTile;
  const int lines = tiles == 1 ? kLines : tiles < kLines ? kLines / 2 : 1;
  __m128 products[kTile];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows * tile / tiles, next = rows * (tile + 1) / tiles;
    const int fetch = tile * lines < kLines ? lines : 0;
    multiply_rows<kHint>(next - row, fetch, input.numbers + row * k, w, k, ahead + tile * lines * 2 * k, products);
    for (int64_t r = row; r < next; ++r) to(r, _mm_add_ps(input.scaled(r, products[r - row], weight.factors, i), bias));
  }
}

// The n numbers of `x` as they are multiplied: where they are, or in `store`.
inline const BFloat16* to_multiply(const BFloat16* x, int64_t, std::vector<BFloat16>&) { return x; }
inline const float* to_multiply(const BFloat16* x, int64_t n, std::vector<float>& store) {
  store.assign(x, x + n);
  return store.data();
}

// Call `with` with a number of the type that a weight is of.
template <typename With>
inline void of_type(const Tensor& weight, const With& with) {
  weight.scalar_type() == at::kChar ? with(int8_t()) : with(BFloat16());
}

struct Share {  // the weight rows of one thread, in fours
  int64_t begin, end;
  Share(int64_t n, int thread, int threads)
      : begin(n / 4 * thread / threads * 4), end(n / 4 * (thread + 1) / threads * 4) {}
};

// RMSNorm of one row, times offset + weight.
template <typename To>
void norm(const float* x, const BFloat16* weight, float eps, int64_t n, To* out, float offset = 0) {
  Floats squares = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats v = load(x + i);
    squares = fma(v, v, squares);
  }
  const Floats scale = all(1.0f / std::sqrt(sum(squares) / n + eps));
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, load(x + i) * scale * (load(weight + i) + all(offset)));
}

// Rows `from` `[R, K]` times weight `[N, K]` to `to` `[R, N]`, each thread its share of N.
template <typename W, _mm_hint kHint>
void multiply_share(const Number* from, int64_t rows, const Matrix<W, kHint>& weight, float* to) {
  const Input<W> input(from, rows, weight.k);
  const int64_t n = weight.n;
  const Share mine((n + 3) / 4 * 4, omp_get_thread_num(), omp_get_num_threads());
  for (int64_t four = mine.begin; four < mine.end; four += 4) {
    const int64_t i = std::min(four, n - 4);  // where n is no multiple of four, some rows are computed once more
    multiply(input, rows, weight, i, [&](int64_t r, __m128 y) { store_from(to + r * n + i, y, four - i); });
  }
}

inline void check_weight(const Weight& weight, int64_t k) {
  const auto& [rows, factors, bias] = weight;
  const bool eight_bits = rows.scalar_type() == at::kChar;
  check(rows, eight_bits ? at::kChar : at::kBFloat16, "a weight");
  TORCH_CHECK(factors.defined() == eight_bits, "weights of 8 bits, and no others, have factors");
  if (eight_bits) check(factors, at::kFloat, "factors");
  if (bias.defined()) check(bias, at::kBFloat16, "a bias");
  for (const Tensor& each : {factors, bias})
    TORCH_CHECK(!each.defined() || each.numel() == rows.size(0), "a weight is ", rows.sizes(), ": it must have as many ",
                "factors as rows, and numbers of a bias, not ", each.numel());
  TORCH_CHECK(rows.size(-1) == k && k % 32 == 0 && rows.size(0) >= 4, "a weight is ", rows.sizes(), ": its rows must be ",
              "at least 4, of ", k, " numbers, a multiple of 32");
}

}  // namespace specdec
