// What all kernels share: the vectors of this processor, an exponential of them, and the checks of tensors.

#pragma once

#include <ATen/core/Tensor.h>

#ifdef __AVX512BF16__
#include "avx512.h"
#else
#include "avx2.h"
#endif

namespace specdec {

using at::Tensor;

// e^x to about 2 units in the last place, 0 below -104; NaN stays NaN.
inline Floats exponential(Floats x) {
  x = max(all(-104.0f), x);  // in this order a NaN passes
  const Floats n = rounded(x * all(1.44269504f));
  Floats f = fnma(n, all(0.693359375f), x);  // ln 2 in two parts
  f = fnma(n, all(-2.12194440e-4f), f);
  Floats p = all(1.9875691500e-4f);
  for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fma(p, f, all(c));
  p = fma(p * f, f, f + all(1.0f));
  return times_power_of_2(p, n);
}

inline void check(const Tensor& t, at::ScalarType dtype, const char* name) {
  TORCH_CHECK(t.is_contiguous() && t.is_cpu() && t.scalar_type() == dtype && t.numel() > 0, name, " is ", t.scalar_type(),
              " ", t.sizes(), ": it must be a contiguous, not empty CPU tensor of ", dtype);
}

inline void check_tokens(const Tensor& tokens, int64_t vocabulary) {
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i)
    TORCH_CHECK_INDEX(token[i] >= 0 && token[i] < vocabulary, "token ", token[i], " is none of ", vocabulary);
}

inline __m128 load_4(const BFloat16* p) {
  const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16));
}

}  // namespace specdec
