// Products of tokens with rows of weights in single precision, in vectors of the processor.
//
// A token's sums are made in the same order however many tokens are computed together.  That is why a width that is no
// multiple of LANES ends in a vector with zeros, not in a loop over single numbers, and why products are fused with
// their additions by name where the processor can: left to themselves, compilers do so for some numbers of tokens and
// not for others.  (GCC 12 tuned for Zen 3 left 4 of 70 apart, to avoid chains of fused ones.)
//
// Letters in shapes: D model width, s neurons; T tokens and J neurons whose sums stay in registers.

#pragma once

#ifdef __FMA__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "activations.h"

namespace planer {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, TOKENS = 8, NEURONS = 3;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int LANES = 8, TOKENS = 4, NEURONS = 2;  // 8 of 16
#else
constexpr int LANES = 4, TOKENS = 4, NEURONS = 2;
#endif

typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

inline Lanes load(const float* from) { return *reinterpret_cast<const Lanes*>(from); }
inline void store(float* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }

// The first so many lanes only; those loaded beyond them are zeros.
inline Lanes load(const float* from, int64_t count) {
  Lanes value = {};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline void store(float* to, Lanes value, int64_t count) { std::memcpy(to, &value, count * sizeof(float)); }

// The value in every lane.
inline Lanes everywhere(float value) { return value - Lanes{}; }

// sum + a b, rounded once where an x86 processor can.  One without FMA has nothing to fuse.
inline Lanes plus_product(Lanes sum, Lanes a, Lanes b) {
#if defined(__AVX512F__)
  return (Lanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
  return (Lanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return sum + a * b;
#endif
}

typedef int32_t Places __attribute__((vector_size(LANES * sizeof(int32_t))));

// Two vectors of groups of lanes become one: the groups of a, then those of b, each added up to half its size.
template <int GROUP>
inline Lanes halve(Lanes a, Lanes b) {
  Places low, high;
  for (int i = 0; i < LANES; ++i) {
    const int of_both = i / (GROUP / 2), lane = of_both * GROUP + i % (GROUP / 2);
    low[i] = lane;
    high[i] = lane + GROUP / 2;
  }
  return __builtin_shuffle(a, b, low) + __builtin_shuffle(a, b, high);
}

// The sum of each of T vectors, all T at once: T - 1 additions of vectors instead of T log LANES.
template <int T>
inline void sums_of(Lanes (&v)[T], float* out) {
  if constexpr (T >= 2)
    for (int i = 0; i < T / 2; ++i) v[i] = halve<LANES>(v[2 * i], v[2 * i + 1]);
  if constexpr (T >= 4)
    for (int i = 0; i < T / 4; ++i) v[i] = halve<LANES / 2>(v[2 * i], v[2 * i + 1]);
  if constexpr (T >= 8) v[0] = halve<LANES / 4>(v[0], v[1]);
  constexpr int GROUP = LANES / T;
  float lanes[LANES];
  std::memcpy(lanes, &v[0], sizeof(lanes));
  for (int half = GROUP / 2; half > 0; half /= 2)
    for (int t = 0; t < T; ++t)
      for (int i = 0; i < half; ++i) lanes[t * GROUP + i] += lanes[t * GROUP + i + half];
  for (int t = 0; t < T; ++t) out[t] = lanes[t * GROUP];
}

// h[j][t] = w_j . x_t + b_j for T tokens and J neurons.
template <int T, int J>
void dots(const float* const* x, const float* w, const float* b, int64_t D, float* h) {
  Lanes sums[J][T] = {};
  const auto add = [&](int64_t d, auto... lanes_left) {
    Lanes weights[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      weights[j] = load(w + j * D + d, lanes_left...);
      // Into the second-level cache: the processor itself follows rows that are read side by side badly.  Three rows came
      // with 14 GB/s without this and with 23 with it, on one core of an AMD EPYC.
      if (J > 1) __builtin_prefetch(w + (J + j) * D + d, 0, 2);
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Lanes value = load(x[t] + d, lanes_left...);
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) sums[j][t] = plus_product(sums[j][t], value, weights[j]);
    }
  };
  int64_t d = 0;
  for (; d + LANES <= D; d += LANES) add(d);
  if (d < D) add(d, D - d);
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    float totals[T];
    sums_of<T>(sums[j], totals);
    for (int t = 0; t < T; ++t) h[j * T + t] = totals[t] + b[j];
  }
}

inline int64_t whole_vectors(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

// h = act(h), times factor where there is one.  count: a multiple of LANES.  One copy of the code and whole vectors
// only, so that a neuron gets the same bits wherever it stands.
template <Activation A>
[[gnu::noinline]] void activate(float* __restrict h, const float* __restrict factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) h[i] = activated<A>(h[i]);
  if (factor)
    for (int64_t i = 0; i < count; ++i) h[i] *= factor[i];
}

// T tokens through the first products of s neurons: h [s][T], then zeros up to whole_vectors(s T) values.
template <int T>
void before(const float* const* x, const float* w, const float* b, int64_t s, int64_t D, float* h) {
  constexpr int J = T == 1 ? 1 : NEURONS;  // one token waits for memory, which is fastest row after row: 25 GB/s
  int64_t j = 0;
  for (; j + J <= s; j += J) dots<T, J>(x, w + j * D, b + j, D, h + j * T);
  for (; j < s; ++j) dots<T, 1>(x, w + j * D, b + j, D, h + j * T);
  std::fill(h + s * T, h + whole_vectors(s * T), 0.0f);
}

}  // namespace
}  // namespace planer
