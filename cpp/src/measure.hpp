// What a program's reductions come to, before a step writes anything: passes over the elements that compute the terms
// in a tile of scratch memory and add them up as reduce.hpp and lines.hpp say, and between them what depends on them:
// the scalars, and the numbers of rows and columns.
#pragma once

#include "dispatch.hpp"
#include "lines.hpp"
#include "parallel.hpp"
#include "rule_program.hpp"
#include "step.hpp"

#include <cstddef>
#include <span>
#include <vector>

namespace adaptk::detail {

// A program of one segment, for the numbers of its step. `expanded`: the types that the constants are needed in.
struct ProgramRun {
    const Segment* segment = nullptr;
    double grad_scale = 1.0;
    std::vector<CacheLine> constants[2];  // [0 float, 1 double], of the types that are in use
    std::vector<double> values;           // of the scalars, of each tensor in turn if the program measures
    std::vector<TensorLines> lines;       // of each tensor, if the program has some

    const Program& program() const { return *segment->rule->program; }
    const RuleInfo& rule() const { return *segment->rule; }
    void begin(const Isa& isa, const Segment& of, double scale, const bool (&expanded)[2]);
    const double* values_of(std::size_t tensor) const {
        return values.data() + (program().measures() ? tensor * program().scalars.size() : 0);
    }
    // What a kernel is given for one tensor; `own` has its constants, and stays where it is. Null: the update.
    ProgramStep step_of(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                        const Program::Pass* pass = nullptr) const;
    Operands operands_of(std::size_t tensor, const ParamUpdate& t, const Program::Stage& stage) const;

    // Around a step of a tensor of the segment: reads what there is one number for of a tensor, a row or a column, and
    // writes what has become of it.
    void read(std::size_t tensor, const ParamUpdate& t);
    void write(std::size_t tensor, const ParamUpdate& t) const;
    void run_lines(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                   const Program::Stage& stage);
};

// The values of all scalars, of each tensor that has elements. runs: of each segment whose program measures, else null.
void measure(const Isa& isa, std::span<const ParamUpdate> tensors, std::span<ProgramRun* const> runs,
             std::span<const Segment> segments, StepReport& report);

// The same of one tensor, for which its program needs no other, by the calling thread alone if it is a small one:
inline bool is_small(const ParamUpdate& t) { return t.size < 2 * least_work; }
void measure_one(const Isa& isa, const ParamUpdate& t, ProgramRun& run, std::size_t tensor);

}  // namespace adaptk::detail
