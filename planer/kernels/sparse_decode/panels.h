// Products with weights that lie in panels of 32 columns, one after another, each row by row: [panels, d, 32].
//
// Many products with few weights: the modules of multiplicative layers and of convolutions are rows that meet the same
// weights.  A part of a panel stays in the first cache until all rows have met it; meanwhile a later part is fetched from
// memory.

#pragma once

#include "rows.h"

namespace planer {
namespace {

constexpr int64_t PANEL = 32;
constexpr int64_t PART = 64;                           // rows of a panel
constexpr int TILE = LANES == 16 ? 8 : 6;              // rows whose sums stay in registers
constexpr int WIDE = std::min<int>(PANEL, 2 * LANES);  // columns of them: 16 sums in 32 registers, or 12 in 16

// sums[t][c] += sum over i < d of z[i][t] panel[i][c], for T rows and C columns.  z_stride: from i to i + 1.
template <int T, int C, typename W>
void add_product(const float* z, int64_t z_stride, const W* panel, int64_t d, float* sums) {
  constexpr int VECTORS = C / LANES;
  Lanes kept[T][VECTORS];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) kept[t][v] = load(sums + t * PANEL + v * LANES);
  for (int64_t i = 0; i < d; ++i) {
    Lanes weights[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) weights[v] = load(panel + i * PANEL + v * LANES);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Lanes value = everywhere(z[i * z_stride + t]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) kept[t][v] = plus_product(kept[t][v], value, weights[v]);
    }
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(sums + t * PANEL + v * LANES, kept[t][v]);
}

// sums[r][c] += sum over i < d of z[i][r] part[i][c], for rows of z and a part of a panel.
template <typename W>
void add_part(const float* z, int64_t z_stride, int64_t rows, const W* part, int64_t d, float* sums) {
  const int64_t bytes = d * PANEL * sizeof(W), tiles = (rows + TILE - 1) / TILE;
  const char* later = reinterpret_cast<const char*>(part) + std::max(bytes, AHEAD);
  int64_t r = 0;
  const auto run = [&](auto size, auto columns) {
    for (; r + size() <= rows; r += size()) {
      const int64_t tile = r / TILE;
      for (int64_t byte = bytes * tile / tiles; byte < bytes * (tile + 1) / tiles; byte += LINE) fetch(later + byte);
      for (int64_t c = 0; c < PANEL; c += columns())
        add_product<size(), columns()>(z + r, z_stride, part + c, d, sums + r * PANEL + c);
    }
  };
  constexpr std::integral_constant<int, WIDE> wide;
  run(std::integral_constant<int, TILE>(), wide);
  run(std::integral_constant<int, 4>(), wide);
  run(std::integral_constant<int, 1>(), std::integral_constant<int, PANEL>());
}

// out[r][m] += sum over i of z[i][r] w[i][m] for z [d, rows] and weights [d, width] in panels, from panel first on.
// matrix: {panels [..., d, 32]}, or {panels, factors [..., 32]} in 8 bits.
// Strides: of z from i to i + 1, of out from r to r + 1.
struct Panels {
  at::TensorList matrix;
  int64_t width, first = 0;

  void add(const float* z, int64_t z_stride, int64_t rows, float* out, int64_t out_stride) const {
    with_type(matrix, [&](auto type) { add<decltype(type)>(z, z_stride, rows, out, out_stride); });
  }

  template <typename W>
  void add(const float* z, int64_t z_stride, int64_t rows, float* out, int64_t out_stride) const {
    const int64_t d = matrix[0].size(-2), count = (width + PANEL - 1) / PANEL;
    const W* weights = data<W>(matrix[0]) + first * d * PANEL;
    const float* factors = std::is_same_v<W, int8_t> ? data(matrix[1]) + first * PANEL : nullptr;
    in_parallel(count, d * PANEL, [&](int64_t begin, int64_t end) {
      std::vector<float> sums(rows * PANEL);
      for (int64_t p = begin; p < end; ++p) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t i = 0; i < d; i += PART)
          add_part(z + i * z_stride, z_stride, rows, weights + (p * d + i) * PANEL, std::min(PART, d - i), sums.data());
        const int64_t column = p * PANEL;
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t c = 0; c < std::min(PANEL, width - column); ++c) {
            float& sum = out[r * out_stride + column + c];
            sum = std::fma(sums[r * PANEL + c], factors ? factors[column + c] : 1.0f, sum);
          }
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
