// Dynamically executed experts in single precision: function.py says what is computed.
//
// Threads share the tokens.  A thread takes a block of tokens and goes through the experts; the tokens that chose an
// expert meet its weights a tile at a time: TOKENS rows of x with NEURONS rows of w1 for the hidden neurons, then
// TOKENS rows of y with all its rows of w2.  Sums of products stay in registers.  Nothing is gathered or scattered, and
// nothing is computed for experts that nobody chose, so that experts of a few neurons pay.
//
// Every token's sums are made in the same order whatever the other tokens are and however many threads there are.
//
// Letters in shapes: N tokens, D model width, F neurons, n experts, s neurons per expert.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../cpp/vectors.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace planer {
namespace {

constexpr int PARTS = 2;  // vectors of y a token whose sums stay in registers
constexpr int64_t BLOCK = 512;  // tokens that meet an expert's weights at once; 128 took 4 to 25 % longer, 1024 no less
constexpr int64_t CHUNK = 128;  // neurons of an expert whose values stay in the cache

// y[t] += sum over j < s of h[j][t] w_j, for T tokens and P x LANES columns; or for the lanes that are left at the end.
template <int T, int P, typename... Left>
void add_columns(const float* h, const float* w, int64_t s, int64_t D, float* const* y, int64_t d, Left... lanes_left) {
  Lanes sums[T][P];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sums[t][p] = load(y[t] + d + p * LANES, lanes_left...);
  for (int64_t j = 0; j < s; ++j) {
    Lanes weights[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) weights[p] = load(w + j * D + d + p * LANES, lanes_left...);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sums[t][p] = plus_product(sums[t][p], everywhere(h[j * T + t]), weights[p]);
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) store(y[t] + d + p * LANES, sums[t][p], lanes_left...);
}

// y += h_j w_j, neuron by neuron, for one token: memory is fastest row after row, as in vectors.h.
void after_one(const float* h, const float* w, int64_t s, int64_t D, float* y) {
  for (int64_t j = 0; j < s; ++j, w += D) {
    int64_t d = 0;
    for (; d + LANES <= D; d += LANES) store(y + d, plus_product(load(y + d), everywhere(h[j]), load(w + d)));
    if (d < D) store(y + d, plus_product(load(y + d, D - d), everywhere(h[j]), load(w + d, D - d)), D - d);
  }
}

// y += h w for T tokens and s neurons.
template <int T>
void after(const float* h, const float* w, int64_t s, int64_t D, float* const* y) {
  if (T == 1) return after_one(h, w, s, D, y[0]);
  int64_t d = 0;
  for (; d + PARTS * LANES <= D; d += PARTS * LANES) add_columns<T, PARTS>(h, w, s, D, y, d);
  for (; d + LANES <= D; d += LANES) add_columns<T, 1>(h, w, s, D, y, d);
  if (d < D) add_columns<T, 1>(h, w, s, D, y, d, D - d);
}

struct Layer {
  const float *x, *w1, *b1, *w2, *b2;
  const bool* mask;
  float* y;
  int64_t D, n, s;
  bool gated;  // rows n s to 2 n s - 1 of w1 are those of the other factor
  void (*act)(float*, const float*, int64_t);

  // Tokens of one expert, tile after tile.
  void expert(int64_t e, const int32_t* tokens, int64_t count) const {
    const float* rows[TOKENS];
    float* results[TOKENS];
    for (int64_t first = 0; first < s; first += CHUNK) {
      const int64_t neuron = e * s + first, size = std::min(CHUNK, s - first);
      const auto run = [&](auto width, int64_t at) {
        for (int t = 0; t < width(); ++t) {
          rows[t] = x + tokens[at + t] * D;
          results[t] = y + tokens[at + t] * D;
        }
        alignas(64) float h[width() * CHUNK], factor[width() * CHUNK];
        before<width()>(rows, w1 + neuron * D, b1 + neuron, size, D, h);
        if (gated) before<width()>(rows, w1 + (n * s + neuron) * D, b1 + n * s + neuron, size, D, factor);
        act(h, gated ? factor : nullptr, whole_vectors(width() * size));
        after<width()>(h, w2 + neuron * D, size, D, results);
      };
      int64_t at = 0;
      for (; at + TOKENS <= count; at += TOKENS) run(std::integral_constant<int, TOKENS>(), at);
      if (TOKENS > 4)
        for (; at + 4 <= count; at += 4) run(std::integral_constant<int, 4>(), at);
      for (; at + 2 <= count; at += 2) run(std::integral_constant<int, 2>(), at);
      for (; at < count; ++at) run(std::integral_constant<int, 1>(), at);
    }
  }

  // Tokens begin to end - 1 through all experts that they chose.
  void block(int64_t begin, int64_t end, std::vector<int32_t>& starts, std::vector<int32_t>& lists) const {
    for (int64_t t = begin; t < end; ++t) std::memcpy(y + t * D, b2, D * sizeof(float));
    std::fill(starts.begin(), starts.end(), 0);
    chosen(begin, end, [&](int64_t, int64_t e) { ++starts[e + 1]; });
    for (int64_t e = 0; e < n; ++e) starts[e + 1] += starts[e];
    lists.resize(starts[n]);
    chosen(begin, end, [&](int64_t t, int64_t e) { lists[starts[e]++] = static_cast<int32_t>(t); });
    for (int64_t e = 0, first = 0; e < n; first = starts[e], ++e)  // starts[e] is now where e's list ends
      if (starts[e] > first) expert(e, lists.data() + first, starts[e] - first);
  }

  // Calls f(token, expert) for all pairs in the mask, token by token, eight experts at a glance.
  template <typename F>
  void chosen(int64_t begin, int64_t end, const F& f) const {
    for (int64_t t = begin; t < end; ++t) {
      const bool* row = mask + t * n;
      int64_t e = 0;
      for (; e + 8 <= n; e += 8) {
        uint64_t eight;
        std::memcpy(&eight, row + e, 8);
        if (eight == 0) continue;
        for (int64_t i = e; i < e + 8; ++i)
          if (row[i]) f(t, i);
      }
      for (; e < n; ++e)
        if (row[e]) f(t, e);
    }
  }
};

at::Tensor dynamic_ffn(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1, const at::Tensor& w2,
                       const at::Tensor& b2, const at::Tensor& mask, std::string_view activation) {
  const int64_t N = x.size(0), D = x.size(1), n = mask.size(1), s = w2.size(0) / n;
  at::Tensor y = at::empty({N, D}, x.options());
  const Layer layer{x.const_data_ptr<float>(),  w1.const_data_ptr<float>(),  b1.const_data_ptr<float>(),
                    w2.const_data_ptr<float>(), b2.const_data_ptr<float>(),  mask.const_data_ptr<bool>(),
                    y.mutable_data_ptr<float>(), D, n, s, w1.size(0) > w2.size(0),
                    with_activation(activation, [](auto chosen) { return &activate<chosen()>; })};
  const int64_t share = (N + at::get_num_threads() - 1) / at::get_num_threads();
  at::parallel_for(0, N, std::max<int64_t>(1, share), [&](int64_t begin, int64_t end) {
    std::vector<int32_t> starts(n + 1), lists;
    for (int64_t t = begin; t < end; t += BLOCK) layer.block(t, std::min(t + BLOCK, end), starts, lists);
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  library.def(
      "dynamic_ffn(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor mask, str activation) -> Tensor");
}

TORCH_LIBRARY_IMPL(planer_cpp, CPU, library) { library.impl("dynamic_ffn", &dynamic_ffn); }

}  // namespace planer
