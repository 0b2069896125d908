#include "c_tensors.hpp"

#include <algorithm>
#include <atomic>
#include <iterator>

namespace adaptk::detail {

std::string indexed(const char* name, std::size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

std::string Name::text() const {
    std::string text = index == alone ? std::string(name) : indexed(name, index);
    if (rule != nullptr)
        text += std::string(" (") + rule->states[state].name + " of " + indexed("params", tensor) + ")";
    return text + part;
}

Name name_of_buffer(const RuleInfo& rule, std::size_t tensor, std::size_t buffer) {
    if (buffer < 2) return {buffer == 0 ? "params" : "grads", tensor};
    return {"states", tensor * rule.states.size() + buffer - 2, &rule, tensor, buffer - 2};
}

void reject(const Problem& problem, const Name& name) {
    refuse(problem.kind == Problem::Kind::type ? ADAPTK_INVALID_TYPE : ADAPTK_INVALID_ARGUMENT,
           name.text() + ": " + problem.text);
}

void check_size(const std::string& name, std::size_t size, std::initializer_list<std::size_t> ends,
                const char* initial) {
    if (std::find(ends.begin(), ends.end(), size) != ends.end()) return;
    refuse(name + ": size is " + std::to_string(size) + ", expected " + std::to_string(*std::prev(ends.end())) +
           "; start from " + initial);
}

namespace {

Device device_of(const adaptk_device& device, const Name& name) {
    const int type = int(device.device_type);
    if (type == ADAPTK_CPU || type == ADAPTK_CUDA_HOST || type == ADAPTK_ROCM_HOST) return {};
    if (type != ADAPTK_CUDA && type != ADAPTK_CUDA_MANAGED)
        refuse(name.text() + ": on a device of DLPack type " + std::to_string(type) +
               ", expected memory of the CPU or of a CUDA device");
    const auto on = [&] { return name.text() + ": on the device cuda:" + std::to_string(device.device_id) + ", but "; };
    static std::atomic<int> devices{0};
    int count = devices.load(std::memory_order_relaxed);
    if (device.device_id >= count) {
        try {
            call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.device_count(count, error); });
        } catch (...) {
            const Failure f = failure_of_core();
            refuse(f.status, on() + f.text);
        }
        devices.store(count, std::memory_order_relaxed);
    }
    if (device.device_id < 0 || device.device_id >= count)
        refuse(on() + "there are " + std::to_string(count) + " CUDA devices here");
    return {true, int(device.device_id)};
}

}  // namespace

TensorView view_of(const adaptk_tensor* t, const Name& name, bool codes) {
    if (t == nullptr) refuse(name.text() + ": NULL");
    TensorView v;
    v.device = device_of(t->device, name);
    if (t->ndim < 0) refuse(name.text() + ": ndim is " + std::to_string(t->ndim));
    if (t->ndim > 0 && t->shape == nullptr) refuse(name.text() + ": shape is NULL");
    if (const auto problem = read_tensor(*t, v, codes)) reject(*problem, name);
    if (v.size > 0 && v.begin() % size_of(v.dtype) != 0)
        refuse(name.text() + ": data + byte_offset is no multiple of " + std::to_string(size_of(v.dtype)) +
               ", the size of its elements");
    return v;
}

StoredView view_of_stored(const adaptk_stored* state, const Name& name) {
    if (state == nullptr) refuse(name.text() + ": NULL");
    if (state->size != sizeof(adaptk_stored))
        check_size(name.text(), state->size, {sizeof(adaptk_stored)}, "adaptk_make_stored()");
    StoredView out;
    TensorView& v = out.data;
    v = view_of(state->data, name.with(", data"), true);
    if (state->format != nullptr) {
        const FormatInfo* const format = find_format(state->format);
        if (format == nullptr) refuse(ADAPTK_UNKNOWN_NAME, name.text() + ": " + unknown_format(state->format));
        if (const auto problem = read_as(*format, v)) reject(*problem, name);
    }
    out.slot = {v.data, v.dtype};
    const Name of_scales = name.with(", scales");
    if (!has_side(v.dtype)) {
        if (state->scales != nullptr)
            refuse(ADAPTK_INVALID_TYPE, of_scales.text() + ": beside " + name_of(v.dtype) + ", which has none");
        return out;
    }
    const TensorView scales = view_of(state->scales, of_scales, info_of(v.dtype).split);
    if (info_of(v.dtype).split) {
        if (const auto problem = why_no_side(scales, v, v.dtype)) reject(*problem, of_scales);
    } else if (const auto problem = why_no_scales(scales, v)) {
        reject(*problem, of_scales);
    }
    out.slot.side = scales.data;
    return out;
}

Slot StateArguments::take(std::size_t i, const Name& name, const TensorView& param, Per per) const {
    StoredView state;
    if (stored != nullptr) {
        state = view_of_stored(stored[i], name);
    } else {
        state.data = view_of(plain[i], name);
        state.slot = {state.data.data, state.data.dtype};
    }
    if (per != Per::element) {
        if (const auto problem = why_no_numbers(state.data, param, per)) reject(*problem, name);
        return state.slot;
    }
    if (!is_state_of(state.data, param)) reject(why_no_state(state.data, param), name);
    return state.slot;
}

}  // namespace adaptk::detail
