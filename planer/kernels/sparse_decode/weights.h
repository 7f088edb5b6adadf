// Matrices of the decoding operators: in single precision, in bfloat16, or as 8-bit integers with a factor for each row.
//
// Weights become single precision when they are loaded, so that products and sums are the same for all three.
// planer/kernels/sparse_decode/weights.py makes them.

#pragma once

#include <ATen/core/Tensor.h>

#include "../cpp/vectors.h"

#include <type_traits>

namespace planer {
namespace {

typedef uint32_t Words __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef uint16_t Halves __attribute__((vector_size(LANES * sizeof(uint16_t)), aligned(2), may_alias));
typedef int8_t Bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

// By name: GCC 12 takes lanes one by one for __builtin_convertvector of int8, 11 times as slow as memory.
// A bfloat16 is the upper half of a float.
#if defined(__AVX512F__)
inline Lanes widened(Halves values) {
  return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)values), 16);
}
inline Lanes widened(Bytes values) { return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)values)); }
#elif defined(__AVX2__) && defined(__FMA__)
inline Lanes widened(Halves values) {
  return (Lanes)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)values), 16);
}
inline Lanes widened(Bytes values) {
  return (Lanes)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(__m128i{(long long)values, 0}));
}
#else
inline Lanes widened(Halves values) { return (Lanes)(__builtin_convertvector(values, Words) << 16); }
inline Lanes widened(Bytes values) {
  return __builtin_convertvector(__builtin_convertvector(values, Places), Lanes);
}
#endif

inline Lanes load(const at::BFloat16* from) { return widened(*reinterpret_cast<const Halves*>(from)); }
inline Lanes load(const int8_t* from) { return widened(*reinterpret_cast<const Bytes*>(from)); }

inline Lanes load(const at::BFloat16* from, int64_t count) {
  Halves values = {};
  std::memcpy(&values, from, count * sizeof(uint16_t));
  return widened(values);
}

inline Lanes load(const int8_t* from, int64_t count) {
  Bytes values = {};
  std::memcpy(&values, from, count);
  return widened(values);
}

template <typename W = float>
const W* data(const at::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "decoding needs contiguous tensors");
  return tensor.const_data_ptr<W>();
}

// A matrix {weights [..., width]}, or {weights, factors [...]} in 8 bits.
template <typename W>
struct Rows {
  const W* weights;
  const float* factors;
  int64_t width;

  explicit Rows(at::TensorList matrix)
      : weights(data<W>(matrix[0])), factors(nullptr), width(matrix[0].size(-1)) {
    if constexpr (std::is_same_v<W, int8_t>) factors = data(matrix[1]);
  }

  const W* operator()(int64_t k) const { return weights + k * width; }
  float factor(int64_t k) const { return std::is_same_v<W, int8_t> ? factors[k] : 1.0f; }
};

// f(W()) for the type that a matrix is stored in.
template <typename F>
auto with_type(at::TensorList matrix, const F& f) {
  switch (matrix[0].scalar_type()) {
    case at::kFloat:
      return f(float());
    case at::kBFloat16:
      return f(at::BFloat16());
    default:
      return f(int8_t());  // data() refuses others
  }
}

}  // namespace
}  // namespace planer
