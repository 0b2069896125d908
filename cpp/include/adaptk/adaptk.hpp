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
#include <string_view>
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
    // For the C functions. The result points into this object, which must outlive it.
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

// A state in any storage format, in memory of the caller or of a plan.
struct Stored {
    Tensor data;
    std::span<float> scales = {};  // for formats that have them
    const char* format = nullptr;  // its name; null: that of the type
};

// How a plan stores the states that it allocates: Storage{.format = "8bit", .seed = 1}.
struct Storage {
    // The format of all states, by a name that adaptk_state_format() accepts, and of single states that differ:
    // {{"exp_avg", "bfloat16"}}. States of float64 params are float64.
    const char* format = "float32";
    std::vector<std::pair<std::string, std::string>> of_state = {};
    std::uint64_t seed = 0;            // of the group's stochastic rounding
    std::size_t min_8bit_size = 4096;  // params with fewer elements have float32 instead of 8 bits
};

// The fields of adaptk_step_options by name: Options{.clip_norm = 1.0}.
struct Options {
    double grad_scale = 1.0;
    double clip_norm = 0.0;
    bool skip_nonfinite = false;
    bool want_norm = false;
    void* stream = nullptr;
    bool stochastic_params = false;
    // One for each param, or none.
    std::span<const Tensor> copy_out = {};
    std::span<const Tensor> ema = {};
    double ema_decay = 0.0;
    double grad_norm = -1.0;  // < 0: it is not known
    bool zero_grad = false;
    const char* param_format = nullptr;
    // One for each param, or none. Any tensor will do for a param that is not split.
    std::span<const Tensor> param_sides = {};
};

struct Report {
    double grad_norm = 0.0;
    bool has_norm = false;
    bool skipped = false;
};

namespace interface_detail {

// Tensors as C functions take them. For a few tensors, as in most steps, nothing is allocated.
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

// Stored states as C functions take them.
class StoredPointers {
  public:
    explicit StoredPointers(std::span<const Stored> states)
        : data_(states.size()), scales_(states.size()), counts_(states.size()), all_(states.size()) {
        for (std::size_t i = 0; i < states.size(); ++i) {
            const Stored& s = states[i];
            if (s.data.read_only())
                throw Error(ADAPTK_INVALID_ARGUMENT,
                            "states[" + std::to_string(i) + "]: const, but it is updated in place");
            data_[i] = s.data.get();
            counts_[i] = std::int64_t(s.scales.size());
            scales_[i] = adaptk_make_tensor(s.scales.data(), ADAPTK_FLOAT32, 1, &counts_[i]);
            scales_[i].device = data_[i].device;
            all_[i] =
                adaptk_make_stored(&data_[i], s.scales.empty() && !has_scales(s) ? nullptr : &scales_[i], s.format);
            pointers_.push_back(&all_[i]);
        }
    }
    StoredPointers(const StoredPointers&) = delete;
    StoredPointers& operator=(const StoredPointers&) = delete;
    const adaptk_stored* const* get() const { return pointers_.data(); }

  private:
    std::vector<adaptk_tensor> data_, scales_;
    std::vector<std::int64_t> counts_;
    std::vector<adaptk_stored> all_;
    std::vector<const adaptk_stored*> pointers_;

    // Of the format: a state without elements has none.
    static bool has_scales(const Stored& s) { return s.data.type() == ADAPTK_INT8 || s.data.type() == ADAPTK_UINT8; }
};

// The options of a step of `params` params as C functions take them.
class PlainOptions {
  public:
    PlainOptions(const Options& o, std::size_t params)
        : copies_(o.copy_out, "options.copy_out"), averages_(o.ema, "options.ema"),
          sides_(o.param_sides, "options.param_sides"), plain_(plain(o)) {
        if (!o.copy_out.empty()) plain_.copy_out = counted(o.copy_out, params, "options.copy_out: ", copies_);
        if (!o.ema.empty()) plain_.ema = counted(o.ema, params, "options.ema: ", averages_);
        if (!o.param_sides.empty())
            plain_.param_sides = counted(o.param_sides, params, "options.param_sides: ", sides_);
    }
    const adaptk_step_options* get() const { return &plain_; }

  private:
    Pointers copies_, averages_, sides_;
    adaptk_step_options plain_;

    static const adaptk_tensor* const* counted(std::span<const Tensor> tensors, std::size_t params, const char* name,
                                               const Pointers& pointers) {
        if (tensors.size() != params)
            throw Error(ADAPTK_INVALID_ARGUMENT, name + std::to_string(tensors.size()) + " tensors, expected " +
                                                     std::to_string(params) + " as there are params");
        return pointers.get();
    }
    static adaptk_step_options plain(const Options& o);
};

inline adaptk_step_options PlainOptions::plain(const Options& o) {
    adaptk_step_options out = ADAPTK_STEP_OPTIONS;
    out.grad_scale = o.grad_scale;
    out.clip_norm = o.clip_norm;
    out.skip_nonfinite = o.skip_nonfinite ? 1 : 0;
    out.want_norm = o.want_norm ? 1 : 0;
    out.stream = o.stream;
    out.stochastic_params = o.stochastic_params ? 1 : 0;
    out.ema_decay = o.ema_decay;
    out.grad_norm = o.grad_norm;
    out.zero_grad = o.zero_grad ? 1 : 0;
    out.param_format = o.param_format;
    return out;
}

inline Report typed(const adaptk_step_report& r) { return {r.grad_norm, r.has_norm != 0, r.skipped != 0}; }

inline const adaptk_rule& rule_of(const char* rule) {
    const adaptk_rule* const known = adaptk_find_rule(rule);
    if (known == nullptr) throw Error(ADAPTK_UNKNOWN_NAME, adaptk_last_error());
    return *known;
}

inline void check_state_count(const char* rule, std::size_t count) {
    const std::size_t expected = rule_of(rule).state_count;
    if (count != expected)
        throw Error(ADAPTK_INVALID_ARGUMENT, std::string("states: ") + rule + " has " + std::to_string(expected) +
                                                 ", and " + std::to_string(count) + " are given");
}

// The format of a state that a plan allocates.
inline const adaptk_format& format_of(const adaptk_rule& rule, std::size_t state, const Tensor& param,
                                      const Storage& storage) {
    if (param.type() == ADAPTK_FLOAT64) return *adaptk_find_format("float64");
    const char* name = storage.format;
    for (const auto& [other, format] : storage.of_state)
        if (other == adaptk_rule_state(&rule, state)->name) name = format.c_str();
    const adaptk_format* const found = adaptk_state_format(&rule, state, name);
    if (found == nullptr) throw Error(ADAPTK_UNKNOWN_NAME, std::string("storage: ") + adaptk_last_error());
    if (std::string_view(found->name) == "float64")
        throw Error(ADAPTK_INVALID_TYPE, "storage: float64 states are for float64 params");
    const std::string_view text = name;
    const bool chosen_by_size = text.starts_with("8bit") || text == "fp8_e4m3" || text == "4bit";
    const bool small = chosen_by_size && param.size() < storage.min_8bit_size;
    return small ? *adaptk_find_format("float32") : *found;
}

inline adaptk_type type_of(const adaptk_format& format) {
    switch (format.dtype.code) {
    case 0: return ADAPTK_INT8;
    case 1: return ADAPTK_UINT8;
    case 4: return ADAPTK_BFLOAT16;
    default: return format.bytes == 8 ? ADAPTK_FLOAT64 : format.bytes == 4 ? ADAPTK_FLOAT32 : ADAPTK_FLOAT16;
    }
}
inline void check_equal(std::size_t into, std::size_t grads) {
    if (into != grads)
        throw Error(ADAPTK_INVALID_ARGUMENT,
                    "grads: " + std::to_string(grads) + " tensors, expected " + std::to_string(into) + " as in into");
}

struct Destroy {
    void operator()(adaptk_plan* plan) const noexcept { adaptk_plan_destroy(plan); }
};

}  // namespace interface_detail

// One update of one tensor with the caller's states.
inline Report step(const char* rule, Hypers hypers, std::int64_t number, const Tensor& param, const Tensor& grad,
                   Tensors states = {}, const Options& options = {}) {
    const interface_detail::Pointers p({&param, 1}, "params");
    const interface_detail::Pointers g({&grad, 1}, options.zero_grad ? "grads" : nullptr);
    const interface_detail::Pointers s(std::span(states.begin(), states.size()), "states");
    interface_detail::check_state_count(rule, states.size());
    const interface_detail::PlainOptions plain(options, 1);
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    const bool on_cuda = param.on_cuda();
    check(adaptk_step(rule, hypers.begin(), hypers.size(), number, 1, p.get(), g.get(), s.get(), plain.get(),
                      on_cuda ? nullptr : &report));
    return interface_detail::typed(report);
}

// The same with states in any format.
inline Report step(const char* rule, Hypers hypers, std::int64_t number, const Tensor& param, const Tensor& grad,
                   std::span<const Stored> states, std::uint64_t seed, const Options& options = {}) {
    const interface_detail::Pointers p({&param, 1}, "params");
    const interface_detail::Pointers g({&grad, 1}, options.zero_grad ? "grads" : nullptr);
    const interface_detail::StoredPointers s(states);
    interface_detail::check_state_count(rule, states.size());
    const interface_detail::PlainOptions plain(options, 1);
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    check(adaptk_step_stored(rule, hypers.begin(), hypers.size(), number, seed, 1, p.get(), g.get(), s.get(),
                             plain.get(), param.on_cuda() ? nullptr : &report));
    return interface_detail::typed(report);
}

// A gradient with values for some rows of a param, which is a table with rows of `row_size` elements. See adaptk_rows.
struct Rows {
    std::size_t row_size;
    std::span<const std::int64_t> indices;
    Tensor values;                           // a row for each index
    std::span<std::int64_t> last_step = {};  // ADAPTK_CATCH_UP: a number for each row, initially 0
};

// One update of one tensor with such a gradient. Options that are tensors, such as copy_out, are only for the other
// functions.
inline Report step_rows(const char* rule, Hypers hypers, std::int64_t number, const Tensor& param, const Rows& grad,
                        Tensors states = {}, adaptk_sparse_mode mode = ADAPTK_LAZY, const Options& options = {}) {
    const std::size_t width = grad.row_size;
    if (width == 0 || param.size() % width != 0)
        throw Error(ADAPTK_INVALID_ARGUMENT, "grad.row_size: " + std::to_string(width) + ", and the param has " +
                                                 std::to_string(param.size()) + " elements");
    if (grad.values.size() != grad.indices.size() * width)
        throw Error(ADAPTK_INVALID_ARGUMENT, "grad.values: " + std::to_string(grad.values.size()) +
                                                 " elements, expected one row for each of " +
                                                 std::to_string(grad.indices.size()) + " indices");
    const std::size_t rows = param.size() / width;
    if (!grad.last_step.empty() && grad.last_step.size() != rows)
        throw Error(ADAPTK_INVALID_ARGUMENT, "grad.last_step: " + std::to_string(grad.last_step.size()) +
                                                 " numbers, expected " + std::to_string(rows));
    interface_detail::check_state_count(rule, states.size());
    std::int64_t shape[2] = {std::int64_t(rows), std::int64_t(width)};
    std::int64_t of_values[2] = {std::int64_t(grad.indices.size()), std::int64_t(width)};
    const auto as_table = [](const Tensor& t, std::int64_t* extents) {
        adaptk_tensor made = t.get();
        made.ndim = 2;
        made.shape = extents;
        return made;
    };
    const auto check_written = [](const Tensor& t, const char* name) {
        if (t.read_only())
            throw Error(ADAPTK_INVALID_ARGUMENT, std::string(name) + ": const, but it is updated in place");
    };
    check_written(param, "param");
    const adaptk_tensor p = as_table(param, shape), v = as_table(grad.values, of_values);
    const adaptk_tensor i =
        adaptk_make_tensor(const_cast<std::int64_t*>(grad.indices.data()), ADAPTK_INT64, 1, of_values);
    adaptk_rows r = adaptk_make_rows(&i, &v);
    r.last_step = grad.last_step.data();
    std::vector<adaptk_tensor> data;
    std::vector<adaptk_stored> stored;
    std::vector<const adaptk_stored*> pointers;
    data.reserve(states.size());
    stored.reserve(states.size());
    for (const Tensor& s : states) {
        check_written(s, "states");
        const bool per_row = adaptk_rule_state_per_row(&interface_detail::rule_of(rule), data.size()) != 0;
        const std::size_t expected = per_row ? rows : param.size();
        if (s.size() != expected)
            throw Error(ADAPTK_INVALID_ARGUMENT, "states[" + std::to_string(data.size()) +
                                                     "]: " + std::to_string(s.size()) + " elements, expected " +
                                                     std::to_string(expected));
        data.push_back(as_table(s, shape));
        if (per_row) data.back().ndim = 1;
        stored.push_back(adaptk_make_stored(&data.back(), nullptr, nullptr));
        pointers.push_back(&stored.back());
    }
    const adaptk_tensor* const params[] = {&p};
    const adaptk_rows* const grads[] = {&r};
    const interface_detail::PlainOptions plain(options, 1);
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    check(adaptk_step_rows(rule, hypers.begin(), hypers.size(), number, 0, 1, params, grads, pointers.data(), mode,
                           plain.get(), &report));
    return interface_detail::typed(report);
}

// Encodes float32 numbers as a state in any format on the CPU, and decodes them.
inline void quantize(std::span<const float> values, const Stored& state, std::uint64_t seed = 0,
                     std::int64_t step = 1) {
    const interface_detail::StoredPointers s({&state, 1});
    const Tensor t(values);
    const adaptk_tensor v = t.get();
    check(adaptk_quantize(&v, s.get()[0], seed, step));
}
inline void dequantize(const Stored& state, std::span<float> values) {
    const interface_detail::StoredPointers s({&state, 1});
    const Tensor t(values);
    const adaptk_tensor v = t.get();
    check(adaptk_dequantize(s.get()[0], &v));
}
inline std::vector<float> dequantize(const Stored& state) {
    std::vector<float> values(state.data.size());
    dequantize(state, values);
    return values;
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

// into += scale * grads.
inline void accumulate(std::span<const Tensor> into, std::span<const Tensor> grads, double scale = 1.0,
                       void* stream = nullptr) {
    const interface_detail::Pointers a(into, "into"), g(grads, nullptr);
    interface_detail::check_equal(into.size(), grads.size());
    check(adaptk_accumulate(into.size(), a.get(), g.get(), scale, stream, nullptr));
}
inline void accumulate(Tensors into, Tensors grads, double scale = 1.0) {
    accumulate(std::span(into.begin(), into.size()), std::span(grads.begin(), grads.size()), scale);
}
// The same, and returns the norm of the new `into`, for Options::grad_norm of the step that uses it.
inline double accumulate_norm(std::span<const Tensor> into, std::span<const Tensor> grads, double scale = 1.0,
                              void* stream = nullptr) {
    const interface_detail::Pointers a(into, "into"), g(grads, nullptr);
    interface_detail::check_equal(into.size(), grads.size());
    double norm = 0.0;
    check(adaptk_accumulate(into.size(), a.get(), g.get(), scale, stream, &norm));
    return norm;
}
inline double accumulate_norm(Tensors into, Tensors grads, double scale = 1.0) {
    return accumulate_norm(std::span(into.begin(), into.size()), std::span(grads.begin(), grads.size()), scale);
}

// Params that are updated together, in groups with their own rule and hyperparameters. The caller owns the params'
// memory, which must stay valid. The plan allocates states on the CPU, unless they are given.
class Plan {
  public:
    Plan(const char* rule, std::span<const Tensor> params, Hypers hypers = {}, const Storage& storage = {}) {
        add(rule, params, hypers, storage);
    }
    Plan(const char* rule, Tensors params, Hypers hypers = {}, const Storage& storage = {})
        : Plan(rule, std::span(params.begin(), params.size()), hypers, storage) {}
    // With states of the caller, which already have their values: all states of the first param, then those of the
    // next.
    Plan(const char* rule, std::span<const Tensor> params, std::span<const Tensor> states, Hypers hypers) {
        std::vector<Stored> stored;
        for (const Tensor& s : states) stored.push_back({s});
        add(rule, params, stored, hypers);
    }
    // The same in any format.
    Plan(const char* rule, std::span<const Tensor> params, std::span<const Stored> states, Hypers hypers) {
        add(rule, params, states, hypers);
    }

    // Appends a group. Groups are numbered from 0.
    void add_group(const char* rule, std::span<const Tensor> params, Hypers hypers = {}, const Storage& storage = {}) {
        add(rule, params, hypers, storage);
    }
    void add_group(const char* rule, Tensors params, Hypers hypers = {}, const Storage& storage = {}) {
        add(rule, std::span(params.begin(), params.size()), hypers, storage);
    }

    void step(std::span<const Tensor> grads, const Options& options = {}) {
        const interface_detail::Pointers g(grads, options.zero_grad ? "grads" : nullptr);
        const interface_detail::PlainOptions plain(options, grads.size());
        check(adaptk_plan_step(plan_.get(), grads.size(), g.get(), plain.get()));
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

    // The seed of stochastic rounding; save it with the step counts.
    std::uint64_t seed(std::size_t group = 0) const {
        std::uint64_t value = 0;
        check(adaptk_plan_get_seed(plan_.get(), group, &value));
        return value;
    }
    void set_seed(std::uint64_t seed, std::size_t group = 0) { check(adaptk_plan_set_seed(plan_.get(), group, seed)); }

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

    // A state that the plan owns: number `state` of param number `param`, counted over all groups. T is double for
    // double params and float for all others.
    template <Real T> std::span<T> state(std::size_t param, std::size_t state) {
        const Stored& own = stored(param, state);
        const auto wanted = std::is_same_v<T, double> ? ADAPTK_FLOAT64 : ADAPTK_FLOAT32;
        if (own.data.type() != wanted) {
            const std::string name = own.format;
            const bool real = name == "float32" || name == "float64";
            const std::string what = name == "float64" ? "of type double" : "of type float";
            refuse("state: " + (real ? what : "stored as " + name + "; see stored()"));
        }
        return {static_cast<T*>(own.data.data()), own.data.size()};
    }

    // The same in any format.
    const Stored& stored(std::size_t param, std::size_t state) const {
        if (param >= owned_.size())
            refuse("param: " + std::to_string(param) + ", expected less than " + std::to_string(owned_.size()));
        const Own& own = owned_[param];
        if (!own.memory) refuse("param: the states of number " + std::to_string(param) + " are the caller's");
        if (state >= own.states.size())
            refuse("state: " + std::to_string(state) + ", expected less than " + std::to_string(own.states.size()));
        return own.states[state];
    }

    adaptk_plan* get() const { return plan_.get(); }

  private:
    struct Own {
        std::unique_ptr<std::byte[]> memory;
        std::vector<Stored> states;
    };
    using Handle = std::unique_ptr<adaptk_plan, interface_detail::Destroy>;
    std::vector<Own> owned_;  // one for each param, without memory if the caller owns its states; outlives the plan
    Handle plan_;
    std::size_t groups_ = 0;

    [[noreturn]] static void refuse(const std::string& text) { throw Error(ADAPTK_INVALID_ARGUMENT, text); }

    void add(const char* rule, std::span<const Tensor> params, std::span<const Stored> states, Hypers hypers) {
        const std::size_t expected = interface_detail::rule_of(rule).state_count;
        if (states.size() != params.size() * expected)
            refuse("states: " + std::to_string(states.size()) + ", expected " + std::to_string(expected) +
                   " for each param");
        join(rule, params, states, hypers, 0, std::vector<Own>(params.size()));
    }

    void add(const char* rule, std::span<const Tensor> params, Hypers hypers, const Storage& storage) {
        const adaptk_rule& known = interface_detail::rule_of(rule);
        for (const auto& [name, format] : storage.of_state) check_state_name(known, name);
        std::vector<Own> owned;
        std::vector<Stored> states;
        for (const Tensor& p : params) {
            if (p.on_cuda() && known.state_count > 0)
                throw Error(ADAPTK_UNSUPPORTED, "states: beside params on a device they have to be given");
            owned.push_back(allocate(known, p, storage));
            states.insert(states.end(), owned.back().states.begin(), owned.back().states.end());
        }
        join(rule, params, states, hypers, storage.seed, std::move(owned));
    }

    static void check_state_name(const adaptk_rule& rule, const std::string& name) {
        std::string known;
        for (std::size_t i = 0; i < rule.state_count; ++i) {
            const char* const has = adaptk_rule_state(&rule, i)->name;
            if (name == has) return;
            known += std::string(known.empty() ? "" : ", ") + has;
        }
        throw Error(ADAPTK_UNKNOWN_NAME, "storage: " + std::string(rule.name) + " has no state '" + name +
                                             "'; there are " + (known.empty() ? "none" : known));
    }

    static std::size_t stored_count(const adaptk_format& f, const Tensor& param) {
        return param.size() / f.packed + (param.size() % f.packed > 0 ? 1 : 0);
    }

    // Scales come first, then the elements of each state, padded to multiples of 8 bytes, so that all are aligned.
    static Own allocate(const adaptk_rule& rule, const Tensor& param, const Storage& storage) {
        std::vector<const adaptk_format*> formats;
        std::size_t scales = 0, bytes = 0;
        for (std::size_t i = 0; i < rule.state_count; ++i) {
            formats.push_back(&interface_detail::format_of(rule, i, param, storage));
            scales += adaptk_scale_count(formats.back(), param.size());
            bytes += (stored_count(*formats.back(), param) * formats.back()->bytes + 7) / 8 * 8;
        }
        const std::size_t before = (scales * sizeof(float) + 7) / 8 * 8;
        Own own{std::make_unique<std::byte[]>(before + bytes), {}};
        auto* scale = reinterpret_cast<float*>(own.memory.get());
        std::byte* at = own.memory.get() + before;
        for (const adaptk_format* f : formats) {
            const std::size_t count = adaptk_scale_count(f, param.size());
            const std::size_t elements = stored_count(*f, param);
            own.states.push_back({Tensor(at, elements, interface_detail::type_of(*f)), {scale, count}, f->name});
            scale += count;
            at += (elements * f->bytes + 7) / 8 * 8;
        }
        return own;
    }

    // States that this object owns are initialised by a temporary plan of this group alone, so that those of earlier
    // groups keep their values.
    void join(const char* rule, std::span<const Tensor> params, std::span<const Stored> states, Hypers hypers,
              std::uint64_t seed, std::vector<Own> owned) {
        const interface_detail::Pointers p(params, "params");
        const interface_detail::StoredPointers s(states);
        const bool own = !states.empty() && owned.front().memory != nullptr;
        Handle made;
        if (!plan_ || own) {
            adaptk_plan* alone = nullptr;
            check(adaptk_plan_create_stored(rule, hypers.begin(), hypers.size(), params.size(), p.get(), s.get(),
                                            &alone));
            made = Handle(alone);
        }
        if (own) check(adaptk_plan_init_states(made.get()));
        owned_.reserve(owned_.size() + owned.size());
        if (plan_) {
            check(adaptk_plan_add_group_stored(plan_.get(), rule, hypers.begin(), hypers.size(), params.size(), p.get(),
                                               s.get()));
        } else {
            plan_ = std::move(made);
        }
        for (Own& o : owned) owned_.push_back(std::move(o));
        check(adaptk_plan_set_seed(plan_.get(), groups_++, seed));
    }
};

}  // namespace adaptk
