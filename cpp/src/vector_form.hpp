// The form of a rule for tensors of fewer than two axes. Their columns have one element each, so a number for each
// column is a number for each element, and reductions over columns disappear. This form needs fewer passes over memory
// and has the same bits.
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
    std::vector<std::size_t> order;  // the index of each state among the rule's

    // A vector with its states in that order.
    ParamUpdate arranged(const ParamUpdate& vector) const;
};

// The tensors of a step and its segments. If a rule has a form for vectors, these come after the other tensors of their
// segment.
struct Arranged {
    std::vector<ParamUpdate> tensors;
    std::vector<Segment> segments;
    std::vector<Epilogue> epilogues;  // in the order of the tensors, if the step has epilogues

    // Whether any tensor has such a form.
    static bool needed(std::span<const ParamUpdate> tensors, std::span<const Segment> segments);
    Arranged(std::span<const ParamUpdate> tensors, std::span<const Segment> segments,
             std::span<const Epilogue> epilogues);
};

}  // namespace adaptk::detail
