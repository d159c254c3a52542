// A decoder for a few rows at a time on CPUs: what `Layers` describes, for any family of models.
//
// All layers run in one parallel region with a barrier between phases. States are float32; inputs of products are
// rounded to bfloat16. A row does not depend on how many others are computed with it: verifying gamma + 1 tokens at once
// gives bit for bit the logits of decoding them one at a time.

#include "decoder.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "attention.h"
#include "products.h"

namespace specdec {

constexpr int kFewRows = 32;  // so many are normalised by every thread for itself

// Add a layer of these `weights`, by the names of `Layer`'s; `<matrix>.factors` and `<matrix>.bias` belong to a matrix.
void Layers::add(c10::Dict<std::string, Tensor> weights, const Tensor& frequencies, double rotary_scaling,
                 int64_t window) {
  const auto take = [&](const std::string& name) {
    Tensor found = weights.contains(name) ? weights.at(name) : Tensor();
    weights.erase(name);
    return found;
  };
  const auto matrix = [&](const std::string& name, int64_t n, int64_t k) {
    Weight weight{take(name), take(name + ".factors"), take(name + ".bias")};
    TORCH_CHECK(weight.rows.defined() && weight.rows.dim() == 2, "a layer has no matrix '", name, "'");
    check_weight(weight, k);
    TORCH_CHECK(n < 0 || weight.rows.size(0) == n, name, " is ", weight.rows.sizes(), ": it must have ", n, " rows");
    return weight;
  };
  const auto norm = [&](const std::string& name, int64_t size, bool needed) {
    Tensor weight = take(name);
    TORCH_CHECK(weight.defined() || !needed, "a layer has no norm '", name, "'");
    if (weight.defined()) check(weight, at::kBFloat16, name.c_str());
    TORCH_CHECK(!weight.defined() || weight.numel() == size, name, " has ", weight.numel(), " weights, not ", size);
    return weight;
  };
  check(frequencies, at::kFloat, "frequencies");
  TORCH_CHECK(weights.contains("attention_norm"), "a layer has no norm 'attention_norm'");
  const int64_t width = weights.at("attention_norm").numel(), dim = 2 * frequencies.numel();
  Layer layer;
  layer.query = matrix("query", heads * dim, width);
  layer.key = matrix("key", -1, width);
  const int64_t kv_size = layer.key.rows.size(0);
  TORCH_CHECK(dim % 32 == 0 && kv_size % dim == 0 && heads % (kv_size / dim) == 0, heads, " heads of ", dim,
              " numbers do not fit keys of ", kv_size);
  layer.value = matrix("value", kv_size, width);
  layer.attention_out = matrix("attention_out", width, heads * dim);
  layer.gate = matrix("gate", -1, width);
  layer.up = matrix("up", layer.gate.rows.size(0), width);
  layer.down = matrix("down", width, layer.gate.rows.size(0));
  layer.attention_norm = norm("attention_norm", width, true);
  layer.mlp_norm = norm("mlp_norm", width, true);
  layer.query_norm = norm("query_norm", dim, false);
  layer.key_norm = norm("key_norm", dim, false);
  layer.attention_out_norm = norm("attention_out_norm", width, false);
  layer.mlp_out_norm = norm("mlp_out_norm", width, false);
  TORCH_CHECK(weights.empty(), "a layer has no place for '", weights.begin()->key(), "'");
  const auto type = (layers.empty() ? layer : layers[0]).query.rows.scalar_type();
  for (const Weight& each :
       {layer.query, layer.key, layer.value, layer.attention_out, layer.gate, layer.up, layer.down})
    TORCH_CHECK(each.rows.scalar_type() == type, "all matrices must be of one type");
  TORCH_CHECK(layers.empty() || (layer.gate.rows.sizes() == layers[0].gate.rows.sizes() &&
                                 layer.query.rows.sizes() == layers[0].query.rows.sizes() &&
                                 layer.key.rows.sizes() == layers[0].key.rows.sizes()),
              "layers must be of one size");
  layer.window = window;
  const auto same = [&](const Rotary& each) {
    return each.scaling == rotary_scaling && each.frequencies.equal(frequencies);
  };
  layer.rotary = std::find_if(rotaries.begin(), rotaries.end(), same) - rotaries.begin();
  if (layer.rotary == int64_t(rotaries.size())) rotaries.push_back({frequencies, rotary_scaling});
  layers.push_back(std::move(layer));
}

// Run the layers over B rows of m tokens: x `[B * m, H]` float32 in place. Keys and values `[B, kv_heads, capacity, D]`,
// one of each a layer; slots `[B, m]` says where each token goes in them, and positions `[B, m]` how it is turned.
// `columns[l]` is the column of `features` `[B * m, F]` bfloat16 that layer l's output goes to, or -1.
static void run_layers(const Layers& of, const Tensor& x, const std::vector<Tensor>& keys,
                       const std::vector<Tensor>& values, const Tensor& slots, const Tensor& positions,
                       const std::vector<int64_t>& columns, const Tensor& features) {
  check(x, at::kFloat, "x");
  check(slots, at::kLong, "slots");
  check(positions, at::kLong, "positions");
  TORCH_CHECK(!of.layers.empty() && keys.size() == of.layers.size() && values.size() == of.layers.size(), "keys of ",
              keys.size(), " layers do not fit ", of.layers.size());
  const Layer& first_layer = of.layers[0];
  const int64_t tokens = slots.size(1), rows = x.size(0), batch = rows / tokens, width = x.size(1), heads = of.heads;
  const int64_t capacity = keys[0].size(2), inner = first_layer.gate.rows.size(0);
  const int64_t q_size = first_layer.query.rows.size(0), kv_size = first_layer.key.rows.size(0);
  const int64_t dim = q_size / heads, kv_heads = kv_size / dim, projected = q_size + 2 * kv_size;
  const std::vector<int64_t> kept = {batch, kv_heads, capacity, dim};
  for (const auto* each : {&keys, &values})
    for (const Tensor& cache : *each) {
      check(cache, at::kBFloat16, "a cache");
      TORCH_CHECK(cache.sizes() == at::IntArrayRef(kept), "a cache is ", cache.sizes(), ", not ", at::IntArrayRef(kept));
    }
  TORCH_CHECK(capacity % 4 == 0, "keys of ", capacity, " positions: attention reads four at a time");
  TORCH_CHECK(first_layer.query.rows.size(1) == width && positions.sizes() == slots.sizes() && slots.numel() == rows,
              "states ", x.sizes(), ", slots ", slots.sizes(), " and positions ", positions.sizes(),
              " do not fit layers of ", first_layer.query.rows.size(1));
  const int64_t *place = slots.const_data_ptr<int64_t>(), *position = positions.const_data_ptr<int64_t>();
  const int64_t angles = rows * dim / 2, group = heads / kv_heads;
  const int64_t queries = tokens * group;  // of a row and a head of keys
  const int64_t tiles = (queries + kTile - 1) / kTile, feature_size = features.size(1);
  const bool few = rows <= kFewRows;
  const float eps = of.eps, offset = of.norm_offset;
  std::vector<float> cosine(of.rotaries.size() * angles), sine(of.rotaries.size() * angles);
  std::vector<Number> normed_by_all(few ? 0 : rows * width);
  const bool has_norms_after = std::any_of(of.layers.begin(), of.layers.end(), [](const Layer& layer) {
    return layer.attention_out_norm.defined() || layer.mlp_out_norm.defined();
  });
  std::vector<float> added(has_norms_after ? rows * width : 0);
  float* state = x.mutable_data_ptr<float>();
  BFloat16* feature = features.mutable_data_ptr<BFloat16>();
  Tensor qkv_buffer = at::empty({rows, projected}, x.options());
  const auto numbers = x.options().dtype(c10::CppTypeToScalarType<Number>::value);
  Tensor query_buffer = at::empty({rows, q_size}, numbers);  // `[B, kv_heads, queries, D]`
  Tensor attended_buffer = at::empty({rows, q_size}, numbers), inner_buffer = at::empty({rows, inner}, numbers);
  float* qkv = qkv_buffer.mutable_data_ptr<float>();
  Number *query = query_buffer.mutable_data_ptr<Number>(), *attended = attended_buffer.mutable_data_ptr<Number>();
  Number* mlp = inner_buffer.mutable_data_ptr<Number>();

  of_type(first_layer.query.rows, [&](auto number) {
    using W = decltype(number);
#pragma omp parallel num_threads(at::get_num_threads())
    {
      const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
      std::vector<Number> normed_by_one(few ? rows * width : 0);
      std::vector<float> scores;
      Number* normed = few ? normed_by_one.data() : normed_by_all.data();
      const auto normalise = [&](const Tensor& weight) {  // of few rows every thread all: cheaper than a barrier
        for (int64_t r = few ? 0 : thread; r < rows; r += few ? 1 : threads)
          norm(state + r * width, weight.const_data_ptr<BFloat16>(), eps, width, normed + r * width, offset);
        if (!few) {
#pragma omp barrier
        }
      };
      for (int64_t unit = thread; unit < int64_t(of.rotaries.size()) * rows; unit += threads) {
        const auto& [frequencies, scaling] = of.rotaries[unit / rows];
        for (int64_t i = 0; i < dim / 2; ++i) {
          const float angle = position[unit % rows] * frequencies.const_data_ptr<float>()[i];
          cosine[unit * dim / 2 + i] = std::cos(angle) * scaling;
          sine[unit * dim / 2 + i] = std::sin(angle) * scaling;
        }
      }
      const auto add_product = [&](const Number* from, const Weight& by, const Tensor& out_norm) {  // to the state
        const Share mine(width, thread, threads);
        const Matrix<W> weight(by);
        const Input<W> input(from, rows, weight.k);
        const __m128 residual = _mm_set1_ps(of.residual);
        const bool is_normed = out_norm.defined();
        for (int64_t i = mine.begin; i < mine.end; i += 4)
          multiply(input, rows, weight, i, [&](int64_t r, __m128 y) {
            float* to = state + r * width + i;
            if (is_normed) _mm_storeu_ps(&added[r * width + i], y);
            else _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_mul_ps(y, residual)));
          });
#pragma omp barrier
        if (!is_normed) return;
        for (int64_t r = thread; r < rows; r += threads) {
          float *from = &added[r * width], *to = state + r * width;
          norm(from, out_norm.const_data_ptr<BFloat16>(), eps, width, from, offset);
          for (int64_t i = 0; i < width; i += kLanes)
            store(to + i, fma(load(from + i), all(of.residual), load(to + i)));
        }
#pragma omp barrier
      };
      for (size_t index = 0; index < of.layers.size(); ++index) {
        const Layer& layer = of.layers[index];
        BFloat16* k_cache = keys[index].mutable_data_ptr<BFloat16>();
        BFloat16* v_cache = values[index].mutable_data_ptr<BFloat16>();

        normalise(layer.attention_norm);
        const Input<W> to_attention(normed, rows, width);
        const Matrix<W> query_rows(layer.query), key_rows(layer.key), value_rows(layer.value);
        const Share mine(projected, thread, threads);
        for (int64_t i = mine.begin; i < mine.end; i += 4) {
          const bool is_query = i < q_size, is_key = i < q_size + kv_size;
          const int64_t within = is_query ? i : is_key ? i - q_size : i - q_size - kv_size;
          multiply(to_attention, rows, is_query ? query_rows : is_key ? key_rows : value_rows, within,
                   [&](int64_t r, __m128 y) { _mm_storeu_ps(qkv + r * projected + i, y); });
        }
#pragma omp barrier
        for (int64_t unit = thread; unit < rows * (heads + kv_heads); unit += threads) {  // queries and keys
          const int64_t r = unit / (heads + kv_heads), head = unit % (heads + kv_heads), b = r / tokens;
          float* from = qkv + r * projected + head * dim;
          const Tensor& head_norm = head < heads ? layer.query_norm : layer.key_norm;
          if (head_norm.defined()) norm(from, head_norm.const_data_ptr<BFloat16>(), eps, dim, from, offset);
          const int64_t angle = layer.rotary * angles + r * dim / 2;
          const float *c = &cosine[angle], *s = &sine[angle];
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
          const int64_t pair = unit / tiles, tile = unit % tiles, b = pair / kv_heads, head = pair % kv_heads * group;
          const int64_t first = queries * tile / tiles, many = queries * (tile + 1) / tiles - first;
          int64_t begin[kTile], end[kTile];
          for (int64_t r = 0; r < many; ++r) {
            end[r] = place[b * tokens + (first + r) / group] + 1;
            begin[r] = layer.window ? std::max<int64_t>(end[r] - layer.window, 0) : 0;
          }
          of_size(many, [&](auto size) {
            attend<size>(query + (pair * queries + first) * dim, k_cache + pair * capacity * dim,
                         v_cache + pair * capacity * dim, begin, end, dim, of.scaling, scores, [&](int r) {
                           const int64_t row = b * tokens + (first + r) / group;
                           return attended + row * q_size + (head + (first + r) % group) * dim;
                         });
          });
        }
#pragma omp barrier
        add_product(attended, layer.attention_out, layer.attention_out_norm);

        normalise(layer.mlp_norm);
        const Share inside(inner, thread, threads);
        const Input<W> to_mlp(normed, rows, width);
        const Matrix<W> gate(layer.gate), up(layer.up);
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
            const Floats g = load(&gated[r * kLanes]);
            const Floats falling = exponential(Floats{} - g * fma(all(of.curve) * g, g, all(of.slope)));
            store_first(mlp + r * inner + i, g / (all(1.0f) + falling) * load(&raised[r * kLanes]), many);
          }
        }
#pragma omp barrier
        add_product(mlp, layer.down, layer.mlp_out_norm);
        if (columns[index] >= 0)
          for (int64_t r = thread; r < rows; r += threads)
            for (int64_t i = 0; i < width; i += kLanes)
              store(feature + r * feature_size + columns[index] + i, load(state + r * width + i));
      }
    }
  });
}

// Run the layers over x `[B * m, H]` float32, in place, and nothing else.
void Layers::run(const Tensor& x, const std::vector<Tensor>& keys, const std::vector<Tensor>& values, const Tensor& slots,
                 const Tensor& positions) const {
  const Tensor nothing = at::empty({x.size(0), 0}, x.options().dtype(at::kBFloat16));
  run_layers(*this, x, keys, values, slots, positions, std::vector<int64_t>(keys.size(), -1), nothing);
}

// Tokens `[B, m]` through `embeddings` `[V, H]`, the layers and the last norm: hidden states `[B, m, H]` and features
// `[B, m, F]`, which are the outputs of the layers `taps` and the hidden states, side by side; bfloat16.
std::tuple<Tensor, Tensor> Layers::decode(const Tensor& tokens, const Tensor& embeddings, double embedding_scale,
                                          const Tensor& last_norm, const std::vector<int64_t>& taps,
                                          const std::vector<Tensor>& keys, const std::vector<Tensor>& values,
                                          const Tensor& slots, const Tensor& positions) const {
  check(tokens, at::kLong, "tokens");
  check(embeddings, at::kBFloat16, "embeddings");
  check(last_norm, at::kBFloat16, "last_norm");
  check_tokens(tokens, embeddings.size(0));
  TORCH_CHECK(!keys.empty() && slots.sizes() == tokens.sizes() && positions.sizes() == tokens.sizes() &&
                  keys[0].size(0) == tokens.size(0) && last_norm.numel() == embeddings.size(1),
              "tokens ", tokens.sizes(), ", slots ", slots.sizes(), ", positions ", positions.sizes(), " and a cache of ",
              keys.empty() ? 0 : keys[0].size(0), " rows do not belong together");
  const int64_t batch = tokens.size(0), many = tokens.size(1), rows = batch * many;
  const int64_t width = embeddings.size(1), tapped = taps.size() * width;
  Tensor hidden = at::empty({batch, many, width}, embeddings.options());
  Tensor features = at::empty({rows, tapped + width}, embeddings.options());
  Tensor x = at::empty({rows, width}, embeddings.options().dtype(at::kFloat));
  const int64_t* token = tokens.const_data_ptr<int64_t>();
  const BFloat16* table = embeddings.const_data_ptr<BFloat16>();
  float* state = x.mutable_data_ptr<float>();
  const Floats scale = all(embedding_scale);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < width; i += kLanes) store(state + r * width + i, load(table + token[r] * width + i) * scale);
  std::vector<int64_t> columns(keys.size(), -1);
  for (size_t i = 0; i < taps.size(); ++i) {
    TORCH_CHECK_INDEX(taps[i] >= 0 && taps[i] < int64_t(columns.size()) && columns[taps[i]] < 0, "layer ", taps[i],
                      " is none of ", columns.size(), ", or is named twice");
    columns[taps[i]] = i * width;
  }
  run_layers(*this, x, keys, values, slots, positions, columns, features);
  BFloat16 *of_hidden = hidden.mutable_data_ptr<BFloat16>(), *of_features = features.mutable_data_ptr<BFloat16>();
  const BFloat16* of_norm = last_norm.const_data_ptr<BFloat16>();
  for (int64_t r = 0; r < rows; ++r) {
    norm(state + r * width, of_norm, eps, width, of_hidden + r * width, norm_offset);
    std::copy_n(of_hidden + r * width, width, of_features + r * (tapped + width) + tapped);
  }
  return {hidden, features.view({batch, many, -1})};
}

TORCH_LIBRARY(specdec_lib, library) {
  using torch::arg;
  library.class_<Layers>("Layers")
      .def(torch::init<int64_t, double, double, double, double, double, double>(), "",
           {arg("heads"), arg("eps"), arg("scaling"), arg("norm_offset"), arg("residual"), arg("slope"), arg("curve")})
      .def("add", &Layers::add)
      .def("run", &Layers::run)
      .def("decode", &Layers::decode)
      .def("draft", draft);
}

}  // namespace specdec
