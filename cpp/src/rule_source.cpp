#include "rule_source.hpp"

#include "rule_program.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace adaptk::detail {
namespace {

constexpr std::string_view keywords[] = {
    "alignas",     "alignof",  "and",        "and_eq",    "asm",       "auto",         "bitand",
    "bitor",       "bool",     "break",      "case",      "catch",     "char",         "char16_t",
    "char32_t",    "char8_t",  "class",      "co_await",  "co_return", "co_yield",     "compl",
    "concept",     "const",    "const_cast", "consteval", "constexpr", "constinit",    "continue",
    "decltype",    "default",  "delete",     "do",        "double",    "dynamic_cast", "else",
    "enum",        "explicit", "export",     "extern",    "false",     "float",        "for",
    "friend",      "goto",     "if",         "inline",    "int",       "long",         "mutable",
    "namespace",   "new",      "noexcept",   "not",       "not_eq",    "nullptr",      "operator",
    "or",          "or_eq",    "private",    "protected", "public",    "register",     "reinterpret_cast",
    "requires",    "return",   "short",      "signed",    "sizeof",    "static",       "static_assert",
    "static_cast", "struct",   "switch",     "template",  "this",      "thread_local", "throw",
    "true",        "try",      "typedef",    "typeid",    "typename",  "union",        "unsigned",
    "using",       "virtual",  "void",       "volatile",  "wchar_t",   "while",        "xor",
    "xor_eq",
};

std::string member(std::string_view name) {
    const bool keyword = std::find(std::begin(keywords), std::end(keywords), name) != std::end(keywords);
    return std::string(name) + (keyword ? "_" : "");
}

// Exact and independent of the locale: an integer times a power of two.
std::string literal(double x) {
    if (std::isnan(x)) return "std::sqrt(-1.0)";
    if (std::isinf(x)) return x < 0.0 ? "-HUGE_VAL" : "HUGE_VAL";
    const auto bits = std::bit_cast<std::uint64_t>(x);
    const int exponent = int(bits >> 52 & 0x7ff);
    std::uint64_t units = (bits & 0xfffffffffffffu) | (exponent > 0 ? std::uint64_t{1} << 52 : 0);
    int power = std::max(exponent, 1) - 1075;
    while (units != 0 && units % 2 == 0) {
        units /= 2;
        ++power;
    }
    std::string digits;
    for (std::uint64_t rest = units; rest != 0 || digits.empty(); rest /= 16)
        digits.insert(digits.begin(), "0123456789abcdef"[rest % 16]);
    return std::string(bits >> 63 != 0 ? "-" : "") + "0x" + digits + "p" + std::to_string(units == 0 ? 0 : power);
}

std::string numbered(const char* prefix, std::size_t i) { return prefix + std::to_string(i); }

// An operation of this name on operands a, b, c of the type `kind`; scalar and element operations have the same names.
template <class Op>
std::string expression(Op op, const std::string& a, const std::string& b, const std::string& c, const char* kind) {
    const auto compared = [&](const char* sign) {
        return a + " " + sign + " " + b + " ? " + kind + "(1) : " + kind + "(0)";
    };
    const auto called = [&](const char* function) {
        return std::string("adaptk::") + function + "(" + a + (arity(op) > 1 ? ", " + b : "") + ")";
    };
    switch (op) {
    case Op::add: return a + " + " + b;
    case Op::subtract: return a + " - " + b;
    case Op::multiply: return a + " * " + b;
    case Op::divide: return a + " / " + b;
    case Op::maximum: return called("max");
    case Op::minimum: return called("min");
    case Op::less: return compared("<");
    case Op::less_equal: return compared("<=");
    case Op::equal: return compared("==");
    case Op::not_equal: return compared("!=");
    case Op::negative: return "-" + a;
    case Op::absolute: return called("abs");
    case Op::square_root: return called("sqrt");
    case Op::sign: return called("sign");
    case Op::select: return a + " != " + kind + "(0) ? " + b + " : " + c;
    default: return {};
    }
}

class Source {
  public:
    Source(const RuleInfo& rule, std::string_view name)
        : rule_(rule), program_(*rule.program), name_(name), constants_(program_.constant_nodes()) {
        for (const Hyperparameter& h : rule.own) hypers_.push_back(member(h.name));
        own_hypers_ = hypers_.size();
        if (reads_decay(rule)) {
            hypers_.emplace_back("weight_decay");
            hypers_.emplace_back("decoupled");
        }
        for (const State& s : rule.states.subspan(0, program_.element_states()))
            states_.push_back(std::string(s.name) + "_");
    }

    std::string text() {
        line("struct " + name_ + " {");
        line("    static constexpr std::array<int, " + std::to_string(states_.size()) + "> states{};");
        line("    struct Hyper {");
        for (std::size_t i = 0; i < hypers_.size(); ++i)
            line("        double " + hypers_[i] + " = " + literal(rule_.hyper(i).value) + ";");
        line("    };");
        line("    template <class T> struct Coefficients {");
        for (const std::uint16_t c : constants_) line("        T " + numbered("c", c) + ";");
        if (constants_.empty()) line("        T none;");
        line("    };");
        if (program_.has_lines()) line("    static constexpr bool has_lines = true;");
        if (program_.measures()) memo();
        for (std::size_t i = 0; i < program_.scalars.size(); ++i)
            if (program_.scalars[i].op == ScalarOp::cumulative_product) product(i);
        coefficients();
        update();
        if (program_.has_lines()) {
            update_lines("rows", Per::row);
            update_lines("columns", Per::column);
        }
        line("};");
        if (program_.measures())
            for (std::size_t i = 0; i < program_.passes().size(); ++i) pass(i);
        return text_;
    }

  private:
    const RuleInfo& rule_;
    const Program& program_;
    std::string name_;
    std::span<const std::uint16_t> constants_;
    std::vector<std::string> hypers_, states_;
    std::size_t own_hypers_ = 0;
    std::string text_;

    void line(const std::string& s) { text_ += s + "\n"; }

    // These nodes and all that they depend on. A cumulative product has its own function, and a power with the step
    // number as exponent does not need that node.
    std::vector<bool> needed_scalars(std::vector<std::uint16_t> rest) const {
        std::vector<bool> found(program_.scalars.size());
        while (!rest.empty()) {
            const std::uint16_t i = rest.back();
            rest.pop_back();
            if (found[i]) continue;
            found[i] = true;
            const ScalarNode& n = program_.scalars[i];
            if (n.op == ScalarOp::cumulative_product) continue;
            const std::uint16_t operand[] = {n.a, n.b, n.c};
            const int count = is_step_power(n) ? 1 : arity(n.op);
            rest.insert(rest.end(), operand, operand + count);
        }
        return found;
    }
    bool is_step_power(const ScalarNode& n) const {
        return n.op == ScalarOp::power && program_.scalars[n.b].op == ScalarOp::step;
    }

    std::string scalar(std::size_t i) const {
        const ScalarNode& n = program_.scalars[i];
        const std::string a = numbered("s", n.a), b = numbered("s", n.b), c = numbered("s", n.c);
        switch (n.op) {
        case ScalarOp::number: return literal(n.value);
        case ScalarOp::hyper: return "h." + hypers_[n.a];
        case ScalarOp::step: return "double(t)";
        case ScalarOp::power:
            return is_step_power(n) ? "adaptk::step_power(" + a + ", t)" : "adaptk::any_power(" + a + ", " + b + ")";
        case ScalarOp::floor: return "std::floor(" + a + ")";
        case ScalarOp::logarithm: return "adaptk::logarithm(" + a + ")";
        case ScalarOp::cumulative_product: return numbered("product", i) + "(h, t)";
        case ScalarOp::reduced:
            return (program_.reductions[n.a].over == Over::all ? "k.all[" : "k.own[") + std::to_string(n.a) + "]";
        case ScalarOp::state: return "k.state[" + std::to_string(n.a) + "]";
        case ScalarOp::shape: return "k.shape[" + std::to_string(n.a) + "]";
        default: return expression(n.op, a, b, c, "double");
        }
    }
    void scalars(const std::vector<std::uint16_t>& wanted) {
        const std::vector<bool> needed = needed_scalars(wanted);
        for (std::size_t i = 0; i < needed.size(); ++i)
            if (needed[i]) line("        const double " + numbered("s", i) + " = " + scalar(i) + ";");
    }

    void product(std::size_t i) {
        const std::string number = std::to_string(i);
        line("    ADAPTK_HOST_DEVICE static double factor" + number +
             "(const Hyper& h, [[maybe_unused]] std::int64_t t) {");
        scalars({program_.scalars[i].a});
        line("        return " + numbered("s", program_.scalars[i].a) + ";");
        line("    }");
        line("    ADAPTK_HOST_DEVICE static double product" + number + "(const Hyper& h, std::int64_t t) {");
        line("        double product = 1.0;");
        line("        for (std::int64_t k = 1; k <= t && !(std::fabs(product) < 0x1p-60); ++k)");
        line("            product *= factor" + number + "(h, k);");
        line("        return std::fabs(product) < 0x1p-60 ? 0.0 : product;");
        line("    }");
    }

    std::vector<std::size_t> states_per(Per per) const {
        std::vector<std::size_t> out;
        for (std::size_t s = 0; s < program_.per.size(); ++s)
            if (program_.per[s] == per) out.push_back(s);
        return out;
    }
    void coefficients() {
        line("    template <class T>");
        line("    ADAPTK_HOST_DEVICE static Coefficients<T> coefficients([[maybe_unused]] const Hyper& h,");
        line("                                                           [[maybe_unused]] std::int64_t t" +
             std::string(program_.measures() ? ", [[maybe_unused]] Memo& k) {" : ") {"));
        std::vector<std::uint16_t> wanted(constants_.begin(), constants_.end());
        for (const std::size_t s : states_per(Per::tensor)) wanted.push_back(program_.results[1 + s]);
        scalars(wanted);
        for (const std::size_t s : states_per(Per::tensor))
            line("        k.state[" + std::to_string(s) + "] = " + numbered("s", program_.results[1 + s]) + ";");
        std::string all;
        for (const std::uint16_t c : constants_) all += (all.empty() ? "T(" : ", T(") + numbered("s", c) + ")";
        line("        return {" + all + "};");
        line("    }");
    }

    // The numbers of a tensor besides its elements (Program::evaluate): reductions, shape and the states with one
    // number per tensor.
    void memo() {
        line("    static constexpr int reductions = " +
             std::to_string(std::max<std::size_t>(program_.reductions.size(), 1)) + ";");
        line("    struct Memo {");
        line("        double own[reductions], all[reductions], state[" + std::to_string(max_states) + "], shape[" +
             std::to_string(int(Shape::count)) + "];");
        line("    };");
    }

    // These elements and all that they depend on.
    std::vector<bool> needed_elements(std::span<const std::uint16_t> wanted) const {
        std::vector<bool> needed(program_.elements.size());
        for (const std::uint16_t r : wanted) needed[r] = true;
        for (std::size_t i = needed.size(); i-- > 0;) {
            if (!needed[i]) continue;
            const ElementNode& n = program_.elements[i];
            const std::uint16_t operand[] = {n.a, n.b, n.c};
            for (int k = 0; k < arity(n.op); ++k) needed[operand[k]] = true;
        }
        return needed;
    }
    // The results for each element.
    std::span<const std::uint16_t> results() const { return std::span(program_.results).first(1 + states_.size()); }
    bool needs_stored_param() const {
        std::vector<std::uint16_t> all(results().begin(), results().end());
        for (const ReductionNode& r : program_.reductions) all.push_back(r.element);
        const std::vector<bool> needed = needed_elements(all);
        for (std::size_t i = 0; i < needed.size(); ++i)
            if (needed[i] && program_.elements[i].op == ElementOp::param_as_stored) return true;
        return false;
    }

    // Values with one number for each row or column come from `lines`, which has those of the element.
    void begin_function(const char* name, const std::string& parameters) {
        line(program_.has_lines() ? "    template <class T, class Lines>" : "    template <class T>");
        line("    ADAPTK_HD static void " + std::string(name) + "([[maybe_unused]] const Coefficients<T>& c" +
             (program_.has_lines() ? ", [[maybe_unused]] const Lines& lines" : "") + parameters + ") {");
    }
    // `more`: the number of parameters after the states.
    void begin_update(std::size_t more) {
        std::string parameters = ", ";
        parameters += needs_stored_param() ? "[[maybe_unused]] T stored, T& p, [[maybe_unused]] T g"
                                           : "[[maybe_unused]] T& p, [[maybe_unused]] T g";
        for (const std::string& s : states_) parameters += ", [[maybe_unused]] T& " + s;
        for (std::size_t i = 0; i < more; ++i) parameters += ", T& " + numbered("term", i);
        begin_function("update", parameters);
    }
    void elements(std::span<const std::uint16_t> wanted) {
        const std::vector<bool> needed = needed_elements(wanted);
        for (std::size_t i = 0; i < needed.size(); ++i)
            if (needed[i]) line("        const T " + numbered("e", i) + " = " + element(program_.elements[i]) + ";");
    }
    void update() {
        if (needs_stored_param()) line("    static constexpr bool needs_stored_param = true;");
        begin_update(0);
        elements(results());
        for (std::size_t r = 0; r < results().size(); ++r)
            line("        " + (r == 0 ? std::string("p") : states_[r - 1]) + " = " +
                 numbered("e", program_.results[r]) + ";");
        line("    }");
    }
    // The new values of the states of each row, or of each column.
    void update_lines(const std::string& of, Per per) {
        const std::vector<std::size_t> states = states_per(per);
        std::vector<std::uint16_t> wanted;
        for (const std::size_t s : states) wanted.push_back(program_.results[1 + s]);
        line("    static constexpr bool updates_" + of + " = " + (states.empty() ? "false" : "true") + ";");
        begin_function(("update_" + of).c_str(), "");
        elements(wanted);
        for (const std::size_t s : states)
            line("        lines." + std::string(per == Per::row ? "put_row(" : "put_column(") + std::to_string(s) +
                 ", " + numbered("e", program_.results[1 + s]) + ");");
        line("    }");
    }
    // The terms of a pass: a rule that has them as states after its own, and writes nothing else. A pass over rows or
    // columns has no states of its own.
    void pass(std::size_t number) {
        const Program::Pass& pass = program_.passes()[number];
        const bool of_matrix = pass.over == Over::matrix;
        std::vector<std::uint16_t> terms;
        std::string what, term_of, numbers, of_columns;
        for (const std::uint16_t number_of : pass.reductions) {
            const ReductionNode& r = program_.reductions[number_of];
            const auto at = std::size_t(std::find(terms.begin(), terms.end(), r.element) - terms.begin());
            if (at == terms.size()) terms.push_back(r.element);
            const char* const names[] = {"norm", "sum", "mean", "largest"};
            const char* const comma = what.empty() ? "" : ", ";
            what += comma + std::string("adaptk::detail::Reduce::") + names[std::size_t(r.what)];
            term_of += comma + std::to_string(at);
            numbers += comma + std::to_string(number_of);
            const bool columns = r.over == Over::columns || (of_matrix && program_.kind(r.element) == Per::column);
            of_columns += comma + std::string(columns ? "true" : "false");
        }
        unsigned used = 0;
        const std::vector<bool> needed = needed_elements(terms);
        for (std::size_t i = 0; i < needed.size(); ++i) {
            const ElementNode& n = program_.elements[i];
            // The gradient includes the decay of its param.
            if (needed[i])
                used |= n.op == ElementOp::grad                                          ? 3u
                        : n.op == ElementOp::state && n.a < states_.size()               ? 4u << n.a
                        : n.op == ElementOp::param || n.op == ElementOp::param_as_stored ? 1u
                                                                                         : 0u;
        }
        const std::string count = std::to_string(pass.reductions.size());
        line("struct " + name_ + "Pass" + std::to_string(number) + " : " + name_ + " {");
        const std::size_t own = of_matrix ? 0 : states_.size();
        line("    static constexpr std::array<int, " + std::to_string(own + terms.size()) + "> states{};");
        line("    static constexpr int own = " + std::to_string(own) + ", count = " + count + ";");
        const char* const overs[] = {"tensor", "all", "rows", "columns", "matrix"};
        line("    static constexpr auto over = adaptk::detail::Over::" + std::string(overs[std::size_t(pass.over)]) +
             ";");
        line("    static constexpr int number[count] = {" + numbers + "};");
        line("    static constexpr bool of_columns[count] = {" + of_columns + "};");
        line("    static constexpr unsigned used = " + std::to_string(used) + ";");
        line("    static constexpr adaptk::detail::Reduce what[count] = {" + what + "};");
        line("    static constexpr int term_of[count] = {" + term_of + "};");
        if (of_matrix) {
            std::string parameters;
            for (std::size_t i = 0; i < terms.size(); ++i) parameters += ", T& " + numbered("term", i);
            begin_function("update", parameters);
        } else {
            begin_update(terms.size());
        }
        elements(terms);
        for (std::size_t i = 0; i < terms.size(); ++i)
            line("        " + numbered("term", i) + " = " + numbered("e", terms[i]) + ";");
        line("    }");
        line("};");
    }
    static std::string number_of_line(const char* of, std::size_t i) {
        return std::string("lines.") + of + "_number(" + std::to_string(i) + ")";
    }
    std::string element(const ElementNode& n) const {
        switch (n.op) {
        case ElementOp::scalar: return numbered("c.c", n.a);
        case ElementOp::param: return "p";
        case ElementOp::grad: return "g";
        case ElementOp::state:
            if (n.a < states_.size()) return states_[n.a];
            return number_of_line(program_.per[n.a] == Per::row ? "row" : "column", n.a);
        case ElementOp::reduced: {
            const Over over = program_.reductions[n.a].over;
            return number_of_line(over == Over::matrix ? "matrix"
                                  : over == Over::rows ? "row"
                                                       : "column",
                                  max_states + n.a);
        }
        case ElementOp::param_as_stored: return "stored";
        default: return expression(n.op, numbered("e", n.a), numbered("e", n.b), numbered("e", n.c), "T");
        }
    }
};

}  // namespace

bool reads_decay(const RuleInfo& rule) {
    const std::vector<ScalarNode>& nodes = rule.program->scalars;
    return std::any_of(nodes.begin(), nodes.end(),
                       [&](const ScalarNode& n) { return n.op == ScalarOp::hyper && n.a >= rule.own.size(); });
}

std::string source_of_struct(const RuleInfo& rule, std::string_view name) { return Source(rule, name).text(); }

}  // namespace adaptk::detail
