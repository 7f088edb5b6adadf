// What the decoding operators share: products with rows of weights, sums of scaled rows, and the residual.
//
// A token meets every weight once, so that reading the weights takes the time.  ROWS rows are read side by side, and
// those that follow are fetched meanwhile: rows that were picked here and there are no stream that a processor expects.
// Sums are made in the same order however many threads there are.
//
// Letters in shapes: B tokens, D model width.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "../cpp/vectors.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace planer {
namespace {

constexpr int ROWS = 4;
constexpr int64_t GRAIN = 1 << 16;  // least weights of a thread, 256 KiB: waking another one takes as long

inline const float* data(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "decoding needs contiguous tensors");
  return tensor.const_data_ptr<float>();
}

// f(begin, end) over parts of 0 to count - 1, each thread with at least GRAIN weights.
template <typename F>
void in_parallel(int64_t count, int64_t weights_each, const F& f) {
  at::parallel_for(0, count, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, weights_each)), f);
}

// out[j] = x . rows[j] for J rows; fetches those of ahead.
template <int J>
void row_dots(const float* x, const float* const* rows, const float* const* ahead, int64_t D, float* out) {
  Lanes sums[J] = {};
  const auto add = [&](int64_t d, auto... lanes_left) {
    const Lanes value = load(x + d, lanes_left...);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      __builtin_prefetch(ahead[j] + d);
      sums[j] = plus_product(sums[j], value, load(rows[j] + d, lanes_left...));
    }
  };
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) add(d);
  if (d < D) add(d, D - d);
  sums_of<J>(sums, out);
}

// y[d] += sum over j of h[j] rows[j][d], for the columns begin to end - 1; fetches those of ahead.
template <int J>
void add_rows(const float* h, const float* const* rows, const float* const* ahead, int64_t begin, int64_t end,
              float* y) {
  const auto add = [&](int64_t d, auto... lanes_left) {
    Lanes sum = load(y + d, lanes_left...);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      __builtin_prefetch(ahead[j] + d);
      sum = plus_product(sum, everywhere(h[j]), load(rows[j] + d, lanes_left...));
    }
    store(y + d, sum, lanes_left...);
  };
  int64_t d = begin;
  for (; d + LANES <= end; d += LANES) add(d);
  if (d < end) add(d, end - d);
}

// Calls f(std::integral_constant<int, J>(), rows, ahead, k) for groups of J rows, row(0) to row(count - 1).
template <typename Row, typename F>
void in_groups(int64_t begin, int64_t end, const Row& row, const F& f) {
  const float *rows[ROWS], *ahead[ROWS];
  const auto run = [&](auto size, int64_t k) {
    for (int j = 0; j < size(); ++j) {
      rows[j] = row(k + j);
      ahead[j] = row(std::min(k + size() + j, end - 1));
    }
    f(size, rows, ahead, k);
  };
  int64_t k = begin;
  for (; k + ROWS <= end; k += ROWS) run(std::integral_constant<int, ROWS>(), k);
  for (; k < end; ++k) run(std::integral_constant<int, 1>(), k);
}

// out[b][k] = x_b . row(k) + bias(k) for tokens x [B, D] and count rows: out [B, count].
template <typename Row, typename Bias>
void row_products(const float* x, int64_t B, int64_t D, int64_t count, const Row& row, const Bias& bias, float* out) {
  in_parallel(count, D, [&](int64_t begin, int64_t end) {
    in_groups(begin, end, row, [&](auto size, auto rows, auto ahead, int64_t k) {
      for (int64_t b = 0; b < B; ++b) {
        float sums[size()];
        row_dots<size()>(x + b * D, rows, ahead, D, sums);
        for (int j = 0; j < size(); ++j) out[b * count + k + j] = sums[j] + bias(k + j);
      }
    });
  });
}

// The same with all rows of a weight [count, D], and a bias or none.
inline void products(const float* x, int64_t B, int64_t D, int64_t count, const float* weight, const float* bias,
                     float* out) {
  row_products(
      x, B, D, count, [=](int64_t k) { return weight + k * D; }, [=](int64_t k) { return bias ? bias[k] : 0.0f; }, out);
}

// y_b += sum over k of h[b][k] row(k) for h [B, count]: y [B, D].  Rows that no token needs are not read.
template <typename Row>
void add_products(const float* h, int64_t B, int64_t count, const Row& row, int64_t D, float* y) {
  std::vector<int64_t> needed;
  needed.reserve(count);
  for (int64_t k = 0; k < count; ++k) {
    bool zero = true;
    for (int64_t b = 0; b < B; ++b) zero &= h[b * count + k] == 0.0f;
    if (!zero) needed.push_back(k);
  }
  const int64_t rows_needed = needed.size(), pieces = (D + 15) / 16;  // of 16 columns, so that threads share no line
  const auto needed_row = [&](int64_t i) { return row(needed[i]); };
  in_parallel(pieces, 16 * rows_needed, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 16, last = std::min(end * 16, D);
    in_groups(0, rows_needed, needed_row, [&](auto size, auto rows, auto ahead, int64_t i) {
      for (int64_t b = 0; b < B; ++b) {
        float scales[size()];
        for (int j = 0; j < size(); ++j) scales[j] = h[b * count + needed[i + j]];
        add_rows<size()>(scales, rows, ahead, first, last, y + b * D);
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
    TORCH_CHECK(weight.numel() == D, "decoding: tokens are ", D, " wide, the LayerNorm is ", weight.numel());
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
