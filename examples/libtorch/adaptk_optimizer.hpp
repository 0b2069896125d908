// torch::optim::Optimizer over the C interface of adaptk: every rule, with hyperparameters by name.
//
// Parameter groups, learning-rate schedulers, torch::save and torch::load work as with libtorch's own. Parameters are
// dense and on the CPU, in float32, float64, bfloat16 or float16; states of the last two are float32.
#pragma once

#include <adaptk/adaptk.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <torch/optim.h>
#include <torch/serialize/archive.h>
#include <torch/types.h>

namespace adaptk_torch {

using Hypers = std::map<std::string, double>;

inline void check(adaptk_status status) { TORCH_CHECK(status == ADAPTK_OK, "adaptk: ", adaptk_last_error()); }

// What a group has: the learning rate, which schedulers set, and any other hyperparameters of the rule.
struct Options : torch::optim::OptimizerCloneableOptions<Options> {
    explicit Options(double lr = 1e-3) : lr_(lr) {}
    TORCH_ARG(double, lr);
    TORCH_ARG(Hypers, hypers);

  public:
    double get_lr() const override { return lr(); }
    void set_lr(const double lr) override { lr_ = lr; }

    void serialize(torch::serialize::OutputArchive& archive) const override {
        c10::Dict<std::string, double> saved;
        for (const auto& [name, value] : hypers()) saved.insert(name, value);
        archive.write("lr", torch::IValue(lr()));
        archive.write("hypers", torch::IValue(saved));
    }
    void serialize(torch::serialize::InputArchive& archive) override {
        torch::IValue found;
        archive.read("lr", found);
        lr_ = found.toDouble();
        archive.read("hypers", found);
        hypers_.clear();
        for (const auto& entry : found.toGenericDict()) hypers_[entry.key().toStringRef()] = entry.value().toDouble();
    }
};

// What a parameter has: how many steps it has taken, and the rule's states.
struct ParamState : torch::optim::OptimizerCloneableParamState<ParamState> {
    TORCH_ARG(int64_t, step) = 0;
    TORCH_ARG(std::vector<torch::Tensor>, states);

  public:
    void serialize(torch::serialize::OutputArchive& archive) const override {
        archive.write("step", torch::IValue(step()));
        archive.write("states", torch::IValue(states()));
    }
    void serialize(torch::serialize::InputArchive& archive) override {
        torch::IValue found;
        archive.read("step", found);
        step_ = found.toInt();
        archive.read("states", found);
        states_ = found.toTensorVector();
    }
};

class Optimizer : public torch::optim::Optimizer {
  public:
    Optimizer(std::string rule, std::vector<torch::optim::OptimizerParamGroup> groups, Options defaults = Options())
        : torch::optim::Optimizer(std::move(groups), std::make_unique<Options>(std::move(defaults))),
          name_(std::move(rule)), rule_(adaptk_find_rule(name_.c_str())) {
        TORCH_CHECK(rule_ != nullptr, "adaptk: ", adaptk_last_error());
    }
    Optimizer(std::string rule, std::vector<torch::Tensor> params, Options defaults = Options())
        : Optimizer(std::move(rule), {torch::optim::OptimizerParamGroup(std::move(params))}, std::move(defaults)) {}

    // The largest norm of all gradients together; 0: any.
    double clip_norm = 0.0;

    torch::Tensor step(LossClosure closure = nullptr) override {
        torch::Tensor loss;
        if (closure != nullptr) {
            torch::AutoGradMode with_gradients(true);
            loss = closure();
        }
        torch::NoGradGuard no_grad;
        adaptk_step_options options = ADAPTK_STEP_OPTIONS;
        if (clip_norm > 0.0) {
            options.clip_norm = clip_norm;
            options.grad_norm = norm();
        }
        for (auto& group : param_groups_) step_group(group, options);
        return loss;
    }

    void save(torch::serialize::OutputArchive& archive) const override {
        torch::optim::serialize<ParamState, Options>(archive, *this);
    }
    void load(torch::serialize::InputArchive& archive) override {
        torch::optim::serialize<ParamState, Options>(archive, *this);
    }

  private:
    // Tensors as the library takes them: pointers to descriptions, whose extents are libtorch's own.
    class Described {
      public:
        void add(const torch::Tensor& t) {
            kept_.push_back(t);
            adaptk_tensor d = adaptk_make_tensor(t.data_ptr(), type_of(t), int32_t(t.dim()),
                                                 const_cast<int64_t*>(kept_.back().sizes().data()));
            d.strides = const_cast<int64_t*>(kept_.back().strides().data());
            all_.push_back(d);
        }
        const adaptk_tensor* const* pointers() {
            pointers_.clear();
            for (const adaptk_tensor& d : all_) pointers_.push_back(&d);
            return pointers_.data();
        }
        size_t size() const { return all_.size(); }

      private:
        static adaptk_type type_of(const torch::Tensor& t) {
            switch (t.scalar_type()) {
            case torch::kFloat32: return ADAPTK_FLOAT32;
            case torch::kFloat64: return ADAPTK_FLOAT64;
            case torch::kBFloat16: return ADAPTK_BFLOAT16;
            case torch::kFloat16: return ADAPTK_FLOAT16;
            default: TORCH_CHECK_TYPE(false, "adaptk: dtype ", t.dtype(), ", expected floating point numbers");
            }
        }
        std::vector<torch::Tensor> kept_;
        std::vector<adaptk_tensor> all_;
        std::vector<const adaptk_tensor*> pointers_;
    };

    // A gradient in the layout of its parameter.
    static torch::Tensor grad_of(const torch::Tensor& p) {
        TORCH_CHECK_TYPE(p.device().is_cpu() && p.layout() == torch::kStrided && p.grad().layout() == torch::kStrided,
                         "adaptk: this optimizer takes dense parameters and gradients on the CPU");
        if (p.grad().strides() == p.strides()) return p.grad();
        return torch::empty_like(p, p.grad().options()).copy_(p.grad());
    }

    double norm() const {
        Described grads;
        for (const auto& group : param_groups_)
            for (const torch::Tensor& p : group.params())
                if (p.grad().defined()) grads.add(grad_of(p));
        double found = 0.0;
        if (grads.size() > 0) check(adaptk_global_norm(grads.size(), grads.pointers(), 1.0, nullptr, &found));
        return found;
    }

    ParamState& state_of(const torch::Tensor& p, const Options& options) {
        auto& found = state_[p.unsafeGetTensorImpl()];
        if (found == nullptr) {
            auto made = std::make_unique<ParamState>();
            const bool narrow = p.scalar_type() == torch::kBFloat16 || p.scalar_type() == torch::kFloat16;
            for (size_t s = 0; s < rule_->state_count; ++s) {
                const adaptk_state_info* const info = adaptk_rule_state(rule_, s);
                double initial = info->initial;
                if (info->initial_from != nullptr) initial = value_of(info->initial_from, options);
                const auto as = p.options().dtype(narrow ? torch::kFloat32 : p.scalar_type()).requires_grad(false);
                made->states().push_back(torch::full_like(p, initial, as));
            }
            found = std::move(made);
        }
        return static_cast<ParamState&>(*found);
    }

    double value_of(const std::string& name, const Options& options) const {
        if (name == "lr") return options.lr();
        const auto given = options.hypers().find(name);
        if (given != options.hypers().end()) return given->second;
        for (size_t i = 0; i < rule_->hyper_count; ++i)
            if (name == adaptk_rule_hyper(rule_, i)->name) return adaptk_rule_hyper(rule_, i)->value;
        TORCH_CHECK_VALUE(false, "adaptk: ", name_, " has no hyperparameter ", name);
    }

    // Parameters that have taken as many steps are one call.
    void step_group(torch::optim::OptimizerParamGroup& group, const adaptk_step_options& options) {
        const auto& own = static_cast<const Options&>(group.options());
        std::vector<adaptk_hyper> hypers{{"lr", own.lr()}};
        for (const auto& [name, value] : own.hypers()) hypers.push_back({name.c_str(), value});
        std::map<int64_t, std::vector<torch::Tensor>> by_step;
        for (const torch::Tensor& p : group.params())
            if (p.grad().defined()) by_step[state_of(p, own).step() + 1].push_back(p);
        for (const auto& [step, params] : by_step) {
            Described ps, grads, states;
            for (const torch::Tensor& p : params) {
                ps.add(p);
                grads.add(grad_of(p));
                for (const torch::Tensor& s : state_of(p, own).states()) states.add(s);
            }
            check(adaptk_step(name_.c_str(), hypers.data(), hypers.size(), step, ps.size(), ps.pointers(),
                              grads.pointers(), states.pointers(), &options, nullptr));
            for (const torch::Tensor& p : params) {
                state_of(p, own).step(step);
                p.unsafeGetTensorImpl()->bump_version();
            }
        }
    }

    std::string name_;
    const adaptk_rule* rule_;
};

}  // namespace adaptk_torch
