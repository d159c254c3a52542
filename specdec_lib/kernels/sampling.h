// One distribution at a time; described where they are defined.

#pragma once

#include <cstdint>

namespace specdec {

void softmax(const float* logits, int64_t n, float temperature, float* probs);
int64_t greatest(const float* scores, int64_t n, float& value);
int64_t invert(const float* weights, int64_t n, double uniform);

}  // namespace specdec
