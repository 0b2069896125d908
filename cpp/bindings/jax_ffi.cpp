// The extension module adaptk._jax: the handlers that XLA calls for a step, on the CPU and on a CUDA device. Neither
// knows of Python; arrays and numbers come as buffers of XLA's, what is fixed when a step is compiled as attributes.
#include "plain_module.hpp"

#include "cuda_library.hpp"
#include "rule_program.hpp"
#include "step.hpp"
#include "tensor.hpp"
#include "text.hpp"

#include "adaptk/adaptk.h"

#include <xla/ffi/api/ffi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace adaptk::bindings {
namespace {

namespace ffi = xla::ffi;

using detail::Format;
using detail::FormatInfo;
using detail::ParamUpdate;
using detail::RuleInfo;

// Thrown inside a handler, and caught before it is left.
struct Refusal {
    ffi::ErrorCode code;
    std::string text;
};

[[noreturn]] void refuse(std::string text) { throw Refusal{ffi::ErrorCode::kInvalidArgument, std::move(text)}; }

template <class Buffers> ffi::AnyBuffer argument(const Buffers& buffers, std::size_t i) {
    auto found = buffers.template get<ffi::AnyBuffer>(i);
    if (!found.has_value()) refuse(found.error().message());
    return *found;
}

ffi::AnyBuffer result(const ffi::RemainingRets& results, std::size_t i) {
    auto found = results.get<ffi::AnyBuffer>(i);
    if (!found.has_value()) refuse(found.error().message());
    return **found;
}

Format element_type(const ffi::AnyBuffer& buffer, const char* name) {
    switch (buffer.element_type()) {
    case ffi::DataType::F32: return Format::float32;
    case ffi::DataType::F64: return Format::float64;
    case ffi::DataType::BF16: return Format::bfloat16;
    case ffi::DataType::F16: return Format::float16;
    case ffi::DataType::F8E4M3FN: return detail::find_format("float8_e4m3fn")->id;
    case ffi::DataType::F8E5M2: return detail::find_format("float8_e5m2")->id;
    default: refuse(std::string(name) + ": " + detail::wanted_types);
    }
}

// XLA's type of a format's elements.
ffi::DataType data_type(const FormatInfo& format) {
    switch (format.dlpack_code) {
    case detail::code_int: return ffi::DataType::S8;
    case detail::code_uint: return ffi::DataType::U8;
    case detail::code_bfloat: return ffi::DataType::BF16;
    case detail::code_float8_e4m3fn: return ffi::DataType::F8E4M3FN;
    case detail::code_float8_e5m2: return ffi::DataType::F8E5M2;
    default: return format.dlpack_bits == 16 ? ffi::DataType::F16 : ffi::DataType::INVALID;
    }
}

bool same_shape(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b) {
    const auto x = a.dimensions();
    const auto y = b.dimensions();
    return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

// Elements that each tensor's part of a packed state is rounded up to: a cache line, for float32.
constexpr std::size_t packed_grain = 16;

// Memory that XLA did not give to the result that takes its place.
struct Move {
    void* to;
    const void* from;
    std::size_t bytes;
};

// A number that a step takes from memory, one for each member of a batch.
struct Operand {
    std::size_t hyper;
    const std::byte* data;
    detail::ScalarType type;

    std::size_t width() const { return type == detail::ScalarType::f64 ? 8 : 4; }
    const std::byte* of(std::size_t member) const { return data + member * width(); }
};

// What is fixed when a step is compiled.
struct Attributes {
    std::string_view rule;
    bool packed;  // whether each state is one array for all tensors, one behind the other
    ffi::Span<const double> values;
    ffi::Span<const std::int32_t> traced;
    ffi::Span<const std::int32_t> numbers;  // of the tensors, for stochastic rounding
    ffi::Span<const std::int32_t> decayed;  // 1 for each tensor that has the call's weight decay, 0 for one without
    std::string_view formats;               // of the states: names with commas between them, empty if a dtype tells
    std::string_view param_format;          // detail::ParamFormat, by its name
    std::int64_t seed;
};

// What a handler is called with: params, states, scales of the states that have some, lost bits of the params that are
// split, numbers that are carried on and depend on gradients, and gradients of any number of tensors, then the number
// of the step and the hyperparameters that are not known before; all but gradients and those once more as results.
// Under vmap all of them have the same leading axes, and each member of that batch is a step of its own, with the draws
// that it would have alone.
struct Request {
    const RuleInfo* rule;
    bool packed;
    std::uint64_t seed;
    detail::HyperValues hyper = {};
    std::vector<const FormatInfo*> formats;  // of each array of states; null if its dtype tells
    std::vector<std::size_t> scales_at;      // the scales of each array of states, if its format has some
    std::vector<Format> param_types;
    std::size_t count = 0;             // tensors of a member
    std::size_t members = 1;           // of the batch
    std::size_t batch_axes = 0;        // that all arrays have before their own
    std::vector<ParamUpdate> tensors;  // member by member
    std::vector<Move> moves;
    const std::byte* step = nullptr;  // int32
    std::vector<Operand> operands;
    ffi::Span<const std::int32_t> decayed;
    // float64 numbers that are carried on, of each member; null: there are none that depend on gradients.
    const std::byte* carried_from = nullptr;
    std::byte* carried_to = nullptr;

    Request(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, const Attributes& given);
    // Of a member: tensors in order, in one segment for each run of tensors with the same weight decay.
    void add_segments(const detail::HyperValues& values, std::vector<detail::Segment>& out) const;
    // Whether members have sums over all their tensors, and so are steps one by one.
    bool steps_alone() const { return rule->program != nullptr && rule->program->measures_all(); }
    std::size_t carried_bytes() const { return rule->program->carried.size() * sizeof(double); }
    // As Python's functions call it.
    std::string name_of(std::size_t h) const { return h == 0 ? "learning_rate" : rule->hyper(h).name; }

  private:
    std::size_t kept_at(std::size_t buffer, std::size_t i) const {
        return packed && buffer > 0 ? count + buffer - 1 : buffer * count + i;
    }
    std::size_t read_formats(std::string_view names, std::size_t first);
    void read_param_types(const ffi::RemainingArgs& args, std::size_t wanted);
    Format state_type(const ffi::AnyBuffer& buffer, std::size_t array, const char* name) const;
    void take_tensor(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, std::size_t i);
    void take_scales(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, std::size_t i,
                     std::size_t buffer, std::size_t at, Format type);
    void take_lost_bits(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, std::size_t i,
                        std::size_t at);
    void take_buffer(std::size_t i, std::size_t buffer, void* data, std::size_t offset, std::size_t stride,
                     Format type);
    void take_states(const ffi::RemainingArgs& args, const ffi::RemainingRets& results);
    void* settle(const ffi::AnyBuffer& from, const ffi::AnyBuffer& to, std::size_t bytes_of_element);
    void take_carried(const ffi::AnyBuffer& from, const ffi::AnyBuffer& to);
};

// Its place in detail::ParamFormat.
std::size_t param_format_of(std::string_view name) {
    const auto* const names = std::begin(detail::param_format_names);
    const auto* const found = std::find(names, std::end(detail::param_format_names), name);
    if (found == std::end(detail::param_format_names)) refuse("param_format: unknown name '" + std::string(name) + "'");
    return std::size_t(found - names);
}

Request::Request(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, const Attributes& given)
    : rule(detail::find_rule(given.rule)), packed(given.packed), seed(std::uint64_t(given.seed)),
      count(given.numbers.size()), decayed(given.decayed) {
    if (rule == nullptr) refuse("rule: unknown rule '" + std::string(given.rule) + "'");
    if (packed && rule->has_numbers()) refuse(std::string("packed: ") + rule->name + " has states of other shapes");
    const auto values = given.values;
    const auto traced = given.traced;
    const std::size_t states = rule->states.size();
    if (values.size() != rule->hyper_count() || traced.size() != values.size())
        refuse(std::string(rule->name) + ": called with other hyperparameters than this version has");
    std::copy(values.begin(), values.end(), hyper.value);
    std::vector<std::size_t> open;
    for (std::size_t h = 0; h < traced.size(); ++h)
        if (traced[h] != 0) open.push_back(h);
    formats.resize(packed ? states : count * states);
    const std::size_t wanted = param_format_of(given.param_format);
    const std::size_t lost_bits_at = read_formats(given.formats, count + formats.size());
    std::size_t kept = lost_bits_at;
    for (std::size_t i = 0; i < std::min(count, args.size()); ++i)
        if (argument(args, i).element_type() == ffi::DataType::BF16 &&
            has_side(detail::info_of(Format::bfloat16).as_param[wanted]))
            ++kept;
    const bool carries = rule->program != nullptr && rule->program->carries_measured();
    if (carries) ++kept;
    if (results.size() != kept || args.size() != kept + count + 1 + open.size())
        refuse(std::string(rule->name) + ": called with another number of arrays than it takes");
    if (decayed.size() != count) refuse("decayed: expected one number for each tensor");
    read_param_types(args, wanted);

    const std::size_t first = kept + count;
    const ffi::AnyBuffer number = argument(args, first);
    if (number.element_type() != ffi::DataType::S32) refuse("step: expected int32");
    step = static_cast<const std::byte*>(number.untyped_data());
    members = number.element_count();
    batch_axes = number.dimensions().size();
    if (carries) take_carried(argument(args, kept - 1), result(results, kept - 1));
    for (std::size_t k = 0; k < open.size(); ++k) {
        const ffi::AnyBuffer value = argument(args, first + 1 + k);
        const auto* const data = static_cast<const std::byte*>(value.untyped_data());
        Operand operand{open[k], data, detail::ScalarType::f32};
        std::size_t elements = members;
        switch (value.element_type()) {
        case ffi::DataType::F32: break;
        case ffi::DataType::F64: operand.type = detail::ScalarType::f64; break;
        // The two halves of a float64, which arrays of JAX only hold where that is switched on.
        case ffi::DataType::U32:
            operand.type = detail::ScalarType::f64;
            elements = 2 * members;
            break;
        default: refuse(name_of(open[k]) + ": expected float32 or float64");
        }
        if (value.element_count() != elements) refuse(name_of(open[k]) + ": expected one number a step");
        operands.push_back(operand);
    }
    tensors.resize(members * count);
    for (std::size_t i = 0; i < count; ++i) {
        take_tensor(args, results, i);
        for (std::size_t m = 0; m < members; ++m) tensors[m * count + i].number = std::uint32_t(given.numbers[i]);
    }
    if (packed && members > 0) take_states(args, results);
    std::size_t at = lost_bits_at;
    for (std::size_t i = 0; i < count; ++i)
        if (has_side(param_types[i])) take_lost_bits(args, results, i, at++);
}

void Request::take_carried(const ffi::AnyBuffer& from, const ffi::AnyBuffer& to) {
    const std::size_t words = members * rule->program->carried.size() * 2;
    for (const ffi::AnyBuffer& b : {from, to})
        if (b.element_type() != ffi::DataType::U32 || b.element_count() != words)
            refuse("state.carried: expected two uint32 for each of " + std::to_string(rule->program->carried.size()) +
                   " numbers");
    carried_from = static_cast<const std::byte*>(from.untyped_data());
    carried_to = static_cast<std::byte*>(to.untyped_data());
}

void Request::add_segments(const detail::HyperValues& values, std::vector<detail::Segment>& out) const {
    detail::HyperValues without = values;
    for (std::size_t h = 0; h < rule->hyper_count(); ++h)
        if (rule->is_weight_decay(h)) without.value[h] = 0.0;
    for (std::size_t i = 0; i < count; ++i) {
        if (i > 0 && (decayed[i] != 0) == (decayed[i - 1] != 0)) {
            ++out.back().count;
            continue;
        }
        detail::Segment& s = out.emplace_back(detail::Segment{rule, decayed[i] != 0 ? values : without, 1, 1});
        s.seed = seed;
    }
    if (count == 0) out.push_back({rule, values, 1, 0});
}

// How params are stored.
void Request::read_param_types(const ffi::RemainingArgs& args, std::size_t wanted) {
    for (std::size_t i = 0; i < count; ++i) {
        const Format type = element_type(argument(args, i), "params");
        const Format stored = detail::info_of(type).as_param[wanted];
        if (wanted > 0 && stored == type && size_of(type) == 2)
            refuse(std::string("param_format: ") + detail::param_format_names[wanted] + " is for bfloat16 params");
        param_types.push_back(stored);
    }
}

// Where scales end, which lie behind the `first` arrays.
std::size_t Request::read_formats(std::string_view names, std::size_t first) {
    scales_at.resize(formats.size());
    std::size_t end = first;
    for (std::size_t i = 0; i < formats.size() && !names.empty(); ++i) {
        const std::string_view name = names.substr(0, names.find(','));
        names.remove_prefix(std::min(name.size() + 1, names.size()));
        if (name.empty()) continue;
        formats[i] = detail::find_format(name);
        if (formats[i] == nullptr) refuse("formats: " + detail::unknown_format(std::string(name).c_str()));
        if (formats[i]->split) refuse(std::string("formats: ") + formats[i]->name + " is for params");
        if (formats[i]->block == 1) continue;
        if (packed) refuse("packed: no states with scales");
        scales_at[i] = end++;
    }
    if (!names.empty()) refuse("formats: more than there are states");
    return end;
}

Format Request::state_type(const ffi::AnyBuffer& buffer, std::size_t array, const char* name) const {
    const FormatInfo* const format = formats[array];
    if (format == nullptr) return element_type(buffer, name);
    if (buffer.element_type() != data_type(*format))
        refuse(std::string(name) + ": another dtype than " + format->name + " has");
    return format->id;
}

// The memory that a step works in.
void* Request::settle(const ffi::AnyBuffer& from, const ffi::AnyBuffer& to, std::size_t bytes_of_element) {
    const std::size_t bytes = from.element_count() * bytes_of_element;
    if (to.untyped_data() != from.untyped_data() && bytes > 0)
        moves.push_back({to.untyped_data(), from.untyped_data(), bytes});
    return to.untyped_data();
}

// Offset and stride, from one member to the next, count elements.
void Request::take_buffer(std::size_t i, std::size_t buffer, void* data, std::size_t offset, std::size_t stride,
                          Format type) {
    for (std::size_t m = 0; m < members; ++m) {
        ParamUpdate& tensor = tensors[m * count + i];
        tensor.format[buffer] = type;
        if (tensor.size > 0)
            tensor.buffer[buffer] = static_cast<std::byte*>(data) + (offset + m * stride) * size_of(type);
    }
}

void Request::take_tensor(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, std::size_t i) {
    const ffi::AnyBuffer param = argument(args, i);
    const ffi::AnyBuffer grad = argument(args, results.size() + i);
    const Format param_type = param_types[i];
    const Format grad_type = element_type(grad, "grads");
    if (!same_shape(grad, param)) refuse("grads: expected the shapes of their params");
    const std::size_t all = param.element_count();
    if (all > 0 && (members == 0 || all % members != 0))
        refuse("params: expected one of each for every member of the batch");
    const std::size_t size = all == 0 ? 0 : all / members;
    const auto shape = param.dimensions();
    if (shape.size() < batch_axes) refuse("params: expected the axes of the batch before their own");
    for (std::size_t m = 0; m < members; ++m) {
        ParamUpdate& tensor = tensors[m * count + i] = {std::int64_t(size), param_type, grad_type};
        set_shape(tensor, *rule, std::int32_t(shape.size() - batch_axes), shape.begin() + batch_axes);
    }
    take_buffer(i, 1, grad.untyped_data(), 0, size, grad_type);
    for (std::size_t b = 0; b < (packed ? 1 : 1 + rule->states.size()); ++b) {
        const ffi::AnyBuffer from = argument(args, kept_at(b, i));
        const ffi::AnyBuffer to = result(results, kept_at(b, i));
        const char* const name = b == 0 ? "params" : rule->states[b - 1].name;
        const std::size_t array = kept_at(b, i) - count;
        const Format type = b == 0 ? param_type : state_type(from, array, name);
        if (from.element_type() != to.element_type() || compute_format(type) != compute_format(param_type))
            refuse(std::string(name) + ": expected " + detail::name_of(compute_format(param_type)) + " beside a " +
                   detail::name_of(detail::info_of(param_type).dtype) + " param");
        const Per per = b == 0 ? Per::element : rule->states[b - 1].per;
        if (per != Per::element) {
            const std::size_t numbers = members == 0 ? 0 : std::size_t(tensors[i].elements(b + 1));
            if (type != compute_format(param_type) || !same_shape(from, to) ||
                from.element_count() != members * numbers)
                refuse(std::string(name) + ": expected " + std::to_string(numbers) + " of " +
                       detail::name_of(compute_format(param_type)));
            take_buffer(i, b + 1, settle(from, to, size_of(type)), 0, numbers, type);
            continue;
        }
        // Of a member, and in all.
        const auto stored = std::size_t(detail::stored_count(type, std::int64_t(size)));
        const bool fits = detail::is_packed(type) ? same_shape(from, to) && from.element_count() == members * stored
                                                  : same_shape(from, param) && same_shape(to, param);
        if (!fits) refuse(std::string(name) + ": expected the shapes of their params");
        take_buffer(i, b == 0 ? 0 : b + 1, settle(from, to, size_of(type)), 0, stored, type);
        if (b > 0 && has_side(type)) take_scales(args, results, i, b + 1, scales_at[array], type);
    }
}

void Request::take_scales(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, std::size_t i,
                          std::size_t buffer, std::size_t at, Format type) {
    const ffi::AnyBuffer from = argument(args, at);
    const ffi::AnyBuffer to = result(results, at);
    const std::size_t one = members == 0 ? 0 : detail::side_count(type, tensors[i].size);
    if (from.element_type() != ffi::DataType::F32 || to.element_type() != ffi::DataType::F32 || !same_shape(from, to) ||
        from.element_count() != members * one)
        refuse(std::string(rule->states[buffer - 2].name) + ": expected " + std::to_string(one) +
               " scales of float32 beside " + std::to_string(members == 0 ? 0 : tensors[i].size) + " elements");
    auto* const data = static_cast<float*>(settle(from, to, sizeof(float)));
    for (std::size_t m = 0; m < members && one > 0; ++m) tensors[m * count + i].side[buffer] = data + m * one;
}

void Request::take_lost_bits(const ffi::RemainingArgs& args, const ffi::RemainingRets& results, std::size_t i,
                             std::size_t at) {
    const ffi::AnyBuffer from = argument(args, at);
    const ffi::AnyBuffer to = result(results, at);
    const FormatInfo& format = detail::info_of(param_types[i]);
    const ffi::DataType narrow = format.side_bits == 8 ? ffi::DataType::S8 : ffi::DataType::S16;
    const ffi::DataType wanted = format.side_code == detail::code_int ? narrow : ffi::DataType::BF16;
    if (from.element_type() != wanted || to.element_type() != wanted || !same_shape(from, to) ||
        !same_shape(from, argument(args, i)))
        refuse("state.side: expected the lost bits of params that are stored as " + std::string(format.name));
    const std::size_t bytes = format.side_bits / 8u;
    auto* const data = static_cast<std::byte*>(settle(from, to, bytes));
    for (std::size_t m = 0; m < members && from.element_count() > 0; ++m) {
        ParamUpdate& tensor = tensors[m * count + i];
        tensor.side[0] = data + m * std::size_t(tensor.size) * bytes;
    }
}

// Each tensor's part of the states begins at a multiple of a cache line.
void Request::take_states(const ffi::RemainingArgs& args, const ffi::RemainingRets& results) {
    if (count == 0) return;
    const Format compute = compute_format(tensors[0].param());
    std::vector<std::size_t> offsets(count);
    std::size_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (compute_format(tensors[i].param()) != compute) refuse("params: expected one type of states in a call");
        offsets[i] = total;
        total += (std::size_t(tensors[i].size) + packed_grain - 1) / packed_grain * packed_grain;
    }
    for (std::size_t s = 0; s < rule->states.size(); ++s) {
        const ffi::AnyBuffer from = argument(args, kept_at(1 + s, 0));
        const ffi::AnyBuffer to = result(results, kept_at(1 + s, 0));
        const char* const name = rule->states[s].name;
        const Format type = state_type(from, s, name);
        if (to.element_type() != from.element_type() || compute_format(type) != compute || !same_shape(from, to) ||
            from.element_count() != members * total)
            refuse(std::string(name) + ": expected " + std::to_string(total) + " elements of " +
                   detail::name_of(compute));
        void* const data = settle(from, to, size_of(type));
        for (std::size_t i = 0; i < count; ++i) take_buffer(i, 2 + s, data, offsets[i], total, type);
    }
}

template <class Body> ffi::Error guarded(const Body& body) noexcept {
    try {
        body();
        return ffi::Error::Success();
    } catch (const Refusal& r) {
        return {r.code, r.text};
    } catch (const std::bad_alloc&) {
        return {ffi::ErrorCode::kResourceExhausted, "out of memory"};
    } catch (const detail::CudaFailure& e) {
        const auto code = e.error.out_of_memory ? ffi::ErrorCode::kResourceExhausted : ffi::ErrorCode::kInternal;
        return {code, e.error.text};
    } catch (const detail::NoCuda& e) {
        return {ffi::ErrorCode::kUnimplemented, e.reason};
    } catch (const std::exception& e) {
        return ffi::Error::Internal(e.what());
    }
}

// The hyperparameters of one member, those from memory checked as the others were before.
template <class Read>
void read_hypers(const Request& request, std::size_t member, const Read& read, detail::HyperValues& hyper) {
    const RuleInfo& rule = *request.rule;
    for (const Operand& operand : request.operands) {
        double x = 0.0;
        if (operand.type == detail::ScalarType::f64) {
            read(&x, operand.of(member), sizeof x);
        } else {
            float narrow = 0.0F;
            read(&narrow, operand.of(member), sizeof narrow);
            x = double(narrow);
        }
        const Hyperparameter info = rule.hyper(operand.hyper);
        if (!detail::in_range(info.range, x))
            refuse(request.name_of(operand.hyper) + ": " + detail::number_text(x) + " is not in " +
                   detail::range_text(info.range));
        hyper.value[operand.hyper] = x;
    }
    if (request.operands.empty()) return;
    if (const char* const reason = rule.invalid(hyper); reason != nullptr) refuse(reason);
}

// Of a member: its hyperparameters, with those from memory, and its segments. What lies on a device is copied by
// `read`.
template <class Read>
detail::HyperValues read_member(const Request& request, std::size_t member, const Read& read,
                                std::vector<detail::Segment>& segments) {
    std::int32_t step = 0;
    read(&step, request.step + member * sizeof step, sizeof step);
    if (step < 1) refuse("step: steps are counted from 1, got " + std::to_string(step));
    detail::HyperValues hyper = request.hyper;
    read_hypers(request, member, read, hyper);
    if (request.carried_from != nullptr) {
        std::vector<double> carried(request.rule->program->carried.size());
        read(carried.data(), request.carried_from + member * request.carried_bytes(), request.carried_bytes());
        for (std::size_t i = 0; i < carried.size(); ++i)
            hyper.value[request.rule->program->carried[i].hyper] = carried[i];
    }
    const std::size_t first = segments.size();
    request.add_segments(hyper, segments);
    for (std::size_t s = first; s < segments.size(); ++s) segments[s].step = step;
    return hyper;
}

using Measured = decltype(detail::StepReport::measured);

// The carried numbers behind a step of a member.
std::vector<double> carried_on(const Request& request, detail::HyperValues hyper, std::int64_t step,
                               const Measured& measured) {
    const detail::Program& program = *request.rule->program;
    if (!measured.empty()) program.update_carried(*request.rule, hyper, step, measured[0].second);
    std::vector<double> out;
    for (const detail::CarriedNumber& c : program.carried) out.push_back(hyper.value[c.hyper]);
    return out;
}

// The steps of members one by one: each has sums over all its tensors. step(tensors, segments) returns what they are.
template <class Read, class Write, class Step>
void step_members(const Request& request, const Read& read, const Write& write, const Step& step) {
    for (std::size_t m = 0; m < request.members; ++m) {
        std::vector<detail::Segment> segments;
        const detail::HyperValues hyper = read_member(request, m, read, segments);
        const Measured measured = step(std::span(request.tensors).subspan(m * request.count, request.count), segments);
        if (request.carried_to == nullptr) continue;
        const std::vector<double> carried = carried_on(request, hyper, segments[0].step, measured);
        write(request.carried_to + m * request.carried_bytes(), carried.data(), request.carried_bytes());
    }
}

ffi::Error step_on_cpu(ffi::RemainingArgs args, ffi::RemainingRets results, const Attributes& attributes) {
    return guarded([&] {
        const Request request(args, results, attributes);
        const auto copy = [](void* to, const void* from, std::size_t bytes) { std::memcpy(to, from, bytes); };
        const auto move_all = [&] {
            for (const Move& move : request.moves) copy(move.to, move.from, move.bytes);
        };
        if (request.steps_alone()) {
            move_all();
            step_members(request, copy, copy, [](auto tensors, const std::vector<detail::Segment>& segments) {
                return detail::run_step(tensors, segments, {}).measured;
            });
            return;
        }
        std::vector<detail::Segment> segments;
        for (std::size_t m = 0; m < request.members; ++m) read_member(request, m, copy, segments);
        move_all();
        detail::run_step(request.tensors, segments, {});
    });
}

// Numbers stay where they are, and only kernels look at them; but for sums over all tensors, whose steps wait.
ffi::Error step_on_cuda(void* stream, ffi::RemainingArgs args, ffi::RemainingRets results,
                        const Attributes& attributes) {
    return guarded([&] {
        const Request request(args, results, attributes);
        const auto some = std::find_if(request.tensors.begin(), request.tensors.end(),
                                       [](const ParamUpdate& t) { return t.size > 0; });
        const void* const here = some != request.tensors.end() ? some->buffer[0] : request.carried_to;
        if (here == nullptr) return;
        if (request.rule->program != nullptr)
            detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                return cuda.can_run(*request.rule, error);
            });
        for (const Operand& operand : request.operands)
            if (request.rule->is_grad_scale(operand.hyper) && !request.steps_alone())
                refuse("grad_scale: a number that is traced, which steps on a CUDA device do not read");
        std::int32_t device = 0;
        detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
            return cuda.device_of(here, device, error);
        });
        for (const Move& move : request.moves) {
            detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                return cuda.copy(device, stream, move.to, move.from, move.bytes, error);
            });
        }
        const auto run = [&](const detail::CudaStep& step) {
            detail::call_cuda(
                [&](const detail::CudaBackend& cuda, detail::CudaError& error) { return cuda.step(step, error); });
        };
        if (request.steps_alone()) {
            const auto read = [&](void* to, const void* from, std::size_t bytes) {
                detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                    return cuda.read(device, stream, to, from, bytes, error);
                });
            };
            const auto write = [&](void* to, const void* from, std::size_t bytes) {
                detail::call_cuda([&](const detail::CudaBackend& cuda, detail::CudaError& error) {
                    return cuda.write(device, stream, to, from, bytes, error);
                });
            };
            step_members(request, read, write, [&](auto tensors, const std::vector<detail::Segment>& segments) {
                Measured measured;
                detail::CudaStep step{device, stream, tensors, segments, {}};
                step.measured = &measured;
                run(step);
                return measured;
            });
            return;
        }
        // Each member's segments are those of one step.
        std::vector<detail::Segment> segments;
        std::vector<detail::DeviceHyper> hypers;
        for (std::size_t m = 0; m < request.members; ++m) {
            const std::size_t first = segments.size();
            request.add_segments(request.hyper, segments);
            std::size_t tensor = 0;
            for (std::size_t s = first; s < segments.size(); tensor += segments[s++].count) {
                segments[s].device_step = {request.step + m * sizeof(std::int32_t), detail::ScalarType::i32};
                for (const Operand& operand : request.operands)
                    if (request.decayed[tensor] != 0 || !request.rule->is_weight_decay(operand.hyper))
                        hypers.push_back({std::uint32_t(s), std::uint32_t(operand.hyper), operand.of(m), operand.type});
            }
        }
        detail::CudaStep step{device, stream, request.tensors, segments, {}};
        step.hypers = hypers;
        run(step);
    });
}

}  // namespace
}  // namespace adaptk::bindings

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(adaptk::bindings::Attributes, xla::ffi::StructMember<std::string_view>("rule"),
                                      xla::ffi::StructMember<bool>("packed"),
                                      xla::ffi::StructMember<xla::ffi::Span<const double>>("values"),
                                      xla::ffi::StructMember<xla::ffi::Span<const std::int32_t>>("traced"),
                                      xla::ffi::StructMember<xla::ffi::Span<const std::int32_t>>("numbers"),
                                      xla::ffi::StructMember<xla::ffi::Span<const std::int32_t>>("decayed"),
                                      xla::ffi::StructMember<std::string_view>("formats"),
                                      xla::ffi::StructMember<std::string_view>("param_format"),
                                      xla::ffi::StructMember<std::int64_t>("seed"));

namespace adaptk::bindings {
namespace {

XLA_FFI_DEFINE_HANDLER(cpu_handler, step_on_cpu, ffi::Ffi::Bind().RemainingArgs().RemainingRets().Attrs<Attributes>());
XLA_FFI_DEFINE_HANDLER(
    cuda_handler, step_on_cuda,
    ffi::Ffi::Bind().Ctx<ffi::PlatformStream<void*>>().RemainingArgs().RemainingRets().Attrs<Attributes>());

// By XLA's name of a platform.
int add_handler(PyObject* handlers, const char* platform, XLA_FFI_Handler* handler) {
    PyObject* const capsule = PyCapsule_New(reinterpret_cast<void*>(handler), nullptr, nullptr);
    const int failed = capsule == nullptr ? -1 : PyDict_SetItemString(handlers, platform, capsule);
    Py_XDECREF(capsule);
    return failed;
}

int fill(PyObject* m) {
    if (std::string_view(adaptk_version()) != ADAPTK_VERSION) {
        PyErr_Format(PyExc_ImportError, "libadaptk is of version %s, and the Python package of %s", adaptk_version(),
                     ADAPTK_VERSION);
        return -1;
    }
    PyObject* const handlers = PyDict_New();
    if (handlers == nullptr || add_handler(handlers, "cpu", cpu_handler) != 0 ||
        add_handler(handlers, "CUDA", cuda_handler) != 0) {
        Py_XDECREF(handlers);
        return -1;
    }
    return add(m, "handlers", handlers);
}

}  // namespace
}  // namespace adaptk::bindings

PyMODINIT_FUNC PyInit__jax() {
    using namespace adaptk::bindings;
    return plain_module<fill>("_jax", "XLA's way into adaptk.");
}
