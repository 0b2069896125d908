// Rules that are made at run time: read from bytes (program.hpp), and compiled to instructions that the kernels
// interpret. The result is a RuleInfo like any other.
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

// What a state starts as, if it is not a hyperparameter, given by its index: a number, the param or the first gradient.
// The last two are expressed by the nodes.
inline constexpr std::uint8_t starts_as_number = 255, starts_as_param = 254, starts_as_grad = 253;

struct VectorForm;

class Program {
  public:
    Program();
    ~Program();

    // The parts of a text form, which the caller has checked.
    std::vector<ScalarNode> scalars;
    std::vector<ElementNode> elements;
    std::vector<std::uint16_t> results;  // the new param and states; for a state per tensor, a scalar node
    std::vector<CarriedNumber> carried;
    std::vector<ReductionNode> reductions;
    std::vector<std::uint8_t> starts;  // of the states
    std::vector<Per> per;              // of the states; those per element come first
    std::vector<std::uint8_t> bytes;   // the text form itself

    struct Compiled {
        std::vector<Instruction> code;
        std::uint32_t used = 0;  // a bit for each buffer
    };
    using Code = std::array<std::array<Compiled, 2>, 3>;  // [decay][scaled]
    // What is computed for each row of a tensor, or for each column. The inputs are states and reductions with one
    // number for each; the outputs are further buffers after these.
    struct Lines {
        std::vector<std::uint16_t> outputs;  // element nodes
        std::vector<Instruction> code;
    };
    enum Axis : std::uint8_t { row, column };
    struct Operand {
        Axis axis;
        std::size_t output;  // of the lines
    };
    // A pass over the elements, and the numbers of rows and columns that are computed before it.
    struct Stage {
        Lines lines[2];                 // [Axis]
        std::vector<Operand> operands;  // buffers after the states
        Code code;
        // The same if the last pass writes new states. Used if writes_early().
        Code early;
        bool has_lines() const { return !lines[row].outputs.empty() || !lines[column].outputs.empty(); }
    };
    // The reductions of one pass, before the update. Passes of a phase need the scalars of that phase.
    //   Over::rows    the reductions over rows and over columns
    //   Over::matrix  no pass over elements: outputs of the lines are reduced
    struct Pass : Stage {
        Over over;
        std::size_t phase;
        std::vector<std::uint16_t> reductions;
        std::vector<std::size_t> term_of;  // for each reduction: the index of its term, or output for Over::matrix
        std::size_t terms;                 // which the code writes to buffers after the operands
    };
    // The states and reductions with one number for each row, or for each column: buffers of the lines' code.
    struct Inputs {
        std::vector<std::uint16_t> states, reductions;
        std::size_t count() const { return states.size() + reductions.size(); }
    };

    // Makes the code from the parts, and sorts the scalars by phase. Returns an empty string, or which limit of the
    // interpreter is exceeded.
    std::string compile();

    // Computes the values of the scalars of a phase, after those of the phases before and their reductions.
    void evaluate(std::size_t phase, const RuleInfo& rule, const HyperValues& hyper, std::int64_t t, const Isa& isa,
                  double* values) const;
    // The constants of a step, expanded for a kernel of this instruction set: what ProgramStep::constant points to.
    // [type] 0: float, 1: double.
    std::vector<CacheLine> constants(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, const Isa& isa,
                                     int type, const double* values) const;
    // The same for the constants that depend on reductions.
    void own_constants(const Isa& isa, int type, const double* values, std::vector<CacheLine>& out) const;
    // The StepCoefficients of a step for a compiled rule: the common ones, and the constants in order.
    void coefficients(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, int type, const double* values,
                      std::byte* out) const;
    // The same for a program without reductions.
    ADAPTK_INTERNAL_API void coefficients(const RuleInfo& rule, const HyperValues& hyper, double grad_scale,
                                          std::int64_t t, const Isa& isa, int type, std::byte* out) const;
    // The code for these hyperparameters, without products with a factor of 1.
    const Compiled& code(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, const Stage& stage,
                         bool early = false) const;
    // Sets the carried hyperparameters after step t. `reduced`: the reductions over all tensors.
    ADAPTK_INTERNAL_API void update_carried(const RuleInfo& rule, HyperValues& hyper, std::int64_t t,
                                            std::span<const double> reduced = {}) const;
    std::size_t constant_count() const { return common_constants + constants_.size() - own_constants_; }
    std::size_t own_constant_count() const { return own_constants_; }
    std::span<const Pass> passes() const { return passes_; }
    const Stage& update() const { return update_; }
    // Whether the last pass may write new states, so that the update reads these in place of the gradient and the old
    // ones. It does if all buffers together are read and written fewer times.
    bool writes_early() const { return writes_early_; }
    const Inputs& inputs(Axis axis) const { return inputs_[axis]; }
    // The largest number of outputs of lines in a stage.
    std::size_t max_outputs(Axis axis) const;
    std::size_t last_phase() const { return phase_of_scalar_.empty() ? 0 : phase_of_scalar_.back(); }
    std::size_t element_states() const;
    // Whether a step has passes over whole tensors before the update.
    bool measures() const { return !reductions.empty() || knows_shapes(); }
    // Whether the program uses rows, columns or numbers for each tensor.
    ADAPTK_INTERNAL_API bool knows_shapes() const;
    // Whether the order of elements matters, which must then be C order.
    ADAPTK_INTERNAL_API bool has_lines() const;
    ADAPTK_INTERNAL_API bool measures_all() const;
    // Whether carried numbers depend on the step's gradients.
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
    // What each value of an element node belongs to. Per::tensor: it is the same for all elements.
    Per kind(std::size_t element) const { return kind_[element]; }
    // The form of this program for tensors of fewer than two axes (vector_form.hpp). Null: there is none.
    const VectorForm* for_vectors(const RuleInfo& rule) const;

    // The program as machine code for one of built_isas(). Null: it is interpreted. Code that has been set is never
    // replaced or freed.
    const RuleCode* compiled(std::size_t isa) const { return compiled_[isa].load(std::memory_order_acquire); }
    ADAPTK_INTERNAL_API void use_compiled(std::size_t isa, const RuleCode& code) const;

    enum class Decay { none, decoupled, coupled };
    struct Form {
        Decay decay;
        bool scaled;  // the gradient
    };

  private:
    // The gradient's scale and the factor of decay, which are the first constants.
    static std::pair<double, double> common(const RuleInfo& rule, const HyperValues& hyper, double grad_scale);
    std::string find_kinds();
    std::string order_phases();
    std::string compile_lines(Stage& stage, std::span<const std::uint16_t> targets, std::span<const std::uint16_t> more,
                              std::vector<int>& place);
    std::string compile_passes();
    std::vector<std::size_t> early_states() const;

    std::vector<std::uint16_t> constants_;  // the scalar nodes that elements use, in the elements' order
    std::size_t own_constants_ = 0;         // the number of the last ones, which depend on reductions
    std::vector<std::size_t> phase_of_scalar_;
    std::vector<Per> kind_;
    Inputs inputs_[2];
    std::vector<Pass> passes_;
    Stage update_;
    bool writes_early_ = false;
    mutable std::array<std::atomic<const RuleCode*>, max_isas> compiled_{};
    mutable std::once_flag vectors_made_;
    mutable std::unique_ptr<VectorForm> vectors_;
};

// The rule of a text form. It lives as long as the process, and the same bytes give the same rule. Null: `error` says
// what is wrong with the bytes. Bytes from any source are safe to read.
ADAPTK_INTERNAL_API const RuleInfo* load_rule(std::span<const std::byte> bytes, std::string& error);

// Why a rule has no function and needs an object that keeps its numbers, as the beginning of a message that ends with
// that object's name. Null: it has a function.
ADAPTK_INTERNAL_API const char* why_no_function(const RuleInfo& rule);

// A rule that load_rule() has returned, by its key.
const RuleInfo* find_program(std::string_view key);

}  // namespace adaptk::detail
