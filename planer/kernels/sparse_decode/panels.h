// Products with weights that lie in panels of 32 columns, one after another, each row by row: [panels, d, 32].
//
// Many products with few weights: the modules of multiplicative layers and of convolutions are rows that meet the same
// weights.  A tile of sums stays in registers while a panel is read.

#pragma once

#include "rows.h"

namespace planer {
namespace {

constexpr int64_t PANEL = 32;
constexpr int VECTORS = PANEL / LANES;
constexpr int TILE = LANES == 16 ? 8 : LANES == 8 ? 2 : 1;  // TILE * VECTORS sums: 16 of 32 registers, or 8 of 16

// out[t][c] += factors[c] times the sum over i < d of z[i][t] panel[i][c], for T rows and the first count columns.
// Strides: of z from i to i + 1, of out from t to t + 1.  Fetches step bytes behind next for each i.
template <int T, typename W>
void panel_product(const float* z, int64_t z_stride, const W* panel, const float* factors, const char* next,
                   int64_t step, int64_t d, int64_t count, float* out, int64_t out_stride) {
  Lanes sums[T][VECTORS] = {};
  for (int64_t i = 0; i < d; ++i) {
    __builtin_prefetch(next + i * step);
    __builtin_prefetch(next + i * step + step / 2);
    Lanes weights[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) weights[v] = load(panel + i * PANEL + v * LANES);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Lanes value = everywhere(z[i * z_stride + t]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[t][v] = plus_product(sums[t][v], value, weights[v]);
    }
  }
  float totals[T][PANEL];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(totals[t] + v * LANES, sums[t][v]);
  for (int t = 0; t < T; ++t)
    for (int64_t c = 0; c < count; ++c) {
      float& sum = out[t * out_stride + c];
      sum = std::fma(totals[t][c], factors ? factors[c] : 1.0f, sum);
    }
}

// out[r][m] += sum over i of z[i][r] w[i][m] for z [d, rows] and weights [d, width] in panels, from panel first on.
// matrix: {panels [..., d, 32]}, or {panels, factors [..., 32]} in 8 bits.
struct Panels {
  at::TensorList matrix;
  int64_t width, first = 0;

  void add(const float* z, int64_t z_stride, int64_t rows, float* out, int64_t out_stride) const {
    with_type(matrix, [&](auto type) { add<decltype(type)>(z, z_stride, rows, out, out_stride); });
  }

  // A panel is read from memory for the first rows, and from a cache for the others.  Meanwhile the next one comes.
  template <typename W>
  void add(const float* z, int64_t z_stride, int64_t rows, float* out, int64_t out_stride) const {
    const int64_t d = matrix[0].size(-2), count = (width + PANEL - 1) / PANEL;
    const W* weights = data<W>(matrix[0]) + first * d * PANEL;
    const float* factors = std::is_same_v<W, int8_t> ? data(matrix[1]) + first * PANEL : nullptr;
    const int64_t calls = std::max<int64_t>(1, rows / TILE), step = PANEL * sizeof(W) / calls;
    in_parallel(count, d * PANEL, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const int64_t column = p * PANEL;
        const auto run = [&](auto size, int64_t r) {
          const char* next = reinterpret_cast<const char*>(weights + std::min(p + 1, end - 1) * d * PANEL);
          panel_product<size()>(z + r, z_stride, weights + p * d * PANEL, factors ? factors + column : nullptr,
                                next + r / TILE * step * d, step, d, std::min(PANEL, width - column),
                                out + r * out_stride + column, out_stride);
        };
        int64_t r = 0;
        for (; r + TILE <= rows; r += TILE) run(std::integral_constant<int, TILE>(), r);
        if (TILE > 4)
          for (; r + 4 <= rows; r += 4) run(std::integral_constant<int, 4>(), r);
        for (; r < rows; ++r) run(std::integral_constant<int, 1>(), r);
      }
    });
  }
};

// out[s M + m] = sum over i of x[i] scales[i][s] w[i][m] + bias: planer/kernels/multiplicative.py.
// layer: scales [d, S], bias [S M], and a weight [d, M] as Panels has it.
struct Multiplicative {
  at::TensorList layer;

  int64_t width() const { return layer[1].numel(); }

  // x [B, d] to out [B, S M].
  void run(const float* x, int64_t B, float* out) const {
    const int64_t d = layer[0].size(0), S = layer[0].size(1), M = width() / S;
    const float *scale = data(layer[0]), *shift = data(layer[1]);
    const Panels weight{layer.slice(2), M};
    std::vector<float> z(d * S);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < d; ++i)
        for (int64_t s = 0; s < S; ++s) z[i * S + s] = x[b * d + i] * scale[i * S + s];
      std::copy(shift, shift + S * M, out + b * S * M);
      weight.add(z.data(), S, S, out + b * S * M, M);
    }
  }
};

}  // namespace
}  // namespace planer
