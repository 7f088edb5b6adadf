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

// out[t][c] += sum over i < d of z[i][t] panel[i][c] for T rows and the first count columns.
// Strides: of z from i to i + 1, of out from t to t + 1.
template <int T>
void panel_product(const float* z, int64_t z_stride, const float* panel, int64_t d, int64_t count, float* out,
                   int64_t out_stride) {
  Lanes sums[T][VECTORS] = {};
  for (int64_t i = 0; i < d; ++i) {
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
    for (int64_t c = 0; c < count; ++c) out[t * out_stride + c] += totals[t][c];
}

// out[r][m] += sum over i of z[i][r] w[i][m] for z [d, rows] and a weight [d, width] in panels.
struct Panels {
  const float* weights;
  int64_t d, width;

  void add(const float* z, int64_t z_stride, int64_t rows, float* out, int64_t out_stride) const {
    in_parallel((width + PANEL - 1) / PANEL, d * PANEL, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const float* panel = weights + p * d * PANEL;
        const int64_t first = p * PANEL, count = std::min(PANEL, width - first);
        const auto run = [&](auto size, int64_t r) {
          panel_product<size()>(z + r, z_stride, panel, d, count, out + r * out_stride + first, out_stride);
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
// scales: [d, S]; panels: of a weight [d, M]; bias: [S M], or undefined.
struct Multiplicative {
  const at::Tensor &scales, &panels, &bias;

  int64_t width() const { return bias.numel(); }

  // x [B, d] to out [B, S M].
  void run(const float* x, int64_t B, float* out) const {
    const int64_t d = scales.size(0), S = scales.size(1), M = width() / S;
    const float *scale = data(scales), *shift = data(bias);
    const Panels weight{data(panels), d, M};
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
