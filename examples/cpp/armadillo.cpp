// Armadillo's matrices, trained as a user of ensmallen does: a function class that gives losses and gradients of parts
// of the data, and an optimizer with Optimize(function, parameters). The optimizer below runs any rule of adaptk.
#include <adaptk/adaptk.hpp>

#include <armadillo>

#include <algorithm>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

namespace {

// Logistic regression: x holds a weight for each feature and a bias, points are columns of `data`.
class LogisticRegression {
  public:
    LogisticRegression(arma::mat data, arma::rowvec labels) : data_(std::move(data)), labels_(std::move(labels)) {}

    std::size_t NumFunctions() const { return data_.n_cols; }
    void Shuffle() {
        const arma::uvec order = arma::shuffle(arma::regspace<arma::uvec>(0, data_.n_cols - 1));
        data_ = arma::mat(data_.cols(order));
        labels_ = arma::rowvec(labels_.cols(order));
    }
    double EvaluateWithGradient(const arma::mat& x, std::size_t begin, arma::mat& g, std::size_t batch) const {
        const auto points = data_.cols(begin, begin + batch - 1);
        const auto wanted = labels_.cols(begin, begin + batch - 1);
        const arma::rowvec p = 1.0 / (1.0 + arma::exp(-(x.head_rows(x.n_rows - 1).t() * points + x.tail_rows(1)(0))));
        const arma::rowvec error = (p - wanted) / double(batch);
        g.set_size(arma::size(x));
        g.head_rows(x.n_rows - 1) = points * error.t();
        g.tail_rows(1) = arma::accu(error);
        return -arma::accu(wanted % arma::log(p + 1e-12) + (1.0 - wanted) % arma::log(1.0 - p + 1e-12)) / double(batch);
    }
    double Accuracy(const arma::mat& x) const {
        const arma::rowvec z = x.head_rows(x.n_rows - 1).t() * data_ + x.tail_rows(1)(0);
        std::size_t right = 0;
        for (arma::uword i = 0; i < z.n_elem; ++i) right += (z(i) > 0) == (labels_(i) > 0.5) ? 1 : 0;
        return double(right) / double(z.n_elem);
    }

  private:
    arma::mat data_;
    arma::rowvec labels_;
};

template <class Matrix> auto flat(Matrix& m) { return std::span(m.memptr(), std::size_t(m.n_elem)); }

// With the interface that ensmallen's optimizers have.
class Optimizer {
  public:
    Optimizer(std::string rule, double rate, std::size_t batch, std::size_t epochs)
        : rule_(std::move(rule)), rate_(rate), batch_(batch), epochs_(epochs) {}

    template <class Function> double Optimize(Function& f, arma::mat& x) const {
        adaptk::Plan plan(rule_.c_str(), {flat(x)}, {{"lr", rate_}});
        arma::mat g(arma::size(x));
        double loss = 0.0;
        for (std::size_t epoch = 0; epoch < epochs_; ++epoch) {
            f.Shuffle();
            loss = 0.0;
            for (std::size_t i = 0; i < f.NumFunctions(); i += batch_) {
                const std::size_t n = std::min(batch_, f.NumFunctions() - i);
                loss += f.EvaluateWithGradient(x, i, g, n) * double(n);
                plan.step({flat(g)});
            }
        }
        return loss / double(f.NumFunctions());
    }

  private:
    std::string rule_;
    double rate_;
    std::size_t batch_, epochs_;
};

}  // namespace

int main() try {
    arma::arma_rng::set_seed(1);
    const arma::vec truth = arma::randn(10);
    const arma::mat data = arma::randn(10, 2000);
    const arma::rowvec labels =
        arma::conv_to<arma::rowvec>::from(arma::rowvec(truth.t() * data + 0.5) + 0.1 * arma::randn(1, 2000) > 0.0);
    bool good = true;
    for (const auto& [rule, rate] : {std::pair{"adam", 0.05}, {"rmsprop", 0.02}, {"adagrad", 0.3}}) {
        LogisticRegression f(data, labels);
        arma::mat x(11, 1, arma::fill::zeros);
        const double loss = Optimizer(rule, rate, 32, 20).Optimize(f, x);
        const double accuracy = f.Accuracy(x);
        std::printf("%-8s loss %.4f, %.1f %% right\n", rule, loss, 100.0 * accuracy);
        good = good && accuracy > 0.95;
    }
    return good ? 0 : 1;
} catch (const adaptk::Error& e) {
    std::fprintf(stderr, "%s: %s\n", adaptk_status_name(e.status()), e.what());
    return 1;
}
