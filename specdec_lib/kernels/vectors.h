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

}  // namespace specdec
