// Batches of fits on the emulated device: every model with a kernel and every option have the CPU's bits.
#include "adaptk/solve/batch.hpp"

#include "cuda_support.hpp"

#include <cmath>
#include <vector>

namespace adaptk::test {
namespace {

using detail::BatchModel;
using detail::CudaBatch;
using detail::CudaBatchFault;

struct Setting {
    const char* name;
    solve::Loss loss = solve::Loss::linear;
    bool poisson = false, weighted = false, bounded = false, held = false, own_rows = false, covariance = false;
    bool absolute = false, polish = true;
    float unit = 1.0f;    // of the data
    float offset = 0.0f;  // of the start's amplitude
    int points = 0;
};

// Problems around a model whose parameters are `truth`, and the results of one side.
struct Fits {
    std::vector<float> data, start, coordinates, weights, lower, upper, loss_scale;
    std::unique_ptr<bool[]> fixed;
    std::vector<float> x, cost, covariance, deviation;
    std::vector<int> status, iterations;
    solve::BatchProblem<float> problem;
    solve::BatchOptions<float> options;
};

template <class Model>
Fits make(const Model& model, const std::vector<float>& truth, std::int64_t count, const Setting& s) {
    constexpr int n = Model::size, inputs = Model::inputs;
    const int side = 7, m = s.points > 0 ? s.points : inputs == 2 ? side * side : 40;
    Fits f;
    Random random(5);
    const auto uniform = [&] { return float(random.below(10001)) / 5000.0f - 1.0f; };
    const std::int64_t rows = s.own_rows ? count : 1;
    for (std::int64_t k = 0; k < rows; ++k)
        for (int i = 0; i < m; ++i) {
            const float shift = s.own_rows ? 0.02f * uniform() : 0.0f;
            if (inputs == 2) {
                f.coordinates.push_back(float(i % side) + shift);
                f.coordinates.push_back(float(i / side));
            } else {
                f.coordinates.push_back(float(i) * 0.1f + shift);
            }
        }
    for (std::int64_t k = 0; k < count; ++k) {
        std::vector<float> p = truth;
        for (float& v : p) v *= 1 + 0.05f * uniform();
        for (int i = 0; i < m; ++i) {
            const float* x = f.coordinates.data() + ((s.own_rows ? k * m : 0) + i) * inputs;
            float value, slope[n];
            model(p.data(), x, value, slope);
            const float noise = 0.03f * uniform() + (s.loss != solve::Loss::linear && i % 11 == 3 ? 1.5f : 0.0f);
            f.data.push_back((s.poisson ? std::fmax(std::floor(8 * value), 0.0f) : value + noise) * s.unit);
        }
        for (int j = 0; j < n; ++j) f.start.push_back(truth[std::size_t(j)] * (1 + 0.1f * uniform()));
    }
    for (std::int64_t k = 0; k < count; ++k)
        for (int j = 0; j < n; ++j) {
            float& start = f.start[std::size_t(k * n + j)];
            // Amplitudes and the offset are in the data's units.
            if (j == 0 || (inputs == 1 && n == 3 && j == 2)) start = start * s.unit * (s.poisson ? 8 : 1) + s.offset;
        }
    f.problem.count = count;
    f.problem.points = m;
    f.problem.data = f.data.data();
    f.problem.start = f.start.data();
    f.problem.start_stride = n;
    f.problem.coordinates = f.coordinates.data();
    f.problem.coordinates_stride = s.own_rows ? m * inputs : 0;
    if (s.weighted) {
        for (std::int64_t i = 0; i < rows * m; ++i) f.weights.push_back(float(random.below(5)) * 0.5f);
        // Data of weight 0 may be anything.
        for (int i = 0; i < m; ++i)
            if (f.weights[std::size_t(i)] == 0 && !s.own_rows)
                f.data[std::size_t(i)] = std::numeric_limits<float>::quiet_NaN();
        f.problem.weights = f.weights.data();
        f.problem.weights_stride = s.own_rows ? m : 0;
    }
    if (s.bounded) {
        for (std::int64_t k = 0; k < rows; ++k)
            for (int j = 0; j < n; ++j) {
                const float start = f.start[std::size_t(k * n + j)], width = 0.02f * std::fabs(start) + 1e-3f;
                f.lower.push_back(start - width);
                f.upper.push_back(j % 2 == 0 ? start + width : start + 100 * width);
            }
        f.problem.lower = f.lower.data();
        f.problem.upper = f.upper.data();
        f.problem.bounds_stride = s.own_rows ? n : 0;
        if (!s.own_rows) f.problem.start_stride = 0;
    }
    if (s.held) {
        f.fixed = std::make_unique<bool[]>(std::size_t(n));
        f.fixed[std::size_t(n - 1)] = true;
        f.problem.fixed = f.fixed.get();
    }
    if (s.loss != solve::Loss::linear) {
        for (std::int64_t k = 0; k < rows; ++k) f.loss_scale.push_back(0.1f + 0.01f * float(k));
        f.problem.loss_scale = f.loss_scale.data();
        f.problem.loss_scale_stride = s.own_rows ? 1 : 0;
    }
    f.options.loss = s.loss;
    f.options.poisson = s.poisson;
    f.options.absolute_sigma = s.absolute;
    f.options.polish = s.polish;
    return f;
}

void room_for_results(Fits& f, int n, bool covariance) {
    const auto k = std::size_t(f.problem.count), size = std::size_t(n);
    // A fill value shows elements that are not written.
    f.x.assign(k * size, -7.0f);
    f.cost.assign(k, -7.0f);
    f.status.assign(k, -77);
    f.iterations.assign(k, -77);
    f.problem.x = f.x.data();
    f.problem.cost = f.cost.data();
    f.problem.status = f.status.data();
    f.problem.iterations = f.iterations.data();
    f.covariance.assign(covariance ? k * size * size : 0, -7.0f);
    f.deviation.assign(covariance ? k * size : 0, -7.0f);
    f.problem.covariance = covariance ? f.covariance.data() : nullptr;
    f.problem.deviation = covariance ? f.deviation.data() : nullptr;
}

bool same_numbers(const std::vector<float>& a, const std::vector<float>& b) {
    // The signs of NaNs are unspecified.
    for (std::size_t i = 0; i < a.size(); ++i)
        if (!same(double(a[i]), double(b[i]))) return false;
    return a.size() == b.size();
}

CudaBatch batch_of(const Fits& f, BatchModel model, int size, int inputs) {
    return {0, nullptr, {model, size, inputs, 0}, f.problem, f.options};
}

template <class Model>
void compare(BatchModel number, const Model& model, const std::vector<float>& truth, std::int64_t count,
             const Setting& s, bool converges = true) {
    constexpr int n = Model::size;
    Fits f = make(model, truth, count, s);
    room_for_results(f, n, s.covariance);
    {
        const detail::FloatingPointMode mode;
        solve::levenberg_marquardt_batch(model, f.problem, f.options);
    }
    const std::vector<float> x = f.x, cost = f.cost, covariance = f.covariance, deviation = f.deviation;
    const std::vector<int> status = f.status, iterations = f.iterations;
    room_for_results(f, n, s.covariance);
    CudaError error;
    CudaBatchFault fault{};
    CHECK_THAT(backend.fit_batch(batch_of(f, number, n, Model::inputs), fault, error), "%s: %s", s.name, error.text);
    CHECK_THAT(fault == CudaBatchFault::none, "%s: fault %d", s.name, int(fault));
    CHECK_THAT(same_numbers(f.x, x) && same_numbers(f.cost, cost), "model %d, %s: x or cost", int(number), s.name);
    CHECK_THAT(f.status == status && f.iterations == iterations, "model %d, %s: ends", int(number), s.name);
    CHECK_THAT(same_numbers(f.covariance, covariance) && same_numbers(f.deviation, deviation), "model %d, %s: cov",
               int(number), s.name);
    std::size_t converged = 0;
    for (const int end : status) converged += end > 0;
    if (converges)
        CHECK_THAT(converged > status.size() / 2, "model %d, %s: %zu of %zu", int(number), s.name, converged,
                   status.size());
}

template <class Model> void test_model(BatchModel number, const std::vector<float>& truth) {
    using solve::Loss;
    const Model model{};
    std::vector<Setting> settings = {
        {.name = "plain"},
        {.name = "covariance", .covariance = true},
        {.name = "weights, held", .weighted = true, .held = true, .covariance = true, .absolute = true},
        {.name = "bounds", .bounded = true, .covariance = true},
        {.name = "own rows", .weighted = true, .bounded = true, .own_rows = true},
        {.name = "no polish", .polish = false},
        {.name = "soft_l1", .loss = Loss::soft_l1},
    };
    const std::int64_t count = quick() ? 40 : 300;
    for (const Setting& s : settings) compare(number, model, truth, count, s);
}

// Code common to all models, with one of them.
void test_options() {
    using solve::Loss;
    const solve::Gaussian2d model;
    const std::vector<float> truth{5.0f, 3.1f, 2.9f, 1.2f, 1.0f};
    const auto each = [&](const Setting& s, bool converges = true) {
        compare(BatchModel::gaussian_2d, model, truth, 70, s, converges);
    };
    for (const Loss loss : {Loss::huber, Loss::soft_l1, Loss::cauchy, Loss::arctan, Loss::tukey}) {
        each({.name = "loss", .loss = loss, .own_rows = true, .covariance = true});
        each({.name = "loss, weights", .loss = loss, .weighted = true, .held = true, .covariance = true});
    }
    each({.name = "counts", .poisson = true, .covariance = true}, false);
    each({.name = "counts, weights", .poisson = true, .weighted = true, .own_rows = true}, false);
    // Beyond the range of squares, where residuals and variables get other units.
    for (const float unit : {1e-26f, 1e-12f, 1e9f, 1e19f})
        each({.name = "units", .covariance = true, .unit = unit}, false);
    each({.name = "counts in other units", .poisson = true, .covariance = true, .unit = 1e12f}, false);
    each({.name = "far start", .offset = 1e6f}, false);
    each({.name = "infinite start", .offset = std::numeric_limits<float>::infinity()}, false);
    for (const int points : {5, 31, 32, 33, 64, 100})
        each({.name = "points", .covariance = true, .points = points}, false);
    for (const std::int64_t count : {std::int64_t{1}, std::int64_t{31}, std::int64_t{33}, std::int64_t{2000}})
        compare(BatchModel::gaussian_2d, model, truth, count, {.name = "count", .points = 25});
}

// Nothing is written if an array is invalid.
void test_faults() {
    const solve::Gaussian2d model;
    const std::vector<float> truth{5.0f, 3.1f, 2.9f, 1.2f, 1.0f};
    const auto refused = [&](const Setting& s, CudaBatchFault expected, auto&& change) {
        Fits f = make(model, truth, 50, s);
        room_for_results(f, 5, false);
        change(f);
        CudaError error;
        CudaBatchFault fault{};
        CHECK(backend.fit_batch(batch_of(f, BatchModel::gaussian_2d, 5, 2), fault, error));
        CHECK_THAT(fault == expected, "%s: %d", s.name, int(fault));
        CHECK(f.x[0] == -7.0f && f.status[49] == -77);
    };
    const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    const Setting weighted{.name = "weights", .weighted = true, .own_rows = true};
    for (const float bad : {-1.0f, nan, infinity})
        refused(weighted, CudaBatchFault::weights, [&](Fits& f) { f.weights[49 * 49 + 7] = bad; });
    const Setting bounded{.name = "bounds", .bounded = true, .own_rows = true};
    refused(bounded, CudaBatchFault::bounds, [](Fits& f) { f.lower[33 * 5 + 4] = f.upper[33 * 5 + 4]; });
    refused(bounded, CudaBatchFault::bounds, [&](Fits& f) { f.upper[0] = nan; });
    refused(bounded, CudaBatchFault::outside, [&](Fits& f) { f.start[49 * 5 + 1] = 1e3f; });
    const Setting robust{.name = "loss", .loss = solve::Loss::cauchy, .own_rows = true};
    for (const float bad : {0.0f, -1.0f, nan, infinity})
        refused(robust, CudaBatchFault::loss_scale, [&](Fits& f) { f.loss_scale[40] = bad; });
    refused({.name = "counts", .poisson = true}, CudaBatchFault::counts, [](Fits& f) { f.data[49] = -1.0f; });
    // A count of weight 0 has no effect.
    Fits f = make(model, truth, 50, {.name = "counts", .poisson = true, .weighted = true});
    room_for_results(f, 5, false);
    f.weights[3] = 0;
    f.data[3] = -1.0f;
    CudaError error;
    CudaBatchFault fault{};
    CHECK(backend.fit_batch(batch_of(f, BatchModel::gaussian_2d, 5, 2), fault, error));
    CHECK(fault == CudaBatchFault::none && f.status[49] != -77);
    // No problems.
    f.problem.count = 0;
    CHECK(backend.fit_batch(batch_of(f, BatchModel::gaussian_2d, 5, 2), fault, error));
    CHECK(!backend.has_batch_kernel({BatchModel::program, 5, 2, 0}));
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk;
    using detail::BatchModel;
    using test::test_model;
    test_model<solve::Gaussian>(BatchModel::gaussian, {4.0f, 2.0f, 0.6f, 1.0f});
    test_model<solve::Gaussian2d>(BatchModel::gaussian_2d, {5.0f, 3.1f, 2.9f, 1.2f, 1.0f});
    test_model<solve::Gaussian2dElliptic>(BatchModel::gaussian_2d_elliptic, {5.0f, 3.1f, 2.9f, 1.0f, 1.6f, 1.0f});
    test_model<solve::Gaussian2dRotated>(BatchModel::gaussian_2d_rotated, {5.0f, 3.1f, 2.9f, 1.0f, 1.8f, 1.0f, 0.5f});
    test_model<solve::Lorentz>(BatchModel::lorentz, {4.0f, 2.0f, 0.5f, 1.0f});
    test_model<solve::Exponentials<1>>(BatchModel::exponential, {4.0f, 1.2f, 1.0f});
    test_model<solve::Exponentials<2>>(BatchModel::double_exponential, {3.0f, 0.5f, 4.0f, 3.0f, 1.0f});
    test_model<solve::Exponentials<3>>(BatchModel::triple_exponential, {3.0f, 0.3f, 4.0f, 1.5f, 2.0f, 8.0f, 1.0f});
    test::test_options();
    test::test_faults();
    return test::finish();
}
