// Feed-forward experts on routed tokens, forward and backward: function.py says what is computed.
//
// Expert by expert: its rows are gathered, multiplied, activated and scattered while they are in the cache, and only
// what backward needs is written for all pairs.  Where experts can be dealt out evenly, each thread takes the next one,
// so that threads meet once a call; elsewhere all threads share every product.  Either way each number is summed by one
// thread in one order, so that results repeat bit by bit.
//
// Letters in shapes: N tokens, D model width, E experts, I neurons of an expert, H values before their activation (2 I
// where it is gated, the gate's first), P pairs, R rows of one expert.

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "../cpp/activations.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

namespace planer {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

namespace {

constexpr int64_t GRAIN = 32768;  // elements below which a second thread costs more than it saves
constexpr int64_t ROWS = 128;     // rows from which products run at full speed
constexpr int64_t LINE = 64;      // a multiple of the elements in 64 bytes
constexpr double UNEVEN = 1.15;   // experts are dealt out when the busiest thread gets at most so many times its share

struct Task {
  int64_t expert, begin, rows;
};

template <typename F>
void for_rows(int64_t rows, int64_t width, const F& f) {
  at::parallel_for(0, rows, std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, width)), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) f(row);
  });
}

template <typename T>
const T* data_or_null(const MaybeTensor& tensor) {
  return tensor ? tensor->const_data_ptr<T>() : nullptr;
}

// The arguments of one call; names as in products.py.
template <typename T>
struct Layer {
  using M = at::opmath_type<T>;  // gates, and sums of 16-bit numbers

  const Tensor &x, &w1, &w2;
  const T *b1, *b2, *dropout_mask;
  const M* gate;
  const int64_t *order, *inverse, *token, *offsets, *token_offsets;
  int64_t N, D, E, H, I, P;
  bool single, gated;  // single: one pair per token, in the order of tokens
  std::string_view activation;

  Layer(const Tensor& x, const Tensor& w1, const MaybeTensor& b1, const Tensor& w2, const MaybeTensor& b2,
        const MaybeTensor& gate, at::TensorList plan, const MaybeTensor& dropout_mask, int64_t per_token,
        std::string_view activation)
      : x(x), w1(w1), w2(w2), b1(data_or_null<T>(b1)), b2(data_or_null<T>(b2)),
        dropout_mask(data_or_null<T>(dropout_mask)), gate(data_or_null<M>(gate)), order(plan[0].const_data_ptr<int64_t>()),
        inverse(plan[1].const_data_ptr<int64_t>()), token(plan[2].const_data_ptr<int64_t>()),
        offsets(plan[3].const_data_ptr<int64_t>()), token_offsets(plan[4].const_data_ptr<int64_t>()),
        N(x.size(0)), D(x.size(1)), E(w1.size(0)), H(w1.size(1)), I(w2.size(2)), P(plan[0].size(0)),
        single(per_token == 1), gated(H > I), activation(activation) {}

  M gate_of(int64_t sorted) const { return gate ? gate[order[sorted]] : M(1); }

  // Rows of the tokens [N, D] that chose an expert, copied to out [R, D].
  void gather(const Tensor& tokens, int64_t begin, const Tensor& out) const {
    const T* from = tokens.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    for_rows(out.size(0), D, [&](int64_t r) { std::memcpy(to + r * D, from + token[begin + r] * D, D * sizeof(T)); });
  }

  // Adds the bias to the first product h [R, H], in place; so do ReLU and its dropout act.
  void finish(int64_t expert, int64_t begin, const Tensor& h) const {
    T* data = h.mutable_data_ptr<T>();
    const T* bias = b1 ? b1 + expert * H : nullptr;
    const bool relu = activation == "relu";
    for_rows(h.size(0), H, [&](int64_t r) {
      T* row = data + r * H;
      const T* kept = dropout_mask && relu ? dropout_mask + (begin + r) * I : nullptr;
      if (bias)
        for (int64_t i = 0; i < H; ++i) row[i] = row[i] + bias[i];
      if (relu)
        for (int64_t i = 0; i < H; ++i) row[i] = planer::activated<Activation::relu>(row[i]);
      if (kept)
        for (int64_t i = 0; i < H; ++i) row[i] = row[i] * kept[i];
    });
  }

  // Active neurons after dropout [R, I], from what is saved.
  Tensor active(int64_t begin, const Tensor& hidden) const {
    if (activation == "relu") return hidden;
    Tensor result = at::empty({hidden.size(0), I}, hidden.options());
    const T* from = hidden.const_data_ptr<T>();
    T* to = result.mutable_data_ptr<T>();
    with_activation(activation, [&](auto chosen) {
      for_rows(hidden.size(0), H, [&](int64_t r) {
        const T *z = from + r * H, *other = z + I, *kept = dropout_mask ? dropout_mask + (begin + r) * I : nullptr;
        T* row = to + r * I;
        for (int64_t i = 0; i < I; ++i) {
          M value = planer::activated<chosen()>(M(z[i]));
          if (gated) value *= M(other[i]);
          if (kept) value *= M(kept[i]);
          row[i] = static_cast<T>(value);
        }
      });
    });
    return result;
  }

  // Outputs of an expert's pairs [R, D] to where they belong: the tokens, or the list of all pairs, [P, D].
  void deliver(int64_t expert, int64_t begin, const Tensor& out, const T* bias_of_all, bool gated, T* tokens, T* pairs)
      const {
    const T* data = out.const_data_ptr<T>();
    const T* bias = bias_of_all ? bias_of_all + expert * D : nullptr;
    for_rows(out.size(0), D, [&](int64_t r) {
      const T* from = data + r * D;
      T* to = single ? tokens + token[begin + r] * D : pairs + (begin + r) * D;
      const M scale = gated ? gate_of(begin + r) : M(1);
      if (bias)
        for (int64_t d = 0; d < D; ++d) to[d] = static_cast<T>(scale * (M(from[d]) + M(bias[d])));
      else
        for (int64_t d = 0; d < D; ++d) to[d] = static_cast<T>(scale * M(from[d]));
    });
  }

  // Sums the pairs of every token: pairs [P, D] in sorted order to tokens [N, D].
  void combine(const T* pairs, T* tokens) const {
    for_rows(N, D, [&](int64_t t) {
      std::vector<M> sum(D, M(0));
      for (int64_t q = token_offsets[t]; q < token_offsets[t + 1]; ++q) {
        const T* from = pairs + inverse[q] * D;
        for (int64_t d = 0; d < D; ++d) sum[d] += M(from[d]);
      }
      for (int64_t d = 0; d < D; ++d) tokens[t * D + d] = static_cast<T>(sum[d]);
    });
  }

  // Experts with rows, the largest first, in pieces of at most so many rows.
  std::vector<Task> tasks(int64_t most) const {
    if (P == 0) return {};
    std::vector<Task> result;
    for (int64_t e = 0; e < E; ++e) {
      const int64_t rows = offsets[e + 1] - offsets[e], pieces = (rows + most - 1) / most;
      for (int64_t i = 0; i < pieces; ++i) {
        const int64_t first = rows * i / pieces, last = rows * (i + 1) / pieces;
        result.push_back({e, offsets[e] + first, last - first});
      }
    }
    std::stable_sort(result.begin(), result.end(), [](const Task& a, const Task& b) { return a.rows > b.rows; });
    return result;
  }

  // Whether dealing tasks out, each to whoever has the least to do, keeps all threads busy to the end.
  bool even(const std::vector<Task>& tasks) const {
    std::vector<int64_t> loads(at::get_num_threads());
    for (const Task& task : tasks) *std::min_element(loads.begin(), loads.end()) += task.rows;
    return *std::max_element(loads.begin(), loads.end()) * loads.size() <= UNEVEN * P;
  }

  // Calls f(task, in, out, wide) for all tasks: buffers of the thread for the task's rows, D, D and H wide.
  template <typename F>
  void run(const std::vector<Task>& tasks, bool dealt, const F& f) const {
    if (tasks.empty()) return;
    const int64_t most = tasks.front().rows, threads = dealt ? at::get_num_threads() : 1;
    // Whole cache lines, so that bits do not depend on which thread takes a task: products follow the alignment.
    const int64_t narrow = (most * D + LINE - 1) / LINE * LINE, wide = (most * H + LINE - 1) / LINE * LINE;
    const Tensor memory = at::empty({threads, 2 * narrow + wide}, x.options());
    std::atomic<size_t> next{0};
    const auto work = [&](int64_t thread) {
      const at::AutoDispatchBelowADInplaceOrView without_autograd;  // a thread's own setting
      for (size_t i = next++; i < tasks.size(); i = next++) {
        const auto buffer = [&](int64_t offset, int64_t width) {
          return memory[thread].narrow(0, offset, tasks[i].rows * width).view({tasks[i].rows, width});
        };
        f(tasks[i], buffer(0, D), buffer(narrow, D), buffer(2 * narrow, H));
      }
    };
    if (dealt)
      at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
        for (int64_t thread = begin; thread < end; ++thread) work(thread);
      });
    else
      work(0);
  }

  std::tuple<Tensor, Tensor> forward(bool save) const {
    Tensor y = at::empty({N, D}, x.options());
    Tensor hidden = at::empty({save ? P : 0, H}, x.options());
    Tensor pairs = at::empty({single ? 0 : P, D}, x.options());
    T *to_tokens = y.mutable_data_ptr<T>(), *to_pairs = pairs.mutable_data_ptr<T>();
    std::vector<Task> chosen = tasks(P);
    bool dealt = even(chosen);
    if (!dealt) {  // smaller pieces read the weights of an expert several times
      std::vector<Task> pieces = tasks(ROWS);
      dealt = even(pieces);
      if (dealt) chosen = pieces;
    }
    run(chosen, dealt, [&](const Task& task, Tensor in, Tensor out, Tensor wide) {
      const auto [e, begin, rows] = task;
      gather(x, begin, in);
      Tensor h = save ? hidden.narrow(0, begin, rows) : wide;
      at::mm_out(h, in, w1.select(0, e).t());
      finish(e, begin, h);
      at::mm_out(out, active(begin, h), w2.select(0, e).t());
      deliver(e, begin, out, b2, true, to_tokens, to_pairs);
    });
    if (!single) combine(to_pairs, to_tokens);
    return {y, hidden};
  }

  // d gate of an expert's pairs, in the order of the pairs: dA . h + dy . b2.
  void gate_gradient(
      int64_t expert, int64_t begin, const Tensor& d_active, const Tensor& h, const Tensor& dy, M* d_gate) const {
    const T *da = d_active.const_data_ptr<T>(), *active = h.const_data_ptr<T>(), *grad = dy.const_data_ptr<T>();
    for_rows(h.size(0), I, [&](int64_t r) {
      M sum = dot(da + r * I, active + r * I, I);
      if (b2) sum += dot(grad + r * D, b2 + expert * D, D);
      d_gate[order[begin + r]] = sum;
    });
  }

  static M dot(const T* a, const T* b, int64_t n) {
    constexpr int LANES = 16;
    M lanes[LANES] = {}, sum(0);
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
      for (int lane = 0; lane < LANES; ++lane) lanes[lane] += M(a[i + lane]) * M(b[i + lane]);
    for (; i < n; ++i) sum += M(a[i]) * M(b[i]);
    for (int lane = 0; lane < LANES; ++lane) sum += lanes[lane];
    return sum;
  }

  // From the gradient of active neurons d_active [R, I] to that of the values before the activation dz [R, H], times
  // the gate of the pair.  Without a gated activation both are the same tensor.
  void through_activation(int64_t begin, const Tensor& d_active, const Tensor& hidden, const Tensor& dz) const {
    const T* saved = hidden.const_data_ptr<T>();
    T *from = d_active.mutable_data_ptr<T>(), *to = dz.mutable_data_ptr<T>();
    with_activation(activation, [&](auto chosen) {
      for_rows(hidden.size(0), H, [&](int64_t r) {
        const T *z = saved + r * H, *kept = dropout_mask ? dropout_mask + (begin + r) * I : nullptr;
        T *d = from + r * I, *row = to + r * H;
        const M scale = gate_of(begin + r);
        const auto grad = [&](int64_t i) { return kept ? scale * M(d[i]) * M(kept[i]) : scale * M(d[i]); };
        if (gated)
          for (int64_t i = 0; i < I; ++i) {
            row[i] = static_cast<T>(planer::through_activation<chosen()>(grad(i) * M(z[I + i]), M(z[i])));
            row[I + i] = static_cast<T>(grad(i) * planer::activated<chosen()>(M(z[i])));
          }
        else
          for (int64_t i = 0; i < I; ++i)
            d[i] = static_cast<T>(planer::through_activation<chosen()>(grad(i), M(z[i])));
      });
    });
  }

  // Sums of columns: rows [R, K] to out [K].
  static void column_sums(const Tensor& rows, T* out) {
    const int64_t R = rows.size(0), K = rows.size(1);
    const T* data = rows.const_data_ptr<T>();
    at::parallel_for(0, K, std::max<int64_t>(64, GRAIN / std::max<int64_t>(1, R)), [&](int64_t begin, int64_t end) {
      std::vector<double> sum(end - begin);
      for (int64_t r = 0; r < R; ++r)
        for (int64_t k = begin; k < end; ++k) sum[k - begin] += static_cast<double>(data[r * K + k]);
      for (int64_t k = begin; k < end; ++k) out[k] = static_cast<T>(sum[k - begin]);
    });
  }

  static void product(const Tensor& stacked, int64_t expert, const Tensor& a, const Tensor& b) {
    Tensor out = stacked.select(0, expert);
    at::mm_out(out, a, b);
  }

  void scale_by_gate(int64_t begin, const Tensor& rows) const {
    if (!gate) return;
    T* data = rows.mutable_data_ptr<T>();
    for_rows(rows.size(0), D, [&](int64_t r) {
      const M scale = gate_of(begin + r);
      for (int64_t i = r * D; i < (r + 1) * D; ++i) data[i] = static_cast<T>(scale * M(data[i]));
    });
  }

  // Gradients of x, w1, b1, w2, b2, gate; empty where not needed.
  std::vector<Tensor> backward(const Tensor& grad, const Tensor& hidden, const std::array<bool, 6>& needs) const {
    const auto [need_x, need_w1, need_b1, need_w2, need_b2, need_gate] = needs;
    const auto options = x.options();
    const auto made = [&](bool need, at::IntArrayRef shape) {
      return at::empty(need ? shape : at::IntArrayRef{0}, options);
    };
    Tensor dx = made(need_x, {N, D}), dw1 = made(need_w1, {E, H, D}), db1 = made(need_b1, {E, H});
    Tensor dw2 = made(need_w2, {E, D, I}), db2 = made(need_b2, {E, D});
    Tensor d_gate = at::empty({need_gate ? P : 0}, options.dtype(c10::CppTypeToScalarType<M>::value));
    Tensor pairs = at::empty({need_x && !single ? P : 0, D}, options);
    for (int64_t e = 0; e < E; ++e)
      if (offsets[e] == offsets[e + 1])
        for (const Tensor* gradient : {&dw1, &db1, &dw2, &db2})
          if (gradient->dim() > 1) gradient->select(0, e).zero_();
    const std::vector<Task> experts = tasks(P);
    run(experts, even(experts), [&](const Task& task, Tensor dy, Tensor other, Tensor dz) {
      const auto [e, begin, rows] = task;
      const Tensor h = hidden.narrow(0, begin, rows), act = need_w2 || need_gate ? active(begin, h) : h;
      gather(grad, begin, dy);
      if (need_x || need_w1 || need_b1 || need_gate) {
        Tensor d_active = gated ? at::empty({rows, I}, options) : dz;
        at::mm_out(d_active, dy, w2.select(0, e));
        if (need_gate) gate_gradient(e, begin, d_active, act, dy, d_gate.mutable_data_ptr<M>());
        through_activation(begin, d_active, h, dz);
        if (need_b1) column_sums(dz, db1.mutable_data_ptr<T>() + e * H);
        if (need_w1) {
          gather(x, begin, other);
          product(dw1, e, dz.t(), other);
        }
        if (need_x) {
          at::mm_out(other, dz, w1.select(0, e));
          deliver(e, begin, other, nullptr, false, dx.mutable_data_ptr<T>(), pairs.mutable_data_ptr<T>());
        }
      }
      scale_by_gate(begin, dy);
      if (need_w2) product(dw2, e, dy.t(), act);
      if (need_b2) column_sums(dy, db2.mutable_data_ptr<T>() + e * D);
    });
    if (need_x && !single) combine(pairs.const_data_ptr<T>(), dx.mutable_data_ptr<T>());
    return {dx, dw1, db1, dw2, db2, d_gate};
  }
};

std::tuple<Tensor, Tensor> forward(
    const Tensor& x, const Tensor& w1, const MaybeTensor& b1, const Tensor& w2, const MaybeTensor& b2,
    const MaybeTensor& gate, at::TensorList plan, const MaybeTensor& dropout_mask, int64_t per_token,
    std::string_view activation, bool save) {
  return AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "expert_ffn", [&] {
    return Layer<scalar_t>(x, w1, b1, w2, b2, gate, plan, dropout_mask, per_token, activation).forward(save);
  });
}

std::vector<Tensor> backward(
    const Tensor& grad, const Tensor& hidden, const Tensor& x, const Tensor& w1, const MaybeTensor& b1,
    const Tensor& w2, const MaybeTensor& b2, const MaybeTensor& gate, at::TensorList plan,
    const MaybeTensor& dropout_mask, int64_t per_token, std::string_view activation, std::array<bool, 6> needs) {
  return AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, x.scalar_type(), "expert_ffn_backward", [&] {
    const Layer<scalar_t> layer(x, w1, b1, w2, b2, gate, plan, dropout_mask, per_token, activation);
    return layer.backward(grad, hidden, needs);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(planer_cpp, library) {
  const std::string layer =
      "Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? gate, Tensor[] plan, Tensor? dropout_mask, "
      "int per_token, str activation";
  library.def(("expert_ffn(" + layer + ", bool save) -> (Tensor, Tensor)").c_str());
  library.def(("expert_ffn_backward(Tensor grad, Tensor hidden, " + layer + ", bool[6] needs) -> Tensor[]").c_str());
}

TORCH_LIBRARY_IMPL(planer_cpp, CPU, library) {
  library.impl("expert_ffn", &forward);
  library.impl("expert_ffn_backward", &backward);
}

}  // namespace planer
