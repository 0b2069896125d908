// What the functions of the C interface share: errors that become a status and a message.
#pragma once

#include "device_state.hpp"

#include "adaptk/adaptk.h"

#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>

namespace adaptk::detail {

// Thrown inside the library, and never leaves it.
struct Failure {
    adaptk_status status;
    std::string text;
};

[[noreturn]] inline void refuse(adaptk_status status, std::string text) { throw Failure{status, std::move(text)}; }
[[noreturn]] inline void refuse(std::string text) { refuse(ADAPTK_INVALID_ARGUMENT, std::move(text)); }

inline void need(const void* pointer, const char* name) {
    if (pointer == nullptr) refuse(std::string(name) + ": NULL");
}

// The failure for the core's exception that is being handled.
inline Failure failure_of_core() {
    try {
        throw;
    } catch (const CudaFailure& e) {
        return {e.error.out_of_memory ? ADAPTK_OUT_OF_MEMORY : ADAPTK_CUDA_ERROR, e.error.text};
    } catch (const NoCuda& e) {
        return {ADAPTK_UNSUPPORTED, e.reason};
    } catch (...) {
        return {ADAPTK_INTERNAL_ERROR, "an unknown exception"};
    }
}

struct RuleInfo;
// The RuleInfo of a rule in C types; refuses others.
const RuleInfo& info_of(const adaptk_rule* rule);

adaptk_status keep_error(adaptk_status status, const char* text) noexcept;

template <class Body> adaptk_status guarded(const Body& body) noexcept {
    try {
        keep_error(ADAPTK_OK, "");
        body();
        return ADAPTK_OK;
    } catch (const Failure& f) {
        return keep_error(f.status, f.text.c_str());
    } catch (const std::bad_alloc&) {
        return keep_error(ADAPTK_OUT_OF_MEMORY, "out of memory");
    } catch (const std::exception& e) {
        return keep_error(ADAPTK_INTERNAL_ERROR, e.what());
    } catch (...) {
        const Failure f = failure_of_core();
        return keep_error(f.status, f.text.c_str());
    }
}

// The element's address, or nullptr with an error.
template <class Find> auto found(const Find& find) noexcept {
    decltype(find()) out = nullptr;
    guarded([&] { out = find(); });
    return out;
}

template <class T> const T* element(const std::vector<T>& all, std::size_t index) {
    if (index >= all.size())
        refuse("index: " + std::to_string(index) + ", expected less than " + std::to_string(all.size()));
    return &all[index];
}

}  // namespace adaptk::detail
