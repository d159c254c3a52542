// What is done with the rows in flight between passes. PyTorch does each with dozens of small operators, which take longer
// than what they compute when a pass has just driven them out of the caches.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace specdec {

namespace {

template <typename T>
void check_type(const Tensor& tensor, const char* name) {
  if (tensor.numel() > 0) check(tensor, c10::CppTypeToScalarType<T>::value, name);
}

template <typename T>
const T* read(const Tensor& tensor, const char* name) {
  check_type<T>(tensor, name);
  return tensor.const_data_ptr<T>();
}

template <typename T>
T* changed(const Tensor& tensor, const char* name) {
  check_type<T>(tensor, name);
  return tensor.mutable_data_ptr<T>();
}

}  // namespace

// `PlainOps.append` of decoding/ops.py, whose tensors these are; `draft_probs` `[B, gamma, V]` float32. `counts` have room
// for a draft at least as long, or none at all: then nothing is counted.
void append(const Tensor& tokens, const Tensor& lengths, const Tensor& ends, const Tensor& done,
            const Tensor& stop_token_ids, const Tensor& saw_nan, const Tensor& num_emitted, const Tensor& num_tested,
            const Tensor& counts, const Tensor& report, const Tensor& draft_tokens, const Tensor& draft_probs, const Tensor& target_probs,
            const Tensor& num_accepted, const Tensor& next_token) {
  const int64_t rows = tokens.size(0), capacity = tokens.size(1), gamma = draft_tokens.size(1);
  const int64_t vocabulary = target_probs.size(2);
  TORCH_CHECK(draft_tokens.size(0) == rows && report.numel() == 3 + 2 * rows && draft_probs.size(0) == rows &&
                  draft_probs.size(1) == gamma && draft_probs.size(2) == vocabulary && target_probs.size(0) == rows &&
                  target_probs.size(1) == gamma + 1 && (counts.numel() == 0 || counts.numel() >= 1 + 3 * gamma),
              "draft tokens ", draft_tokens.sizes(), ", draft_probs ", draft_probs.sizes(), " and target_probs ",
              target_probs.sizes(), " do not fit ", rows, " rows");
  for (const Tensor& of_rows : {lengths, ends, done, num_emitted, num_tested, num_accepted, next_token})
    TORCH_CHECK(of_rows.numel() == rows, "there are ", rows, " rows and ", of_rows.numel(), " values for them");
  int64_t *token = changed<int64_t>(tokens, "tokens"), *length = changed<int64_t>(lengths, "lengths");
  int64_t *new_tokens = changed<int64_t>(num_emitted, "num_emitted"), *said = changed<int64_t>(report, "report");
  int64_t* tested_here = changed<int64_t>(num_tested, "num_tested");
  const bool counting = counts.numel() > 0;
  const int64_t positions = counting ? (counts.numel() - 1) / 3 : gamma;
  std::vector<int64_t> ignored(counting ? 0 : 1 + 3 * positions);
  int64_t* steps = counting ? changed<int64_t>(counts, "counts") : ignored.data();
  int64_t *drafted = steps + 1, *tested = drafted + positions, *kept = tested + positions;  // counts by position
  bool *finished = changed<bool>(done, "done"), *nan = changed<bool>(saw_nan, "saw_nan");
  const int64_t* end = read<int64_t>(ends, "ends");
  const int64_t *stop = read<int64_t>(stop_token_ids, "stop_token_ids"), *stops_end = stop + stop_token_ids.numel();
  const int64_t *draft = read<int64_t>(draft_tokens, "draft_tokens"), *next = read<int64_t>(next_token, "next_token");
  const int64_t* accepted = read<int64_t>(num_accepted, "num_accepted");
  const float *draft_prob = read<float>(draft_probs, "draft_probs"), *target = read<float>(target_probs, "target_probs");
  said[0] = said[1] = 0;
  for (int64_t i = 0; i < rows * (gamma + 1); ++i) *nan |= std::isnan(target[i * vocabulary]);
  for (int64_t i = 0; i < rows * gamma; ++i) {
    TORCH_CHECK(draft[i] >= 0 && draft[i] < vocabulary, "token ", draft[i], " is none of ", vocabulary);
    *nan |= std::isnan(draft_prob[i * vocabulary + draft[i]]);
  }
  said[2] = *nan;
  for (int64_t r = 0; r < rows; ++r) {
    TORCH_CHECK(accepted[r] >= 0 && accepted[r] <= gamma, accepted[r], " of ", gamma, " draft tokens cannot be accepted");
    TORCH_CHECK(length[r] >= 0 && length[r] + gamma < capacity, "row ", r, " of ", length[r], " tokens has no room for ",
                gamma + 1, " more");
    int64_t* row = token + r * capacity + length[r];
    std::copy_n(draft + r * gamma, gamma, row);
    row[gamma] = next[r];
    row[accepted[r]] = next[r];
    const int64_t room = end[r] - length[r];
    int64_t emitted = finished[r] ? 0 : std::min(accepted[r] + 1, room);
    for (int64_t i = 0; i < emitted; ++i)
      if (std::find(stop, stops_end, row[i]) != stops_end) {
        finished[r] = true;
        emitted = i + 1;
      }
    const int64_t decided = std::min(emitted, room - 1);  // the last token before the limit counts as the target's own
    tested_here[r] = 0;
    for (int64_t i = 0; i < gamma && emitted > 0; ++i) {
      const int64_t index = r * gamma + i;
      const bool here = draft_prob[index * vocabulary + draft[index]] > 0;
      drafted[i] += here;
      const bool was_tested = here && i < decided && i <= accepted[r];
      tested[i] += was_tested;
      tested_here[r] += was_tested;
      kept[i] += here && i < decided && i < accepted[r];
    }
    *steps += emitted > 0;
    length[r] += emitted;
    finished[r] |= length[r] >= end[r];
    said[3 + r] = new_tokens[r] = emitted;
    said[3 + rows + r] = tested_here[r];
    if (!finished[r]) said[0] = std::max(said[0], end[r] - length[r]);
    said[1] = std::max(said[1], length[r]);
  }
}

// `copy_continuation` of decoding/lookup.py: what followed the last `longest` to `shortest` tokens of each row where they stood before, the
// longest match first and then the most recent one. tokens `[B, capacity]`, of which lengths `[B]` are known; returns the
// tokens `[B, gamma]` and one-hots of them `[B, gamma, V]` float32, zero where nothing was found.
std::tuple<Tensor, Tensor> lookup(const Tensor& tokens, const Tensor& lengths, int64_t longest, int64_t shortest,
                                  int64_t gamma, int64_t vocabulary) {
  const int64_t rows = tokens.size(0), capacity = tokens.size(1);
  Tensor copied = at::empty({rows, gamma}, tokens.options());
  Tensor probs = at::zeros({rows, gamma, vocabulary}, tokens.options().dtype(at::kFloat));
  const int64_t *text = read<int64_t>(tokens, "tokens"), *length = read<int64_t>(lengths, "lengths");
  TORCH_CHECK(lengths.numel() == rows, "there are ", rows, " rows and ", lengths.numel(), " lengths");
  int64_t* copy = copied.mutable_data_ptr<int64_t>();
  float* prob = probs.mutable_data_ptr<float>();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t *row = text + r * capacity, n = length[r];
    TORCH_CHECK(n > 0 && n <= capacity, "a row of ", capacity, " tokens has a length of ", n);
    int64_t source = n, best = shortest - 1;
    for (int64_t after = n - 1; after >= shortest && best < longest; --after) {
      int64_t same = 0;
      while (same < std::min(longest, after) && row[after - 1 - same] == row[n - 1 - same]) ++same;
      if (same > best) best = same, source = after;
    }
    for (int64_t i = 0; i < gamma; ++i) {
      const int64_t token = copy[r * gamma + i] = row[std::min(source + i, capacity - 1)];
      TORCH_CHECK(token >= 0 && token < vocabulary, "token ", token, " is none of ", vocabulary);
      prob[(r * gamma + i) * vocabulary + token] = source + i < n;
    }
  }
  return {copied, probs};
}

TORCH_LIBRARY_FRAGMENT(specdec_lib, library) {
  library.def(
      "lookup(Tensor tokens, Tensor lengths, int longest, int shortest, int gamma, int vocabulary) -> (Tensor, Tensor)",
      lookup);
  library.def(
      "append(Tensor(a!) tokens, Tensor(b!) lengths, Tensor ends, Tensor(c!) done, Tensor stop_token_ids, "
      "Tensor(d!) saw_nan, Tensor(e!) num_emitted, Tensor(f!) num_tested, Tensor(g!) counts, Tensor(h!) report, "
      "Tensor draft_tokens, Tensor draft_probs, Tensor target_probs, Tensor num_accepted, Tensor next_token) -> ()",
      append);
}

}  // namespace specdec
