// Rules that are made at run time: read from bytes (program.hpp), compiled for the machine that the kernels interpret,
// and then a RuleInfo as any other.
#pragma once

#include "dispatch.hpp"
#include "export.hpp"
#include "program.hpp"
#include "registry.hpp"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace adaptk::detail {

struct alignas(64) CacheLine {
    std::byte bytes[64];
};

// What a state starts as, besides the value of one of the hyperparameters, by its number: a number, the param or the
// first gradient. The nodes see to the last two.
inline constexpr std::uint8_t starts_as_number = 255, starts_as_param = 254, starts_as_grad = 253;

struct VectorForm;

class Program {
  public:
    Program();
    ~Program();

    // The parts of a text form, which the caller has checked.
    std::vector<ScalarNode> scalars;
    std::vector<ElementNode> elements;
    std::vector<std::uint16_t> results;  // the new param and states; of a state per tensor a scalar
    std::vector<CarriedNumber> carried;
    std::vector<ReductionNode> reductions;
    std::vector<std::uint8_t> starts;  // of the states
    std::vector<Per> per;              // of the states; those per element come first
    std::vector<std::uint8_t> bytes;   // the text form itself

    struct Compiled {
        std::vector<Instruction> code;
        std::uint32_t used = 0;  // of the buffers, bit by bit
    };
    using Code = std::array<std::array<Compiled, 2>, 3>;  // [decay][scaled]
    // What is computed for each row of a tensor, or for each column: from the states and the reductions that have one
    // number for each (inputs), to buffers behind those.
    struct Lines {
        std::vector<std::uint16_t> outputs;  // element nodes
        std::vector<Instruction> code;
    };
    enum Axis : std::uint8_t { row, column };
    struct Operand {
        Axis axis;
        std::size_t output;  // of the lines
    };
    // A pass over the elements, and what is computed for rows and columns before it.
    struct Stage {
        Lines lines[2];                 // [Axis]
        std::vector<Operand> operands;  // buffers behind the states
        Code code;
        bool has_lines() const { return !lines[row].outputs.empty() || !lines[column].outputs.empty(); }
    };
    // What is measured in one pass, before anything is written. Passes of a phase need the scalars of that phase.
    //   Over::rows    the reductions over rows and over columns
    //   Over::matrix  no pass over elements: outputs of the lines are reduced
    struct Pass : Stage {
        Over over;
        std::size_t phase;
        std::vector<std::uint16_t> reductions;
        std::vector<std::size_t> term_of;  // of each reduction: which term, or of a matrix which output, it adds up
        std::size_t terms;                 // that the code writes to buffers behind the operands
    };
    // The states and reductions that have one number for each row, or for each column: buffers of the lines' code.
    struct Inputs {
        std::vector<std::uint16_t> states, reductions;
        std::size_t count() const { return states.size() + reductions.size(); }
    };

    // Makes the code from the parts, and puts the scalars into the order of phases. Returns an empty string, or why the
    // machine cannot hold it.
    std::string compile();

    // The values of the scalars that are known in a phase: after those of the phases before, and the reductions in
    // them.
    void evaluate(std::size_t phase, const RuleInfo& rule, const HyperValues& hyper, std::int64_t t, const Isa& isa,
                  double* values) const;
    // The constants of a step, expanded for a kernel of this instruction set: what ProgramStep::constant points to.
    // [type] 0: float, 1: double.
    std::vector<CacheLine> constants(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, const Isa& isa,
                                     int type, const double* values) const;
    // The same of those that reductions have a part in.
    void own_constants(const Isa& isa, int type, const double* values, std::vector<CacheLine>& out) const;
    // The StepCoefficients of a step for a rule that is compiled: the common ones, and the constants in their order.
    void coefficients(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, int type, const double* values,
                      std::byte* out) const;
    // The same, of a program without reductions.
    ADAPTK_INTERNAL_API void coefficients(const RuleInfo& rule, const HyperValues& hyper, double grad_scale,
                                          std::int64_t t, const Isa& isa, int type, std::byte* out) const;
    // The code for these numbers: without the products whose factor is 1.
    const Compiled& code(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, const Stage& stage) const;
    // What the step of this number leaves behind in the hyperparameters; `reduced` has the reductions over all tensors.
    ADAPTK_INTERNAL_API void carry_on(const RuleInfo& rule, HyperValues& hyper, std::int64_t t,
                                      std::span<const double> reduced = {}) const;
    std::size_t constant_count() const { return common_constants + constants_.size() - own_constants_; }
    std::size_t own_constant_count() const { return own_constants_; }
    std::span<const Pass> passes() const { return passes_; }
    const Stage& update() const { return update_; }
    const Inputs& inputs(Axis axis) const { return inputs_[axis]; }
    // The most outputs of lines that a stage has.
    std::size_t most_outputs(Axis axis) const;
    std::size_t last_phase() const { return phase_of_scalar_.empty() ? 0 : phase_of_scalar_.back(); }
    std::size_t element_states() const;
    // Whether a step looks at whole tensors, before it updates them.
    bool measures() const { return !reductions.empty() || knows_shapes(); }
    // Whether rows and columns, or numbers for each tensor, are in it.
    ADAPTK_INTERNAL_API bool knows_shapes() const;
    // Whether the elements' order matters, which is C's then.
    ADAPTK_INTERNAL_API bool has_lines() const;
    ADAPTK_INTERNAL_API bool measures_all() const;
    // Whether a step leaves numbers behind that depend on its gradients.
    bool carries_measured() const { return !carried.empty() && measures_all(); }
    // The scalar nodes that elements use, in the elements' order.
    std::span<const std::uint16_t> constant_nodes() const { return constants_; }
    // Bytes of the coefficients, of which there is at least one besides the common ones.
    std::size_t coefficients_bytes(int type) const {
        const std::size_t own = constants_.empty() ? 1 : constants_.size();
        return type == 1 ? sizeof(CommonCoefficients<double>) + own * sizeof(double)
                         : sizeof(CommonCoefficients<float>) + own * sizeof(float);
    }
    bool uses_step() const;
    // What there is one value of an element node for; Per::tensor: it is the same for all elements.
    Per kind(std::size_t element) const { return kind_[element]; }
    // The rule of this program for tensors of fewer than two axes (vector_form.hpp); null: it has no other form.
    const VectorForm* for_vectors(const RuleInfo& rule) const;

    // The program as machine code for one of built_isas(); null: it is interpreted. Code that is given stays.
    const RuleCode* compiled(std::size_t isa) const { return compiled_[isa].load(std::memory_order_acquire); }
    ADAPTK_INTERNAL_API void use_compiled(std::size_t isa, const RuleCode& code) const;

    enum class Decay { none, decoupled, coupled };
    struct Form {
        Decay decay;
        bool scaled;  // the gradient
    };

  private:
    // The gradient's scale, and the factor of decay: the first constants.
    static std::pair<double, double> common(const RuleInfo& rule, const HyperValues& hyper, double grad_scale);
    std::string find_kinds();
    std::string order_phases();
    std::string compile_lines(Stage& stage, std::span<const std::uint16_t> targets, std::span<const std::uint16_t> more,
                              std::vector<int>& place);
    std::string compile_passes();

    std::vector<std::uint16_t> constants_;  // the scalar nodes that elements use, in the elements' order
    std::size_t own_constants_ = 0;         // of them, the last ones: what reductions have a part in
    std::vector<std::size_t> phase_of_scalar_;
    std::vector<Per> kind_;
    Inputs inputs_[2];
    std::vector<Pass> passes_;
    Stage update_;
    mutable std::array<std::atomic<const RuleCode*>, max_isas> compiled_{};
    mutable std::once_flag vectors_made_;
    mutable std::unique_ptr<VectorForm> vectors_;
};

// The rule of a text form. It lives as long as the process, and the same bytes give the same rule. Null: `error` says
// what is wrong with the bytes; nothing that they hold can do harm.
ADAPTK_INTERNAL_API const RuleInfo* load_rule(std::span<const std::byte> bytes, std::string& error);

// Why a rule has no function, but needs something that keeps its numbers, to be read before the name of that; null: it
// has one.
ADAPTK_INTERNAL_API const char* why_no_function(const RuleInfo& rule);

// States for each element that kernels on a device have room for.
inline constexpr std::size_t cuda_states = 4;
// Why steps of a rule run on the CPU only, to be read behind its name; null: they run on a device too.
ADAPTK_INTERNAL_API const char* why_not_on_cuda(const RuleInfo& rule);

// A rule that load_rule() has returned, by its key.
const RuleInfo* find_program(std::string_view key);

}  // namespace adaptk::detail
