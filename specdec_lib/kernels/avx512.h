// Vectors of sixteen floats, and products of bfloat16 as they are: processors with AVX-512 BF16 and VNNI.

#pragma once

#include <c10/util/BFloat16.h>
#include <immintrin.h>

#include <type_traits>

namespace specdec {

using c10::BFloat16;

constexpr int kLanes = 16;
using Floats = __m512;
using Doubles = __m512d;
using Number = BFloat16;  // what inputs are multiplied as

inline __mmask16 first(int64_t count) { return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1 << count) - 1); }

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats load(const float* p) { return _mm512_loadu_ps(p); }
inline Floats load(const BFloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline Floats load_first(const float* p, int64_t count, float others) {
  return _mm512_mask_loadu_ps(all(others), first(count), p);
}

inline void store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
inline void store(BFloat16* p, Floats v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
inline void store(int16_t* p, Floats v) {  // the nearest whole numbers
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(v)));
}
inline void store_first(float* p, Floats v, int64_t count) { _mm512_mask_storeu_ps(p, first(count), v); }
inline void store_first(BFloat16* p, Floats v, int64_t count) {
  _mm256_mask_storeu_epi16(p, first(count), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
inline void store_from(float* p, __m128 v, int begin) { _mm_mask_storeu_ps(p, 0xF << begin & 0xF, v); }

inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
inline Floats fms(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }  // a b - c
inline Floats fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a b
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b where one of them is NaN
inline Floats abs(Floats v) { return _mm512_abs_ps(v); }
inline Floats rounded(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT); }
inline Floats times_power_of_2(Floats v, Floats n) { return _mm512_scalef_ps(v, n); }
inline float sum(Floats v) { return _mm512_reduce_add_ps(v); }
inline float greatest(Floats v) { return _mm512_reduce_max_ps(v); }
inline unsigned equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }  // a bit for each lane
inline unsigned unordered(Floats v) { return _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q); }

inline Doubles widened(__m256 v) { return _mm512_cvtps_pd(v); }
inline Doubles positive(Doubles v) { return _mm512_max_pd(v, _mm512_setzero_pd()); }  // 0 where a number is not above it
inline double sum(Doubles v) { return _mm512_reduce_add_pd(v); }

inline __m512bh load_32(const BFloat16* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
inline __m512i load_32(const int16_t* p) { return _mm512_loadu_si512(p); }
inline __m512i load_32(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Sums of sixteen pairs of products; those of whole numbers are exact.
inline __m512 add_products(__m512 sum, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(sum, a, b); }
inline __m512i add_products(__m512i sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
inline __m512 to_float(__m512 sum) { return sum; }
inline __m512 to_float(__m512i sum) { return _mm512_cvtepi32_ps(sum); }

inline __m128 sums(__m512 a, __m512 b, __m512 c, __m512 d) {  // the sum of each of four vectors
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 quarters = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps(quarters, 1));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

// The products of R input rows `x` with four weight rows `w`; `k` numbers of each, a multiple of 32. For every 32 of
// them kLines lines `ahead` are fetched. 24 of 32 registers accumulate six rows.
template <int R, int kLines, _mm_hint kHint, typename X, typename W>
void multiply_tile(const X* x, const W* w, int64_t k, const char* ahead, __m128* products) {
  std::conditional_t<sizeof(W) == 1, __m512i, __m512> sum[R][4] = {};
  for (int64_t i = 0; i < k; i += 32) {
    auto w0 = load_32(w + i), w1 = load_32(w + k + i), w2 = load_32(w + 2 * k + i), w3 = load_32(w + 3 * k + i);
    asm("" : "+v"(w0), "+v"(w1), "+v"(w2), "+v"(w3));  // else GCC loads them again for every input row
    for (int j = 0; j < kLines; ++j, ahead += 64) _mm_prefetch(ahead, kHint);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const auto v = load_32(x + r * k + i);
      sum[r][0] = add_products(sum[r][0], v, w0);
      sum[r][1] = add_products(sum[r][1], v, w1);
      sum[r][2] = add_products(sum[r][2], v, w2);
      sum[r][3] = add_products(sum[r][3], v, w3);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
    products[r] = sums(to_float(sum[r][0]), to_float(sum[r][1]), to_float(sum[r][2]), to_float(sum[r][3]));
}

}  // namespace specdec
