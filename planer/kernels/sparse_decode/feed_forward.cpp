// One token through a feed-forward layer and its residual, with sums in single precision: dense, a mixture, split into
// experts, or with one neuron a block.  planer/blocks says what is computed.
//
// Each kind picks the neurons of a token; one function adds up their outputs.  w2 is neuron-major: the rows of neurons
// that the ReLU sets to zero are not read.
//
// Letters in shapes: B tokens, D model width, F neurons, E experts, I neurons of an expert, N neurons of a block, r
// rank.

#include <torch/library.h>

#include "../cpp/activations.h"
#include "panels.h"

namespace planer {
namespace {

using at::Tensor;

template <typename W>
struct Layer {
  Rows<W> w1;       // [F, D]
  const float* b1;  // [F]
  Rows<W> w2;       // [F, D]

  // y_b += sum over neurons of factor relu(w1 x_b + b1) w2; all tokens run the same neurons.
  // factor(k): of the k-th neuron.  apart: whether their rows lie here and there.
  template <typename Factor>
  void run(const float* x, int64_t B, const std::vector<int64_t>& neurons, bool apart, const Factor& factor,
           float* y) const {
    const int64_t count = neurons.size();
    std::vector<float> hidden(B * count);
    const auto bias = [&](int64_t k) { return b1[neurons[k]]; };
    if (apart)
      for (int64_t b = 0; b < B; ++b) products_apart(x + b * w1.width, w1, neurons, bias, hidden.data() + b * count);
    else
      products(x, B, w1, count, [&](int64_t k) { return neurons[k]; }, bias, hidden.data());
    for (int64_t b = 0; b < B; ++b)
      for (int64_t k = 0; k < count; ++k) {
        float& h = hidden[b * count + k];
        h = activated<Activation::relu>(h) * factor(k);
      }
    add_products(hidden.data(), B, neurons, w2, y);
  }
};

// f(Layer) for the type of its matrices.
template <typename F>
auto with_layer(at::TensorList w1, const Tensor& b1, at::TensorList w2, const F& f) {
  TORCH_CHECK(w1[0].numel() == w2[0].numel() && w1[0].numel() == b1.numel() * w1[0].size(-1), "decoding: weights ",
              w1[0].sizes(), " and ", w2[0].sizes(), ", but ", b1.numel(), " neurons");
  return with_type(w1, [&](auto type) {
    using W = decltype(type);
    return f(Layer<W>{Rows<W>(w1), data(b1), Rows<W>(w2)});
  });
}

constexpr auto ONE = [](int64_t) { return 1.0f; };

Tensor feed_forward(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
                    at::TensorList w1, const Tensor& b1, at::TensorList w2, const Tensor& b2) {
  const int64_t D = x.size(1);
  const float* shift = data(b2);
  std::vector<int64_t> all(b1.numel());
  std::iota(all.begin(), all.end(), 0);
  return with_layer(w1, b1, w2, [&](const auto& layer) {
    return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
      for (int64_t b = 0; b < B; ++b) std::copy(shift, shift + D, y + b * D);
      layer.run(in, B, all, false, ONE, y);
    });
  });
}

// router: [E, D]; w1 [E, I, D], b1 [E, I], w2 [E, I, D], b2 [E, D].
Tensor mixture(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
               const Tensor& router, at::TensorList w1, const Tensor& b1, at::TensorList w2, const Tensor& b2,
               int64_t top_k) {
  const int64_t E = b1.size(0), I = b1.size(1), D = x.size(1);
  TORCH_CHECK(1 <= top_k && top_k <= E, "a mixture of ", E, " experts has no ", top_k, " for a token");
  const float* shift = data(b2);
  const auto run = [&](const auto& layer, const float* in, int64_t B, float* y) {
    std::vector<float> all_logits(B * E), weight(top_k);
    std::vector<int64_t> order(E), picked(top_k * I);
    products(in, B, router, nullptr, all_logits.data());
    for (int64_t b = 0; b < B; ++b) {
      const float* logits = all_logits.data() + b * E;
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return logits[i] > logits[j]; });
      const float largest = logits[order[0]];
      float total = 0.0f;
      for (int64_t e = 0; e < (top_k == 1 ? E : top_k); ++e) total += std::exp(logits[order[e]] - largest);
      std::fill(y + b * D, y + (b + 1) * D, 0.0f);
      for (int64_t k = 0; k < top_k; ++k) {
        weight[k] = std::exp(logits[order[k]] - largest) / total;
        std::iota(picked.begin() + k * I, picked.begin() + (k + 1) * I, order[k] * I);
        for (int64_t d = 0; d < D; ++d) y[b * D + d] += weight[k] * shift[order[k] * D + d];
      }
      layer.run(in + b * D, 1, picked, false, [&](int64_t k) { return weight[k / I]; }, y + b * D);
    }
  };
  return with_layer(w1, b1, w2, [&](const auto& layer) {
    return Residual{norm_weight, norm_bias, eps, before}.around(
        x, [&](const float* in, int64_t B, float* y) { run(layer, in, B, y); });
  });
}

// v1: [w, D]; v2: [E, w]; experts are consecutive rows of w1 and w2.  tau 0 runs all.
Tensor dynamic(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
               const Tensor& v1, const Tensor& v2, at::TensorList w1, const Tensor& b1, at::TensorList w2,
               const Tensor& b2, double tau) {
  const int64_t W = v1.size(0), E = v2.size(0), D = x.size(1), I = b1.numel() / E;
  const float* shift = data(b2);
  const auto run = [&](const auto& layer, const float* in, int64_t B, float* y) {
    std::vector<float> hidden(B * W), all_scores(B * E);
    std::vector<int64_t> picked;
    products(in, B, v1, nullptr, hidden.data());
    for (float& h : hidden) h = activated<Activation::relu>(h);
    products(hidden.data(), B, v2, nullptr, all_scores.data());
    for (int64_t b = 0; b < B; ++b) {
      float *scores = all_scores.data() + b * E, largest = 0.0f;
      for (int64_t e = 0; e < E; ++e) {
        scores[e] = std::abs(scores[e]);
        if (!(scores[e] <= largest) && !std::isnan(largest)) largest = scores[e];  // NaN stays, and then all run
      }
      picked.clear();
      for (int64_t e = 0; e < E; ++e)
        if (!(scores[e] < static_cast<float>(tau) * largest))
          for (int64_t i = 0; i < I; ++i) picked.push_back(e * I + i);
      std::copy(shift, shift + D, y + b * D);
      layer.run(in + b * D, 1, picked, false, ONE, y + b * D);
    }
  };
  return with_layer(w1, b1, w2, [&](const auto& layer) {
    return Residual{norm_weight, norm_bias, eps, before}.around(
        x, [&](const float* in, int64_t B, float* y) { run(layer, in, B, y); });
  });
}

// The place of the largest of N numbers, of equal ones the first.
int64_t largest_of(const float* values, int64_t N) {
  int64_t best = 0;
  float largest = values[0];
  if (N >= LANES) {
    Lanes most = load(values);
    int64_t n = LANES;
    for (; n + LANES <= N; n += LANES) {
      const Lanes more = load(values + n);
      most = more > most ? more : most;
    }
    for (int i = 0; i < LANES; ++i) largest = std::max(largest, most[i]);
    for (; n < N; ++n) largest = std::max(largest, values[n]);
    for (best = 0; best < N - 1 && values[best] != largest;) ++best;
    return best;
  }
  for (int64_t n = 1; n < N; ++n)
    if (values[n] > largest) largest = values[best = n];
  return best;
}

// c1: [r, D]; c2: of a weight [r, F], in panels; c: [F]; blocks of N neurons.
// weighted: activations times the probability of the picked neuron in its block.
Tensor sparse_feed_forward(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps,
                           bool before, const Tensor& c1, const Tensor& c2, const Tensor& c, at::TensorList w1,
                           const Tensor& b1, at::TensorList w2, const Tensor& b2, int64_t N, bool weighted) {
  const int64_t r = c1.size(0), F = b1.numel(), D = x.size(1);
  const float *start = data(c), *shift = data(b2);
  const auto run = [&](const auto& layer, const float* in, int64_t B, float* y) {
    std::vector<float> low(B * r), low_of_rank(r * B), logits(B * F), factor(F / N, 1.0f);
    std::vector<int64_t> picked(F / N);
    products(in, B, c1, nullptr, low.data());
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t i = 0; i < r; ++i) low_of_rank[i * B + b] = low[b * r + i];
      std::copy(start, start + F, logits.begin() + b * F);
    }
    Panels{c2, F}.add(low_of_rank.data(), B, B, logits.data(), F);
    for (int64_t b = 0; b < B; ++b) {
      for (int64_t n = 0; n < F / N; ++n) {
        const float* block = logits.data() + b * F + n * N;
        const int64_t best = largest_of(block, N);
        picked[n] = n * N + best;
        if (!weighted) continue;
        float total = 0.0f;
        for (int64_t i = 0; i < N; ++i) total += std::exp(block[i] - block[best]);
        factor[n] = 1.0f / total;
      }
      std::copy(shift, shift + D, y + b * D);
      layer.run(in + b * D, 1, picked, true, [&](int64_t k) { return factor[k]; }, y + b * D);
    }
  };
  return with_layer(w1, b1, w2, [&](const auto& layer) {
    return Residual{norm_weight, norm_bias, eps, before}.around(
        x, [&](const float* in, int64_t B, float* y) { run(layer, in, B, y); });
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  const std::string start = "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, bool before, ";
  const std::string layer = "Tensor[] w1, Tensor b1, Tensor[] w2, Tensor b2";
  library.def(("decode_feed_forward" + start + layer + ") -> Tensor").c_str());
  library.def(("decode_mixture" + start + "Tensor router, " + layer + ", int top_k) -> Tensor").c_str());
  library.def(("decode_dynamic" + start + "Tensor v1, Tensor v2, " + layer + ", float tau) -> Tensor").c_str());
  library.def(("decode_sparse_feed_forward" + start + "Tensor c1, Tensor c2, Tensor c, " + layer +
              ", int N, bool weighted) -> Tensor").c_str());
}

TORCH_LIBRARY_IMPL(planer_cpp, CPU, library) {
  library.impl("decode_feed_forward", &feed_forward);
  library.impl("decode_mixture", &mixture);
  library.impl("decode_dynamic", &dynamic);
  library.impl("decode_sparse_feed_forward", &sparse_feed_forward);
}

}  // namespace planer
