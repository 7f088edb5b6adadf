// What the decoding operators share: products with rows of weights, sums of scaled rows, and the residual.
//
// A token meets every weight once, so that reading the weights takes the time.  Rows that lie one after another are
// read as one stream, as processors expect: 29 GB/s on one core of an EPYC (Zen 4), 18 GB/s with four rows at a time.
// Rows that were picked here and there are read side by side, each a stream: 23 GB/s with 16 rows, 7 GB/s with one.
// Meanwhile the following rows are fetched into the second cache: of 8 rows that are added up, half of those there are,
// 26 instead of 20 GB/s in float32, 18 instead of 14 in bfloat16, 14 instead of 8 in int8.
// Sums are made in the same order however many threads and tokens there are.
//
// Letters in shapes: B tokens, D model width.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "weights.h"

#include <cmath>
#include <numeric>
#include <vector>

namespace planer {
namespace {

constexpr int SUMS = 4;                     // of a row that is read alone: an addition waits four cycles for the last
constexpr int PICKED = LANES == 16 ? 16 : 8;  // rows side by side, each with one sum
constexpr int ADDED = 8;                    // rows side by side whose sum is one vector
constexpr int64_t LINE = 64;                // bytes that are fetched at once
constexpr int64_t AHEAD = 4096;             // bytes: processors do not fetch beyond a page of this size by themselves
constexpr int64_t GRAIN = 1 << 16;          // least weights of a thread, 256 KiB: waking another one takes as long

// f(begin, end) over parts of 0 to count - 1, each thread with at least GRAIN weights.
template <typename F>
void in_parallel(int64_t count, int64_t weights_each, const F& f) {
  at::parallel_for(0, count, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, weights_each)), f);
}

// Into the second cache: the first is too small for what memory can have under way.
inline void fetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// Calls step(d) for every vector of columns from begin on, and step(d, count) for those that fill none.  Meanwhile
// fetches the same columns of J other rows.
template <int J, typename W, typename Step>
void over_columns(int64_t begin, int64_t end, const W* const* next, const Step& step) {
  constexpr int64_t TOGETHER = LINE / sizeof(W);
  int64_t d = begin;
  for (; d + TOGETHER <= end; d += TOGETHER) {
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) fetch(next[j] + d);
#pragma GCC unroll 16
    for (int64_t e = 0; e < TOGETHER; e += LANES) step(d + e);
  }
  for (; d + LANES <= end; d += LANES) step(d);
  if (d < end) step(d, end - d);
}

// out[t] = x_t . row for T tokens x [T, D].
template <int T, typename W>
void row_dots(const float* x, const W* row, int64_t D, float* out) {
  Lanes sums[SUMS][T] = {};
  const auto add = [&](int s, int64_t d, auto... lanes_left) {
    const Lanes weights = load(row + d, lanes_left...);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) sums[s][t] = plus_product(sums[s][t], load(x + t * D + d, lanes_left...), weights);
  };
  int64_t d = 0;
  for (; d + SUMS * LANES <= D; d += SUMS * LANES) {
    // 27 instead of 22 GB/s in float32, 20 instead of 16 in int8; but 20 instead of 28 in bfloat16.
    if constexpr (!std::is_same_v<W, at::BFloat16>)
      for (int64_t byte = 0; byte < int64_t(SUMS * LANES * sizeof(W)); byte += LINE)
        fetch(reinterpret_cast<const char*>(row + d) + AHEAD + byte);
#pragma GCC unroll 8
    for (int s = 0; s < SUMS; ++s) add(s, d + s * LANES);
  }
  for (; d + LANES <= D; d += LANES) add(0, d);
  if (d < D) add(0, d, D - d);
  for (int t = 0; t < T; ++t) sums[0][t] = (sums[0][t] + sums[1][t]) + (sums[2][t] + sums[3][t]);
  sums_of<T>(sums[0], out);
}

// out[j] = x . rows[j] for J rows that lie apart.  next: J rows to fetch.
template <int J, typename W>
void dots_apart(const float* x, const W* const* rows, const W* const* next, int64_t D, float* out) {
  Lanes sums[J] = {};
  over_columns<J>(0, D, next, [&](int64_t d, auto... lanes_left) {
    const Lanes value = load(x + d, lanes_left...);
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) sums[j] = plus_product(sums[j], value, load(rows[j] + d, lanes_left...));
  });
  constexpr int AT_ONCE = std::min(J, 4);
  for (int j = 0; j < J; j += AT_ONCE) sums_of<AT_ONCE>(reinterpret_cast<Lanes(&)[AT_ONCE]>(sums[j]), out + j);
}

// y[d] += sum over j of h[j] rows[j][d], for the columns begin to end - 1.  next: J rows to fetch.
template <int J, typename W>
void add_rows(const float* h, const W* const* rows, const W* const* next, int64_t begin, int64_t end, float* y) {
  over_columns<J>(begin, end, next, [&](int64_t d, auto... lanes_left) {
    Lanes sum = load(y + d, lanes_left...);
#pragma GCC unroll 16
    for (int j = 0; j < J; ++j) sum = plus_product(sum, everywhere(h[j]), load(rows[j] + d, lanes_left...));
    store(y + d, sum, lanes_left...);
  });
}

// Calls f(std::integral_constant<int, J>(), rows, next, k) for groups of at most MOST rows, row(begin) to row(end - 1),
// each with as many of the rows after it.
template <int MOST, typename Row, typename F>
void side_by_side(int64_t begin, int64_t end, const Row& row, const F& f) {
  int64_t k = begin;
  const auto run = [&](auto size) {
    for (; k + size() <= end; k += size()) {
      decltype(row(k)) rows[size()], next[size()];
      for (int j = 0; j < size(); ++j) {
        rows[j] = row(k + j);
        next[j] = row(std::min(k + size() + j, end - 1));
      }
      f(size, rows, next, k);
    }
  };
  run(std::integral_constant<int, MOST>());
  run(std::integral_constant<int, 4>());
  run(std::integral_constant<int, 1>());
}

// out[b][k] = x_b . w.row(index(k)) + bias(k) for tokens x [B, D] and rows that follow each other mostly: [B, count].
template <typename W, typename Index, typename Bias>
void products(const float* x, int64_t B, const Rows<W>& w, int64_t count, const Index& index, const Bias& bias,
              float* out) {
  const int64_t D = w.width;
  in_parallel(count, D, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const auto run = [&](auto tokens, int64_t b) {
        float sums[tokens()];
        row_dots<tokens()>(x + b * D, w(index(k)), D, sums);
        for (int t = 0; t < tokens(); ++t) out[(b + t) * count + k] = std::fma(sums[t], w.factor(index(k)), bias(k));
      };
      int64_t b = 0;
      for (; b + 4 <= B; b += 4) run(std::integral_constant<int, 4>(), b);
      for (; b < B; ++b) run(std::integral_constant<int, 1>(), b);
    }
  });
}

// The same with all rows of a matrix, and a bias or none.
inline void products(const float* x, int64_t B, at::TensorList matrix, const float* bias, float* out) {
  with_type(matrix, [&](auto type) {
    const Rows<decltype(type)> w(matrix);
    products(
        x, B, w, matrix[0].numel() / w.width, [](int64_t k) { return k; },
        [=](int64_t k) { return bias ? bias[k] : 0.0f; }, out);
  });
}

// The same for one token and rows that lie apart: [count].
template <typename W, typename Bias>
void products_apart(const float* x, const Rows<W>& w, const std::vector<int64_t>& picked, const Bias& bias,
                    float* out) {
  in_parallel(picked.size(), w.width, [&](int64_t begin, int64_t end) {
    const auto row = [&](int64_t k) { return w(picked[k]); };
    side_by_side<PICKED>(begin, end, row, [&](auto size, auto rows, auto next, int64_t k) {
      float sums[size()];
      dots_apart<size()>(x, rows, next, w.width, sums);
      for (int j = 0; j < size(); ++j) out[k + j] = std::fma(sums[j], w.factor(picked[k + j]), bias(k + j));
    });
  });
}

// y_b += sum over k of h[b][k] w.row(neurons[k]) for h [B, count]: y [B, D].  Rows that no token needs are not read.
template <typename W>
void add_products(const float* h, int64_t B, const std::vector<int64_t>& neurons, const Rows<W>& w, float* y) {
  const int64_t count = neurons.size(), D = w.width;
  std::vector<int64_t> needed;
  needed.reserve(count);
  for (int64_t k = 0; k < count; ++k) {
    bool zero = true;
    for (int64_t b = 0; b < B; ++b) zero &= h[b * count + k] == 0.0f;
    if (!zero) needed.push_back(k);
  }
  const int64_t rows_needed = needed.size(), pieces = (D + 15) / 16;  // of 16 columns, so that threads share no line
  const auto needed_row = [&](int64_t i) { return w(neurons[needed[i]]); };
  in_parallel(pieces, 16 * rows_needed, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 16, last = std::min(end * 16, D);
    side_by_side<ADDED>(0, rows_needed, needed_row, [&](auto size, auto rows, auto next, int64_t i) {
      for (int64_t b = 0; b < B; ++b) {
        float scales[size()];
        for (int j = 0; j < size(); ++j) scales[j] = h[b * count + needed[i + j]] * w.factor(neurons[needed[i + j]]);
        add_rows<size()>(scales, rows, next, first, last, y + b * D);
      }
    });
  });
}

// The sum of f over vectors of x, and over numbers where they do not fill one.
template <typename F>
float sum_of(const float* x, int64_t D, const F& f) {
  Lanes sums[1] = {};
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) sums[0] += f(load(x + d));
  float total;
  sums_of<1>(sums, &total);
  for (; d < D; ++d) total += f(x[d]);
  return total;
}

// LayerNorm of one token.
inline void normalise(const float* x, const float* weight, const float* bias, double eps, int64_t D, float* out) {
  const float mean = sum_of(x, D, [](auto value) { return value; }) / D;
  const float squares = sum_of(x, D, [=](auto value) { return (value - mean) * (value - mean); });
  const float scale = static_cast<float>(1.0 / std::sqrt(squares / D + eps));
  for (int64_t d = 0; d < D; ++d) out[d] = (x[d] - mean) * scale * weight[d] + bias[d];
}

// LN(x + layer(x)), or x + layer(LN(x)) before the layer: [B, D] to [B, D].
struct Residual {
  const at::Tensor &weight, &bias;
  double eps;
  bool before;

  // layer(input, B, y): writes y [B, D].
  template <typename F>
  at::Tensor around(const at::Tensor& x, const F& layer) const {
    const int64_t B = x.size(0), D = x.size(1);
    TORCH_CHECK(weight.numel() == D && bias.numel() == D, "decoding: tokens are ", D, " wide, the LayerNorm is ",
                weight.numel(), " and ", bias.numel());
    const float *from = data(x), *scales = data(weight), *shifts = data(bias);
    at::Tensor result = at::empty_like(x);
    float* out = result.mutable_data_ptr<float>();
    std::vector<float> input(before ? B * D : 0), y(B * D);
    if (before)
      for (int64_t b = 0; b < B; ++b) normalise(from + b * D, scales, shifts, eps, D, input.data() + b * D);
    layer(before ? input.data() : from, B, y.data());
    for (int64_t i = 0; i < B * D; ++i) y[i] += from[i];
    if (before)
      std::copy(y.begin(), y.end(), out);
    else
      for (int64_t b = 0; b < B; ++b) normalise(y.data() + b * D, scales, shifts, eps, D, out + b * D);
    return result;
  }
};

}  // namespace
}  // namespace planer
