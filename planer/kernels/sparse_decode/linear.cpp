// Layers without a residual for one token, with sums in single precision: those of heads.

#include <torch/library.h>

#include "panels.h"

namespace planer {
namespace {

using at::Tensor;

// x [B, D], weight [O, D], bias [O]: [B, O].
Tensor linear(const Tensor& x, at::TensorList weight, const std::optional<Tensor>& bias) {
  const int64_t B = x.size(0), D = x.size(1), O = weight[0].size(0);
  TORCH_CHECK(weight[0].size(1) == D, "decoding: tokens are ", D, " wide, weights ", weight[0].size(1));
  Tensor y = at::empty({B, O}, x.options());
  products(data(x), B, weight, bias ? data(*bias) : nullptr, y.mutable_data_ptr<float>());
  return y;
}

// x [B, D] through a multiplicative layer, see panels.h: [B, S M].
Tensor multiplicative(const Tensor& x, at::TensorList weights) {
  const Multiplicative layer{weights};
  TORCH_CHECK(weights[0].size(0) == x.size(1), "decoding: tokens are ", x.size(1), " wide, weights ",
              weights[0].size(0));
  Tensor y = at::empty({x.size(0), layer.width()}, x.options());
  layer.run(data(x), x.size(0), y.mutable_data_ptr<float>());
  return y;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  library.def("decode_linear(Tensor x, Tensor[] weight, Tensor? bias) -> Tensor");
  library.def("decode_multiplicative(Tensor x, Tensor[] layer) -> Tensor");
}

TORCH_LIBRARY_IMPL(planer_cpp, CPU, library) {
  library.impl("decode_linear", &linear);
  library.impl("decode_multiplicative", &multiplicative);
}

}  // namespace planer
