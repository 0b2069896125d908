// adaptk in C++: adaptk.h with spans for arrays, exceptions for errors and RAII for plans. Link adaptk::adaptk.
//
//     std::vector<float> w(n), dw(n);
//     adaptk::Plan plan("adamw", {w}, {{"lr", 1e-3}, {"weight_decay", 1e-2}});
//     for (...) plan.step({dw});
#pragma once

#include "adaptk/adaptk.h"

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <ranges>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace adaptk {

// An error of a library function: its status and message.
class Error : public std::runtime_error {
  public:
    Error(adaptk_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
    adaptk_status status() const noexcept { return status_; }

  private:
    adaptk_status status_;
};

inline void check(adaptk_status status) {
    if (status != ADAPTK_OK) throw Error(status, adaptk_last_error());
}

template <class T>
concept Real = std::is_same_v<T, float> || std::is_same_v<T, double>;

// A dense block of memory. Rules work element by element, so a tensor only has a size. Made from anything that converts
// to a span of float or double (const for gradients only), or from an address for 16-bit types.
class Tensor {
  public:
    template <class Range>
        requires std::ranges::borrowed_range<Range> && requires(Range& r) { std::span(r); } &&
                     Real<typename decltype(std::span(std::declval<Range&>()))::value_type>
    Tensor(Range&& range)  // NOLINT: meant to convert
        : data_(const_cast<void*>(static_cast<const void*>(std::span(range).data()))),
          size_(std::int64_t(std::span(range).size())),
          type_(sizeof(typename decltype(std::span(range))::value_type) == 4 ? ADAPTK_FLOAT32 : ADAPTK_FLOAT64),
          read_only_(std::is_const_v<typename decltype(std::span(range))::element_type>) {}
    Tensor(void* data, std::size_t size, adaptk_type type) : data_(data), size_(std::int64_t(size)), type_(type) {}
    // On a CUDA device.
    static Tensor on_device(int device, void* data, std::size_t size, adaptk_type type) {
        Tensor t(data, size, type);
        t.device_ = device;
        return t;
    }

    void* data() const { return data_; }
    std::size_t size() const { return std::size_t(size_); }
    adaptk_type type() const { return type_; }
    bool on_cuda() const { return device_ >= 0; }
    bool read_only() const { return read_only_; }
    // For C: it points into this object.
    adaptk_tensor get() const {
        adaptk_tensor t = adaptk_make_tensor(data_, type_, 1, const_cast<std::int64_t*>(&size_));
        if (device_ >= 0) {
            t.device.device_type = static_cast<decltype(t.device.device_type)>(ADAPTK_CUDA);
            t.device.device_id = device_;
        }
        return t;
    }

  private:
    void* data_;
    std::int64_t size_;
    adaptk_type type_;
    int device_ = -1;
    bool read_only_ = false;
};

using Hypers = std::initializer_list<adaptk_hyper>;
using Tensors = std::initializer_list<Tensor>;

// The fields of adaptk_step_options by name: Options{.clip_norm = 1.0}.
struct Options {
    double grad_scale = 1.0;
    double clip_norm = 0.0;
    bool skip_nonfinite = false;
    bool want_norm = false;
    void* stream = nullptr;
};

struct Report {
    double grad_norm = 0.0;
    bool has_norm = false;
    bool skipped = false;
};

namespace interface_detail {

// Tensors as C functions take them. Few of them, as most steps have, take no memory but this object's.
class Pointers {
  public:
    Pointers(std::span<const Tensor> tensors, const char* written) {
        const std::size_t n = tensors.size();
        adaptk_tensor* all = few_;
        if (n > few) {
            many_ = std::make_unique_for_overwrite<adaptk_tensor[]>(n);
            many_pointers_ = std::make_unique_for_overwrite<const adaptk_tensor*[]>(n);
            all = many_.get();
            pointers_ = many_pointers_.get();
        }
        for (std::size_t i = 0; i < n; ++i) {
            if (written != nullptr && tensors[i].read_only())
                throw Error(ADAPTK_INVALID_ARGUMENT,
                            std::string(written) + "[" + std::to_string(i) + "]: const, but it is updated in place");
            all[i] = tensors[i].get();
            pointers_[i] = &all[i];
        }
    }
    Pointers(const Pointers&) = delete;
    Pointers& operator=(const Pointers&) = delete;
    const adaptk_tensor* const* get() const { return pointers_; }

  private:
    static constexpr std::size_t few = 8;
    adaptk_tensor few_[few];
    const adaptk_tensor* few_pointers_[few];
    std::unique_ptr<adaptk_tensor[]> many_;
    std::unique_ptr<const adaptk_tensor*[]> many_pointers_;
    const adaptk_tensor** pointers_ = few_pointers_;
};

inline adaptk_step_options plain(const Options& o) {
    adaptk_step_options out = ADAPTK_STEP_OPTIONS;
    out.grad_scale = o.grad_scale;
    out.clip_norm = o.clip_norm;
    out.skip_nonfinite = o.skip_nonfinite ? 1 : 0;
    out.want_norm = o.want_norm ? 1 : 0;
    out.stream = o.stream;
    return out;
}

inline Report typed(const adaptk_step_report& r) { return {r.grad_norm, r.has_norm != 0, r.skipped != 0}; }

struct Destroy {
    void operator()(adaptk_plan* plan) const noexcept { adaptk_plan_destroy(plan); }
};

}  // namespace interface_detail

// One update of one tensor with the caller's states.
inline Report step(const char* rule, Hypers hypers, std::int64_t number, const Tensor& param, const Tensor& grad,
                   Tensors states = {}, const Options& options = {}) {
    const interface_detail::Pointers p({&param, 1}, "params");
    const interface_detail::Pointers g({&grad, 1}, nullptr);
    const interface_detail::Pointers s(std::span(states.begin(), states.size()), "states");
    const adaptk_rule* const known = adaptk_find_rule(rule);
    if (known == nullptr) throw Error(ADAPTK_UNKNOWN_NAME, adaptk_last_error());
    if (known->state_count != states.size())
        throw Error(ADAPTK_INVALID_ARGUMENT, std::string("states: ") + rule + " has " +
                                                 std::to_string(known->state_count) + ", and " +
                                                 std::to_string(states.size()) + " are given");
    const adaptk_step_options plain = interface_detail::plain(options);
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    const bool on_cuda = param.on_cuda();
    check(adaptk_step(rule, hypers.begin(), hypers.size(), number, 1, p.get(), g.get(), s.get(), &plain,
                      on_cuda ? nullptr : &report));
    return interface_detail::typed(report);
}

inline double global_norm(std::span<const Tensor> grads, double grad_scale = 1.0, void* stream = nullptr) {
    const interface_detail::Pointers g(grads, nullptr);
    double norm = 0.0;
    check(adaptk_global_norm(grads.size(), g.get(), grad_scale, stream, &norm));
    return norm;
}
inline double global_norm(Tensors grads, double grad_scale = 1.0) {
    return global_norm(std::span(grads.begin(), grads.size()), grad_scale);
}

// Params that are updated together, in groups with their own rule and hyperparameters. The caller owns the params'
// memory, which must stay valid. The plan allocates states on the CPU, unless they are given.
class Plan {
  public:
    Plan(const char* rule, std::span<const Tensor> params, Hypers hypers = {}) { add(rule, params, hypers); }
    Plan(const char* rule, Tensors params, Hypers hypers = {})
        : Plan(rule, std::span(params.begin(), params.size()), hypers) {}
    // With states of the caller's, which hold their values already: those of the first param, then those of the next.
    Plan(const char* rule, std::span<const Tensor> params, std::span<const Tensor> states, Hypers hypers) {
        add(rule, params, states, hypers);
    }

    // One more group, numbered on from 0.
    void add_group(const char* rule, std::span<const Tensor> params, Hypers hypers = {}) { add(rule, params, hypers); }
    void add_group(const char* rule, Tensors params, Hypers hypers = {}) {
        add(rule, std::span(params.begin(), params.size()), hypers);
    }

    void step(std::span<const Tensor> grads, const Options& options = {}) {
        const interface_detail::Pointers g(grads, nullptr);
        const adaptk_step_options plain = interface_detail::plain(options);
        check(adaptk_plan_step(plan_.get(), grads.size(), g.get(), &plain));
    }
    void step(Tensors grads, const Options& options = {}) { step(std::span(grads.begin(), grads.size()), options); }

    // The outcome of the last step; on CUDA this waits for it.
    Report report() const {
        adaptk_step_report out = ADAPTK_STEP_REPORT;
        check(adaptk_plan_report(plan_.get(), &out));
        return interface_detail::typed(out);
    }

    void set(Hypers hypers, std::size_t group = 0) {
        check(adaptk_plan_set_hypers(plan_.get(), group, hypers.begin(), hypers.size()));
    }
    double get(const char* name, std::size_t group = 0) const {
        double value = 0.0;
        check(adaptk_plan_get_hyper(plan_.get(), group, name, &value));
        return value;
    }

    std::size_t size() const {
        std::size_t n = 0;
        check(adaptk_plan_size(plan_.get(), &n));
        return n;
    }
    std::vector<std::int64_t> steps() const {
        std::vector<std::int64_t> out(size());
        check(adaptk_plan_get_steps(plan_.get(), out.size(), out.data()));
        return out;
    }
    void set_steps(std::span<const std::int64_t> steps) {
        check(adaptk_plan_set_steps(plan_.get(), steps.size(), steps.data()));
    }

    // A state that the plan owns: number `state` of param `param`. T is double beside double and float beside all else.
    template <Real T> std::span<T> state(std::size_t param, std::size_t state) {
        const Own& own = owned_.at(param);
        if ((own.type == ADAPTK_FLOAT64) != std::is_same_v<T, double> || state >= own.count)
            throw Error(ADAPTK_INVALID_ARGUMENT, "state: not of this type, or the rule has fewer");
        return {reinterpret_cast<T*>(own.memory.get()) + state * own.size, own.size};
    }

    adaptk_plan* get() const { return plan_.get(); }

  private:
    struct Own {
        std::unique_ptr<std::byte[]> memory;
        adaptk_type type;
        std::size_t size, count;
    };
    std::vector<Own> owned_;  // outlives the plan that writes there
    std::unique_ptr<adaptk_plan, interface_detail::Destroy> plan_;

    void add(const char* rule, std::span<const Tensor> params, std::span<const Tensor> states, Hypers hypers) {
        const interface_detail::Pointers p(params, "params");
        const interface_detail::Pointers s(states, "states");
        const adaptk_rule* const known = adaptk_find_rule(rule);
        if (known == nullptr) throw Error(ADAPTK_UNKNOWN_NAME, adaptk_last_error());
        if (states.size() != params.size() * known->state_count)
            throw Error(ADAPTK_INVALID_ARGUMENT, "states: " + std::to_string(states.size()) + ", expected " +
                                                     std::to_string(known->state_count) + " for each param");
        if (plan_) {
            check(adaptk_plan_add_group(plan_.get(), rule, hypers.begin(), hypers.size(), params.size(), p.get(),
                                        s.get()));
            return;
        }
        adaptk_plan* made = nullptr;
        check(adaptk_plan_create(rule, hypers.begin(), hypers.size(), params.size(), p.get(), s.get(), &made));
        plan_.reset(made);
    }

    void add(const char* rule, std::span<const Tensor> params, Hypers hypers) {
        const adaptk_rule* const known = adaptk_find_rule(rule);
        if (known == nullptr) throw Error(ADAPTK_UNKNOWN_NAME, adaptk_last_error());
        const std::size_t before = owned_.size();
        std::vector<Tensor> states;
        try {
            for (const Tensor& p : params) {
                if (p.on_cuda() && known->state_count > 0)
                    throw Error(ADAPTK_UNSUPPORTED, "states: beside params on a device they have to be given");
                const adaptk_type type = p.type() == ADAPTK_FLOAT64 ? ADAPTK_FLOAT64 : ADAPTK_FLOAT32;
                const std::size_t bytes = p.size() * (type == ADAPTK_FLOAT64 ? 8 : 4);
                owned_.push_back(
                    {std::make_unique<std::byte[]>(bytes * known->state_count), type, p.size(), known->state_count});
                for (std::size_t i = 0; i < known->state_count; ++i)
                    states.emplace_back(owned_.back().memory.get() + i * bytes, p.size(), type);
            }
            add(rule, params, states, hypers);
            fill(before, hypers, *known);
        } catch (...) {
            owned_.resize(before);
            throw;
        }
    }

    // What new states start as; earlier groups' go on.
    void fill(std::size_t first, Hypers hypers, const adaptk_rule& rule) {
        for (std::size_t s = 0; s < rule.state_count; ++s) {
            const adaptk_state_info& info = *adaptk_rule_state(&rule, s);
            double value = info.initial;
            for (std::size_t h = 0; info.initial_from != nullptr && h < rule.hyper_count; ++h) {
                const adaptk_hyper_info& known = *adaptk_rule_hyper(&rule, h);
                if (std::string(known.name) != info.initial_from) continue;
                value = known.value;
                for (const adaptk_hyper& given : hypers)
                    if (std::string(given.name) == known.name) value = given.value;
            }
            for (std::size_t i = first; i < owned_.size(); ++i) {
                if (owned_[i].type == ADAPTK_FLOAT64) {
                    for (double& x : state<double>(i, s)) x = value;
                } else {
                    for (float& x : state<float>(i, s)) x = float(value);
                }
            }
        }
    }
};

}  // namespace adaptk
