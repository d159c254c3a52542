// What a verdict adds to the rows in flight, which takes PyTorch three dozen small operators.

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace specdec {

namespace {

template <typename T>
T* data(const Tensor& tensor, const char* name) {
  if (tensor.numel() > 0) check(tensor, c10::CppTypeToScalarType<T>::value, name);
  return tensor.mutable_data_ptr<T>();
}

}  // namespace

// `DecodeState.commit`, whose docstring and tensors these are.
void commit(const Tensor& tokens, const Tensor& lengths, const Tensor& ends, const Tensor& done, const Tensor& stops,
            const Tensor& broken, const Tensor& num_emitted, const Tensor& counts, const Tensor& report,
            const Tensor& draft_tokens, const Tensor& chances, const Tensor& target_probs, const Tensor& num_accepted,
            const Tensor& next_token) {
  const int64_t rows = tokens.size(0), capacity = tokens.size(1), gamma = draft_tokens.size(1);
  TORCH_CHECK(draft_tokens.size(0) == rows && chances.sizes() == draft_tokens.sizes() && report.numel() == 3 + rows &&
                  target_probs.size(0) == rows && target_probs.size(1) == gamma + 1 && counts.numel() > 3 * gamma,
              "draft tokens ", draft_tokens.sizes(), ", chances ", chances.sizes(), " and target_probs ",
              target_probs.sizes(), " do not fit ", rows, " rows");
  for (const Tensor& of_rows : {lengths, ends, done, num_emitted, num_accepted, next_token})
    TORCH_CHECK(of_rows.numel() == rows, "there are ", rows, " rows and ", of_rows.numel(), " values for them");
  int64_t *token = data<int64_t>(tokens, "tokens"), *length = data<int64_t>(lengths, "lengths");
  int64_t *new_tokens = data<int64_t>(num_emitted, "num_emitted"), *said = data<int64_t>(report, "report");
  int64_t *steps = data<int64_t>(counts, "counts"), *drafted = steps + 1, *tested = drafted + gamma, *kept = tested + gamma;
  const int64_t *end = data<int64_t>(ends, "ends"), *stop = data<int64_t>(stops, "stops"), *stops_end = stop + stops.numel();
  const int64_t *draft = data<int64_t>(draft_tokens, "draft_tokens"), *behind = data<int64_t>(next_token, "next_token");
  const int64_t* accepted = data<int64_t>(num_accepted, "num_accepted");
  const float *chance = data<float>(chances, "chances"), *target = data<float>(target_probs, "target_probs");
  bool *finished = data<bool>(done, "done"), *nan = data<bool>(broken, "broken");
  said[0] = said[1] = 0;
  for (int64_t i = 0; i < rows * gamma; ++i) *nan |= std::isnan(chance[i]);
  for (int64_t i = 0; i < rows * (gamma + 1); ++i) *nan |= std::isnan(target[i * target_probs.size(2)]);
  said[2] = *nan;
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK(accepted[r] >= 0 && accepted[r] <= gamma && length[r] >= 0 && length[r] + gamma < capacity, "row ", r,
                " of length ", length[r], " has no room for ", accepted[r], " of ", gamma, " draft tokens and one more");
    int64_t* row = token + r * capacity + length[r];
    std::copy_n(draft + r * gamma, gamma, row);
    row[accepted[r]] = row[gamma] = behind[r];
    const int64_t room = end[r] - length[r] - 1;
    int64_t emitted = finished[r] ? 0 : accepted[r] + 1;
    for (int64_t i = 0; i < emitted; ++i)
      if (std::find(stop, stops_end, row[i]) != stops_end) {
        finished[r] = true;
        emitted = i + 1;
      }
    for (int64_t i = 0; i < gamma && emitted > 0; ++i) {
      const bool here = chance[r * gamma + i] > 0;
      drafted[i] += here;
      tested[i] += here && i < std::min({room, accepted[r] + 1, emitted});
      kept[i] += i < std::min(accepted[r], emitted);
    }
    *steps += gamma > 0 && emitted > 0;
    length[r] += emitted;
    finished[r] |= length[r] >= end[r];
    said[3 + r] = new_tokens[r] = emitted;
    if (!finished[r]) said[0] = std::max(said[0], end[r] - length[r]);
    said[1] = std::max(said[1], length[r]);
  }
}

TORCH_LIBRARY_FRAGMENT(specdec_lib, library) {
  library.def(
      "commit(Tensor(a!) tokens, Tensor(b!) lengths, Tensor ends, Tensor(c!) done, Tensor stops, Tensor(g!) broken, "
      "Tensor(d!) num_emitted, Tensor(e!) counts, Tensor(f!) report, Tensor draft_tokens, Tensor chances, "
      "Tensor target_probs, Tensor num_accepted, Tensor next_token) -> ()",
      commit);
}

}  // namespace specdec
