// Vectors of eight floats, and products of float32: processors with AVX2 and FMA. Names as in avx512.h.

#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>

namespace specdec {

using c10::BFloat16;

constexpr int kLanes = 8;
using Floats = __m256;
struct Doubles {
  __m256d low, high;
  friend Doubles operator+(Doubles a, Doubles b) { return {a.low + b.low, a.high + b.high}; }
  friend Doubles operator-(Doubles a, Doubles b) { return {a.low - b.low, a.high - b.high}; }
  friend Doubles operator*(Doubles a, double b) { return {a.low * b, a.high * b}; }
};
using Number = float;  // what inputs are multiplied as

inline __m256i first(int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Floats load(const float* p) { return _mm256_loadu_ps(p); }
inline Floats load(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline Floats load_first(const float* p, int64_t count, float others) {
  if (count >= kLanes) return load(p);  // masks cost far more than the branch, stores most of all
  const __m256i mask = first(count);
  return _mm256_blendv_ps(all(others), _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask));
}

inline void store(float* p, Floats v) { _mm256_storeu_ps(p, v); }
inline void store(BFloat16* p, Floats v) {  // the nearest, the even one of two; NaN stays NaN
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7FFF)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  const __m256i half = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, _mm256_set1_epi32(0x7FC00000), nan), 16);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}
inline void store(int16_t* p, Floats v) {  // the nearest whole numbers
  const __m256i whole = _mm256_cvtps_epi32(v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
inline void store_first(float* p, Floats v, int64_t count) {
  count >= kLanes ? store(p, v) : _mm256_maskstore_ps(p, first(count), v);
}
inline void store_from(float* p, __m128 v, int begin) {
  if (begin == 0) return _mm_storeu_ps(p, v);
  _mm_maskstore_ps(p, _mm_cmpgt_epi32(_mm_setr_epi32(0, 1, 2, 3), _mm_set1_epi32(begin - 1)), v);
}

inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }  // a b + c
inline Floats fms(Floats a, Floats b, Floats c) { return _mm256_fmsub_ps(a, b, c); }  // a b - c
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a b
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b where one of them is NaN
inline Floats abs(Floats v) { return _mm256_andnot_ps(all(-0.0f), v); }
inline Floats rounded(Floats v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Floats times_power_of_2(Floats v, Floats n) {  // of |n| up to 150 and of any above, whose power is infinite
  const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps(n, all(150.0f))), half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
  };
  return v * power(half) * power(_mm256_sub_epi32(whole, half));
}
inline float sum(Floats v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float greatest(Floats v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline unsigned equal(Floats a, Floats b) {  // a bit for each lane
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
inline unsigned unordered(Floats v) { return _mm256_movemask_ps(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)); }

inline Doubles widened(__m256 v) {
  return {_mm256_cvtps_pd(_mm256_castps256_ps128(v)), _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1))};
}
inline Doubles positive(Doubles v) {  // 0 where a number is not above it
  return {_mm256_max_pd(v.low, _mm256_setzero_pd()), _mm256_max_pd(v.high, _mm256_setzero_pd())};
}
inline double sum(Doubles v) {
  const __m256d both = v.low + v.high;
  const __m128d half = _mm_add_pd(_mm256_castpd256_pd128(both), _mm256_extractf128_pd(both, 1));
  return half[0] + half[1];
}

// Operands of products, and sums of the products of eight floats, or, exact, of sixteen whole numbers.
inline __m256 operand(const float* p) { return load(p); }
inline __m256 operand(const BFloat16* p) { return load(p); }
inline __m256i operand(const int16_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline __m256i operand(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256 add_products(__m256 sum, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, sum); }
inline __m256i add_products(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
inline __m256 to_float(__m256 sum) { return sum; }
inline __m256 to_float(__m256i sum) { return _mm256_cvtepi32_ps(sum); }

inline __m128 sums(__m256 a, __m256 b, __m256 c, __m256 d) {  // the sum of each of four vectors
  const __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// The products of R input rows `x` with four weight rows `w`; `k` numbers of each, a multiple of 32. For every 32 of
// them kLines lines `ahead` are fetched. More than three input rows are multiplied with two weight rows at a time: 12 of
// 16 registers accumulate.
template <int R, int kLines, _mm_hint kHint, typename X, typename W>
void multiply_tile(const X* x, const W* w, int64_t k, const char* ahead, __m128* products) {
  constexpr int kTogether = R > 3 ? 2 : 4, kStep = sizeof(W) == 1 ? 16 : 8;
  __m256 total[R][4];
#pragma GCC unroll 2
  for (int begin = 0; begin < 4; begin += kTogether, w += kTogether * k) {
    const int lines = kTogether == 4 ? kLines : begin == 0 ? (kLines + 1) / 2 : kLines / 2;
    decltype(operand(w)) sum[R][kTogether] = {};
    for (int64_t i = 0; i < k; i += 32) {
      for (int j = 0; j < lines; ++j, ahead += 64) _mm_prefetch(ahead, kHint);
#pragma GCC unroll 4
      for (int64_t at = i; at < i + 32; at += kStep) {
        decltype(operand(w)) weight[kTogether];
#pragma GCC unroll 4
        for (int j = 0; j < kTogether; ++j) {
          weight[j] = operand(w + j * k + at);
          asm("" : "+x"(weight[j]));  // else GCC loads it again for every input row, and those for every weight row
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          auto v = operand(x + r * k + at);
          asm("" : "+x"(v));
#pragma GCC unroll 4
          for (int j = 0; j < kTogether; ++j) sum[r][j] = add_products(sum[r][j], v, weight[j]);
        }
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) total[r][begin + j] = to_float(sum[r][j]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) products[r] = sums(total[r][0], total[r][1], total[r][2], total[r][3]);
}

}  // namespace specdec
