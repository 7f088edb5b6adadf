// One token through relative attention and its residual, over a cache of keys and values, with sums in single
// precision: planer/blocks/attention.py says what is computed.
//
// The cache is a ring of C positions.  Token t of a sequence is written to place t mod C and sees the C tokens up to
// itself.  Sequences may be of different lengths.
//
// Letters in shapes: B sequences, H heads of width Dh, W = H Dh, C cached positions, L >= C distances, S modules of M.

#include <torch/library.h>

#include "../cpp/activations.h"
#include "panels.h"

namespace planer {
namespace {

using at::Tensor;

struct Heads {
  const Tensor &u, &v, &positions;  // [H, Dh], [H, Dh], [H, L, Dh] for distances 0, 1, ...
  const Tensor &keys, &values;      // [B, H, C, Dh]
  const Tensor& seen;               // [B], int64: tokens before this one

  int64_t width() const { return u.numel(); }

  // Raises unless the caches are those of the tokens x [B, D], and of these heads.
  void check(const Tensor& x) const {
    const int64_t B = x.size(0), H = u.size(0), C = keys.size(2), Dh = u.size(1);
    TORCH_CHECK(keys.sizes() == at::IntArrayRef({B, H, C, Dh}) && values.sizes() == keys.sizes(),
                "decoding: tokens of ", B, " sequences in ", H, " heads of ", Dh, ", but caches ", keys.sizes(), " and ",
                values.sizes());
    TORCH_CHECK(v.sizes() == u.sizes(), "decoding: biases ", u.sizes(), " and ", v.sizes());
    TORCH_CHECK(seen.numel() == B, "decoding: lengths of ", seen.numel(), " sequences, but caches of ", B);
    TORCH_CHECK(positions.size(0) == H && positions.size(1) >= C && positions.size(2) == Dh, "decoding: ", C,
                " cached positions, but distances ", positions.sizes());
  }

  // Mixes values for queries, keys and values of one token of every sequence: rows of W numbers, stride apart in
  // memory; out [B, W].  Keys and values go into the cache.
  void run(const float* q, const float* k, const float* v_new, int64_t stride, float* out) const {
    const int64_t B = keys.size(0), H = keys.size(1), C = keys.size(2), Dh = keys.size(3), W = H * Dh;
    data(keys), data(values);
    float *all_keys = keys.mutable_data_ptr<float>(), *all_values = values.mutable_data_ptr<float>();
    const float *us = data(u), *vs = data(v), *table = data(positions);
    const int64_t L = positions.size(1), *lengths = data<int64_t>(seen);
    in_parallel(B * H, 3 * C * Dh, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(whole_vectors(C)), by_key(Dh), by_position(Dh);
      const float scale = 1.0f / std::sqrt(static_cast<float>(Dh));
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / H, h = i % H, at = b * stride + h * Dh, place = lengths[b] % C;
        float *head_keys = all_keys + i * C * Dh, *head_values = all_values + i * C * Dh;
        std::copy(k + at, k + at + Dh, head_keys + place * Dh);
        std::copy(v_new + at, v_new + at + Dh, head_values + place * Dh);
        for (int64_t d = 0; d < Dh; ++d) {
          by_key[d] = (q[at + d] + us[h * Dh + d]) * scale;
          by_position[d] = (q[at + d] + vs[h * Dh + d]) * scale;
        }
        const int64_t count = std::min(lengths[b] + 1, C);
        const float* distances = table + h * L * Dh;
        for (int64_t s = 0; s < count; ++s) {
          const int64_t distance = s <= place ? place - s : place - s + C;
          scores[s] = score(by_key.data(), head_keys + s * Dh, by_position.data(), distances + distance * Dh, Dh);
        }
        softmax(scores.data(), count);
        mix(scores.data(), head_values, count, Dh, out + b * W + h * Dh);
      }
    });
  }

  // a . b + c . d
  static float score(const float* a, const float* b, const float* c, const float* d, int64_t Dh) {
    Lanes sums[2] = {};
    const auto add = [&](int64_t i, auto... lanes_left) {
      sums[0] = plus_product(sums[0], load(a + i, lanes_left...), load(b + i, lanes_left...));
      sums[1] = plus_product(sums[1], load(c + i, lanes_left...), load(d + i, lanes_left...));
    };
    int64_t i = 0;
    for (; i + LANES <= Dh; i += LANES) add(i);
    if (i < Dh) add(i, Dh - i);
    Lanes both[1] = {sums[0] + sums[1]};
    float total;
    sums_of<1>(both, &total);
    return total;
  }

  static void softmax(float* scores, int64_t count) {
    float largest = scores[0];
    for (int64_t s = 1; s < count; ++s) largest = std::max(largest, scores[s]);
    for (int64_t s = 0; s < count; ++s) scores[s] = exponential(scores[s] - largest);
    double total = 0.0;
    for (int64_t s = 0; s < count; ++s) total += scores[s];
    const float share = static_cast<float>(1.0 / total);
    for (int64_t s = 0; s < count; ++s) scores[s] *= share;
  }

  // out = sum over s of shares[s] rows[s]; four vectors of sums at a time.
  static void mix(const float* shares, const float* rows, int64_t count, int64_t Dh, float* out) {
    const auto columns = [&](auto vectors, int64_t d, auto... lanes_left) {
      Lanes sums[vectors()] = {};
      for (int64_t s = 0; s < count; ++s)
        for (int v = 0; v < vectors(); ++v)
          sums[v] = plus_product(sums[v], everywhere(shares[s]), load(rows + s * Dh + d + v * LANES, lanes_left...));
      for (int v = 0; v < vectors(); ++v) store(out + d + v * LANES, sums[v], lanes_left...);
    };
    int64_t d = 0;
    for (; d + 4 * LANES <= Dh; d += 4 * LANES) columns(std::integral_constant<int, 4>(), d);
    for (; d + LANES <= Dh; d += LANES) columns(std::integral_constant<int, 1>(), d);
    if (d < Dh) columns(std::integral_constant<int, 1>(), d, Dh - d);
  }
};

// qkv: [3 W, D]; output: [D, W].
Tensor attention(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
                 const Tensor& u, const Tensor& v, const Tensor& positions, const Tensor& keys, const Tensor& values,
                 const Tensor& seen, at::TensorList qkv, at::TensorList output) {
  const Heads heads{u, v, positions, keys, values, seen};
  heads.check(x);
  const int64_t W = heads.width();
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<float> projected(B * 3 * W), mixed(B * W);
    products(in, B, qkv, nullptr, projected.data());
    heads.run(projected.data(), projected.data() + W, projected.data() + 2 * W, 3 * W, mixed.data());
    products(mixed.data(), B, output, nullptr, y);
  });
}

// projections: the multiplicative layers of queries, keys, values and output, one after another.
Tensor sparse_attention(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
                        const Tensor& u, const Tensor& v, const Tensor& positions, const Tensor& keys,
                        const Tensor& values, const Tensor& seen, at::TensorList projections) {
  const Heads heads{u, v, positions, keys, values, seen};
  heads.check(x);
  const int64_t W = heads.width(), each = projections.size() / 4;
  const auto project = [&](int number, const float* from, int64_t B, float* to) {
    Multiplicative{projections.slice(number * each, each)}.run(from, B, to);
  };
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<float> projected(3 * B * W), mixed(B * W);
    for (int part = 0; part < 3; ++part) project(part, in, B, projected.data() + part * B * W);
    heads.run(projected.data(), projected.data() + B * W, projected.data() + 2 * B * W, W, mixed.data());
    project(3, mixed.data(), B, y);
  });
}

// projection: a multiplicative layer.  image: [B, 3, M, S + 2], its outputs for the last three tokens; the first and last
// columns stay zero.  convolutions: of queries, keys and values, a bias [M] and taps [modules seen, panels, 3 M, 32], as
// Panels has them.
Tensor sparse_conv_attention(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                             bool before, const Tensor& u, const Tensor& v, const Tensor& positions,
                             const Tensor& keys, const Tensor& values, const Tensor& seen, const Tensor& image,
                             at::TensorList projection, at::TensorList convolutions) {
  const Heads heads{u, v, positions, keys, values, seen};
  heads.check(x);
  const int64_t W = heads.width(), M = image.size(2), S = image.size(3) - 2, row = S + 2;
  const int64_t each = convolutions.size() / 3;
  data(image);
  TORCH_CHECK(image.size(0) == x.size(0), "decoding: tokens of ", x.size(0), " sequences, images of ", image.size(0));
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<float> projected(B * W), parts(3 * B * W);
    Multiplicative{projection}.run(in, B, projected.data());
    for (int64_t b = 0; b < B; ++b) {
      float* last = image.mutable_data_ptr<float>() + b * 3 * M * row;
      std::copy(last + M * row, last + 3 * M * row, last);
      for (int64_t s = 0; s < S; ++s)
        for (int64_t m = 0; m < M; ++m) last[(2 * M + m) * row + s + 1] = projected[b * W + s * M + m];
      for (int part = 0; part < 3; ++part) {
        const at::TensorList layer = convolutions.slice(part * each, each), taps = layer.slice(1);
        const float* shift = data(layer[0]);
        const int64_t modules = taps[0].size(0), panels = taps[0].size(1);
        float* out = parts.data() + (part * B + b) * W;
        for (int64_t s = 0; s < S; ++s) std::copy(shift, shift + M, out + s * M);
        for (int64_t w = 0; w < modules; ++w)
          Panels{taps, M, w * panels}.add(last + w + (3 - modules) / 2, row, S, out, M);
      }
    }
    heads.run(parts.data(), parts.data() + B * W, parts.data() + 2 * B * W, W, y);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  const std::string start =
      "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, bool before, Tensor u, Tensor v, Tensor positions, "
      "Tensor(a!) keys, Tensor(b!) values, Tensor seen, ";
  library.def(("decode_attention" + start + "Tensor[] qkv, Tensor[] output) -> Tensor").c_str());
  library.def(("decode_sparse_attention" + start + "Tensor[] projections) -> Tensor").c_str());
  library.def(("decode_sparse_conv_attention" + start +
              "Tensor(c!) image, Tensor[] projection, Tensor[] convolutions) -> Tensor").c_str());
}

TORCH_LIBRARY_IMPL(planer_cpp, CPU, library) {
  library.impl("decode_attention", &attention);
  library.impl("decode_sparse_attention", &sparse_attention);
  library.impl("decode_sparse_conv_attention", &sparse_conv_attention);
}

}  // namespace planer
