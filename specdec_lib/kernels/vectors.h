// Vectors of sixteen floats, bfloat16 numbers read and written as such, and the checks that all kernels make.

#pragma once

#include <ATen/core/Tensor.h>
#include <immintrin.h>

namespace specdec {

using at::BFloat16;
using at::Tensor;

inline __m512bh load(const BFloat16* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
inline __m512i load(const int16_t* p) { return _mm512_loadu_si512(p); }
inline __m512i load(const int8_t* p) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
// Sums of sixteen pairs of products; those of whole numbers are exact.
inline __m512 add_products(__m512 sum, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(sum, a, b); }
inline __m512i add_products(__m512i sum, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(sum, a, b); }
inline __m512 to_float(__m512 sum) { return sum; }
inline __m512 to_float(__m512i sum) { return _mm512_cvtepi32_ps(sum); }
inline __m512 to_float(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
inline __m512 load_bf16(const BFloat16* p) { return to_float(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store_bf16(BFloat16* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}

// e^x to about 2 units in the last place, 0 below -104; NaN stays NaN.
inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // in this order a NaN passes
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts
  f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  p = _mm512_fmadd_ps(_mm512_mul_ps(p, f), f, _mm512_add_ps(f, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

inline void check(const Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(t.is_contiguous() && t.is_cpu() && t.scalar_type() == dtype && t.numel() > 0, name, " is ", t.scalar_type(),
              " ", t.sizes(), ": it must be a contiguous, not empty CPU tensor of ", dtype);
}

}  // namespace specdec
