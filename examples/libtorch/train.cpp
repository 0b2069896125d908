// A network of libtorch trained by adaptk, beside the same network trained by torch::optim::AdamW.
#include "adaptk_optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <sstream>
#include <stdexcept>

#include <torch/nn.h>
#include <torch/serialize.h>

namespace {

torch::nn::Sequential network() {
    torch::manual_seed(0);
    return torch::nn::Sequential(torch::nn::Linear(1, 32), torch::nn::Tanh(), torch::nn::Linear(32, 1));
}

template <class Optimizer> double train(torch::nn::Sequential& model, Optimizer& opt, int steps) {
    torch::optim::StepLR schedule(opt, /*step_size=*/100, /*gamma=*/0.5);
    const torch::Tensor x = torch::linspace(-3.0, 3.0, 128).unsqueeze(1);
    const torch::Tensor y = torch::sin(x);
    torch::Tensor loss;
    for (int t = 0; t < steps; ++t) {
        loss = opt.step([&] {
            opt.zero_grad();
            torch::Tensor now = torch::mse_loss(model->forward(x), y);
            now.backward();
            return now;
        });
        schedule.step();
    }
    return loss.item<double>();
}

double distance(const torch::nn::Sequential& a, const torch::nn::Sequential& b) {
    double largest = 0.0;
    for (size_t i = 0; i < a->parameters().size(); ++i)
        largest = std::max(largest, (a->parameters()[i] - b->parameters()[i]).abs().max().item<double>());
    return largest;
}

void expect(bool held, const char* what) {
    if (!held) throw std::runtime_error(what);
}

}  // namespace

int main() try {
    torch::nn::Sequential ours = network(), theirs = network(), decayed = network();
    adaptk_torch::Optimizer opt("adamw", ours->parameters(),
                                adaptk_torch::Options(0.02).hypers({{"weight_decay", 0.01}}));
    torch::optim::AdamW other(theirs->parameters(), torch::optim::AdamWOptions(0.02).weight_decay(0.01));
    const double loss = train(ours, opt, 300), same = train(theirs, other, 300);
    std::printf("loss %.6f, with torch::optim::AdamW %.6f\n", loss, same);
    expect(loss < 1e-2, "the network did not learn");
    expect(std::abs(loss - same) < 1e-4, "the losses differ");

    // What was saved goes on as if it had never been away: 100 further steps of both are the same, bit for bit.
    torch::nn::Sequential again = network();
    {
        torch::NoGradGuard no_grad;
        for (size_t i = 0; i < again->parameters().size(); ++i) again->parameters()[i].copy_(ours->parameters()[i]);
    }
    std::stringstream file;
    torch::save(opt, file);
    adaptk_torch::Optimizer resumed("adamw", again->parameters());
    torch::load(resumed, file);
    train(ours, opt, 100);
    train(again, resumed, 100);
    expect(distance(ours, again) == 0.0, "a saved optimizer went another way");
    std::printf("saved, loaded and trained on: the same\n");

    // Groups: biases without decay. And clipping by the norm over both, with another rule.
    std::vector<torch::Tensor> weights, biases;
    for (const torch::Tensor& p : decayed->parameters()) (p.dim() > 1 ? weights : biases).push_back(p);
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(
        weights, std::make_unique<adaptk_torch::Options>(adaptk_torch::Options(1e-2).hypers({{"weight_decay", 0.01}})));
    groups.emplace_back(biases, std::make_unique<adaptk_torch::Options>(1e-2));
    adaptk_torch::Optimizer lion("lion", groups);
    lion.clip_norm = 1.0;
    const double by_lion = train(decayed, lion, 600);
    std::printf("lion, two groups: loss %.6f\n", by_lion);
    expect(by_lion < 0.05, "lion did not learn");

    // An error changes nothing and says what is wrong.
    static_cast<adaptk_torch::Options&>(lion.param_groups()[0].options()).lr(-1.0);
    const torch::Tensor before = weights[0].detach().clone();
    try {
        lion.step();
    } catch (const c10::Error& error) {
        std::printf("refused: %s\n", error.what_without_backtrace());
        expect(torch::equal(before, weights[0]), "a refused step changed a parameter");
        return 0;
    }
    throw std::runtime_error("a negative learning rate was taken");
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
