// A Llama-like decoder for a few rows at a time on CPUs: what reads every weight once, at the speed at which memory
// delivers them.
//
// Decoding and verification multiply a handful of rows with every weight of the model, so the time is the time to read
// the weights. Each thread streams its share of the rows of a weight matrix, four at a time, and multiplies them with
// all rows of the input while they are in registers. All layers run in one parallel region with a barrier between
// phases. Weights are used where PyTorch keeps them, `[out, in]`, row by row: nothing is packed or copied. They are
// bfloat16, or 8 bits with a factor for each row: those of a draft, whose quality may suffer and nothing else. These are
// multiplied with inputs of 16 bits, in whole numbers: to make bfloat16 of them would take longer than to read them.
//
// A row's result does not depend on how many other rows are computed with it: verifying gamma + 1 tokens at once gives
// bit for bit the logits of decoding them one at a time.

#include "decoder.h"

#include <ATen/Parallel.h>
#include <omp.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace specdec {
namespace {

constexpr int kFewRows = 32;  // so many are normalised by every thread for itself
constexpr int kTile = 6;  // input rows multiplied with four weight rows at a time; or queries

// Weights are fetched before they are needed, far ahead and in the order of memory. Tiles share that, so that memory
// delivers evenly while they compute. Those that are read once a step go past the larger caches, and leave them to those
// that are read again for the next draft token.
constexpr int64_t kFarBytes = 8192;
constexpr auto kOnce = _MM_HINT_NTA, kAgain = _MM_HINT_T0;
constexpr int64_t kKeysAhead = 32;  // attention fetches keys so many positions before it reads them

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

// A weight `[n, k]`; of 8 bits, which are those of a draft, the products of row i are to be multiplied with factors[i].
template <typename W, _mm_hint kHint = sizeof(W) == 1 ? kAgain : kOnce>
struct Matrix {
  const W* rows;
  int64_t n, k;
  const float* factors;
  Matrix(const Tensor& weight, const Tensor& factors)
      : rows(weight.const_data_ptr<W>()), n(weight.size(0)), k(weight.size(1)),
        factors(sizeof(W) == 1 ? factors.const_data_ptr<float>() : nullptr) {}
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
  const int64_t tiles = (rows + kTile - 1) / kTile;
  const int lines = tiles == 1 ? kLines : tiles < kLines ? kLines / 2 : 1;
  __m128 products[kTile];
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = rows * tile / tiles, next = rows * (tile + 1) / tiles;
    const int fetch = tile * lines < kLines ? lines : 0;
    multiply_rows<kHint>(next - row, fetch, input.numbers + row * k, w, k, ahead + tile * lines * 2 * k, products);
    for (int64_t r = row; r < next; ++r) to(r, input.scaled(r, products[r - row], weight.factors, i));
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

template <typename To>
void norm(const float* x, const BFloat16* weight, float eps, int64_t n, To* out) {  // RMSNorm of one row
  Floats squares = {};
  for (int64_t i = 0; i < n; i += kLanes) {
    const Floats v = load(x + i);
    squares = fma(v, v, squares);
  }
  const Floats scale = all(1.0f / std::sqrt(sum(squares) / n + eps));
  for (int64_t i = 0; i < n; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
}

// Rotary position embedding of one head, halves against each other (GPT-NeoX order).
template <typename To>
void rotate(const float* x, const float* cosine, const float* sine, int64_t dim, To* out) {
  for (int64_t i = 0; i < dim / 2; i += kLanes) {
    const Floats a = load(x + i), b = load(x + dim / 2 + i), c = load(cosine + i), s = load(sine + i);
    store(out + i, fms(a, c, b * s));
    store(out + dim / 2 + i, fma(b, c, a * s));
  }
}

// e^(x - the greatest) of the first `length` of `padded` scores, in place and 0 in the others; returns 1 / their sum.
float exponentials(float* scores, int64_t length, int64_t padded) {
  for (int64_t s = length; s < padded; ++s) scores[s] = -INFINITY;
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

// R queries `[R, dim]` against keys and values `[capacity, dim]`, of which query r sees the first length[r]; dim is a
// multiple of 32. Keys and values are read once for all queries, and fetched before: they lie in pieces too short for the
// processor to foresee. Result r goes to to(r).
template <int R, typename To>
void attend(const Number* query, const BFloat16* keys, const BFloat16* values, const int64_t* length, int64_t dim,
            float scaling, std::vector<float>& scores, const To& to) {
  const int64_t shortest = *std::min_element(length, length + R), longest = *std::max_element(length, length + R);
  const int64_t padded = (longest + kLanes - 1) / kLanes * kLanes;
  scores.resize(std::max<int64_t>(scores.size(), R * padded));
  const auto fetch = [&](const BFloat16* from, int64_t begin, int64_t end) {
    for (int64_t i = begin * dim; i < std::min(end, longest) * dim; i += 32)
      _mm_prefetch(reinterpret_cast<const char*>(from + i), _MM_HINT_T0);
  };
  const __m128 scale = _mm_set1_ps(scaling);
  __m128 products[R];
  fetch(keys, 0, kKeysAhead);
  for (int64_t s = 0; s < longest; s += 4) {
    fetch(keys, s + kKeysAhead, s + kKeysAhead + 4);
    fetch(values, s, s + 4);
    multiply_tile<R, 0, _MM_HINT_T0>(query, keys + s * dim, dim, nullptr, products);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) _mm_storeu_ps(&scores[r * padded + s], _mm_mul_ps(products[r], scale));
  }
  float share[R];
  for (int r = 0; r < R; ++r) share[r] = exponentials(&scores[r * padded], length[r], padded);
  for (int64_t i = 0; i < dim; i += 2 * kLanes) {
    Floats left[R] = {}, right[R] = {};
    const auto add = [&](int r, int64_t s) {
      const Floats weight = all(scores[r * padded + s]);
      left[r] = fma(weight, load(values + s * dim + i), left[r]);
      right[r] = fma(weight, load(values + s * dim + i + kLanes), right[r]);
    };
    for (int64_t s = 0; s < shortest; ++s) {
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) add(r, s);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
      for (int64_t s = shortest; s < length[r]; ++s) add(r, s);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      store(to(r) + i, left[r] * all(share[r]));
      store(to(r) + i + kLanes, right[r] * all(share[r]));
    }
  }
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

void check_weight(const Tensor& weight, const Tensor& factors, int64_t k) {
  const bool eight_bits = weight.scalar_type() == at::kChar;
  check(weight, eight_bits ? at::kChar : at::kBFloat16, "a weight");
  TORCH_CHECK(factors.defined() == eight_bits, "weights of 8 bits, and no others, have factors");
  if (eight_bits) check(factors, at::kFloat, "factors");
  TORCH_CHECK(!eight_bits || factors.numel() == weight.size(0), "a weight of 8 bits is ", weight.sizes(), ": it must ",
              "have as many factors as rows, not ", factors.numel());
  TORCH_CHECK(weight.size(-1) == k && k % 32 == 0 && weight.size(0) >= 4, "a weight is ", weight.sizes(), ": its rows must ",
              "be at least 4, of ", k, " numbers, a multiple of 32");
}

void check_tokens(const Tensor& tokens, int64_t vocabulary) {
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i)
    TORCH_CHECK_INDEX(token[i] >= 0 && token[i] < vocabulary, "token ", token[i], " is none of ", vocabulary);
}

}  // namespace

// x `[R, K]` bfloat16 times weight `[N, K]`, bfloat16 or int8 with factors `[N]` float32, to `[R, N]` float32.
Tensor linear(const Tensor& x, const Tensor& weight, const Factors& given) {
  const Tensor factors = given.value_or(Tensor());
  check(x, at::kBFloat16, "x");
  check_weight(weight, factors, x.size(1));
  Tensor out = at::empty({x.size(0), weight.size(0)}, x.options().dtype(at::kFloat));
  float* to = out.mutable_data_ptr<float>();
  std::vector<Number> store;
  const Number* from = to_multiply(x.const_data_ptr<BFloat16>(), x.numel(), store);
  of_type(weight, [&](auto number) {
    const Matrix<decltype(number)> matrix(weight, factors);
#pragma omp parallel num_threads(at::get_num_threads())
    multiply_share(from, x.size(0), matrix, to);
  });
  return out;
}

// The same of x `[R, K]` float32 after RMSNorm with weights `norm_weight` `[K]`.
Tensor norm_linear(const Tensor& x, const Tensor& norm_weight, double eps, const Tensor& weight,
                   const Factors& given) {
  const Tensor factors = given.value_or(Tensor());
  const int64_t rows = x.size(0), k = x.size(1);
  check(x, at::kFloat, "x");
  check(norm_weight, at::kBFloat16, "norm_weight");
  check_weight(weight, factors, k);
  Tensor out = at::empty({rows, weight.size(0)}, x.options());
  float* to = out.mutable_data_ptr<float>();
  of_type(weight, [&](auto number) {
    const Matrix<decltype(number)> matrix(weight, factors);
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
  check_weight(weight, {}, 2 * width);
  TORCH_CHECK(tokens.numel() == rows && embeddings.size(1) == width, "embeddings ", embeddings.sizes(), " and states ",
              states.sizes(), " of ", rows, " tokens do not belong together");
  check_tokens(tokens, embeddings.size(0));
  Tensor out = at::empty({rows, weight.size(0)}, states.options());
  const BFloat16* table = embeddings.const_data_ptr<BFloat16>();
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  float* to = out.mutable_data_ptr<float>();
  const Matrix<BFloat16, kAgain> matrix(weight, {});
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

enum Weight { kAttentionNorm, kQuery, kKey, kValue, kAttentionOut, kMlpNorm, kGate, kUp, kDown, kWeights };

// Run the layers over B rows of m tokens: x `[B * m, H]` float32 in place. `weights` holds kWeights tensors a layer, and
// `factors` as many if matrices are of 8 bits (of norms they are not looked at); keys and values
// `[B, kv_heads, capacity, D]` one a layer; slots `[B, m]` says where each token goes in them, positions `[B, m]` and
// frequencies `[D / 2]` how it is turned. `columns[l]` is the column of `features` `[B * m, F]` bfloat16 that layer l's
// output goes to, or -1.
static void run_layers(Tensor& x, at::TensorList weights, at::TensorList factors, at::TensorList keys,
                       at::TensorList values, const Tensor& slots, const Tensor& positions, const Tensor& frequencies,
                       double rotary_scaling, int64_t heads, double eps, double scaling,
                       const std::vector<int64_t>& columns, Tensor& features) {
  const int64_t tokens = slots.size(1), rows = x.size(0);
  check(x, at::kFloat, "x");
  check(slots, at::kLong, "slots");
  check(positions, at::kLong, "positions");
  check(frequencies, at::kFloat, "frequencies");
  const bool eight_bits = weights[kQuery].scalar_type() == at::kChar;
  TORCH_CHECK(factors.size() == (eight_bits ? weights.size() : 0), "there are ", factors.size(), " factors");
  for (size_t i = 0; i < weights.size(); ++i) {
    if (weights[i].dim() == 1) {
      check(weights[i], at::kBFloat16, "a norm's weight");
    } else {
      TORCH_CHECK((weights[i].scalar_type() == at::kChar) == eight_bits, "all matrices must be of one type");
      check_weight(weights[i], eight_bits ? factors[i] : Tensor(), weights[i].size(1));
    }
  }
  const int64_t layers = keys.size(), kv_heads = keys[0].size(1), capacity = keys[0].size(2), dim = keys[0].size(3);
  TORCH_CHECK(capacity % 4 == 0, "keys of ", capacity, " positions: attention reads four at a time");
  const int64_t width = x.size(1), inner = weights[kGate].size(0);
  const int64_t q_size = heads * dim, kv_size = kv_heads * dim, projected = q_size + 2 * kv_size;
  const int64_t* place = slots.const_data_ptr<int64_t>();
  std::vector<float> cosine(rows * dim / 2), sine(rows * dim / 2);
  const int64_t batch = rows / tokens, group = heads / kv_heads, queries = tokens * group;  // of a row and a head of keys
  const int64_t tiles = (queries + kTile - 1) / kTile;
  const bool few = rows <= kFewRows;
  std::vector<Number> normed_by_all(few ? 0 : rows * width);
  float* state = x.mutable_data_ptr<float>();
  BFloat16* feature = features.mutable_data_ptr<BFloat16>();
  const int64_t feature_size = features.size(1);
  Tensor qkv_buffer = at::empty({rows, projected}, x.options());
  const auto numbers = x.options().dtype(c10::CppTypeToScalarType<Number>::value);
  Tensor query_buffer = at::empty({rows, q_size}, numbers);  // `[B, kv_heads, queries, D]`
  Tensor attended_buffer = at::empty({rows, q_size}, numbers), inner_buffer = at::empty({rows, inner}, numbers);
  float* qkv = qkv_buffer.mutable_data_ptr<float>();
  Number *query = query_buffer.mutable_data_ptr<Number>(), *attended = attended_buffer.mutable_data_ptr<Number>();
  Number* mlp = inner_buffer.mutable_data_ptr<Number>();

  of_type(weights[kQuery], [&](auto number) {
#pragma omp parallel num_threads(at::get_num_threads())
    {
      const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
      std::vector<Number> normed_by_one(few ? rows * width : 0);
      std::vector<float> scores;
      Number* normed = few ? normed_by_one.data() : normed_by_all.data();
      const auto normalise = [&](const Tensor& weight) {  // of few rows every thread all: cheaper than a barrier
        for (int64_t r = few ? 0 : thread; r < rows; r += few ? 1 : threads)
          norm(state + r * width, weight.const_data_ptr<BFloat16>(), eps, width, normed + r * width);
        if (!few) {
#pragma omp barrier
        }
      };
      for (int64_t r = thread; r < rows; r += threads)
        for (int64_t i = 0; i < dim / 2; ++i) {
          const float angle = positions.const_data_ptr<int64_t>()[r] * frequencies.const_data_ptr<float>()[i];
          cosine[r * dim / 2 + i] = std::cos(angle) * rotary_scaling;
          sine[r * dim / 2 + i] = std::sin(angle) * rotary_scaling;
        }
      const auto matrix = [&](int64_t layer, Weight which) {
        const int64_t i = layer * kWeights + which;
        return Matrix<decltype(number)>(weights[i], factors.empty() ? weights[i] : factors[i]);
      };
      const auto add_product = [&](const Number* from, const auto& weight) {  // state += from @ weight.T
        const Share mine(width, thread, threads);
        const Input<decltype(number)> input(from, rows, weight.k);
        for (int64_t i = mine.begin; i < mine.end; i += 4)
          multiply(input, rows, weight, i, [&](int64_t r, __m128 y) {
            float* to = state + r * width + i;
            _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), y));
          });
      };
      for (int64_t layer = 0; layer < layers; ++layer) {
        BFloat16 *k_cache = keys[layer].mutable_data_ptr<BFloat16>(), *v_cache = values[layer].mutable_data_ptr<BFloat16>();

        normalise(weights[layer * kWeights + kAttentionNorm]);
        const Input<decltype(number)> to_attention(normed, rows, width);
        const auto query_rows = matrix(layer, kQuery), key_rows = matrix(layer, kKey), value_rows = matrix(layer, kValue);
        const Share mine(projected, thread, threads);
        for (int64_t i = mine.begin; i < mine.end; i += 4) {
          const bool is_query = i < q_size, is_key = i < q_size + kv_size;
          const int64_t within = is_query ? i : is_key ? i - q_size : i - q_size - kv_size;
          multiply(to_attention, rows, is_query ? query_rows : is_key ? key_rows : value_rows, within,
                   [&](int64_t r, __m128 y) { _mm_storeu_ps(qkv + r * projected + i, y); });
        }
#pragma omp barrier
        for (int64_t unit = thread; unit < rows * (heads + kv_heads); unit += threads) {  // turn queries and keys
          const int64_t r = unit / (heads + kv_heads), head = unit % (heads + kv_heads), b = r / tokens;
          const float* from = qkv + r * projected + head * dim;
          const float *c = &cosine[r * dim / 2], *s = &sine[r * dim / 2];
          if (head < heads) {
            const int64_t to = ((b * kv_heads + head / group) * tokens + r % tokens) * group + head % group;
            rotate(from, c, s, dim, query + to * dim);
          } else {
            const int64_t slot = ((b * kv_heads + head - heads) * capacity + place[r]) * dim;
            rotate(from, c, s, dim, k_cache + slot);
            for (int64_t i = 0; i < dim; i += kLanes) store(v_cache + slot + i, load(from + kv_size + i));
          }
        }
#pragma omp barrier
        for (int64_t unit = thread; unit < batch * kv_heads * tiles; unit += threads) {
          const int64_t of = unit / tiles, tile = unit % tiles, b = of / kv_heads, head = of % kv_heads * group;
          const int64_t first = queries * tile / tiles, many = queries * (tile + 1) / tiles - first;
          int64_t length[kTile];
          for (int64_t r = 0; r < many; ++r) length[r] = place[b * tokens + (first + r) / group] + 1;
          of_size(many, [&](auto size) {
            attend<size>(query + (of * queries + first) * dim, k_cache + of * capacity * dim, v_cache + of * capacity * dim,
                         length, dim, scaling, scores, [&](int r) {
                           const int64_t row = b * tokens + (first + r) / group;
                           return attended + row * q_size + (head + (first + r) % group) * dim;
                         });
          });
        }
#pragma omp barrier
        add_product(attended, matrix(layer, kAttentionOut));
#pragma omp barrier
        normalise(weights[layer * kWeights + kMlpNorm]);
        const Share inside(inner, thread, threads);
        const Input<decltype(number)> to_mlp(normed, rows, width);
        const auto gate = matrix(layer, kGate), up = matrix(layer, kUp);
        std::vector<float> gated(rows * kLanes), raised(rows * kLanes);  // columns for a vector exponential
        for (int64_t i = inside.begin; i < inside.end; i += kLanes) {
          const int64_t many = std::min<int64_t>(kLanes, inside.end - i);
          for (int64_t j = 0; j < many; j += 4) {
            multiply(to_mlp, rows, gate, i + j,
                     [&](int64_t r, __m128 y) { _mm_storeu_ps(&gated[r * kLanes + j], y); });
            multiply(to_mlp, rows, up, i + j,
                     [&](int64_t r, __m128 y) { _mm_storeu_ps(&raised[r * kLanes + j], y); });
          }
          for (int64_t r = 0; r < rows; ++r) {
            const Floats g = load(&gated[r * kLanes]), falling = exponential(Floats{} - g);
            store_first(mlp + r * inner + i, g / (all(1.0f) + falling) * load(&raised[r * kLanes]), many);
          }
        }
#pragma omp barrier
        add_product(mlp, matrix(layer, kDown));
#pragma omp barrier
        if (columns[layer] >= 0)
          for (int64_t r = thread; r < rows; r += threads)
            for (int64_t i = 0; i < width; i += kLanes)
              store(feature + r * feature_size + columns[layer] + i, load(state + r * width + i));
      }
    }
  });
}

// Run the layers, nothing else.
void decoder_layers(Tensor& x, at::TensorList weights, at::TensorList factors, at::TensorList keys,
                    at::TensorList values, const Tensor& slots, const Tensor& positions, const Tensor& frequencies,
                    double rotary_scaling, int64_t heads, double eps, double scaling) {
  Tensor nothing = at::empty({x.size(0), 0}, x.options().dtype(at::kBFloat16));
  run_layers(x, weights, factors, keys, values, slots, positions, frequencies, rotary_scaling, heads, eps, scaling,
             std::vector<int64_t>(keys.size(), -1), nothing);
}

// Tokens `[B, m]` through `embeddings` `[V, H]`, the layers and the last norm: hidden states `[B, m, H]` and features
// `[B, m, F]`, which are the outputs of the layers `taps` and the hidden states, side by side; bfloat16.
std::tuple<Tensor, Tensor> decoder(const Tensor& tokens, const Tensor& embeddings, at::TensorList weights,
                                   at::TensorList keys, at::TensorList values, const Tensor& slots,
                                   const Tensor& positions, const Tensor& frequencies, double rotary_scaling,
                                   int64_t heads, double eps, double scaling, at::IntArrayRef taps,
                                   const Tensor& last_norm) {
  check(tokens, at::kLong, "tokens");
  check(embeddings, at::kBFloat16, "embeddings");
  check(last_norm, at::kBFloat16, "last_norm");
  check_tokens(tokens, embeddings.size(0));
  TORCH_CHECK(slots.sizes() == tokens.sizes() && positions.sizes() == tokens.sizes() && keys[0].size(0) == tokens.size(0),
              "tokens ", tokens.sizes(), ", slots ", slots.sizes(), ", positions ", positions.sizes(), " and a cache of ",
              keys[0].size(0), " rows do not belong together");
  const int64_t batch = tokens.size(0), many = tokens.size(1), rows = batch * many;
  const int64_t width = embeddings.size(1), tapped = taps.size() * width;
  Tensor hidden = at::empty({batch, many, width}, embeddings.options());
  Tensor features = at::empty({rows, tapped + width}, embeddings.options());
  Tensor x = at::empty({rows, width}, embeddings.options().dtype(at::kFloat));
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  const BFloat16* table = embeddings.const_data_ptr<BFloat16>();
  float* state = x.mutable_data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; i += kLanes) store(state + r * width + i, load(table + token[r] * width + i));
  std::vector<int64_t> columns(keys.size(), -1);
  for (size_t i = 0; i < taps.size(); ++i) {
    TORCH_CHECK_INDEX(taps[i] >= 0 && taps[i] < int64_t(columns.size()) && columns[taps[i]] < 0, "layer ", taps[i],
                      " is none of ", columns.size(), ", or is named twice");
    columns[taps[i]] = i * width;
  }
  run_layers(x, weights, {}, keys, values, slots, positions, frequencies, rotary_scaling, heads, eps, scaling, columns,
             features);
  BFloat16 *of_hidden = hidden.mutable_data_ptr<BFloat16>(), *of_features = features.mutable_data_ptr<BFloat16>();
  for (int64_t r = 0; r < rows; ++r) {
    norm(state + r * width, last_norm.const_data_ptr<BFloat16>(), eps, width, of_hidden + r * width);
    std::copy_n(of_hidden + r * width, width, of_features + r * (tapped + width) + tapped);
  }
  return {hidden, features.view({batch, many, -1})};
}

TORCH_LIBRARY(specdec_lib, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? factors=None) -> Tensor", linear);
  library.def(
      "norm_linear(Tensor x, Tensor norm_weight, float eps, Tensor weight, Tensor? factors=None) -> Tensor", norm_linear);
  library.def("join(Tensor tokens, Tensor embeddings, Tensor states, float eps, Tensor weight) -> Tensor", join);
  library.def(
      "decoder_layers(Tensor(a!) x, Tensor[] weights, Tensor[] factors, Tensor(b!)[] keys, Tensor(c!)[] values, "
      "Tensor slots, Tensor positions, Tensor frequencies, float rotary_scaling, int heads, float eps, float scaling) "
      "-> ()",
      decoder_layers);
  library.def(
      "decoder(Tensor tokens, Tensor embeddings, Tensor[] weights, Tensor(a!)[] keys, Tensor(b!)[] values, Tensor slots, "
      "Tensor positions, Tensor frequencies, float rotary_scaling, int heads, float eps, float scaling, int[] taps, "
      "Tensor last_norm) -> (Tensor, Tensor)",
      decoder);
}

}  // namespace specdec
