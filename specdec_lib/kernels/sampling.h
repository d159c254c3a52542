// Drawing from one distribution; described where it is defined.

#pragma once

#include <cstdint>

namespace specdec {

void softmax(const float* logits, int64_t n, float temperature, float* probs);
int64_t invert(const float* weights, int64_t n, double uniform);

}  // namespace specdec
