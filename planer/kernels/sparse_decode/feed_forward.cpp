// One token through a feed-forward layer and its residual, in single precision: dense, a mixture, split into experts,
// or with one neuron a block.  planer/blocks says what is computed.
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

struct Layer {
  const float *w1, *b1, *w2;  // [F, D], [F], [F, D]
  int64_t D;

  // y_b += sum over the picked neurons of factor relu(w1 x_b + b1) w2; all tokens run the same neurons.
  // factor(k): of the k-th picked neuron.
  template <typename Factor>
  void run(const float* x, int64_t B, const std::vector<int64_t>& picked, const Factor& factor, float* y) const {
    const int64_t count = picked.size();
    std::vector<float> hidden(B * count);
    row_products(
        x, B, D, count, [&](int64_t k) { return w1 + picked[k] * D; }, [&](int64_t k) { return b1[picked[k]]; },
        hidden.data());
    for (int64_t b = 0; b < B; ++b)
      for (int64_t k = 0; k < count; ++k) {
        float& h = hidden[b * count + k];
        h = activated<Activation::relu>(h) * factor(k);
      }
    add_products(hidden.data(), B, count, [&](int64_t k) { return w2 + picked[k] * D; }, D, y);
  }
};

constexpr auto ONE = [](int64_t) { return 1.0f; };

Tensor feed_forward(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
                    const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2) {
  const int64_t F = w1.size(0), D = w1.size(1);
  const Layer layer{data(w1), data(b1), data(w2), D};
  const float* shift = data(b2);
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<int64_t> all(F);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t b = 0; b < B; ++b) std::copy(shift, shift + D, y + b * D);
    layer.run(in, B, all, ONE, y);
  });
}

// router: [E, D]; w1 [E, I, D], b1 [E, I], w2 [E, I, D], b2 [E, D].
Tensor mixture(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
               const Tensor& router, const Tensor& w1, const Tensor& b1, const Tensor& w2, const Tensor& b2,
               int64_t top_k) {
  const int64_t E = w1.size(0), I = w1.size(1), D = w1.size(2);
  TORCH_CHECK(1 <= top_k && top_k <= E, "a mixture of ", E, " experts has no ", top_k, " for a token");
  const Layer layer{data(w1), data(b1), data(w2), D};
  const float *gates = data(router), *shift = data(b2);
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<float> logits(E), weight(top_k);
    std::vector<int64_t> order(E), picked(top_k * I);
    for (int64_t b = 0; b < B; ++b) {
      products(in + b * D, 1, D, E, gates, nullptr, logits.data());
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
      layer.run(in + b * D, 1, picked, [&](int64_t k) { return weight[k / I]; }, y + b * D);
    }
  });
}

// v1: [w, D]; v2: [E, w]; experts are consecutive rows of w1 and w2.  tau 0 runs all.
Tensor dynamic(const Tensor& x, const Tensor& norm_weight, const Tensor& norm_bias, double eps, bool before,
               const Tensor& v1, const Tensor& v2, const Tensor& w1, const Tensor& b1, const Tensor& w2,
               const Tensor& b2, double tau) {
  const int64_t W = v1.size(0), E = v2.size(0), F = w1.size(0), D = w1.size(1), I = F / E;
  const Layer layer{data(w1), data(b1), data(w2), D};
  const float *first = data(v1), *second = data(v2), *shift = data(b2);
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<float> hidden(W), scores(E);
    std::vector<int64_t> picked;
    for (int64_t b = 0; b < B; ++b) {
      products(in + b * D, 1, D, W, first, nullptr, hidden.data());
      for (float& h : hidden) h = activated<Activation::relu>(h);
      products(hidden.data(), 1, W, E, second, nullptr, scores.data());
      float largest = 0.0f;
      for (float& score : scores) {
        score = std::abs(score);
        largest = score <= largest ? largest : score;  // NaN stays, and then all run
      }
      picked.clear();
      for (int64_t e = 0; e < E; ++e)
        if (!(scores[e] < static_cast<float>(tau) * largest))
          for (int64_t i = 0; i < I; ++i) picked.push_back(e * I + i);
      std::copy(shift, shift + D, y + b * D);
      layer.run(in + b * D, 1, picked, ONE, y + b * D);
    }
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
                           bool before, const Tensor& c1, const Tensor& c2, const Tensor& c, const Tensor& w1,
                           const Tensor& b1, const Tensor& w2, const Tensor& b2, int64_t N, bool weighted) {
  const int64_t r = c1.size(0), F = w1.size(0), D = w1.size(1);
  const Layer layer{data(w1), data(b1), data(w2), D};
  const Panels second{data(c2), r, F};
  const float *first = data(c1), *start = data(c), *shift = data(b2);
  return Residual{norm_weight, norm_bias, eps, before}.around(x, [&](const float* in, int64_t B, float* y) {
    std::vector<float> low(r), logits(F), factor(F / N, 1.0f);
    std::vector<int64_t> picked(F / N);
    for (int64_t b = 0; b < B; ++b) {
      products(in + b * D, 1, D, r, first, nullptr, low.data());
      std::copy(start, start + F, logits.begin());
      second.add(low.data(), 1, 1, logits.data(), F);
      for (int64_t n = 0; n < F / N; ++n) {
        const float* block = logits.data() + n * N;
        const int64_t best = largest_of(block, N);
        picked[n] = n * N + best;
        if (!weighted) continue;
        float total = 0.0f;
        for (int64_t i = 0; i < N; ++i) total += std::exp(block[i] - block[best]);
        factor[n] = 1.0f / total;
      }
      std::copy(shift, shift + D, y + b * D);
      layer.run(in + b * D, 1, picked, [&](int64_t k) { return factor[k]; }, y + b * D);
    }
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  const std::string start = "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, bool before, ";
  const std::string layer = "Tensor w1, Tensor b1, Tensor w2, Tensor b2";
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
