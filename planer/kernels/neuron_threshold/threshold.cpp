// Layers that compute only neurons over a threshold, in single precision: function.py says what is computed.
//
// Few tokens wait for weights to come from memory, so rows of weights that no token of a block needs are not read:
// of a gated layer with the score "gate" rows of the other factor, and always rows of w2.  A block's weights are read
// once for all its tokens.  Threads share the neurons of the first products, then the columns of y.
//
// Every token's sums are made in the same order whatever the other tokens are and however many threads there are.
//
// Letters in shapes: N tokens, D model width, F neurons, T tokens of a block.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../cpp/vectors.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace planer {
namespace {

constexpr int64_t CHUNK = 64;  // neurons whose values stay in the cache between the first products and the others
constexpr int ROWS = 4;        // rows of w2 that are added to y of several tokens at once, which loads and stores y less
constexpr int AHEAD = 4;       // rows between one that is read and one that is fetched into the second-level cache
static_assert(TOKENS <= 8, "a byte holds which tokens of a block run a neuron");

struct Layer {
  const float *x, *w1, *b1, *w2, *b2, *limits;
  float* y;
  int64_t* executed;
  int64_t D, F;
  bool gated;  // rows F to 2 F - 1 of w1 are those of the other factor
  bool early;  // the gate alone decides, before the other factor is computed
  void (*act)(float*, const float*, int64_t);

  // Values h [F][T] of neurons begin to end - 1, zero where a token does not run one; runs [F]: a bit per token.
  template <int T>
  void hidden(const float* const* rows, int64_t begin, int64_t end, float* h, uint8_t* runs) const {
    alignas(64) float value[T * CHUNK], factor[T * CHUNK];
    for (int64_t first = begin; first < end; first += CHUNK) {
      const int64_t size = std::min(CHUNK, end - first);
      const float *other = w1 + (F + first) * D, *other_bias = b1 + F + first;
      const bool whole = gated && !early;
      before<T>(rows, w1 + first * D, b1 + first, size, D, value);
      if (whole) before<T>(rows, other, other_bias, size, D, factor);
      act(value, whole ? factor : nullptr, whole_vectors(T * size));
      int64_t count = 0, running[CHUNK];
      for (int64_t j = 0; j < size; ++j) {
        uint8_t bits = 0;
        for (int t = 0; t < T; ++t) {
          const bool run = !(std::abs(value[j * T + t]) <= limits[first + j]);  // NaN runs
          bits |= run << t;
          h[(first + j) * T + t] = run ? value[j * T + t] : 0.0f;
        }
        runs[first + j] = bits;
        if (bits) running[count++] = j;
      }
      for (int64_t i = 0; early && i < count; ++i) {
        if (i + AHEAD < count) prefetch(other + running[i + AHEAD] * D);
        const int64_t j = running[i];
        float values[T];
        dots<T, 1>(rows, other + j * D, other_bias + j, D, values);
        for (int t = 0; t < T; ++t)
          if (runs[first + j] >> t & 1) h[(first + j) * T + t] *= values[t];
      }
    }
  }

  // y [T][D] += h w2 in columns begin to end - 1, over the neurons of a list in their order.
  template <int T>
  void output(const float* h, const std::vector<int32_t>& list, int64_t begin, int64_t end, float* y) const {
    constexpr int R = T == 1 ? 1 : ROWS;  // memory is fastest row after row, as in vectors.h
    const int64_t count = list.size();
    int64_t i = 0;
    for (; i + R <= count; i += R) add_rows<T, R>(h, &list[i], i + AHEAD + R <= count, begin, end, y);
    for (; i < count; ++i) add_rows<T, 1>(h, &list[i], i + AHEAD < count, begin, end, y);
  }

  // R neurons of output().  more: R neurons more come AHEAD places later.  Rows with gaps between them are no stream that
  // a processor follows.  Half of the rows, fetched four ahead into the second-level cache, took 0.56 of their time when
  // fetched one ahead into the first-level one, on one core of an AMD EPYC.
  template <int T, int R>
  void add_rows(const float* h, const int32_t* list, bool more, int64_t begin, int64_t end, float* y) const {
    const float *weights[R], *values[R], *next[R];
    for (int r = 0; r < R; ++r) {
      weights[r] = w2 + list[r] * D;
      values[r] = h + int64_t(list[r]) * T;
      next[r] = more ? w2 + list[AHEAD + r] * D : weights[r];
    }
    const auto add = [&](int64_t d, auto... lanes_left) {
      Lanes row[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        row[r] = load(weights[r] + d, lanes_left...);
        __builtin_prefetch(next[r] + d, 0, 2);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        Lanes sum = load(y + t * D + d, lanes_left...);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sum = plus_product(sum, everywhere(values[r][t]), row[r]);
        store(y + t * D + d, sum, lanes_left...);
      }
    };
    int64_t d = begin;
    for (; d + LANES <= end; d += LANES) add(d);
    if (d < end) add(d, end - d);
  }

  void prefetch(const float* row) const {
    for (int64_t d = 0; d < D; d += LANES) __builtin_prefetch(row + d, 0, 2);
  }

  // Tokens at to at + T - 1.  h, runs and list are memory to work in.
  template <int T>
  void block(int64_t at, std::vector<float>& h, std::vector<uint8_t>& runs, std::vector<int32_t>& list) const {
    const float* rows[T];
    for (int t = 0; t < T; ++t) {
      rows[t] = x + (at + t) * D;
      std::memcpy(y + (at + t) * D, b2, D * sizeof(float));
    }
    shared(F, CHUNK, [&](int64_t begin, int64_t end) { hidden<T>(rows, begin, end, h.data(), runs.data()); });
    list.clear();
    for (int64_t j = 0; j < F; ++j) {
      if (runs[j]) list.push_back(static_cast<int32_t>(j));
      for (int t = 0; t < T; ++t) executed[at + t] += runs[j] >> t & 1;
    }
    shared(D, LANES, [&](int64_t begin, int64_t end) { output<T>(h.data(), list, begin, end, y + at * D); });
  }

  // f(begin, end) on every thread, for parts of 0 to count - 1 that begin at multiples of unit.
  template <typename G>
  static void shared(int64_t count, int64_t unit, const G& f) {
    const int64_t units = (count + unit - 1) / unit, threads = at::get_num_threads();
    at::parallel_for(0, units, (units + threads - 1) / threads, [&](int64_t begin, int64_t end) {
      f(begin * unit, std::min(end * unit, count));
    });
  }
};

// Values h [N][F] from the input z of the activation, with the other factor in columns F to 2 F - 1 where there is one;
// zero where a token does not run a neuron.  One pass over memory, for many tokens whose products are dense.
struct Hidden {
  const float *z, *limits;
  float* h;
  int64_t* executed;
  int64_t F;
  bool gated, early;
  void (*act)(float*, const float*, int64_t);

  void token(int64_t t) const {
    alignas(64) float value[WIDE], factor[WIDE];
    int64_t count = 0;
    for (int64_t first = 0; first < F; first += WIDE) {
      const int64_t size = std::min(WIDE, F - first);
      const float* from = z + t * F * (gated ? 2 : 1) + first;
      copy(value, from, size);
      copy(factor, gated ? from + F : nullptr, size);
      const bool whole = gated && !early;
      act(value, whole ? factor : nullptr, whole_vectors(size));
      float* to = h + t * F + first;
      int32_t running = 0;
      for (int64_t j = 0; j < size; ++j) {
        const bool run = !(std::abs(value[j]) <= limits[first + j]);  // NaN runs
        const float result = early ? value[j] * factor[j] : value[j];
        to[j] = run ? result : 0.0f;
        running += run;
      }
      count += running;
    }
    executed[t] = count;
  }

  // Zeros where there is nothing to copy, and up to a whole vector.
  static void copy(float* to, const float* from, int64_t size) {
    if (from) std::memcpy(to, from, size * sizeof(float));
    std::fill(to + (from ? size : 0), to + whole_vectors(size), 0.0f);
  }

  static constexpr int64_t WIDE = 512;  // neurons of a token whose values stay in the cache
};

std::tuple<at::Tensor, at::Tensor> threshold_hidden(const at::Tensor& z, const at::Tensor& limits, bool early,
                                                    std::string_view activation) {
  const int64_t N = z.size(0), F = limits.size(0);
  const bool gated = z.size(1) > F;
  at::Tensor h = at::empty({N, F}, z.options()), executed = at::empty({N}, z.options().dtype(at::kLong));
  const Hidden hidden{z.const_data_ptr<float>(), limits.const_data_ptr<float>(), h.mutable_data_ptr<float>(),
                      executed.mutable_data_ptr<int64_t>(), F, gated, gated && early,
                      with_activation(activation, [](auto chosen) { return &activate<chosen()>; })};
  at::parallel_for(0, N, 1 + (1 << 15) / F, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) hidden.token(t);
  });
  return {h, executed};
}

std::tuple<at::Tensor, at::Tensor> neuron_threshold(const at::Tensor& x, const at::Tensor& w1, const at::Tensor& b1,
                                                    const at::Tensor& w2, const at::Tensor& b2,
                                                    const at::Tensor& limits, bool early, std::string_view activation) {
  const int64_t N = x.size(0), D = x.size(1), F = w2.size(0);
  const bool gated = w1.size(0) > F;
  at::Tensor y = at::empty({N, D}, x.options()), executed = at::zeros({N}, x.options().dtype(at::kLong));
  const Layer layer{x.const_data_ptr<float>(),
                    w1.const_data_ptr<float>(),
                    b1.const_data_ptr<float>(),
                    w2.const_data_ptr<float>(),
                    b2.const_data_ptr<float>(),
                    limits.const_data_ptr<float>(),
                    y.mutable_data_ptr<float>(),
                    executed.mutable_data_ptr<int64_t>(),
                    D,
                    F,
                    gated,
                    gated && early,
                    with_activation(activation, [](auto chosen) { return &activate<chosen()>; })};
  std::vector<float> h(F * std::min<int64_t>(N, TOKENS));
  std::vector<uint8_t> runs(F);
  std::vector<int32_t> list;
  int64_t at = 0;
  for (; at + TOKENS <= N; at += TOKENS) layer.block<TOKENS>(at, h, runs, list);
  if (TOKENS > 4)
    for (; at + 4 <= N; at += 4) layer.block<4>(at, h, runs, list);
  for (; at + 2 <= N; at += 2) layer.block<2>(at, h, runs, list);
  for (; at < N; ++at) layer.block<1>(at, h, runs, list);
  return {y, executed};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  library.def(
      "neuron_threshold(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2, Tensor limits, bool early, "
      "str activation) -> (Tensor, Tensor)");
  library.def("threshold_hidden(Tensor z, Tensor limits, bool early, str activation) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(planer_cpp, CPU, library) {
  library.impl("neuron_threshold", &neuron_threshold);
  library.impl("threshold_hidden", &threshold_hidden);
}

}  // namespace planer
