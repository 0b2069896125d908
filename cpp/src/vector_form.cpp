#include "vector_form.hpp"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

namespace adaptk::detail {
namespace {

using Number = std::uint16_t;

// Rewrites a program's nodes for vectors.
class Writer {
  public:
    explicit Writer(const Program& from) : from_(from) {}

    void write(VectorForm& to, const RuleInfo& rule) {
        order_states(to, rule);
        write_scalars();
        write_elements();
        for (std::size_t s = 0; s <= to.order.size(); ++s) {
            const std::size_t old = s == 0 ? 0 : 1 + to.order[s - 1];
            const bool of_tensor = s > 0 && to.states[s - 1].per == Per::tensor;
            results_.push_back(of_tensor ? scalar_[from_.results[old]] : element_[from_.results[old]]);
        }
        keep_what_is_needed(to);
    }

  private:
    const Program& from_;
    std::vector<Number> state_, scalar_, element_;  // the new number of each old state or node
    std::vector<ScalarNode> scalars_;
    std::vector<ElementNode> elements_;
    std::vector<ReductionNode> reductions_;
    std::vector<Number> results_;

    void order_states(VectorForm& to, const RuleInfo& rule) {
        for (std::size_t s = 0; s < rule.states.size(); ++s) to.order.push_back(s);
        std::stable_partition(to.order.begin(), to.order.end(), [&](std::size_t s) {
            return from_.per[s] == Per::element || from_.per[s] == Per::column;
        });
        state_.resize(to.order.size());
        for (std::size_t s = 0; s < to.order.size(); ++s) {
            State state = rule.states[to.order[s]];
            if (state.per == Per::column) state.per = Per::element;
            to.states.push_back(state);
            to.program.per.push_back(state.per);
            to.program.starts.push_back(from_.starts[to.order[s]]);
            state_[to.order[s]] = Number(s);
        }
    }

    void write_scalars() {
        for (const ScalarNode& n : from_.scalars) {
            ScalarNode out = n;
            Number* const operand[] = {&out.a, &out.b, &out.c};
            for (int k = 0; k < arity(n.op); ++k) *operand[k] = scalar_[*operand[k]];
            if (n.op == ScalarOp::state) out.a = state_[n.a];
            if (n.op == ScalarOp::shape && Shape(n.a) != Shape::columns) out = {ScalarOp::number, 0, 0, 0, 1.0};
            if (n.op == ScalarOp::select && scalars_[out.a].op == ScalarOp::number) {
                scalar_.push_back(scalars_[out.a].value != 0.0 ? out.b : out.c);
                continue;
            }
            scalar_.push_back(Number(scalars_.size()));
            scalars_.push_back(out);
        }
    }

    Number add(const ElementNode& n) {
        elements_.push_back(n);
        return Number(elements_.size() - 1);
    }
    Number write(const ElementNode& n) {
        ElementNode out = n;
        Number* const operand[] = {&out.a, &out.b, &out.c};
        for (int k = 0; k < arity(n.op); ++k) *operand[k] = element_[*operand[k]];
        if (n.op == ElementOp::scalar) out.a = scalar_[n.a];
        if (n.op == ElementOp::state) out.a = state_[n.a];
        if (n.op == ElementOp::reduced) {
            const ReductionNode& r = from_.reductions[n.a];
            if (r.over == Over::columns)
                return r.what == Reduce::norm ? add({ElementOp::absolute, element_[r.element], 0, 0})
                                              : element_[r.element];
        }
        if (n.op == ElementOp::select) {
            const ElementNode& condition = elements_[out.a];
            if (condition.op == ElementOp::scalar && scalars_[condition.a].op == ScalarOp::number)
                return scalars_[condition.a].value != 0.0 ? out.b : out.c;
        }
        // Removes operations with a factor that is 1 for vectors, which is exact.
        if (n.op == ElementOp::square_root && is_one(out.a)) return out.a;
        if ((n.op == ElementOp::divide || n.op == ElementOp::multiply) && is_one(out.b)) return out.a;
        if (n.op == ElementOp::multiply && is_one(out.a)) return out.b;
        return add(out);
    }
    bool is_one(Number element) const {
        const ElementNode& n = elements_[element];
        return n.op == ElementOp::scalar && scalars_[n.a].op == ScalarOp::number && scalars_[n.a].value == 1.0;
    }
    void write_elements() {
        for (const ElementNode& n : from_.elements) element_.push_back(write(n));
        reductions_ = from_.reductions;
        for (ReductionNode& r : reductions_) {
            if (r.over == Over::matrix && from_.kind(r.element) == Per::column) r.over = Over::rows;
            r.element = element_[r.element];
        }
    }

    // Leaves out nodes and reductions that nothing depends on, because they would cost passes.
    void keep_what_is_needed(VectorForm& to) {
        std::vector<bool> scalar(scalars_.size()), element(elements_.size()), reduction(reductions_.size());
        for (std::size_t s = 0; s < results_.size(); ++s)
            (s > 0 && to.states[s - 1].per == Per::tensor ? scalar : element)[results_[s]] = true;
        for (const CarriedNumber& c : from_.carried) scalar[scalar_[c.node]] = true;
        // Reductions depend only on reductions before them, but scalars and elements depend on one another.
        for (std::size_t turn = 0; turn <= reductions_.size(); ++turn) {
            for (std::size_t i = elements_.size(); i-- > 0;) {
                if (!element[i]) continue;
                const ElementNode& n = elements_[i];
                const Number operand[] = {n.a, n.b, n.c};
                for (int k = 0; k < arity(n.op); ++k) element[operand[k]] = true;
                if (n.op == ElementOp::scalar) scalar[n.a] = true;
                if (n.op == ElementOp::reduced) reduction[n.a] = true;
            }
            for (std::size_t i = scalars_.size(); i-- > 0;) {
                if (!scalar[i]) continue;
                const ScalarNode& n = scalars_[i];
                const Number operand[] = {n.a, n.b, n.c};
                for (int k = 0; k < arity(n.op); ++k) scalar[operand[k]] = true;
                if (n.op == ScalarOp::reduced) reduction[n.a] = true;
            }
            for (std::size_t r = 0; r < reductions_.size(); ++r)
                if (reduction[r]) element[reductions_[r].element] = true;
        }
        const auto places = [](const std::vector<bool>& kept) {
            std::vector<Number> place;
            Number next = 0;
            for (const bool k : kept) {
                place.push_back(next);
                if (k) ++next;
            }
            return place;
        };
        const std::vector<Number> of_scalar = places(scalar), of_element = places(element),
                                  of_reduction = places(reduction);
        Program& out = to.program;
        for (std::size_t i = 0; i < scalars_.size(); ++i) {
            if (!scalar[i]) continue;
            ScalarNode n = scalars_[i];
            Number* const operand[] = {&n.a, &n.b, &n.c};
            for (int k = 0; k < arity(n.op); ++k) *operand[k] = of_scalar[*operand[k]];
            if (n.op == ScalarOp::reduced) n.a = of_reduction[n.a];
            out.scalars.push_back(n);
        }
        for (std::size_t i = 0; i < elements_.size(); ++i) {
            if (!element[i]) continue;
            ElementNode n = elements_[i];
            Number* const operand[] = {&n.a, &n.b, &n.c};
            for (int k = 0; k < arity(n.op); ++k) *operand[k] = of_element[*operand[k]];
            if (n.op == ElementOp::scalar) n.a = of_scalar[n.a];
            if (n.op == ElementOp::reduced) n.a = of_reduction[n.a];
            out.elements.push_back(n);
        }
        for (std::size_t r = 0; r < reductions_.size(); ++r)
            if (reduction[r])
                out.reductions.push_back(
                    {reductions_[r].what, reductions_[r].over, of_element[reductions_[r].element]});
        for (std::size_t s = 0; s < results_.size(); ++s) {
            const bool of_tensor = s > 0 && to.states[s - 1].per == Per::tensor;
            out.results.push_back((of_tensor ? of_scalar : of_element)[results_[s]]);
        }
        for (const CarriedNumber& c : from_.carried) out.carried.push_back({c.hyper, of_scalar[scalar_[c.node]]});
    }
};

const VectorForm* form_of(const Segment& s) {
    return s.rule->measures ? s.rule->program->for_vectors(*s.rule) : nullptr;
}

}  // namespace

const VectorForm* Program::for_vectors(const RuleInfo& rule) const {
    // Reductions over all tensors depend on the order of the tensors.
    if (!has_lines() || measures_all()) return nullptr;
    std::call_once(vectors_made_, [&] {
        auto made = std::make_unique<VectorForm>();
        Writer(*this).write(*made, rule);
        // If the interpreter has no room for this form, the other one is used.
        if (!made->program.compile().empty()) return;
        made->info = rule;
        made->info.program = &made->program;
        made->info.states = made->states;
        made->info.measures = made->program.measures();
        vectors_ = std::move(made);
    });
    return vectors_.get();
}

ParamUpdate VectorForm::arranged(const ParamUpdate& vector) const {
    ParamUpdate out = vector;
    for (std::size_t s = 0; s < order.size(); ++s) {
        out.set(2 + s, vector.slot(2 + order[s]));
        out.per[s] = states[s].per;
    }
    return out;
}

bool Arranged::needed(std::span<const ParamUpdate> tensors, std::span<const Segment> segments) {
    std::size_t at = 0;
    for (const Segment& s : segments) {
        const std::span<const ParamUpdate> own = tensors.subspan(at, s.count);
        at += s.count;
        if (s.rule->measures && std::any_of(own.begin(), own.end(), [](auto& t) { return t.grid.is_vector; }) &&
            form_of(s) != nullptr)
            return true;
    }
    return false;
}

Arranged::Arranged(std::span<const ParamUpdate> all, std::span<const Segment> of, std::span<const Epilogue> beside) {
    tensors.reserve(all.size());
    std::size_t at = 0;
    for (const Segment& s : of) {
        const VectorForm* const form = form_of(s);
        for (const bool vectors : {false, true}) {
            Segment part = s;
            part.count = 0;
            if (vectors && form != nullptr) part.rule = &form->info;
            for (std::size_t i = at; i < at + s.count; ++i) {
                if ((form != nullptr && all[i].grid.is_vector) != vectors) continue;
                ++part.count;
                tensors.push_back(vectors ? form->arranged(all[i]) : all[i]);
                if (!beside.empty()) epilogues.push_back(beside[i]);
            }
            if (part.count > 0) segments.push_back(part);
        }
        at += s.count;
    }
}

}  // namespace adaptk::detail
