// The batched solver for each built-in model. Like kernels.cpp, this file is compiled once for each instruction set:
// the templates of batch.hpp are instantiated with types of this object, so that objects do not share them. The solver
// is instantiated once for each number of parameters; it calls models through a pointer, for a block of points at a
// time.
#include "batch_kernels.hpp"

#include "batch_program_kernels.hpp"

#include <utility>

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

using namespace solve;

template <class V>
using RowsFunction = void (*)(const BatchChoice& choice, const V* p, const V* points, int stride, int count, V* out);

template <class V> struct RowsOf {
    RowsFunction<V> function;
    const BatchChoice& choice;
    void operator()(const V* p, const V* points, int stride, int count, V* out) const {
        function(choice, p, points, stride, count, out);
    }
};

template <class Model> struct Local : Model {};

template <class Model, class V>
void rows_of(const BatchChoice& choice, const V* p, const V* points, int stride, int count, V* out) {
    Local<Model> model;
    if constexpr (requires { model.degree; }) model.degree = choice.degree;
    ModelRows<Local<Model>, V>{model}(p, points, stride, count, out);
}

template <class V>
void rows_of_program(const BatchChoice& choice, const V* p, const V* points, int stride, int count, V* out) {
    run_program<V>(*choice.program, p, points, stride, count, out);
}

template <class V, template <int> class Family, int least, int... sizes>
RowsFunction<V> member(int size, std::integer_sequence<int, sizes...>) {
    RowsFunction<V> found = nullptr;
    ((sizes + least == size ? void(found = rows_of<Family<sizes + least>, V>) : void()), ...);
    return found;
}

template <int least> using Sizes = std::make_integer_sequence<int, max_batch_parameters + 1 - least>;

template <class V> RowsFunction<V> function_of(const BatchChoice& choice) {
    switch (choice.model) {
    case BatchModel::gaussian: return rows_of<Gaussian, V>;
    case BatchModel::gaussian_2d: return rows_of<Gaussian2d, V>;
    case BatchModel::gaussian_2d_elliptic: return rows_of<Gaussian2dElliptic, V>;
    case BatchModel::gaussian_2d_rotated: return rows_of<Gaussian2dRotated, V>;
    case BatchModel::lorentz: return rows_of<Lorentz, V>;
    case BatchModel::exponential: return rows_of<Exponentials<1>, V>;
    case BatchModel::double_exponential: return rows_of<Exponentials<2>, V>;
    case BatchModel::triple_exponential: return rows_of<Exponentials<3>, V>;
    case BatchModel::polynomial: return member<V, Polynomial, 1>(choice.size, Sizes<1>{});
    case BatchModel::rational: return member<V, Rational, 2>(choice.size, Sizes<2>{});
    case BatchModel::program: return rows_of_program<V>;
    }
    return nullptr;
}

template <class V, int... sizes>
void run_size(const BatchChoice& choice, const RowsOf<V>& rows, const BatchProblem<Element<V>>& problem,
              const BatchOptions<Element<V>>& options, V* block, const BatchFeed& feed,
              std::integer_sequence<int, sizes...>) {
    ((sizes + 1 == choice.size
          ? BatchLanes<V, sizes + 1, RowsOf<V>>(rows, problem, options, choice.inputs, {block}).run(feed)
          : void()),
     ...);
}

template <class T>
void run(const BatchChoice& choice, const BatchProblem<T>& problem, const BatchOptions<T>& options, void* block,
         const BatchFeed& feed) {
    using V = Lanes<T>;
    const RowsOf<V> rows{function_of<V>(choice), choice};
    run_size<V>(choice, rows, problem, options, static_cast<V*>(block), feed, Sizes<1>{});
}

template <class T>
void model(const BatchChoice& choice, int points, const T* p, const T* coordinates, T* value, T* slope) {
    using V = Lanes<T>;
    const RowsFunction<V> function = function_of<V>(choice);
    V q[max_batch_parameters] = {}, out[max_batch_parameters + 1], point[1 + max_batch_inputs] = {};
    for (int j = 0; j < choice.size; ++j) q[j] = lane<V>(p[j]);
    for (int i = 0; i < points; ++i) {
        for (int c = 0; c < choice.inputs; ++c)
            point[1 + c] = lane<V>(coordinates[std::int64_t(i) * choice.inputs + c]);
        function(choice, q, point, 1 + max_batch_inputs, 1, out);
        for (int j = 0; j < choice.size; ++j) slope[std::int64_t(i) * choice.size + j] = at(out[j], 0);
        value[i] = at(out[choice.size], 0);
    }
}

template <class T> void exponential(std::int64_t n, const T* x, T* y) {
    using V = Lanes<T>;
    for (std::int64_t i = 0; i < n; i += lane_count<T>) {
        const int count = n - i < lane_count<T> ? int(n - i) : lane_count<T>;
        V v = {};
        for (int l = 0; l < count; ++l) at(v, l) = x[i + l];
        v = exp(v);
        for (int l = 0; l < count; ++l) y[i + l] = at(v, l);
    }
}

template <class T> constexpr BatchKernels<T> kernels{run<T>, model<T>, exponential<T>};
constexpr BatchTable table{kernels<float>, kernels<double>, lane_bytes};

}  // namespace

const BatchTable& ADAPTK_CONCAT(batch_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
