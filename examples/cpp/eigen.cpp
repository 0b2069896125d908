// Eigen's matrices as parameters: a matrix is factored as U V', with each of adaptk's rules that is named on the
// command line, or with four of them.
#include <adaptk/adaptk.hpp>

#include <Eigen/Dense>

#include <cstdio>
#include <span>
#include <string>
#include <vector>

namespace {

// The memory of a matrix, in whatever order it has its elements: rules look at elements alone.
template <class Matrix> auto flat(Matrix& m) { return std::span(m.data(), std::size_t(m.size())); }

double factor(const std::string& rule, double lr) {
    constexpr int rows = 30, columns = 20, rank = 4;
    std::srand(1);  // Eigen's Random() draws from it
    const Eigen::MatrixXf target = Eigen::MatrixXf::Random(rows, rank) * Eigen::MatrixXf::Random(rank, columns);
    Eigen::MatrixXf u = 0.1f * Eigen::MatrixXf::Random(rows, rank);
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> v =
        0.1f * Eigen::MatrixXf::Random(columns, rank);
    Eigen::MatrixXf du(rows, rank);
    decltype(v) dv(columns, rank);

    adaptk::Plan plan(rule.c_str(), {flat(u), flat(v)}, {{"lr", lr}});
    double loss = 0.0;
    for (int t = 0; t < 1000; ++t) {
        const Eigen::MatrixXf residual = u * v.transpose() - target;
        loss = 0.5 * double(residual.squaredNorm());
        du.noalias() = residual * v;
        dv.noalias() = residual.transpose() * u;
        plan.step({flat(du), flat(dv)}, {.clip_norm = 10.0});
    }
    std::printf("%-10s %.3g\n", rule.c_str(), loss);
    return loss;
}

}  // namespace

int main() try {
    bool good = true;
    for (const auto& [rule, lr] : {std::pair{"sgd", 0.01}, {"nesterov", 0.005}, {"adam", 0.03}, {"adabelief", 0.03}})
        good = factor(rule, lr) < 1e-2 && good;
    return good ? 0 : 1;
} catch (const adaptk::Error& e) {
    std::fprintf(stderr, "%s: %s\n", adaptk_status_name(e.status()), e.what());
    return 1;
}
