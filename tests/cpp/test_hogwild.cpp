// Training by threads that share weights: every rule and mode learns, on one thread and on several. Under
// ThreadSanitizer this shows that there is no data race.
#include "hogwild.hpp"

#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace adaptk::test {
namespace {

using namespace detail;

constexpr std::int64_t rows = 6000, columns = 400, per_row = 24;

template <class T, class I> struct Data {
    std::vector<T> values;
    std::vector<I> indices;
    std::vector<std::int64_t> starts{0}, counts;
    std::vector<double> labels, targets;
    Rows matrix;
    RowsReport report;

    Data() : counts(columns, 0) {
        std::mt19937 random(1);
        std::uniform_real_distribution<double> uniform(0, 1);
        std::vector<double> truth(columns);
        for (double& t : truth) t = uniform(random) - 0.5;
        for (std::int64_t i = 0; i < rows; ++i) {
            std::vector<I> row;
            while (row.size() < std::size_t(per_row)) {
                // Some features are in nearly all rows.
                const auto u = I(std::min(double(columns) - 1, std::pow(double(columns), uniform(random)) - 1));
                if (std::find(row.begin(), row.end(), u) == row.end()) row.push_back(u);
            }
            std::sort(row.begin(), row.end());
            double score = 0;
            for (const I u : row) {
                values.push_back(T(uniform(random) / 3));
                score += double(values.back()) * truth[std::size_t(u)];
            }
            indices.insert(indices.end(), row.begin(), row.end());
            starts.push_back(std::int64_t(indices.size()));
            targets.push_back(score);
            labels.push_back(score > 0 ? 1 : 0);
        }
        matrix.data = values.data();
        matrix.indices = indices.data();
        matrix.starts = starts.data();
        matrix.rows = rows;
        matrix.columns = columns;
        matrix.doubles = sizeof(T) == 8;
        matrix.wide_indices = sizeof(I) == 8;
        matrix.wide_starts = true;
        report = check_rows(matrix, std::int64_t(values.size()), counts.data());
    }
};

template <class T, class I> double trained(const Data<T, I>& d, LinearOptions o, std::vector<T>& weights) {
    LinearTask t;
    t.rows = d.matrix;
    t.examples = rows;
    t.targets = d.labels.data();
    t.classes = 1;
    weights.assign(std::size_t((columns + 1) * fields_of(o.rule)), T(0));
    t.weights = weights.data();
    t.counts = d.counts.data();
    t.counted_rows = rows;
    t.longest = d.report.longest;
    t.stored = d.report.stored;
    double loss = 0;
    for (; o.epoch < 3; ++o.epoch, o.steps_before += rows) {
        CHECK(train_linear(t, o, &loss, {}) >= 1);
    }
    CHECK(std::all_of(weights.begin(), weights.end(), [](T w) { return std::isfinite(w); }));
    return loss / double(rows);
}

template <class T, class I> void test_linear() {
    const Data<T, I> d;
    CHECK(d.report.longest == per_row && d.report.not_finite < 0 && d.report.out_of_range < 0);
    for (const SparseRule rule : {SparseRule::sgd, SparseRule::adagrad, SparseRule::adam, SparseRule::ftrl}) {
        LinearOptions o;
        o.rule = rule;
        o.eta = rule == SparseRule::adam ? 0.003 : 0.1;
        o.beta1 = rule == SparseRule::ftrl ? 1.0 : 0.9;
        o.l2 = 1e-6;
        std::vector<T> weights, same;
        o.mode = TrainingMode::deterministic;
        const double one = trained(d, o, weights);
        o.threads = 4;
        trained(d, o, same);
        CHECK(weights == same);
        for (const TrainingMode mode : {TrainingMode::hogwild, TrainingMode::locked})
            for (const int publish_every : {1, 8}) {
                if (mode == TrainingMode::locked && publish_every > 1) continue;
                o.mode = mode;
                o.publish_every = publish_every;
                const double several = trained(d, o, weights);
                CHECK_THAT(several < 1.15 * one && several < 0.6, "rule %d mode %d publish_every %d: %g, one thread %g",
                           int(rule), int(mode), publish_every, several, one);
            }
    }
}

template <class T> void test_factors() {
    constexpr std::int64_t n = 20000, side = 120, rank = 5;
    std::mt19937 random(2);
    std::normal_distribution<double> normal;
    std::vector<double> a(side * 2), b(side * 2);
    for (double& x : a) x = normal(random);
    for (double& x : b) x = normal(random);
    std::vector<std::int32_t> row, column;
    std::vector<T> value;
    for (std::int64_t k = 0; k < n; ++k) {
        const auto i = std::int32_t(random() % side), j = std::int32_t(random() % side);
        row.push_back(i);
        column.push_back(j);
        value.push_back(
            T(a[std::size_t(2 * i)] * b[std::size_t(2 * j)] + a[std::size_t(2 * i + 1)] * b[std::size_t(2 * j + 1)]));
    }
    const auto stride = std::size_t(factor_stride(rank));
    FactorTask t;
    t.rows = row.data();
    t.columns = column.data();
    t.values = value.data();
    t.examples = n;
    t.doubles = sizeof(T) == 8;
    t.rank = rank;
    t.row_count = t.column_count = side;
    std::vector<std::int64_t> order(n), starts(factor_groups * factor_groups + 1);
    factor_blocks(t, order.data(), starts.data());
    std::vector<std::int64_t> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    for (std::int64_t k = 0; k < n; ++k) CHECK(sorted[std::size_t(k)] == k);
    for (const SparseRule rule : {SparseRule::sgd, SparseRule::adagrad})
        for (const TrainingMode mode : {TrainingMode::hogwild, TrainingMode::locked, TrainingMode::deterministic}) {
            std::vector<std::vector<T>> ends;
            for (const int threads : {1, 4}) {
                std::vector<T> p(side * stride, T(0)), q = p, p2 = p, q2 = p;
                for (std::size_t i = 0; i < side; ++i)
                    for (std::size_t k = 0; k < rank; ++k) {
                        p[i * stride + k] = T(0.1 * std::sin(double(i * 7 + k)));
                        q[i * stride + k] = T(0.1 * std::cos(double(i * 5 + k)));
                    }
                t.row_factors = p.data();
                t.column_factors = q.data();
                t.row_squares = p2.data();
                t.column_squares = q2.data();
                t.order = mode == TrainingMode::deterministic ? order.data() : nullptr;
                t.block_starts = starts.data();
                FactorOptions o;
                o.rule = rule;
                o.mode = mode;
                o.eta = rule == SparseRule::sgd ? 0.03 : 0.1;
                o.threads = threads;
                double first = 0, last = 0;
                for (; o.epoch < 5; ++o.epoch) CHECK(train_factors(t, o, o.epoch == 0 ? &first : &last, {}) >= 1);
                CHECK_THAT(last < 0.5 * first, "rule %d mode %d threads %d: %g after %g", int(rule), int(mode), threads,
                           last, first);
                ends.push_back(p);
            }
            if (mode == TrainingMode::deterministic) CHECK(ends[0] == ends[1]);
        }
}

void test_ends() {
    const Data<float, std::int32_t> d;
    LinearTask t;
    t.rows = d.matrix;
    t.examples = rows;
    t.targets = d.labels.data();
    t.classes = 1;
    t.longest = d.report.longest;
    t.stored = d.report.stored;
    std::vector<float> weights(columns + 1);
    t.weights = weights.data();
    for (const int threads : {1, 4}) {
        LinearOptions o;
        o.threads = threads;
        double loss = 0;
        int asked = 0;
        const StopCheck no{[](void* n) {
                               ++*static_cast<int*>(n);
                               return false;
                           },
                           &asked};
        CHECK(train_linear(t, o, &loss, no) == 0);
        CHECK(asked == 1);
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    adaptk::test::test_linear<float, std::int32_t>();
    adaptk::test::test_linear<double, std::int64_t>();
    adaptk::test::test_factors<float>();
    adaptk::test::test_factors<double>();
    adaptk::test::test_ends();
    return adaptk::test::finish();
}
