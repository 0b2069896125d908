// The form of a rule for tensors of fewer than two axes. Their columns have one element each, so what there is one
// number for each column of is for each element there, and reductions over columns are no reductions. It needs fewer
// passes over memory and has the same bits.
#pragma once

#include "rule_program.hpp"
#include "step.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace adaptk::detail {

struct VectorForm {
    RuleInfo info;
    Program program;
    std::vector<State> states;
    std::vector<std::size_t> order;  // which of the rule's states each of them is

    // A vector with its states in that order.
    ParamUpdate arranged(const ParamUpdate& vector) const;
};

// The tensors of a step and its segments, with vectors behind the others of their segment where a form is for them.
struct Arranged {
    std::vector<ParamUpdate> tensors;
    std::vector<Segment> segments;
    std::vector<Epilogue> epilogues;  // in the order of the tensors, if there are some

    // Whether there is any such tensor.
    static bool needed(std::span<const ParamUpdate> tensors, std::span<const Segment> segments);
    Arranged(std::span<const ParamUpdate> tensors, std::span<const Segment> segments,
             std::span<const Epilogue> epilogues);
};

}  // namespace adaptk::detail
