#include "rule_program.hpp"

#include "vector_form.hpp"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <deque>
#include <initializer_list>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <tuple>

namespace adaptk::detail {
namespace {

// ---- compiling

// Compiles expressions. Each value is computed at its first use. If it is used again, it is stored: in the state whose
// new value it is, once the old value is no longer needed, or else in scratch.
class Compiler {
  public:
    // targets: element nodes, and the buffers for their values.
    using Targets = std::vector<std::pair<std::uint16_t, int>>;
    // place: the buffers that already contain values of element nodes; -1: the value is computed.
    Compiler(const Program& program, std::span<const std::uint16_t> constants, Program::Form form, std::size_t buffers,
             const Targets& targets, std::span<const int> place)
        : buffers_(buffers), constants_(common_constants + constants.size()) {
        for (std::size_t s = 0; s < buffers_ + constants_; ++s) {
            nodes_.push_back({ElementOp::scalar, 0, 0, 0, int(s), 0, false, {}});
        }
        const int scale = int(buffers_), decay = int(buffers_) + 1;
        int param = 0, grad = 1;
        // A product with 1 is its other factor, except that an arithmetic operation makes a signaling NaN quiet.
        if (form.scaled || !only_in_arithmetic(program, targets, ElementOp::grad))
            grad = add(ElementOp::multiply, scale, 1);
        if (form.decay == Program::Decay::coupled) {
            grad = add(ElementOp::add, grad, add(ElementOp::multiply, decay, 0));
        } else if (form.decay == Program::Decay::decoupled || !only_in_arithmetic(program, targets, ElementOp::param)) {
            param = add(ElementOp::multiply, 0, decay);
        }
        std::vector<int> made;
        for (const ElementNode& n : program.elements) {
            if (const int at = place[made.size()]; at >= 0) {
                made.push_back(at);
                continue;
            }
            switch (n.op) {
            case ElementOp::scalar: {
                const auto at = std::find(constants.begin(), constants.end(), n.a) - constants.begin();
                made.push_back(int(buffers_ + common_constants) + int(at));
                break;
            }
            case ElementOp::param: made.push_back(param); break;
            case ElementOp::grad: made.push_back(grad); break;
            case ElementOp::state: made.push_back(2 + n.a); break;
            case ElementOp::param_as_stored: made.push_back(0); break;
            case ElementOp::reduced: made.push_back(0); break;  // has a place if it is needed
            default: {
                const int operands = arity(n.op);
                made.push_back(add(n.op, made[n.a], operands > 1 ? made[n.b] : 0, operands > 2 ? made[n.c] : 0));
            }
            }
        }
        for (const auto& [element, slot] : targets)
            if (const int node = made[element]; node != slot) nodes_[node].results.push_back(slot);
    }

    std::string run() {
        for (Node& n : nodes_)
            if (!n.results.empty()) count_uses(n);
        for (const Node& n : nodes_)
            for (const int slot : n.results) used_ |= std::uint32_t{1} << slot;
        for (std::size_t s = 0; s < buffers_; ++s)
            if (nodes_[s].uses > 0 || !nodes_[s].results.empty()) used_ |= std::uint32_t{1} << s;
        while (const int next = choose()) {
            compute(next, false);
            settle();
        }
        // The rest are cycles, such as two states that are exchanged.
        for (settle(); const int slot = first_pending(); settle()) {
            const int old = slot - 1;
            const int scratch = take_scratch();
            emit(Opcode::load, old);
            emit(Opcode::store, scratch);
            nodes_[old].slot = scratch;
        }
        emit(Opcode::end);
        return too_large_ ? "rule: more than " + std::to_string(max_scratch) + " values are needed at the same time"
                          : std::string();
    }
    std::vector<Instruction> code() const { return fused(code_); }
    // The buffers that the code reads or writes, one bit for each.
    std::uint32_t used() const { return used_; }

  private:
    struct Node {
        ElementOp op;
        int a, b, c;
        int slot;                  // where its value is; -1: nowhere yet
        int uses;                  // by nodes that are not computed yet
        bool counted;              // among the uses of its operands
        std::vector<int> results;  // slots of the param and the states that it is the new value of, until it is there
    };
    std::size_t buffers_, constants_;
    std::vector<Node> nodes_;
    std::vector<Instruction> code_;
    std::vector<int> free_;
    std::size_t scratch_ = 0;
    bool too_large_ = false;
    std::uint32_t used_ = 0;

    static bool is_arithmetic(ElementOp op) {
        return op == ElementOp::add || op == ElementOp::subtract || op == ElementOp::multiply ||
               op == ElementOp::divide || op == ElementOp::square_root;
    }
    // Whether values of this kind (the param, the gradient) are operands of arithmetic only, and no results.
    static bool only_in_arithmetic(const Program& program, const Targets& targets, ElementOp kind) {
        const auto is_kind = [&](std::uint16_t n) { return program.elements[n].op == kind; };
        return std::none_of(targets.begin(), targets.end(), [&](const auto& to) { return is_kind(to.first); }) &&
               std::none_of(program.elements.begin(), program.elements.end(), [&](const ElementNode& n) {
                   const std::uint16_t operand[] = {n.a, n.b, n.c};
                   return !is_arithmetic(n.op) && std::any_of(operand, operand + arity(n.op), is_kind);
               });
    }
    int add(ElementOp op, int a, int b = 0, int c = 0) {
        nodes_.push_back({op, a, b, c, -1, 0, false, {}});
        return int(nodes_.size()) - 1;
    }
    void count_uses(Node& n) {
        if (n.counted || n.slot >= 0) return;
        n.counted = true;
        const int operand[] = {n.a, n.b, n.c};
        for (int i = 0; i < arity(n.op); ++i) {
            ++nodes_[operand[i]].uses;
            count_uses(nodes_[operand[i]]);
        }
    }

    // Besides its arithmetic, a block costs jumps. So moments, their root and the step by them are one instruction
    // each.
    static std::vector<Instruction> fused(const std::vector<Instruction>& code) {
        std::vector<Instruction> out;
        const auto is = [&](std::size_t at, std::initializer_list<Opcode> ops) {
            return ops.size() <= code.size() - at &&
                   std::equal(ops.begin(), ops.end(), code.begin() + std::ptrdiff_t(at),
                              [](Opcode op, const Instruction& i) { return op == i.op; });
        };
        const auto emit_wide = [&](Opcode op, std::uint16_t c, std::uint16_t a, std::uint16_t b, std::uint16_t x,
                                   std::uint16_t y) {
            static_assert(max_program_buffers + max_constants + max_scratch <= 256);
            out.push_back({op, std::uint8_t(c), a, b});
            out.push_back({Opcode::end, 0, x, y});
        };
        using enum Opcode;
        for (std::size_t i = 0; i < code.size();) {
            const Instruction* const at = &code[i];
            // The accumulator's value has just been stored, so it is read from there.
            const bool again = i > 0 && at[-1].op == store;
            if (is(i, {load_multiply_constant, add_product_constant, store})) {
                emit_wide(average, at[2].a, at[1].a, at[1].b, at[0].a, at[0].b);
                i += 3;
            } else if (again && is(i, {multiply_constant, add_product_constant, store})) {
                emit_wide(average, at[2].a, at[1].a, at[1].b, at[0].a, at[-1].a);
                i += 3;
            } else if (is(i, {load_square, multiply_constant, add_product_constant, store})) {
                emit_wide(average_square, at[3].a, at[2].a, at[2].b, at[1].a, at[0].a);
                i += 4;
            } else if (is(i, {square_root, multiply_add_constants})) {
                out.push_back({root_multiply_add, 0, at[1].a, at[1].b});
                i += 2;
            } else if (is(i, {product_divide_constant, subtract_from, store})) {
                emit_wide(step, at[2].a, at[0].a, at[1].a, 0, at[0].b);
                i += 3;
            } else if (is(i, {product_divide_constant, product_subtract_constant, store})) {
                emit_wide(step_decayed, at[2].a, at[0].a, at[1].b, at[1].a, at[0].b);
                i += 3;
            } else {
                out.push_back(*at);
                ++i;
            }
        }
        return out;
    }
    bool stored(int n) const { return nodes_[n].slot >= 0; }
    void emit(Opcode op, int a = 0, int b = 0) {
        // The accumulator still has the value that was stored last.
        const int last = !code_.empty() && code_.back().op == Opcode::store ? int(code_.back().a) : -1;
        if (last >= 0 && op == Opcode::load && a == last) return;
        if (last >= 0 && (a == last || b == last)) {
            const int other = a == last ? b : a;
            switch (op) {
            case Opcode::load_add: return emit_operation(Opcode::add, other);
            case Opcode::load_multiply: return emit_operation(other == last ? Opcode::square : Opcode::multiply, other);
            case Opcode::load_subtract:
                return emit_operation(a == last ? Opcode::subtract : Opcode::subtract_from, other);
            default: break;
            }
        }
        emit_operation(op, a, b);
    }
    bool is_constant(int slot) const { return slot >= int(buffers_) && slot < int(buffers_ + constants_); }
    // In the form for constants, if an operand is one.
    void emit_operation(Opcode op, int a, int b = 0) {
        const auto with_constant = [&](Opcode form) {
            if (!is_constant(a)) std::swap(a, b);  // the factors of a product
            if (is_constant(a)) op = form;
        };
        switch (op) {
        case Opcode::add:
            if (is_constant(a)) op = Opcode::add_constant;
            break;
        case Opcode::multiply:
            if (is_constant(a)) op = Opcode::multiply_constant;
            break;
        case Opcode::load_multiply:
            if (a == b) op = Opcode::load_square;
            with_constant(Opcode::load_multiply_constant);
            break;
        case Opcode::add_product: with_constant(Opcode::add_product_constant); break;
        case Opcode::subtract_product: with_constant(Opcode::subtract_product_constant); break;
        case Opcode::product_subtract: with_constant(Opcode::product_subtract_constant); break;
        case Opcode::product_divide: with_constant(Opcode::product_divide_constant); break;
        case Opcode::multiply_add:
            if (is_constant(a) && is_constant(b)) op = Opcode::multiply_add_constants;
            break;
        default: break;
        }
        code_.push_back({op, 0, std::uint16_t(a), std::uint16_t(b)});
    }
    int take_scratch() {
        if (!free_.empty()) {
            const int slot = free_.back();
            free_.pop_back();
            return slot;
        }
        if (scratch_ == max_scratch) {
            too_large_ = true;
            return int(buffers_ + constants_);
        }
        return int(buffers_ + constants_ + scratch_++);
    }
    void release(Node& n) {
        if (n.uses > 0 || !n.results.empty() || n.slot < int(buffers_ + constants_)) return;
        free_.push_back(n.slot);
    }
    void use(int n) {
        --nodes_[n].uses;
        release(nodes_[n]);
    }
    // Whether the value in this slot of the param or a state is no longer needed.
    bool is_free(int slot) const {
        const Node& old = nodes_[slot];
        return old.slot != slot || (old.uses == 0 && old.results.empty());
    }
    // Stores the accumulator, which holds the node's value, as every result that may be overwritten.
    void store_results(Node& n) {
        std::erase_if(n.results, [&](int slot) {
            if (!is_free(slot)) return false;
            emit(Opcode::store, slot);
            if (n.slot < 0) n.slot = slot;
            return true;
        });
    }
    // Computes a node into the accumulator. `used`: its one user takes it from there.
    void compute(int number, bool used) {
        evaluate(number);
        Node& n = nodes_[number];
        store_results(n);
        if (n.slot < 0 && (n.uses > (used ? 1 : 0) || !n.results.empty())) {
            n.slot = take_scratch();
            emit(Opcode::store, n.slot);
        }
    }
    // Puts a value into the accumulator, for one use.
    void value(int n) {
        if (stored(n)) {
            emit(Opcode::load, nodes_[n].slot);
            use(n);
        } else {
            compute(n, true);
            --nodes_[n].uses;
            if (stored(n)) release(nodes_[n]);
        }
    }
    // Puts a value into a slot, for a later use.
    int operand(int n) {
        if (!stored(n)) compute(n, false);
        return nodes_[n].slot;
    }
    bool only_used_once(int n) const { return !stored(n) && nodes_[n].uses == 1 && nodes_[n].results.empty(); }
    // Whether n is a product of two stored values with no other use.
    bool is_product(int n) const {
        const Node& m = nodes_[n];
        return m.op == ElementOp::multiply && only_used_once(n) && stored(m.a) && stored(m.b);
    }
    void with_product(Opcode op, int other, int product) {
        value(other);
        const int a = nodes_[product].a, b = nodes_[product].b;
        emit(op, nodes_[a].slot, nodes_[b].slot);
        use(a);
        use(b);
        --nodes_[product].uses;
    }

    void evaluate(int number) {
        // By value: nodes_ does not grow, but results do change.
        const ElementOp op = nodes_[number].op;
        const int a = nodes_[number].a, b = nodes_[number].b, c = nodes_[number].c;
        switch (arity(op)) {
        case 1:
            value(a);
            emit(unary(op));
            break;
        case 2: binary(op, a, b); break;
        default: select(a, b, c);
        }
    }
    static Opcode unary(ElementOp op) {
        switch (op) {
        case ElementOp::negative: return Opcode::negative;
        case ElementOp::absolute: return Opcode::absolute;
        case ElementOp::square_root: return Opcode::square_root;
        default: return Opcode::sign;
        }
    }
    // The opcode with the left operand in the accumulator, and the one with the right operand.
    static Opcode of_left(ElementOp op) {
        switch (op) {
        case ElementOp::add: return Opcode::add;
        case ElementOp::subtract: return Opcode::subtract;
        case ElementOp::multiply: return Opcode::multiply;
        case ElementOp::divide: return Opcode::divide;
        case ElementOp::maximum: return Opcode::maximum;
        case ElementOp::minimum: return Opcode::minimum;
        case ElementOp::less: return Opcode::less;
        case ElementOp::less_equal: return Opcode::less_equal;
        case ElementOp::equal: return Opcode::equal;
        default: return Opcode::not_equal;
        }
    }
    static Opcode of_right(ElementOp op) {
        switch (op) {
        case ElementOp::subtract: return Opcode::subtract_from;
        case ElementOp::divide: return Opcode::divide_into;
        case ElementOp::maximum: return Opcode::maximum_with;
        case ElementOp::minimum: return Opcode::minimum_with;
        case ElementOp::less: return Opcode::greater;
        case ElementOp::less_equal: return Opcode::greater_equal;
        default: return of_left(op);
        }
    }
    void binary(ElementOp op, int l, int r) {
        // Values that are used again are stored in any case.
        for (const int x : {l, r})
            if (!stored(x) && !only_used_once(x)) compute(x, false);
        if (stored(l) && stored(r) &&
            (op == ElementOp::add || op == ElementOp::subtract || op == ElementOp::multiply)) {
            const Opcode both = op == ElementOp::add        ? Opcode::load_add
                                : op == ElementOp::subtract ? Opcode::load_subtract
                                                            : Opcode::load_multiply;
            emit(both, nodes_[l].slot, nodes_[r].slot);
            use(l);
            use(r);
            return;
        }
        if (op == ElementOp::add && is_product(r) && !stored(l)) return with_product(Opcode::add_product, l, r);
        if (op == ElementOp::add && is_product(l) && !stored(r)) return with_product(Opcode::add_product, r, l);
        if (op == ElementOp::subtract && is_product(r) && !stored(l))
            return with_product(Opcode::subtract_product, l, r);
        if (op == ElementOp::subtract && is_product(l) && !stored(r))
            return with_product(Opcode::product_subtract, r, l);
        if (op == ElementOp::divide && is_product(l) && !stored(r)) return with_product(Opcode::product_divide, r, l);
        if (op == ElementOp::add && (multiply_add(l, r) || multiply_add(r, l))) return;
        if (stored(r)) {
            value(l);
            emit(of_left(op), nodes_[r].slot);
            use(r);
        } else if (stored(l)) {
            value(r);
            emit(of_right(op), nodes_[l].slot);
            use(l);
        } else {
            const int slot = operand(r);
            value(l);
            emit(of_left(op), slot);
            use(r);
        }
    }
    // product + stored value, with one factor of the product still to be computed.
    bool multiply_add(int product, int added) {
        const Node& n = nodes_[product];
        if (!stored(added) || n.op != ElementOp::multiply || !only_used_once(product)) return false;
        if (stored(n.a) == stored(n.b)) return false;
        const int computed = stored(n.a) ? n.b : n.a, factor = stored(n.a) ? n.a : n.b;
        value(computed);
        emit(Opcode::multiply_add, nodes_[factor].slot, nodes_[added].slot);
        use(factor);
        use(added);
        --nodes_[product].uses;
        return true;
    }
    void select(int condition, int a, int b) {
        if (!stored(condition)) {
            const int slot_a = operand(a), slot_b = operand(b);
            value(condition);
            emit(Opcode::select, slot_a, slot_b);
            use(a);
            use(b);
            return;
        }
        if (stored(a) && stored(b)) {
            value(condition);
            emit(Opcode::select, nodes_[a].slot, nodes_[b].slot);
            use(a);
            use(b);
            return;
        }
        const bool keep_a = !stored(a);
        const int kept = keep_a ? a : b, other = keep_a ? b : a;
        const int slot = operand(other);
        value(kept);
        emit(keep_a ? Opcode::keep_if : Opcode::keep_unless, nodes_[condition].slot, slot);
        use(condition);
        use(other);
    }

    // How many uses of a slot's old value end when a node is computed.
    int uses_within(int n, int slot, std::vector<bool>& seen) const {
        if (seen[n] || stored(n)) return 0;
        seen[n] = true;
        const int operand[] = {nodes_[n].a, nodes_[n].b, nodes_[n].c};
        int found = 0;
        for (int i = 0; i < arity(nodes_[n].op); ++i)
            found += operand[i] == slot ? 1 : uses_within(operand[i], slot, seen);
        return found;
    }
    // The result to compute next: one whose old value nothing else needs, if there is one; states first. 0: all are
    // computed.
    int choose() const {
        int any = 0, clean = 0, of_slot = 0;
        for (int n = 0; n < int(nodes_.size()); ++n) {
            if (nodes_[n].results.empty() || stored(n)) continue;
            any = n;
            for (const int slot : nodes_[n].results) {
                std::vector<bool> seen(nodes_.size());
                if (nodes_[slot].results.empty() && uses_within(n, slot, seen) == nodes_[slot].uses &&
                    (clean == 0 || of_slot == 0)) {
                    clean = n;
                    of_slot = slot;
                }
            }
        }
        return clean != 0 ? clean : any;
    }
    // Moves results to those of their slots that are free.
    void settle() {
        for (bool moved = true; moved;) {
            moved = false;
            for (Node& n : nodes_) {
                if (n.slot < 0 || n.results.empty()) continue;
                if (std::none_of(n.results.begin(), n.results.end(), [&](int slot) { return is_free(slot); })) continue;
                emit(Opcode::load, n.slot);
                store_results(n);
                release(n);
                moved = true;
            }
        }
    }
    // One more than a slot of the param or a state that does not have its result yet. 0: all have.
    int first_pending() const {
        for (const Node& n : nodes_)
            if (!n.results.empty()) return n.results[0] + 1;
        return 0;
    }
};

// ---- reading

// The number of common hyperparameters that a program may read: the first ones.
constexpr std::size_t readable_common = 2;
static_assert(at_weight_decay == 0 && at_decoupled == 1);

constexpr char magic[] = {'A', 'D', 'K', 'R', 'U', 'L', 'E'};
constexpr std::uint8_t version = 1, version_with_reductions = 2, version_with_shapes = 3;
constexpr std::size_t header_bytes = sizeof magic + 1 + 4;

struct Refused {
    std::string why;
};

class Reader {
  public:
    explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
    std::uint64_t whole(std::size_t bytes) {
        if (rest_.size() < bytes) throw Refused{"they end too early"};
        std::uint64_t x = 0;
        for (std::size_t i = 0; i < bytes; ++i) x |= std::uint64_t(rest_[i]) << (8 * i);
        rest_ = rest_.subspan(bytes);
        return x;
    }
    std::uint8_t u8() { return std::uint8_t(whole(1)); }
    std::uint16_t u16() { return std::uint16_t(whole(2)); }
    double f64() { return std::bit_cast<double>(whole(8)); }
    std::string text() {
        const std::size_t n = u16();
        if (rest_.size() < n) throw Refused{"they end too early"};
        std::string s(reinterpret_cast<const char*>(rest_.data()), n);
        rest_ = rest_.subspan(n);
        if (!is_utf8(s)) throw Refused{"a text in them is not UTF-8"};
        return s;
    }
    bool at_end() const { return rest_.empty(); }

  private:
    std::span<const std::byte> rest_;

    static bool is_utf8(std::string_view s) {
        for (std::size_t i = 0; i < s.size();) {
            const auto c = std::uint8_t(s[i]);
            if (c == 0) return false;
            const std::size_t more = c < 0x80 ? 0 : c < 0xc2 ? 4 : c < 0xe0 ? 1 : c < 0xf0 ? 2 : c < 0xf5 ? 3 : 4;
            if (more == 4 || s.size() - i <= more) return false;
            std::uint32_t code = more == 0 ? c : c & (0x3fu >> more);
            for (std::size_t k = 1; k <= more; ++k) {
                const auto d = std::uint8_t(s[i + k]);
                if ((d & 0xc0) != 0x80) return false;
                code = code << 6 | (d & 0x3f);
            }
            if ((more == 2 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) ||
                (more == 3 && (code < 0x10000 || code > 0x10ffff)))
                return false;
            i += 1 + more;
        }
        return true;
    }
};

std::uint32_t checksum(std::span<const std::byte> bytes) {
    std::uint32_t h = 0x811c9dc5u;
    for (const std::byte b : bytes) h = (h ^ std::uint32_t(b)) * 0x01000193u;
    return h;
}

bool is_name(std::string_view s) {
    const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
    if (s.empty() || s.size() > 64 || !letter(s[0])) return false;
    return std::all_of(s.begin(), s.end(), [&](char c) { return letter(c) || (c >= '0' && c <= '9'); });
}

// "my_adam": "MyAdam".
std::string class_name_of(std::string_view name) {
    std::string s;
    bool upper = true;
    for (const char c : name) {
        if (c == '_') {
            upper = true;
            continue;
        }
        s += upper && c >= 'a' && c <= 'z' ? char(c - 'a' + 'A') : c;
        upper = false;
    }
    return s.empty() ? std::string(name) : s;
}

// The memory that a RuleInfo points into.
struct LoadedRule {
    RuleInfo info{};
    Program program;
    std::deque<std::string> texts;  // a deque, so that addresses stay valid
    std::vector<Hyperparameter> own;
    std::vector<State> states;
    std::vector<RuleCode> code;

    const char* keep(std::string s) { return texts.emplace_back(std::move(s)).c_str(); }
    void read(std::span<const std::byte> bytes, std::size_t number);

  private:
    void read_facts(Reader& in, std::size_t hypers, std::size_t states_, std::uint8_t of_version);
    void read_nodes(Reader& in, std::size_t scalars, std::size_t elements, std::size_t reductions);
    void read_carried(Reader& in, std::size_t count);
    void read_reductions(Reader& in, std::size_t count);
};

void LoadedRule::read_facts(Reader& in, std::size_t hypers, std::size_t state_count, std::uint8_t of_version) {
    info.name = keep(in.text());
    if (!is_name(info.name)) throw Refused{"the rule has no name that is an identifier of at most 64 letters"};
    for (const std::span<const RuleInfo> list : {rules(), row_wise_rules()})
        for (const RuleInfo& r : list)
            if (std::string_view(r.name) == info.name)
                throw Refused{"the library has a rule of the name '" + std::string(info.name) + "'"};
    info.class_name = keep(in.text());
    if (*info.class_name == '\0') info.class_name = keep(class_name_of(info.name));
    if (!is_name(info.class_name)) throw Refused{"the name of its class is not an identifier of at most 64 letters"};
    info.variant = "";
    info.summary = keep(in.text());
    info.formula = keep(in.text());
    info.source = keep(in.text());
    info.evaluation = keep(in.text());
    if (*info.evaluation != '\0' && !is_name(info.evaluation))
        throw Refused{"the rule that evaluates has no name that is an identifier of at most 64 letters"};
    info.common.weight_decay = in.f64();
    info.common.decoupled = in.f64();
    if (!in_range(Range::nonnegative, info.common.weight_decay) || !in_range(Range::flag, info.common.decoupled))
        throw Refused{"a default of weight_decay or decoupled is out of range"};
    std::vector<std::string_view> names{"param", "grad", "step", "seed", "param_format"};
    for (const Hyperparameter& h : common_hyperparameters) names.emplace_back(h.name);
    const auto take_name = [&](const char* name) {
        if (!is_name(name)) throw Refused{"'" + std::string(name) + "' is not an identifier of at most 64 letters"};
        if (std::find(names.begin(), names.end(), std::string_view(name)) != names.end())
            throw Refused{"the name '" + std::string(name) + "' is taken"};
        names.emplace_back(name);
    };
    for (std::size_t i = 0; i < hypers; ++i) {
        Hyperparameter h{};
        h.name = keep(in.text());
        take_name(h.name);
        h.value = in.f64();
        const std::uint8_t range = in.u8();
        if (range > std::uint8_t(Range::flag)) throw Refused{"an unknown range"};
        h.range = Range(range);
        if (!in_range(h.range, h.value)) throw Refused{std::string(h.name) + ": its default is out of its range"};
        h.meaning = keep(in.text());
        own.push_back(h);
    }
    if (own.empty() || std::string_view(own[0].name) != "lr") throw Refused{"the first hyperparameter is not lr"};
    for (std::size_t i = 0; i < state_count; ++i) {
        State s{};
        s.name = keep(in.text());
        take_name(s.name);
        s.initial = in.f64();
        const std::uint8_t from = in.u8();
        if (from < starts_as_grad && from >= own.size())
            throw Refused{"a state starts as a hyperparameter that is not there"};
        if (from < starts_as_grad) s.from = own[from].name;
        program.starts.push_back(from);
        if (!(s.initial - s.initial == 0.0)) throw Refused{std::string(s.name) + ": its initial value is not finite"};
        const std::uint8_t nonnegative = in.u8();
        if (nonnegative > 1) throw Refused{"a flag that is neither 0 nor 1"};
        s.nonnegative = nonnegative == 1;
        const std::uint8_t per = of_version == version_with_shapes ? in.u8() : 0;
        if (per > std::uint8_t(Per::column)) throw Refused{"a state that is per something unknown"};
        if (per == 0 && !program.per.empty() && program.per.back() != Per::element)
            throw Refused{std::string(s.name) + ": a state per element behind one that is not"};
        if (per != 0 && from >= starts_as_grad && from != starts_as_number)
            throw Refused{std::string(s.name) + ": starts as a param or a gradient, and is not per element"};
        s.per = Per(per);
        program.per.push_back(s.per);
        states.push_back(s);
    }
}

template <class Node> void check_operands(const Node& n, std::size_t before) {
    const std::uint16_t operand[] = {n.a, n.b, n.c};
    const int used = arity(n.op);
    for (int i = 0; i < 3; ++i) {
        if (i < used && operand[i] >= before) throw Refused{"an operand that is not there"};
        if (used > 0 && i >= used && operand[i] != 0) throw Refused{"an operand that is not used"};
    }
}

void LoadedRule::read_nodes(Reader& in, std::size_t scalars, std::size_t elements, std::size_t reductions) {
    std::vector<bool> cumulative;  // whether a cumulative product is in it
    for (std::size_t i = 0; i < scalars; ++i) {
        ScalarNode n{};
        const std::uint8_t op = in.u8();
        if (op >= std::uint8_t(ScalarOp::count)) throw Refused{"an unknown operation"};
        n = {ScalarOp(op), in.u16(), in.u16(), in.u16(), in.f64()};
        if (n.op == ScalarOp::hyper && n.a >= own.size() + readable_common)
            throw Refused{"a hyperparameter that is not there"};
        if (n.op == ScalarOp::reduced && n.a >= reductions) throw Refused{"a reduction that is not there"};
        if (n.op == ScalarOp::state && (n.a >= states.size() || program.per[n.a] != Per::tensor))
            throw Refused{"a state per tensor that is not there"};
        if (n.op == ScalarOp::shape && n.a >= std::uint16_t(Shape::count))
            throw Refused{"an unknown number of a shape"};
        check_operands(n, i);
        bool has = n.op == ScalarOp::cumulative_product;
        const std::uint16_t operand[] = {n.a, n.b, n.c};
        for (int k = 0; k < arity(n.op); ++k) {
            if (has && cumulative[operand[k]]) throw Refused{"a cumulative product within another"};
            has = has || cumulative[operand[k]];
        }
        cumulative.push_back(has);
        program.scalars.push_back(n);
    }
    for (std::size_t i = 0; i < elements; ++i) {
        const std::uint8_t op = in.u8();
        if (op >= std::uint8_t(ElementOp::count)) throw Refused{"an unknown operation"};
        const ElementNode n{ElementOp(op), in.u16(), in.u16(), in.u16()};
        if (n.op == ElementOp::scalar && n.a >= scalars) throw Refused{"an operand that is not there"};
        if (n.op == ElementOp::state && (n.a >= states.size() || program.per[n.a] == Per::tensor))
            throw Refused{"a state that is not there"};
        if (n.op == ElementOp::reduced && n.a >= reductions) throw Refused{"a reduction that is not there"};
        check_operands(n, i);
        program.elements.push_back(n);
    }
    for (std::size_t i = 0; i <= states.size(); ++i) {
        const std::uint16_t result = in.u16();
        const bool of_tensor = i > 0 && program.per[i - 1] == Per::tensor;
        if (result >= (of_tensor ? scalars : elements)) throw Refused{"an operand that is not there"};
        program.results.push_back(result);
    }
}

void LoadedRule::read_carried(Reader& in, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const CarriedNumber c{in.u16(), in.u16()};
        if (c.hyper == 0 || c.hyper >= own.size() || c.node >= program.scalars.size())
            throw Refused{"a carried number that is not there"};
        for (const CarriedNumber& before : program.carried)
            if (before.hyper == c.hyper) throw Refused{"a number that is carried twice"};
        program.carried.push_back(c);
    }
}

void LoadedRule::read_reductions(Reader& in, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint8_t what = in.u8(), over = in.u8();
        if (what >= std::uint8_t(Reduce::count) || over >= std::uint8_t(Over::count))
            throw Refused{"an unknown reduction"};
        const ReductionNode r{Reduce(what), Over(over), in.u16()};
        if (r.element >= program.elements.size()) throw Refused{"an operand that is not there"};
        program.reductions.push_back(r);
    }
}

void LoadedRule::read(std::span<const std::byte> bytes, std::size_t number) {
    if (bytes.size() < header_bytes || std::memcmp(bytes.data(), magic, sizeof magic) != 0)
        throw Refused{"they are not those of a rule"};
    Reader in(bytes.subspan(sizeof magic));
    const std::uint8_t v = in.u8();
    if (v < version || v > version_with_shapes)
        throw Refused{"they are of version " + std::to_string(v) + ", and this library reads versions " +
                      std::to_string(version) + " to " + std::to_string(version_with_shapes)};
    if (std::uint32_t(in.whole(4)) != checksum(bytes.subspan(header_bytes)))
        throw Refused{"they have changed since they were made (the checksum differs)"};
    const std::size_t hypers = in.u16(), state_count = in.u16(), scalars = in.u16(), elements = in.u16(),
                      carried = in.u16(), reductions = v == version ? 0 : in.u16();
    if (hypers + common_hyperparameters.size() > max_hyperparameters)
        throw Refused{"more than " + std::to_string(max_hyperparameters - common_hyperparameters.size()) +
                      " hyperparameters"};
    if (state_count > max_states) throw Refused{"more than " + std::to_string(max_states) + " states"};
    if (scalars > max_scalar_nodes)
        throw Refused{"more than " + std::to_string(max_scalar_nodes) + " operations on hyperparameters and the step"};
    if (elements > max_element_nodes)
        throw Refused{"more than " + std::to_string(max_element_nodes) + " operations on elements"};
    if (reductions > max_reductions) throw Refused{"more than " + std::to_string(max_reductions) + " reductions"};
    if (v == version_with_reductions && reductions == 0) throw Refused{"there are no reductions in them"};
    read_facts(in, hypers, state_count, v);
    read_nodes(in, scalars, elements, reductions);
    read_carried(in, carried);
    read_reductions(in, reductions);
    if (!in.at_end()) throw Refused{"something follows them"};
    if (std::string error = program.compile(); !error.empty()) throw Refused{error};
    if ((v == version_with_shapes) != program.knows_shapes())
        throw Refused{"they are of version " + std::to_string(v) + ", and not what that is for"};

    const auto* const first = reinterpret_cast<const std::uint8_t*>(bytes.data());
    program.bytes.assign(first, first + bytes.size());
    info.index = info.ahead_state = info.ahead_hyper = RuleInfo::nowhere;
    info.key = keep(std::string(info.name) + "@" + std::to_string(number));
    info.own = own;
    info.states = states;
    info.step_use = program.uses_step() || !program.carried.empty() ? StepUse::number : StepUse::none;
    info.invalid = [](const HyperValues&) -> const char* { return nullptr; };
    for (const Isa& isa : built_isas()) {
        RuleCode c{};
        for (int type = 0; type < 2; ++type) c.step[type][0] = c.step[type][1] = isa.kernels->program[type];
        code.push_back(c);
    }
    info.code = code;
    info.program = &program;
    info.measures = program.measures();
}

struct Loaded {
    std::mutex lock;
    std::deque<std::unique_ptr<LoadedRule>> rules;
};

// Never destroyed: threads may step while the process ends.
Loaded& loaded() {
    static auto& all = *new Loaded;
    return all;
}

}  // namespace

Program::Program() = default;
Program::~Program() = default;

std::string Program::find_kinds() {
    const auto wider = [](Per a, Per b) {
        return a == b || b == Per::tensor ? a : a == Per::tensor ? b : Per::element;
    };
    kind_.clear();
    for (const ElementNode& n : elements) {
        const std::uint16_t operand[] = {n.a, n.b, n.c};
        Per kind = Per::tensor;
        for (int k = 0; k < arity(n.op); ++k) kind = wider(kind, kind_[operand[k]]);
        if (n.op == ElementOp::state) kind = per[n.a];
        if (n.op == ElementOp::param || n.op == ElementOp::grad || n.op == ElementOp::param_as_stored)
            kind = Per::element;
        if (n.op == ElementOp::reduced) {
            const ReductionNode& r = reductions[n.a];
            if (r.element >= kind_.size()) return "a reduction of what is known after it";
            kind = r.over == Over::rows      ? Per::row
                   : r.over == Over::columns ? Per::column
                   : r.over == Over::matrix  ? kind_[r.element]
                                             : Per::element;
            if (r.over == Over::tensor || r.over == Over::all) return "a reduction to one number among elements";
        }
        kind_.push_back(kind);
    }
    for (const ScalarNode& n : scalars)
        if (n.op == ScalarOp::reduced && reductions[n.a].over != Over::tensor && reductions[n.a].over != Over::all)
            return "a reduction to rows or columns among scalars";
    for (const ReductionNode& r : reductions) {
        const Per kind = kind_[r.element];
        if ((r.over == Over::rows || r.over == Over::columns) && kind != Per::element)
            return "a reduction over rows or columns of what is not for each element";
        if (r.over == Over::matrix && kind != Per::row && kind != Per::column)
            return "a reduction over matrices of what is not for each row or each column";
    }
    for (std::size_t s = 0; s < per.size(); ++s) {
        if (per[s] != Per::row && per[s] != Per::column) continue;
        if (const Per kind = kind_[results[1 + s]]; kind != per[s] && kind != Per::tensor)
            return "a state for each row or column, whose new value is not";
    }
    for (const Axis axis : {row, column}) {
        const Per kind = axis == row ? Per::row : Per::column;
        inputs_[axis] = {};
        for (std::size_t s = 0; s < per.size(); ++s)
            if (per[s] == kind) inputs_[axis].states.push_back(std::uint16_t(s));
        for (std::size_t r = 0; r < reductions.size(); ++r) {
            const Over over = reductions[r].over;
            if (over == (axis == row ? Over::rows : Over::columns) ||
                (over == Over::matrix && kind_[reductions[r].element] == kind))
                inputs_[axis].reductions.push_back(std::uint16_t(r));
        }
    }
    return {};
}

std::string Program::order_phases() {
    const auto after = [](std::size_t so_far, std::size_t operand) { return std::max(so_far, operand); };
    // For each node: one more than the last reduction that it depends on, or the phase in which it is known.
    std::vector<std::size_t> of_scalar(scalars.size()), of_element(elements.size());
    // What depends on a tensor's shape or states belongs to phase 1, because the scalars of phase 0 are the same for
    // all tensors.
    const auto sweep = [&](const auto& of_reduction, std::size_t of_tensor) {
        for (std::size_t i = 0; i < scalars.size(); ++i) {
            const ScalarNode& n = scalars[i];
            const std::uint16_t operand[] = {n.a, n.b, n.c};
            std::size_t found = n.op == ScalarOp::reduced ? of_reduction(n.a) + 1 : 0;
            if (n.op == ScalarOp::state || n.op == ScalarOp::shape) found = of_tensor;
            for (int k = 0; k < arity(n.op); ++k) found = after(found, of_scalar[operand[k]]);
            of_scalar[i] = found;
        }
        for (std::size_t i = 0; i < elements.size(); ++i) {
            const ElementNode& n = elements[i];
            const std::uint16_t operand[] = {n.a, n.b, n.c};
            std::size_t found = n.op == ElementOp::scalar    ? of_scalar[n.a]
                                : n.op == ElementOp::reduced ? of_reduction(n.a) + 1
                                                             : 0;
            for (int k = 0; k < arity(n.op); ++k) found = after(found, of_element[operand[k]]);
            of_element[i] = found;
        }
    };
    sweep([](std::size_t r) { return r; }, 0);
    for (std::size_t r = 0; r < reductions.size(); ++r)
        if (of_element[reductions[r].element] > r) return "a reduction of what is known after it";
    std::vector<std::size_t> phase(reductions.size());
    for (std::size_t r = 0; r <= reductions.size(); ++r) {
        sweep([&](std::size_t of) { return phase[of]; }, 1);
        for (std::size_t k = 0; k < reductions.size(); ++k) phase[k] = of_element[reductions[k].element];
    }

    for (const ScalarNode& n : scalars)
        if (n.op == ScalarOp::cumulative_product && of_scalar[n.a] > 0)
            return "a cumulative product of what a tensor has of its own";

    // Scalars in the order of their phases.
    std::vector<std::uint16_t> order(scalars.size()), place(scalars.size());
    std::iota(order.begin(), order.end(), std::uint16_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::uint16_t a, std::uint16_t b) { return of_scalar[a] < of_scalar[b]; });
    for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = std::uint16_t(i);
    std::vector<ScalarNode> sorted;
    phase_of_scalar_.clear();
    for (const std::uint16_t i : order) {
        ScalarNode n = scalars[i];
        std::uint16_t* const operand[] = {&n.a, &n.b, &n.c};
        for (int k = 0; k < arity(n.op); ++k) *operand[k] = place[*operand[k]];
        sorted.push_back(n);
        phase_of_scalar_.push_back(of_scalar[i]);
    }
    scalars = std::move(sorted);
    for (ElementNode& n : elements)
        if (n.op == ElementOp::scalar) n.a = place[n.a];
    for (CarriedNumber& c : carried) c.node = place[c.node];
    for (std::size_t s = 0; s < per.size(); ++s)
        if (per[s] == Per::tensor) results[1 + s] = place[results[1 + s]];

    std::vector<bool> of_tensor(scalars.size());  // whether it depends on the tensor
    for (std::size_t i = 0; i < scalars.size(); ++i) {
        const ScalarNode& n = scalars[i];
        const std::uint16_t operand[] = {n.a, n.b, n.c};
        of_tensor[i] = (n.op == ScalarOp::reduced && reductions[n.a].over == Over::tensor) || n.op == ScalarOp::state ||
                       n.op == ScalarOp::shape;
        for (int k = 0; k < arity(n.op); ++k) of_tensor[i] = of_tensor[i] || of_tensor[operand[k]];
    }
    for (const CarriedNumber& c : carried)
        if (of_tensor[c.node]) return "a carried number that depends on one tensor";

    passes_.clear();
    for (std::size_t p = 0; p <= reductions.size() + 1; ++p) {
        for (const Over over : {Over::tensor, Over::all, Over::rows, Over::matrix}) {
            Pass pass{};
            pass.over = over;
            pass.phase = p;
            for (std::size_t r = 0; r < reductions.size(); ++r) {
                const Over own = reductions[r].over == Over::columns ? Over::rows : reductions[r].over;
                if (phase[r] == p && own == over) pass.reductions.push_back(std::uint16_t(r));
            }
            if (!pass.reductions.empty()) passes_.push_back(std::move(pass));
        }
    }
    return {};
}

// Makes the code of what a stage needs for each row and column: for the element nodes `targets`, and `more`. Sets
// `place` to the operands' buffers, from which the code for elements reads them.
std::string Program::compile_lines(Stage& stage, std::span<const std::uint16_t> targets,
                                   std::span<const std::uint16_t> more, std::vector<int>& place) {
    place.assign(elements.size(), -1);
    const auto is_line = [&](std::uint16_t n) { return kind_[n] == Per::row || kind_[n] == Per::column; };
    const auto output_of = [&](std::uint16_t n) {
        std::vector<std::uint16_t>& outputs = stage.lines[kind_[n] == Per::row ? row : column].outputs;
        const auto at = std::find(outputs.begin(), outputs.end(), n) - outputs.begin();
        if (std::size_t(at) == outputs.size()) outputs.push_back(n);
        return std::size_t(at);
    };
    std::vector<bool> seen(elements.size());
    std::vector<std::uint16_t> rest(targets.begin(), targets.end());
    while (!rest.empty()) {
        const std::uint16_t n = rest.back();
        rest.pop_back();
        if (seen[n]) continue;
        seen[n] = true;
        if (is_line(n)) {
            place[n] = int(2 + element_states() + stage.operands.size());
            stage.operands.push_back({kind_[n] == Per::row ? row : column, output_of(n)});
            continue;
        }
        const std::uint16_t operand[] = {elements[n].a, elements[n].b, elements[n].c};
        for (int k = 0; k < arity(elements[n].op); ++k) rest.push_back(operand[k]);
    }
    if (stage.operands.size() > max_operands)
        return "more than " + std::to_string(max_operands) + " values of rows and columns beside elements";
    for (const std::uint16_t n : more) output_of(n);
    for (const Axis axis : {row, column}) {
        Lines& lines = stage.lines[axis];
        if (lines.outputs.empty()) continue;
        const Inputs& in = inputs_[axis];
        const std::size_t buffers = in.count() + lines.outputs.size();
        if (buffers > max_program_buffers)
            return "more than " + std::to_string(max_program_buffers) + " values of rows or columns";
        std::vector<int> inputs(elements.size(), -1);
        for (std::size_t i = 0; i < elements.size(); ++i) {
            const bool is_state = elements[i].op == ElementOp::state;
            if (!is_state && elements[i].op != ElementOp::reduced) continue;
            const std::vector<std::uint16_t>& of = is_state ? in.states : in.reductions;
            const auto at = std::find(of.begin(), of.end(), elements[i].a);
            if (at == of.end()) continue;
            inputs[i] = int((is_state ? 0 : in.states.size()) + std::size_t(at - of.begin()));
        }
        Compiler::Targets to;
        for (const std::uint16_t n : lines.outputs) to.emplace_back(n, int(in.count() + to.size()));
        Compiler compiler(*this, constants_, {Decay::none, false}, buffers, to, inputs);
        if (std::string error = compiler.run(); !error.empty()) return error;
        lines.code = compiler.code();
    }
    return {};
}

std::string Program::compile() {
    if (std::string error = find_kinds(); !error.empty()) return error;
    if (std::string error = order_phases(); !error.empty()) return error;
    constants_.clear();
    for (const ElementNode& n : elements) {
        if (n.op != ElementOp::scalar) continue;
        if (std::find(constants_.begin(), constants_.end(), n.a) == constants_.end()) constants_.push_back(n.a);
    }
    const auto own = std::stable_partition(constants_.begin(), constants_.end(),
                                           [&](std::uint16_t n) { return phase_of_scalar_[n] == 0; });
    own_constants_ = std::size_t(constants_.end() - own);
    if (common_constants + constants_.size() > max_constants)
        return "more than " + std::to_string(max_constants - common_constants) + " numbers beside elements";
    return compile_passes();
}

std::string Program::compile_passes() {
    std::vector<int> place;
    const auto compile_for = [&](Code& code, std::size_t buffers, const Compiler::Targets& targets) {
        for (const Decay decay : {Decay::none, Decay::decoupled, Decay::coupled}) {
            for (const bool scaled : {false, true}) {
                Compiler compiler(*this, constants_, {decay, scaled}, buffers, targets, place);
                if (std::string error = compiler.run(); !error.empty()) return error;
                code[std::size_t(decay)][scaled ? 1 : 0] = {compiler.code(), compiler.used()};
            }
        }
        return std::string();
    };
    const std::size_t own = 2 + element_states();
    const std::span<const std::uint16_t> all = results;
    std::vector<std::uint16_t> of_lines;
    for (std::size_t s = element_states(); s < per.size(); ++s)
        if (per[s] != Per::tensor) of_lines.push_back(results[1 + s]);
    update_ = {};
    writes_early_ = false;
    if (std::string error = compile_lines(update_, all.first(own - 1), of_lines, place); !error.empty()) return error;
    Compiler::Targets updated;
    for (std::size_t r = 0; r + 1 < own; ++r) updated.emplace_back(results[r], r == 0 ? 0 : int(r) + 1);
    if (std::string error = compile_for(update_.code, own + update_.operands.size(), updated); !error.empty())
        return error;
    for (Pass& pass : passes_) {
        std::vector<std::uint16_t> terms;
        for (const std::uint16_t r : pass.reductions) {
            const std::uint16_t n = reductions[r].element;
            const auto at = std::find(terms.begin(), terms.end(), n) - terms.begin();
            if (std::size_t(at) == terms.size()) terms.push_back(n);
            pass.term_of.push_back(std::size_t(at));
        }
        const bool of_matrix = pass.over == Over::matrix;
        const std::span<const std::uint16_t> none;
        if (std::string error = compile_lines(pass, of_matrix ? none : terms, of_matrix ? terms : none, place);
            !error.empty())
            return error;
        if (of_matrix) {
            pass.terms = 0;
            for (std::size_t i = 0; i < pass.reductions.size(); ++i) {
                const std::uint16_t n = reductions[pass.reductions[i]].element;
                const std::vector<std::uint16_t>& outputs = pass.lines[kind_[n] == Per::row ? row : column].outputs;
                pass.term_of[i] = std::size_t(std::find(outputs.begin(), outputs.end(), n) - outputs.begin());
            }
            continue;
        }
        pass.terms = terms.size();
        const std::size_t buffers = own + pass.operands.size();
        Compiler::Targets measured;
        for (const std::uint16_t n : terms) measured.emplace_back(n, int(buffers + measured.size()));
        if (std::string error = compile_for(pass.code, buffers + terms.size(), measured); !error.empty()) return error;
        const std::vector<std::size_t> early = &pass == &passes_.back() ? early_states() : std::vector<std::size_t>{};
        if (early.empty()) continue;
        for (const std::size_t s : early) {
            measured.emplace_back(results[1 + s], int(2 + s));
            std::erase_if(updated, [&](const auto& to) { return to.second == int(2 + s); });
        }
        const bool fits = compile_for(pass.early, buffers + terms.size(), measured).empty();
        for (const std::size_t s : early) place[results[1 + s]] = int(2 + s);
        writes_early_ = fits && compile_for(update_.early, own, updated).empty();
    }
    return {};
}

// The states that the last pass writes if it writes states early; none if it does not.
std::vector<std::size_t> Program::early_states() const {
    const Pass& pass = passes_.back();
    if (has_lines() || (pass.over != Over::tensor && pass.over != Over::all)) return {};
    // Whether a new value is known in the phase of the pass.
    std::vector<bool> known(elements.size());
    for (std::size_t i = 0; i < elements.size(); ++i) {
        const ElementNode& n = elements[i];
        const std::uint16_t operand[] = {n.a, n.b, n.c};
        known[i] = n.op != ElementOp::scalar || phase_of_scalar_[n.a] <= pass.phase;
        for (int k = 0; k < arity(n.op); ++k) known[i] = known[i] && known[operand[k]];
    }
    // The buffers that are read for these values, with the new values of states that have been written. A state is old
    // if its value before the step is read after that.
    struct Read {
        std::set<std::size_t> buffers;
        bool old = false;
    };
    const auto read_for = [&](std::vector<std::uint16_t> rest, const std::vector<std::size_t>& written) {
        Read read;
        std::set<std::size_t> seen;
        while (!rest.empty()) {
            const std::uint16_t i = rest.back();
            rest.pop_back();
            if (!seen.insert(i).second) continue;
            const ElementNode& n = elements[i];
            const auto of = [&](std::size_t s) { return results[1 + s] == i; };
            if (const auto s = std::find_if(written.begin(), written.end(), of); s != written.end()) {
                read.buffers.insert(2 + *s);
                continue;
            }
            const std::uint16_t operand[] = {n.a, n.b, n.c};
            rest.insert(rest.end(), operand, operand + arity(n.op));
            if (n.op == ElementOp::param || n.op == ElementOp::param_as_stored) read.buffers.insert(0);
            if (n.op == ElementOp::grad) read.buffers.insert(1);
            if (n.op != ElementOp::state) continue;
            read.buffers.insert(2 + n.a);
            read.old = read.old || std::find(written.begin(), written.end(), n.a) != written.end();
        }
        return read;
    };
    std::vector<std::uint16_t> terms;
    for (const std::uint16_t r : pass.reductions) terms.push_back(reductions[r].element);
    std::vector<std::size_t> best;
    std::size_t fewest = SIZE_MAX;
    // The first of those that read least; without early states, if that reads no more.
    for (std::size_t choice = 0; choice >> element_states() == 0; ++choice) {
        std::vector<std::size_t> early;
        std::vector<std::uint16_t> now = terms, later{results[0]};
        bool possible = true;
        for (std::size_t s = 0; s < element_states(); ++s) {
            const bool chosen = (choice >> s & 1) != 0;
            possible = possible && (!chosen || known[results[1 + s]]);
            (chosen ? now : later).push_back(results[1 + s]);
            if (chosen) early.push_back(s);
        }
        if (!possible) continue;
        const Read after = read_for(later, early);
        const std::size_t read = read_for(now, {}).buffers.size() + after.buffers.size();
        if (after.old || read >= fewest) continue;
        fewest = read;
        best = early;
    }
    return best;
}

std::size_t Program::max_outputs(Axis axis) const {
    std::size_t most = update_.lines[axis].outputs.size();
    for (const Pass& p : passes_) most = std::max(most, p.lines[axis].outputs.size());
    return most;
}

std::size_t Program::element_states() const { return std::size_t(std::count(per.begin(), per.end(), Per::element)); }

bool Program::has_lines() const {
    return std::any_of(per.begin(), per.end(), [](Per p) { return p == Per::row || p == Per::column; }) ||
           std::any_of(reductions.begin(), reductions.end(),
                       [](const ReductionNode& r) { return r.over != Over::tensor && r.over != Over::all; });
}

bool Program::knows_shapes() const {
    return has_lines() || element_states() < per.size() ||
           std::any_of(scalars.begin(), scalars.end(), [](const ScalarNode& n) { return n.op == ScalarOp::shape; });
}

std::pair<double, double> Program::common(const RuleInfo& rule, const HyperValues& hyper, double grad_scale) {
    // As in step_coefficients.
    return {rule.maximize(hyper) ? -grad_scale : grad_scale, rule.coupled_decay(hyper) ? rule.weight_decay(hyper)
                                                             : rule.decoupled(hyper)
                                                                 ? 1.0 - hyper.value[0] * rule.weight_decay(hyper)
                                                                 : 1.0};
}

const Program::Compiled& Program::code(const RuleInfo& rule, const HyperValues& hyper, double grad_scale,
                                       const Stage& stage, bool early) const {
    const auto [scale, factor] = common(rule, hyper, grad_scale);
    const Decay decay = rule.coupled_decay(hyper) ? Decay::coupled : factor == 1.0 ? Decay::none : Decay::decoupled;
    return (early ? stage.early : stage.code)[std::size_t(decay)][scale == 1.0 ? 0 : 1];
}

bool Program::uses_step() const {
    return std::any_of(scalars.begin(), scalars.end(), [](const ScalarNode& n) {
        return n.op == ScalarOp::step || n.op == ScalarOp::cumulative_product;
    });
}

bool Program::measures_all() const {
    return std::any_of(reductions.begin(), reductions.end(),
                       [](const ReductionNode& r) { return r.over == Over::all; });
}

void Program::evaluate(std::size_t phase, const RuleInfo& rule, const HyperValues& hyper, std::int64_t t,
                       const Isa& isa, double* values) const {
    const auto [first, last] = std::equal_range(phase_of_scalar_.begin(), phase_of_scalar_.end(), phase);
    isa.coefficients->evaluate(scalars.data(), std::size_t(first - phase_of_scalar_.begin()),
                               std::size_t(last - phase_of_scalar_.begin()), hyper.value,
                               rule.own.size() + readable_common, t, values);
}

namespace {

// Repeats each number over a block.
void expand(std::span<const double> numbers, std::size_t block, int type, void* to) {
    const auto fill = [&](auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        for (const double x : numbers) out = std::fill_n(out, block, T(x));
    };
    if (type == 1) {
        fill(static_cast<double*>(to));
    } else {
        fill(static_cast<float*>(to));
    }
}

}  // namespace

std::vector<CacheLine> Program::constants(const RuleInfo& rule, const HyperValues& hyper, double grad_scale,
                                          const Isa& isa, int type, const double* values) const {
    double number[max_constants];
    std::tie(number[0], number[1]) = common(rule, hyper, grad_scale);
    for (std::size_t i = 0; i < constant_count() - common_constants; ++i)
        number[common_constants + i] = values[constants_[i]];
    const std::size_t block = isa.kernels->program_block[type];
    const std::size_t bytes = block * (type == 1 ? sizeof(double) : sizeof(float));
    std::vector<CacheLine> out((constant_count() * bytes + sizeof(CacheLine) - 1) / sizeof(CacheLine));
    expand({number, constant_count()}, block, type, out.data());
    return out;
}

void Program::coefficients(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, int type,
                           const double* values, std::byte* out) const {
    const auto write = [&]<class T>(T) {
        const CommonCoefficients<T> first =
            common_coefficients<T>(hyper.value[0], {rule.weight_decay(hyper), rule.decoupled(hyper) ? 1.0 : 0.0,
                                                    rule.maximize(hyper) ? 1.0 : 0.0, grad_scale});
        std::memcpy(out, &first, sizeof first);
        static_assert(sizeof first % sizeof(T) == 0);
        if (constants_.empty()) std::memset(out + sizeof first, 0, sizeof(T));
        for (std::size_t i = 0; i < constants_.size(); ++i) {
            const T x = T(values[constants_[i]]);
            std::memcpy(out + sizeof first + i * sizeof x, &x, sizeof x);
        }
    };
    if (type == 1) {
        write(double{});
    } else {
        write(float{});
    }
}

void Program::coefficients(const RuleInfo& rule, const HyperValues& hyper, double grad_scale, std::int64_t t,
                           const Isa& isa, int type, std::byte* out) const {
    double values[max_scalar_nodes];
    evaluate(0, rule, hyper, t, isa, values);
    coefficients(rule, hyper, grad_scale, type, values, out);
}

void Program::use_compiled(std::size_t isa, const RuleCode& code) const {
    // Never freed: steps may be running it.
    compiled_[isa].store(new RuleCode(code), std::memory_order_release);
}

void Program::own_constants(const Isa& isa, int type, const double* values, std::vector<CacheLine>& out) const {
    double number[max_constants];
    const std::size_t first = constant_count() - common_constants;
    for (std::size_t i = 0; i < own_constants_; ++i) number[i] = values[constants_[first + i]];
    const std::size_t block = isa.kernels->program_block[type];
    const std::size_t bytes = block * (type == 1 ? sizeof(double) : sizeof(float));
    out.resize((own_constants_ * bytes + sizeof(CacheLine) - 1) / sizeof(CacheLine));
    expand({number, own_constants_}, block, type, out.data());
}

void Program::update_carried(const RuleInfo& rule, HyperValues& hyper, std::int64_t t,
                             std::span<const double> reduced) const {
    if (carried.empty()) return;
    double values[max_scalar_nodes] = {};
    for (std::size_t i = 0; i < scalars.size(); ++i)
        if (scalars[i].op == ScalarOp::reduced && !reduced.empty()) values[i] = reduced[scalars[i].a];
    // Any instruction set gives the same bits, because the order of operations is that of the nodes.
    built_isas().front().coefficients->evaluate(scalars.data(), 0, scalars.size(), hyper.value,
                                                rule.own.size() + readable_common, t, values);
    for (const CarriedNumber& c : carried) hyper.value[c.hyper] = values[c.node];
}

const RuleInfo* load_rule(std::span<const std::byte> bytes, std::string& error) {
    Loaded& all = loaded();
    const std::lock_guard guard(all.lock);
    for (const auto& r : all.rules) {
        const std::vector<std::uint8_t>& own = r->program.bytes;
        if (own.size() == bytes.size() && std::memcmp(own.data(), bytes.data(), own.size()) == 0) return &r->info;
    }
    auto made = std::make_unique<LoadedRule>();
    try {
        made->read(bytes, all.rules.size());
    } catch (const Refused& refused) {
        error = refused.why;
        return nullptr;
    }
    all.rules.push_back(std::move(made));
    return &all.rules.back()->info;
}

const char* why_no_function(const RuleInfo& rule) {
    return rule.program != nullptr && rule.program->carries_measured()
               ? "rule: it carries numbers on from step to step that depend on the gradients, and a function keeps "
                 "none; use "
               : nullptr;
}

const RuleInfo* find_program(std::string_view key) {
    if (key.find('@') == key.npos) return nullptr;
    Loaded& all = loaded();
    const std::lock_guard guard(all.lock);
    for (const auto& r : all.rules)
        if (key == r->info.key) return &r->info;
    return nullptr;
}

}  // namespace adaptk::detail
