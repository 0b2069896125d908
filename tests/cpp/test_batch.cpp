// The batched solver as a header: a user's model, lanes against the same code on scalars, threads.
#include "adaptk/solve/batch.hpp"

#include "check.hpp"

#include <cmath>
#include <cstring>
#include <vector>

using namespace adaptk;

namespace {

// a x^2 / (b + x)
struct Own {
    static constexpr int size = 2, inputs = 1;
    template <class V> void operator()(const V* p, const V* x, V& value, V* slope) const {
        using T = solve::Element<V>;
        const V inverse = T(1) / (p[1] + x[0]);
        slope[0] = x[0] * x[0] * inverse;
        value = p[0] * slope[0];
        slope[1] = -value * inverse;
    }
};

template <class T> struct Fits {
    std::int64_t count;
    int points, size;
    std::vector<T> data, start, coordinates, x, cost, covariance;
    std::vector<int> status, iterations;

    Fits(std::int64_t k, int m, int n)
        : count(k), points(m), size(n), data(k * m), start(n), coordinates(m), x(k * n), cost(k), covariance(k * n * n),
          status(k), iterations(k) {}

    solve::BatchProblem<T> problem() {
        solve::BatchProblem<T> p;
        p.count = count;
        p.points = points;
        p.data = data.data();
        p.start = start.data();
        p.coordinates = coordinates.data();
        p.x = x.data();
        p.cost = cost.data();
        p.status = status.data();
        p.iterations = iterations.data();
        p.covariance = covariance.data();
        return p;
    }
    bool equals(const Fits& other) const {
        const auto same = [](const auto& a, const auto& b) {
            return std::memcmp(a.data(), b.data(), a.size() * sizeof(a[0])) == 0;
        };
        return same(x, other.x) && same(cost, other.cost) && same(status, other.status) &&
               same(iterations, other.iterations) && same(covariance, other.covariance);
    }
};

template <class T> Fits<T> own_fits() {
    Fits<T> f(45, 30, 2);
    f.start = {T(1), T(1)};
    for (int i = 0; i < f.points; ++i) f.coordinates[i] = T(i) / 4;
    for (std::int64_t k = 0; k < f.count; ++k) {
        for (int i = 0; i < f.points; ++i) {
            const T a = 2 + T(k) / 50, b = 3 + T(k % 7) / 5, t = f.coordinates[i];
            f.data[k * f.points + i] = a * t * t / (b + t) + T((i * 37 + k * 11) % 17 - 8) / 1000;
        }
    }
    return f;
}

// The solver on scalars: one problem after the other.
template <class Model, class T> void one_by_one(const Model& model, Fits<T>& f) {
    struct Queue {
        std::int64_t next, count;
    } queue{0, f.count};
    const solve::BatchFeed feed{[](void* context, std::int64_t& begin, std::int64_t& end) {
                                    auto& q = *static_cast<Queue*>(context);
                                    begin = q.next++;
                                    end = q.next;
                                    return begin < q.count;
                                },
                                [](void*) { return true; }, &queue};
    const auto problem = f.problem();
    const solve::BatchOptions<T> options;
    const solve::ModelRows<Model, T> rows{model};
    using Solver = solve::BatchLanes<T, Model::size, solve::ModelRows<Model, T>>;
    std::vector<T> block(std::size_t(f.points) * std::size_t(Solver::stride(problem, Model::inputs)));
    Solver(rows, problem, options, Model::inputs, {block.data()}).run(feed);
}

template <class T> void test_own_model() {
    Fits<T> f = own_fits<T>();
    solve::levenberg_marquardt_batch(Own{}, f.problem());
    for (std::int64_t k = 0; k < f.count; ++k) {
        CHECK_THAT(f.status[k] > 0, "problem %d ended with %d", int(k), f.status[k]);
        CHECK(std::abs(f.x[2 * k] - (2 + T(k) / 50)) < T(0.01));
        CHECK(std::abs(f.x[2 * k + 1] - (3 + T(k % 7) / 5)) < T(0.05));
        CHECK(f.covariance[4 * k] > 0 && f.covariance[4 * k + 1] == f.covariance[4 * k + 2]);
    }
    for (int threads : {2, 5}) {
        Fits<T> again = own_fits<T>();
        solve::levenberg_marquardt_batch(Own{}, again.problem(), {}, threads);
        CHECK_THAT(again.equals(f), "%d threads", threads);
    }
    Fits<T> single = own_fits<T>();
    one_by_one(Own{}, single);
    CHECK(single.equals(f));
}

// Also exp and the rest of a built-in model.
template <class T> void test_built_in() {
    Fits<T> f(33, 40, 4);
    f.start = {T(4), T(1.2), T(0.9), T(0)};
    for (int i = 0; i < f.points; ++i) f.coordinates[i] = T(i) / 10 - 1;
    for (std::int64_t k = 0; k < f.count; ++k) {
        for (int i = 0; i < f.points; ++i) {
            const T u = (f.coordinates[i] - 1 - T(k % 5) / 10) / (T(0.7) + T(k % 3) / 10);
            f.data[k * f.points + i] = 5 * std::exp(-u * u / 2) + 1 + T((i * 29 + k * 13) % 19 - 9) / 100;
        }
    }
    Fits<T> single = f;
    solve::levenberg_marquardt_batch(solve::Gaussian{}, f.problem());
    one_by_one(solve::Gaussian{}, single);
    CHECK(single.equals(f));
    for (std::int64_t k = 0; k < f.count; ++k) CHECK(f.status[k] > 0);
}

template <class T> void test_lanes() {
    using V = solve::Lanes<T>;
    for (int i = -400; i < 400; ++i) {
        const T x = T(i) * T(0.217);
        const V e = solve::exp(solve::lane<V>(x)), r = solve::sqrt(solve::lane<V>(std::abs(x)));
        V sine, cosine;
        solve::sine_cosine(solve::lane<V>(x), sine, cosine);
        for (int l = 0; l < solve::lane_count<T>; ++l) {
            CHECK(solve::at(e, l) == solve::exp<T>(x));
            CHECK(std::abs(solve::at(e, l) - std::exp(x)) <= std::exp(x) * solve::epsilon<T>);
            CHECK(solve::at(r, l) == std::sqrt(std::abs(x)));
            CHECK(std::abs(solve::at(sine, l) - std::sin(x)) < 4 * solve::epsilon<T>);
            CHECK(std::abs(solve::at(cosine, l) - std::cos(x)) < 4 * solve::epsilon<T>);
        }
    }
}

}  // namespace

int main() {
    test_lanes<float>();
    test_lanes<double>();
    test_own_model<float>();
    test_own_model<double>();
    test_built_in<float>();
    test_built_in<double>();
    return test::finish();
}
