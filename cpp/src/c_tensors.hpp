// Tensors and states of the C interface: reading, checks, and their names in errors.
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

// Which argument an error is about. The text is made only if there is an error.
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

// The structs of a program that was compiled with an older header are shorter and end after one of these members.
void check_size(const std::string& name, std::size_t size, std::initializer_list<std::size_t> ends,
                const char* initial);

// `codes`: for a state whose format is given separately.
TensorView view_of(const adaptk_tensor* t, const Name& name, bool codes = false);

// The elements of a state, and its slot.
struct StoredView {
    TensorView data;
    Slot slot;
};

// Checks everything except whether the data fit a param.
StoredView view_of_stored(const adaptk_stored* state, const Name& name);

// The states of a call as the caller gives them.
struct StateArguments {
    Tensors plain = nullptr;
    const adaptk_stored* const* stored = nullptr;
    bool given() const { return plain != nullptr || stored != nullptr; }
    Slot take(std::size_t i, const Name& name, const TensorView& param, Per per = Per::element) const;
};

}  // namespace adaptk::detail
