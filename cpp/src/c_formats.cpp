// The C interface: storage formats of states, and conversions to and from float32.
#include "c_tensors.hpp"
#include "environment.hpp"
#include "overlap.hpp"

#include "adaptk/rounding.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace adaptk::detail {
namespace {

// In C types, in the order of the list. Their addresses stay valid.
const std::vector<adaptk_format>& c_formats() {
    static const auto& all = *[] {
        auto* const made = new std::vector<adaptk_format>;
        for (const FormatInfo& f : formats())
            made->push_back({f.name,
                             {f.dlpack_code, f.dlpack_bits, 1},
                             f.bytes,
                             f.block,
                             f.stochastic ? 1 : 0,
                             std::size_t{1} << f.packed_bits});
        return made;
    }();
    return all;
}

const adaptk_format* c_format(const char* name) {
    const FormatInfo* const f = find_format(name);
    if (f == nullptr) refuse(ADAPTK_UNKNOWN_NAME, "name: " + unknown_format(name));
    return &c_formats()[std::size_t(f->id)];
}

// A name that means one of two formats, depending on the state.
struct Choice {
    std::string_view name;
    const char *nonnegative, *other;
};
constexpr Choice choices[] = {{"8bit", "uint8", "int8"},
                              {"8bit_nearest", "uint8_nearest", "int8"},
                              {"8bit_dynamic", "dynamic_unsigned", "dynamic_signed"},
                              {"4bit", "4bit_unsigned", "4bit_signed"}};

// A state and as many float32 numbers.
struct Conversion {
    StoredView state;
    float* values;
    std::int64_t size;

    Conversion(const adaptk_stored* stored, const adaptk_tensor* numbers) {
        const Name of_values{"values"}, of_state{"stored"};
        const TensorView v = view_of(numbers, of_values);
        if (v.dtype != Format::float32)
            reject({Problem::Kind::type, std::string("dtype ") + name_of(v.dtype) + ", expected float32"}, of_values);
        if (!v.c_order) reject({Problem::Kind::value, "strides " + v.strides_text() + ", expected C order"}, of_values);
        if (v.device.cuda)
            refuse(ADAPTK_UNSUPPORTED, "values: on " + v.device.text() + "; codes are converted on the CPU");
        state = view_of_stored(stored, of_state);
        const TensorView& d = state.data;
        if (info_of(d.dtype).compute != Format::float32)
            reject({Problem::Kind::type, std::string("dtype ") + name_of(d.dtype) + ", whose elements are no float32"},
                   of_state);
        if (is_packed(d.dtype) && !has_state_layout(d, v)) reject(why_no_state(d, v), of_state);
        if (!(d.device == v.device) || (!is_packed(d.dtype) && !d.same_shape(v)) || !d.c_order)
            refuse("stored: shape " + d.shape_text() + " with strides " + d.strides_text() + " on " + d.device.text() +
                   ", expected shape " + v.shape_text() + " in C order on the CPU, as the values");
        const auto scales = reinterpret_cast<std::uintptr_t>(state.slot.side);
        const std::size_t scale_bytes = state.slot.side == nullptr ? 0 : side_bytes(d.dtype, v.size);
        WrittenMemory memory;
        Clash clash{};
        if (!memory.assign({{v.begin(), v.end(), 0}, {d.begin(), d.end(), 1}, {scales, scales + scale_bytes, 2}},
                           clash)) {
            const char* const names[] = {"values", "stored, data", "stored, scales"};
            refuse(std::string(names[clash.first]) + " and " + names[clash.second] + " overlap in memory");
        }
        values = static_cast<float*>(v.data);
        size = v.size;
    }
};

}  // namespace
}  // namespace adaptk::detail

using namespace adaptk::detail;

extern "C" {

size_t adaptk_format_count(void) { return c_formats().size(); }

const adaptk_format* adaptk_format_at(size_t index) {
    return found([&] { return element(c_formats(), index); });
}

const adaptk_format* adaptk_find_format(const char* name) {
    return found([&] {
        need(name, "name");
        return c_format(name);
    });
}

const adaptk_format* adaptk_state_format(const adaptk_rule* rule, size_t state, const char* name) {
    return found([&] {
        need(rule, "rule");
        need(name, "name");
        const auto& states = info_of(rule).states;
        if (state >= states.size())
            refuse("state: " + std::to_string(state) + ", expected less than " + std::to_string(states.size()));
        for (const Choice& c : choices)
            if (name == c.name) return c_format(states[state].nonnegative ? c.nonnegative : c.other);
        return c_format(name);
    });
}

size_t adaptk_scale_count(const adaptk_format* format, size_t elements) {
    std::size_t n = 0;
    guarded([&] {
        need(format, "format");
        if (format->block > 1) n = elements / format->block + (elements % format->block > 0 ? 1 : 0);
    });
    return n;
}

adaptk_status adaptk_quantize(const adaptk_tensor* values, const adaptk_stored* stored, uint64_t seed, int64_t step) {
    return guarded([&] {
        apply_environment();
        if (step < 1) refuse("step: steps are counted from 1, got " + std::to_string(step));
        const Conversion c(stored, values);
        encode(c.values, c.state.slot, c.size, adaptk::buffer_key(adaptk::step_key(seed, step), 0, 0));
    });
}

adaptk_status adaptk_dequantize(const adaptk_stored* stored, const adaptk_tensor* values) {
    return guarded([&] {
        apply_environment();
        const Conversion c(stored, values);
        decode(c.state.slot, c.values, c.size);
    });
}

}  // extern "C"
