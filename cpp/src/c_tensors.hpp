// Tensors and states as the C interface describes them: read, checked, and named in errors.
#pragma once

#include "c_api.hpp"
#include "registry.hpp"
#include "step.hpp"
#include "tensor.hpp"

#include <cstddef>
#include <initializer_list>
#include <string>

namespace adaptk::detail {

using Tensors = const adaptk_tensor* const*;

std::string indexed(const char* name, std::size_t i);

// Which argument an error is about, put into words where there is one.
struct Name {
    static constexpr std::size_t alone = std::size_t(-1);
    const char* name;
    std::size_t index = alone;       // of an array
    const RuleInfo* rule = nullptr;  // of a state: states[index] is number `state` of params[tensor]
    std::size_t tensor = 0;
    std::size_t state = 0;
    const char* part = "";
    std::string text() const;
    Name with(const char* suffix) const {
        Name other = *this;
        other.part = suffix;
        return other;
    }
};

Name name_of_buffer(const RuleInfo& rule, std::size_t tensor, std::size_t buffer);

[[noreturn]] void reject(const Problem& problem, const Name& name);

// Structs of a program that was compiled with an older header end earlier, after one of their members.
void check_size(const std::string& name, std::size_t size, std::initializer_list<std::size_t> ends,
                const char* initial);

// `codes`: of a state whose format is given beside it.
TensorView view_of(const adaptk_tensor* t, const Name& name, bool codes = false);

// The elements of a state, and its slot.
struct StoredView {
    TensorView data;
    Slot slot;
};

// Everything is checked but whether the data lie beside a param.
StoredView view_of_stored(const adaptk_stored* state, const Name& name);

// The states of a call, as they are given.
struct StatesIn {
    Tensors plain = nullptr;
    const adaptk_stored* const* stored = nullptr;
    bool given() const { return plain != nullptr || stored != nullptr; }
    Slot take(std::size_t i, const Name& name, const TensorView& param, Per per = Per::element) const;
};

}  // namespace adaptk::detail
