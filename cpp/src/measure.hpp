// Computes a program's reductions before a step writes anything but the states that its last pass may write early.
// Passes over the elements compute the terms in a tile of scratch memory and sum them in the order of reduce.hpp and
// lines.hpp. Between passes, what depends on the results
// is computed: scalars, and numbers of rows and columns.
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

// A segment's program during one step. `expanded`: the types for which constants are needed.
struct ProgramRun {
    const Segment* segment = nullptr;
    double grad_scale = 1.0;
    std::vector<CacheLine> constants[2];  // [0 float, 1 double], of the types that are in use
    std::vector<double> values;           // of the scalars; for each tensor in turn if the program has reductions
    std::vector<RowColumnValues> lines;   // of each tensor, if the program has numbers of rows or columns
    std::vector<std::uint8_t> early;      // whether states are written early: of each tensor, if the program can do so

    const Program& program() const { return *segment->rule->program; }
    const RuleInfo& rule() const { return *segment->rule; }
    void begin(const Isa& isa, const Segment& of, double scale, const bool (&expanded)[2]);
    const double* values_of(std::size_t tensor) const {
        return values.data() + (program().measures() ? tensor * program().scalars.size() : 0);
    }
    bool is_early(std::size_t tensor) const { return !early.empty() && early[tensor] != 0; }
    // What a kernel receives for one tensor. `own` gets the tensor's constants and must stay in place. `pass` null: the
    // update.
    ProgramStep step_of(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                        const Program::Pass* pass = nullptr) const;
    Operands operands_of(std::size_t tensor, const ParamUpdate& t, const Program::Stage& stage) const;

    // Before and after a step of a tensor of the segment: reads the states with one number for a tensor, a row or a
    // column, and writes their new values.
    void read(std::size_t tensor, const ParamUpdate& t);
    void write(std::size_t tensor, const ParamUpdate& t) const;
    void run_lines(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                   const Program::Stage& stage);
};

// Computes the values of all scalars for each tensor that has elements. runs: one for each segment, null if its program
// has no reductions.
void measure(const Isa& isa, std::span<const ParamUpdate> tensors, std::span<ProgramRun* const> runs,
             std::span<const Segment> segments, StepReport& report);

// The same for one tensor whose program needs no other tensor; a small one on the calling thread alone.
inline bool is_small(const ParamUpdate& t) { return t.size < 2 * min_work; }
void measure_one(const Isa& isa, const ParamUpdate& t, ProgramRun& run, std::size_t tensor);

}  // namespace adaptk::detail
