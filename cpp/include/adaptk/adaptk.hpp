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
    // For C: it points into this object, which therefore has to outlive it.
    adaptk_tensor get() const&& = delete;
    adaptk_tensor get() const& {
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

    // A state that the plan owns: number `state` of param number `param` over all groups. T is double beside double and
    // float beside all else.
    template <Real T> std::span<T> state(std::size_t param, std::size_t state) {
        const auto refuse = [](const std::string& text) { throw Error(ADAPTK_INVALID_ARGUMENT, text); };
        if (param >= owned_.size())
            refuse("param: " + std::to_string(param) + ", expected less than " + std::to_string(owned_.size()));
        const Own& own = owned_[param];
        if (!own.memory) refuse("param: the states of number " + std::to_string(param) + " are the caller's");
        if (state >= own.count)
            refuse("state: " + std::to_string(state) + ", expected less than " + std::to_string(own.count));
        if ((own.type == ADAPTK_FLOAT64) != std::is_same_v<T, double>)
            refuse(std::string("state: of type ") + (own.type == ADAPTK_FLOAT64 ? "double" : "float"));
        return {reinterpret_cast<T*>(own.memory.get()) + state * own.size, own.size};
    }

    adaptk_plan* get() const { return plan_.get(); }

  private:
    struct Own {
        std::unique_ptr<std::byte[]> memory;
        adaptk_type type;
        std::size_t size, count;
    };
    using Handle = std::unique_ptr<adaptk_plan, interface_detail::Destroy>;
    std::vector<Own> owned_;  // of each param, without memory if its states are the caller's; outlives the plan
    Handle plan_;

    static const adaptk_rule& rule_of(const char* rule) {
        const adaptk_rule* const known = adaptk_find_rule(rule);
        if (known == nullptr) throw Error(ADAPTK_UNKNOWN_NAME, adaptk_last_error());
        return *known;
    }
    static Handle create(const char* rule, const interface_detail::Pointers& params, std::size_t count,
                         const interface_detail::Pointers& states, Hypers hypers) {
        adaptk_plan* made = nullptr;
        check(adaptk_plan_create(rule, hypers.begin(), hypers.size(), count, params.get(), states.get(), &made));
        return Handle(made);
    }

    void add(const char* rule, std::span<const Tensor> params, std::span<const Tensor> states, Hypers hypers) {
        const std::size_t expected = rule_of(rule).state_count;
        if (states.size() != params.size() * expected)
            throw Error(ADAPTK_INVALID_ARGUMENT, "states: " + std::to_string(states.size()) + ", expected " +
                                                     std::to_string(expected) + " for each param");
        std::vector<Own> owned;
        for (const Tensor& p : params) owned.push_back({nullptr, p.type(), p.size(), 0});
        join(rule, params, states, hypers, std::move(owned));
    }

    void add(const char* rule, std::span<const Tensor> params, Hypers hypers) {
        const std::size_t count = rule_of(rule).state_count;
        std::vector<Own> owned;
        std::vector<Tensor> states;
        for (const Tensor& p : params) {
            if (p.on_cuda() && count > 0)
                throw Error(ADAPTK_UNSUPPORTED, "states: beside params on a device they have to be given");
            const adaptk_type type = p.type() == ADAPTK_FLOAT64 ? ADAPTK_FLOAT64 : ADAPTK_FLOAT32;
            const std::size_t bytes = p.size() * (type == ADAPTK_FLOAT64 ? 8 : 4);
            owned.push_back({std::make_unique<std::byte[]>(bytes * count), type, p.size(), count});
            for (std::size_t i = 0; i < count; ++i)
                states.emplace_back(owned.back().memory.get() + i * bytes, p.size(), type);
        }
        join(rule, params, states, hypers, std::move(owned));
    }

    // States that are the plan's own are filled in by a plan of this group alone: those of earlier groups go on.
    void join(const char* rule, std::span<const Tensor> params, std::span<const Tensor> states, Hypers hypers,
              std::vector<Own> owned) {
        const interface_detail::Pointers p(params, "params");
        const interface_detail::Pointers s(states, "states");
        const bool own = !states.empty() && owned.front().memory != nullptr;
        Handle made;
        if (!plan_ || own) made = create(rule, p, params.size(), s, hypers);
        if (own) check(adaptk_plan_init_states(made.get()));
        owned_.reserve(owned_.size() + owned.size());
        if (plan_) {
            check(adaptk_plan_add_group(plan_.get(), rule, hypers.begin(), hypers.size(), params.size(), p.get(),
                                        s.get()));
        } else {
            plan_ = std::move(made);
        }
        for (Own& o : owned) owned_.push_back(std::move(o));
    }
};

}  // namespace adaptk
