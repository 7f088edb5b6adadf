// Activations of the C++ kernels and their derivatives; planer/kernels/activations.py says what they are.
//
// Only arithmetic without branches and calls, so that compilers turn loops over single precision into vectors.

#pragma once

#include <c10/util/Exception.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace planer {

enum class Activation { relu, gelu, gelu_tanh, silu };

// f(std::integral_constant<Activation, ...>()) for the activation of this name.
template <typename F>
decltype(auto) with_activation(std::string_view name, const F& f) {
  using enum Activation;
  if (name == "relu") return f(std::integral_constant<Activation, relu>());
  if (name == "gelu") return f(std::integral_constant<Activation, gelu>());
  if (name == "gelu_tanh") return f(std::integral_constant<Activation, gelu_tanh>());
  TORCH_CHECK(name == "silu", "the C++ kernels have no activation ", name);
  return f(std::integral_constant<Activation, silu>());
}

// e^x = 2^n e^r with |r| <= ln 2 / 2, e^r by its Taylor series.  x is cut to -87 to 88, where the result is normal.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the lowest bits are n
  const float n = shifted - 12582912.0f;
  const float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  float sum = 1.0f / 5040;
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + term;
  return sum * std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) + 127) << 23);
}

inline double exponential(double x) { return std::exp(x); }

// The normal distribution function, error below 7.5e-8 (Abramowitz and Stegun 26.2.17), given e^(-z^2 / 2).
inline float normal(float z, float bell) {
  const float t = 1.0f / (1.0f + 0.2316419f * std::abs(z));
  float sum = 1.330274429f;
  for (const float term : {-1.821255978f, 1.781477937f, -0.356563782f, 0.319381530f}) sum = sum * t + term;
  const float tail = 0.3989422804f * bell * sum * t;
  return z < 0.0f ? tail : 1.0f - tail;
}

inline double normal(double z, double) { return 0.5 * std::erfc(-0.7071067811865476 * z); }

template <typename M>
inline M sigmoid(M z) {
  return M(1) / (M(1) + exponential(-z));
}

// 0.5 (1 + tanh(u)) = sigmoid(2 u): 2 u of the approximation of GELU.
template <typename M>
inline M twice_tanh_argument(M z) {
  return M(1.5957691216057308) * (z + M(0.044715) * z * z * z);
}

template <Activation A, typename M>
inline M activated(M z) {
  if constexpr (A == Activation::relu) return z <= M(0) ? M(0) : z;  // NaN stays
  if constexpr (A == Activation::gelu) return z * normal(z, exponential(M(-0.5) * z * z));
  if constexpr (A == Activation::gelu_tanh) return z * sigmoid(twice_tanh_argument(z));
  if constexpr (A == Activation::silu) return z * sigmoid(z);
}

// From the gradient of the activation's result to that of z; of ReLU, z may also be what it gave.
template <Activation A, typename M>
inline M through_activation(M grad, M z) {
  if constexpr (A == Activation::relu) return z > M(0) ? grad : M(0);
  if constexpr (A == Activation::gelu) {
    const M bell = exponential(M(-0.5) * z * z);
    return grad * (normal(z, bell) + M(0.3989422804014327) * z * bell);
  }
  const M share = sigmoid(A == Activation::silu ? z : twice_tanh_argument(z));
  const M inner = A == Activation::silu ? M(1) : M(1.5957691216057308) + M(0.21406444881780073) * z * z;
  return grad * (share + z * share * (M(1) - share) * inner);
}

}  // namespace planer
