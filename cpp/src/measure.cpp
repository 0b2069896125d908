#include "measure.hpp"

#include "leaves.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

namespace adaptk::detail {
namespace {

// The bytes of scratch memory of a buffer. What a pass reads and writes then stays in the first level of the cache.
constexpr std::size_t scratch_bytes = 4096;
template <class T> constexpr std::size_t chunk = scratch_bytes / sizeof(T);

template <class T> bool in_place(const ParamUpdate& t, std::size_t buffer) {
    return t.format[buffer] == native_format<T> && aligned(t.buffer[buffer], sizeof(T));
}

// A tensor of a step, with the run of the program that updates it.
struct Member {
    ProgramRun* run;
    std::size_t tensor;  // of the segment
};

// Computes the terms of a pass, on one thread.
class Terms {
  public:
    Terms(const Isa& isa, const Program& program, const Program::Pass& pass, std::span<const ParamUpdate> tensors,
          std::span<const Member> members)
        : isa_(isa), own_buffers_(2 + program.element_states()), pass_(pass), tensors_(tensors), members_(members),
          of_(tensors.size()) {}

    // Adds the terms of n elements from `first` on to the sums of the reductions. `row`: the accumulator of the first.
    template <class T>
    void add(std::size_t tensor, std::int64_t first, std::int64_t n, std::size_t row, double scale,
             std::span<BufferSum> sums) {
        prepare<T>(tensor);
        const ParamUpdate& t = tensors_[tensor];
        bool direct = operands_.count == 0;
        for (std::size_t b = 0; b < own_buffers_; ++b) direct = direct && in_place<T>(t, b);
        if (!direct) {
            run<T>(tensor, first, n, [&](const T* const* term, std::int64_t from, std::int64_t m) {
                for (const BufferSum& s : sums)
                    s.add(term[s.buffer - own_buffers_], std::size_t(m),
                          (row + std::size_t(from - first)) % reduction_width, scale, s.sums);
            });
            return;
        }
        alignas(cache_line) T term[max_reductions][tile];
        void* work[max_program_buffers];
        for (std::size_t b = 0; b < own_buffers_; ++b) work[b] = at(t, b, first);
        for (std::size_t r = 0; r < pass_.terms; ++r) work[own_buffers_ + r] = term[r];
        ProgramStep step = step_;
        const std::uint32_t own = (std::uint32_t{1} << own_buffers_) - 1;
        step.written &= own;
        step.used &= own;
        const BlockSums of_block{sums.data(), sums.size(), pass_.terms, row, scale};
        step.sums = &of_block;
        isa_.kernels->program[sizeof(T) == 8 ? 1 : 0](&step, work, std::size_t(n));
    }

    // Calls take(terms, first element, elements) for the parts of n elements from `first` on, in order.
    template <class T, class Take> void run(std::size_t tensor, std::int64_t first, std::int64_t n, const Take& take) {
        prepare<T>(tensor);
        const ParamUpdate& t = tensors_[tensor];
        constexpr int type = sizeof(T) == 8 ? 1 : 0;
        const KernelTable& k = *isa_.kernels;
        bool direct[max_buffers];
        bool all = true;
        for (std::size_t b = 0; b < own_buffers_; ++b) {
            direct[b] = in_place<T>(t, b);
            all = all && direct[b];
        }
        alignas(cache_line) T term[max_reductions][chunk<T>];
        alignas(cache_line) T scratch[max_buffers][chunk<T>];
        alignas(cache_line) T beside[max_operands][chunk<T>];
        const T* terms[max_reductions];
        for (std::int64_t done = 0; done < n;) {
            // Decoding begins at a multiple of a tile, so that blocks of a format are whole.
            const std::int64_t from = first + done;
            const std::int64_t begin = all ? from : from / std::int64_t(tile) * std::int64_t(tile);
            const auto skipped = std::size_t(from - begin);
            const std::int64_t m = std::min(n - done, std::int64_t(chunk<T> - skipped));
            void* work[max_program_buffers];
            for (std::size_t b = 0; b < own_buffers_; ++b) {
                work[b] = direct[b] ? static_cast<void*>(at(t, b, begin)) : scratch[b];
                if (direct[b] || (step_.used >> b & 1u) == 0) continue;
                for (std::int64_t d = 0; d < std::int64_t(skipped) + m; d += std::int64_t(tile))
                    decode_tile(k, t, b, begin + d,
                                std::size_t(std::min(std::int64_t(skipped) + m - d, std::int64_t(tile))),
                                scratch[b] + d);
            }
            operands_.put(begin, skipped + std::size_t(m), beside, work + own_buffers_);
            for (std::size_t r = 0; r < pass_.terms; ++r) {
                work[own_buffers_ + operands_.count + r] = term[r];
                terms[r] = term[r] + skipped;
            }
            k.program[type](&step_, work, skipped + std::size_t(m));
            take(terms, from, m);
            done += m;
        }
    }

  private:
    template <class T> void prepare(std::size_t tensor) {
        if (of_ == tensor) return;
        const Member& m = members_[tensor];
        step_ = m.run->step_of(isa_, m.tensor, sizeof(T) == 8 ? 1 : 0, own_, &pass_);
        operands_ = m.run->operands_of(m.tensor, tensors_[tensor], pass_);
        of_ = tensor;
    }

    const Isa& isa_;
    std::size_t own_buffers_;
    const Program::Pass& pass_;
    std::span<const ParamUpdate> tensors_;
    std::span<const Member> members_;
    std::size_t of_;  // the tensor of the step
    std::vector<CacheLine> own_;
    ProgramStep step_{};
    Operands operands_;
};

// Reductions to one number, of each tensor or of all.
class Pass {
  public:
    Pass(const Isa& isa, const Program& program, const Program::Pass& pass, std::span<const ParamUpdate> tensors,
         std::span<const Member> members)
        : isa_(isa), program_(program), pass_(pass), tensors_(tensors), members_(members), leaves_(tensors, parts()),
          sums_(std::size_t(leaves_.count()) * pass.reductions.size()) {}

    // The values of the reductions for each part.
    std::vector<std::vector<double>> run() {
        if (program_.writes_early() && &pass_ == &program_.passes().back()) choose_early();
        std::vector<std::vector<double>> values = totals(1.0);
        const std::vector<std::vector<double>> sums = values;
        for (std::size_t r = 0; r < values.size(); ++r) {
            for (std::size_t p = 0; p < values[r].size(); ++p) {
                double& x = values[r][p];
                x = reduced(what(r), x, std::max<std::int64_t>(leaves_.parts()[p].size, 1));
            }
        }
        // If squares of float64 overflow or underflow, they are computed again with values scaled by a power of two,
        // which is exact.
        for (const double scale : {0x1p600, 0x1p-600}) {
            const auto again = [&](double sum) { return scale < 1.0 ? std::isinf(sum) : sum < 0x1p-900; };
            bool any = false;
            for (std::size_t r = 0; r < sums.size(); ++r)
                any = any || (what(r) == Reduce::norm && wide() && std::any_of(sums[r].begin(), sums[r].end(), again));
            if (!any) continue;
            const std::vector<std::vector<double>> scaled = totals(scale);
            for (std::size_t r = 0; r < sums.size(); ++r)
                for (std::size_t p = 0; p < sums[r].size(); ++p)
                    if (what(r) == Reduce::norm && again(sums[r][p])) values[r][p] = std::sqrt(scaled[r][p]) / scale;
        }
        return values;
    }

  private:
    const Isa& isa_;
    const Program& program_;
    const Program::Pass& pass_;
    std::span<const ParamUpdate> tensors_;
    std::span<const Member> members_;
    Leaves leaves_;
    std::vector<double> sums_;  // those of the reductions, for each leaf

    std::vector<ReductionPart> parts() const {
        Reduction reduction;
        reduction.scope = pass_.over == Over::tensor ? Scope::tensor : Scope::all;
        return reduction_parts(tensors_, reduction);
    }
    Reduce what(std::size_t r) const { return program_.reductions[pass_.reductions[r]].what; }
    bool wide() const {
        return std::any_of(tensors_.begin(), tensors_.end(), [](const ParamUpdate& t) { return t.compute() == 1; });
    }

    // States are written early if the pass is run once and what the update reads are the numbers that it computed: not
    // values that have been rounded.
    void choose_early() {
        if (wide()) return;
        for (std::size_t i = 0; i < tensors_.size(); ++i) {
            const ParamUpdate& t = tensors_[i];
            bool all = t.rows == nullptr && t.row_buffer == 0;
            for (std::size_t b = 0; b < 2 + program_.element_states(); ++b) all = all && in_place<float>(t, b);
            members_[i].run->early[members_[i].tensor] = all ? 1 : 0;
        }
    }

    std::vector<std::vector<double>> totals(double scale) {
        const std::size_t count = pass_.reductions.size();
        leaves_.run([&] {
            return [&, scale, terms = Terms(isa_, program_, pass_, tensors_, members_)](
                       std::int64_t leaf, Leaves::Place place, std::int64_t n) mutable {
                alignas(cache_line) double sums[max_reductions][reduction_width];
                for (std::size_t r = 0; r < count; ++r) std::fill_n(sums[r], reduction_width, start_of(what(r)));
                std::size_t row = 0;
                const Leaves::Place end =
                    leaves_.for_each_chunk(place, n, [&](std::size_t i, std::int64_t first, std::int64_t m) {
                        tensors_[i].compute() == 1 ? add_piece<double>(terms, i, first, m, row, scale, sums)
                                                   : add_piece<float>(terms, i, first, m, row, scale, sums);
                        row = (row + std::size_t(m)) % reduction_width;
                    });
                for (std::size_t r = 0; r < count; ++r)
                    sums_[std::size_t(leaf) * count + r] = with_combination(
                        what(r), [&](auto combine) { return Leaves::fold<decltype(combine)>(sums[r]); });
                return end;
            };
        });
        std::vector<std::vector<double>> out;
        for (std::size_t r = 0; r < count; ++r)
            out.push_back(with_combination(
                what(r), [&](auto combine) { return leaves_.totals<decltype(combine)>(sums_.data() + r, count); }));
        return out;
    }

    template <class T>
    void add_piece(Terms& terms, std::size_t tensor, std::int64_t first, std::int64_t n, std::size_t row, double scale,
                   double (&sums)[max_reductions][reduction_width]) const {
        BufferSum of[max_reductions];
        const std::size_t count = pass_.reductions.size();
        for (std::size_t r = 0; r < count; ++r)
            of[r] = {adder(*isa_.kernels, what(r), sizeof(T) == 8), 2 + program_.element_states() + pass_.term_of[r],
                     sums[r]};
        terms.add<T>(tensor, first, n, row, scale, {of, count});
    }
};

// Reduces the numbers of the rows or columns of each matrix to one, which each of them gets.
template <class T>
void reduce_matrices(const KernelTable& k, const Program& program, const Program::Pass& pass, const Grid& grid,
                     RowColumnValues& lines) {
    for (std::size_t i = 0; i < pass.reductions.size(); ++i) {
        const std::uint16_t number = pass.reductions[i];
        const Reduce what = program.reductions[number].what;
        for (const Program::Axis axis : {Program::row, Program::column}) {
            const Program::Inputs& in = program.inputs(axis);
            const auto found = std::find(in.reductions.begin(), in.reductions.end(), number);
            if (found == in.reductions.end()) continue;
            const auto* const from = static_cast<const T*>(lines.at(axis, in.count() + pass.term_of[i]));
            auto* const to =
                static_cast<T*>(lines.at(axis, in.states.size() + std::size_t(found - in.reductions.begin())));
            const std::int64_t n = axis == Program::row ? grid.rows : grid.columns;
            for (std::int64_t m = 0; m < grid.matrices; ++m)
                std::fill_n(to + m * n, n, T(reduced_in_order(k, what, from + m * n, n)));
        }
    }
}

// Calls run(tensor, own constants) for each tensor, on as many threads as its numbers of rows and columns are worth.
template <class Run> void for_tensors(std::span<const ParamUpdate> tensors, const Run& run) {
    std::int64_t total = 0;
    for (const ParamUpdate& t : tensors) total += t.grid.all_rows() + t.grid.all_columns();
    in_parallel(tensors.size() > 1 ? threads_for(4 * total) : 1, [&](int thread, int threads) {
        std::vector<CacheLine> own;
        const auto share = [&](int part) { return tensors.size() * std::size_t(part) / std::size_t(threads); };
        for (std::size_t i = share(thread); i < share(thread + 1); ++i)
            if (tensors[i].size > 0) run(i, own);
    });
}

void measure_program(const Isa& isa, const Program& program, std::span<const ParamUpdate> tensors,
                     std::span<const Member> members, StepReport& report) {
    const std::size_t count = program.scalars.size();
    std::vector<double> of_all(program.reductions.size());
    std::vector<RowColumnValues*> lines;
    for (const Member& m : members) lines.push_back(m.run->lines.empty() ? nullptr : &m.run->lines[m.tensor]);
    const auto run_lines = [&](const Program::Stage& stage) {
        if (!stage.has_lines()) return;
        for_tensors(tensors, [&](std::size_t i, std::vector<CacheLine>& own) {
            members[i].run->run_lines(isa, members[i].tensor, int(tensors[i].compute()), own, stage);
        });
    };
    std::size_t known = 0;
    const auto evaluate_until = [&](std::size_t phase) {
        while (known < phase) {
            ++known;
            for (const Member& m : members) {
                const Segment& s = *m.run->segment;
                program.evaluate(known, *s.rule, s.hyper, s.step, isa, m.run->values.data() + m.tensor * count);
            }
        }
    };
    for (const Program::Pass& pass : program.passes()) {
        evaluate_until(pass.phase);
        run_lines(pass);
        if (pass.over == Over::rows) {
            LineSums(*isa.kernels, program, pass, tensors, lines).run([&] {
                return Terms(isa, program, pass, tensors, members);
            });
            continue;
        }
        if (pass.over == Over::matrix) {
            for_tensors(tensors, [&](std::size_t i, std::vector<CacheLine>&) {
                const Grid& grid = tensors[i].grid;
                tensors[i].compute() == 1 ? reduce_matrices<double>(*isa.kernels, program, pass, grid, *lines[i])
                                          : reduce_matrices<float>(*isa.kernels, program, pass, grid, *lines[i]);
            });
            continue;
        }
        Pass work(isa, program, pass, tensors, members);
        const std::vector<std::vector<double>> values = work.run();
        for (std::size_t r = 0; r < values.size(); ++r) {
            const std::uint16_t number = pass.reductions[r];
            if (pass.over == Over::all) of_all[number] = values[r][0];
            for (std::size_t n = 0; n < count; ++n) {
                if (program.scalars[n].op != ScalarOp::reduced || program.scalars[n].a != number) continue;
                for (std::size_t i = 0; i < members.size(); ++i)
                    members[i].run->values[members[i].tensor * count + n] = values[r][pass.over == Over::all ? 0 : i];
            }
        }
    }
    evaluate_until(program.last_phase());
    run_lines(program.update());
    if (program.carries_measured()) report.measured.emplace_back(&program, std::move(of_all));
}

}  // namespace

void ProgramRun::begin(const Isa& isa, const Segment& of, double scale, const bool (&expanded)[2]) {
    segment = &of;
    grad_scale = scale;
    const std::size_t count = program().scalars.size();
    values.assign(count, 0.0);
    program().evaluate(0, rule(), of.hyper, of.step, isa, values.data());
    for (int type = 0; type < 2; ++type)
        if (expanded[type]) constants[type] = program().constants(rule(), of.hyper, scale, isa, type, values.data());
    if (!program().measures()) return;
    early.assign(program().writes_early() ? of.count : 0, 0);
    if (program().has_lines()) lines.resize(of.count);
    values.resize(count * of.count);
    for (std::size_t i = 1; i < of.count; ++i)
        std::copy_n(values.begin(), count, values.begin() + std::ptrdiff_t(i * count));
}

ProgramStep ProgramRun::step_of(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                                const Program::Pass* pass) const {
    const Program& p = program();
    const Program::Stage& stage = pass == nullptr ? p.update() : *pass;
    if (p.own_constant_count() > 0) p.own_constants(isa, type, values_of(tensor), own);
    const auto first = [](std::size_t bits) { return (std::uint32_t{1} << bits) - 1; };
    const std::size_t of_tensor = 2 + p.element_states();
    const std::size_t read = of_tensor + stage.operands.size();
    const std::size_t buffers = read + (pass == nullptr ? 0 : pass->terms);
    const bool with_early = is_early(tensor) && (pass == nullptr || pass == &p.passes().back());
    const Program::Compiled& compiled = p.code(rule(), segment->hyper, grad_scale, stage, with_early);
    const std::uint32_t own_written = first(of_tensor) & ~std::uint32_t{2}, terms = first(buffers) & ~first(read);
    return {compiled.code.data(),
            buffers,
            (pass == nullptr ? own_written
             : with_early    ? own_written | terms
                             : terms) &
                compiled.used,
            compiled.used,
            compiled.used & first(of_tensor),
            p.constant_count(),
            constants[type].data(),
            p.own_constant_count(),
            own.data()};
}

Operands ProgramRun::operands_of(std::size_t tensor, const ParamUpdate& t, const Program::Stage& stage) const {
    Operands out;
    out.grid = &t.grid;
    for (const Program::Operand& o : stage.operands)
        out.line[out.count++] = {lines[tensor].at(o.axis, program().inputs(o.axis).count() + o.output),
                                 o.axis == Program::row};
    return out;
}

void ProgramRun::read(std::size_t tensor, const ParamUpdate& t) {
    const Program& p = program();
    if (!p.knows_shapes() || t.size == 0) return;
    for (std::size_t n = 0; n < p.scalars.size(); ++n) {
        double& value = values[tensor * p.scalars.size() + n];
        const std::uint16_t a = p.scalars[n].a;
        if (p.scalars[n].op == ScalarOp::state) {
            float narrow;
            if (t.compute() == 1) {
                std::memcpy(&value, t.buffer[2 + a], sizeof value);
            } else {
                std::memcpy(&narrow, t.buffer[2 + a], sizeof narrow);
                value = double(narrow);
            }
        } else if (p.scalars[n].op == ScalarOp::shape) {
            value = Shape(a) == Shape::rows      ? double(t.grid.rows)
                    : Shape(a) == Shape::columns ? double(t.grid.columns)
                                                 : double(t.grid.is_vector);
        }
    }
    if (!p.has_lines()) return;
    RowColumnValues& own = lines[tensor];
    own = RowColumnValues(p, t);
    for (const Program::Axis axis : {Program::row, Program::column}) {
        const std::vector<std::uint16_t>& states = p.inputs(axis).states;
        for (std::size_t s = 0; s < states.size(); ++s)
            std::memcpy(own.at(axis, s), t.buffer[2 + states[s]], own.bytes(axis));
    }
}

void ProgramRun::write(std::size_t tensor, const ParamUpdate& t) const {
    const Program& p = program();
    if (t.size == 0) return;  // means of nothing
    for (std::size_t s = p.element_states(); s < p.per.size(); ++s) {
        const std::uint16_t result = p.results[1 + s];
        if (p.per[s] == Per::tensor) {
            const double value = values_of(tensor)[result];
            const auto narrow = float(value);
            std::memcpy(t.buffer[2 + s], t.compute() == 1 ? static_cast<const void*>(&value) : &narrow, t.bytes(2 + s));
            continue;
        }
        const Program::Axis axis = p.per[s] == Per::row ? Program::row : Program::column;
        const std::vector<std::uint16_t>& outputs = p.update().lines[axis].outputs;
        const auto at = std::size_t(std::find(outputs.begin(), outputs.end(), result) - outputs.begin());
        const RowColumnValues& own = lines[tensor];
        std::memcpy(t.buffer[2 + s], own.at(axis, p.inputs(axis).count() + at), own.bytes(axis));
    }
}

void ProgramRun::run_lines(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                           const Program::Stage& stage) {
    const Program& p = program();
    if (p.own_constant_count() > 0) p.own_constants(isa, type, values_of(tensor), own);
    for (const Program::Axis axis : {Program::row, Program::column}) {
        const Program::Lines& of = stage.lines[axis];
        const std::size_t n = lines[tensor].count(axis);
        if (of.outputs.empty() || n == 0) continue;
        const std::size_t in = p.inputs(axis).count(), buffers = in + of.outputs.size();
        void* work[max_program_buffers];
        for (std::size_t b = 0; b < buffers; ++b) work[b] = lines[tensor].at(axis, b);
        const ProgramStep step{of.code.data(),
                               buffers,
                               ((std::uint32_t{1} << buffers) - 1) & ~((std::uint32_t{1} << in) - 1),
                               (std::uint32_t{1} << buffers) - 1,
                               (std::uint32_t{1} << buffers) - 1,
                               p.constant_count(),
                               constants[type].data(),
                               p.own_constant_count(),
                               own.data()};
        isa.kernels->program[type](&step, work, n);
    }
}

void measure(const Isa& isa, std::span<const ParamUpdate> tensors, std::span<ProgramRun* const> runs,
             std::span<const Segment> segments, StepReport& report) {
    std::size_t at = 0;
    for (std::size_t s = 0; s < segments.size(); at += segments[s++].count)
        for (std::size_t i = 0; runs[s] != nullptr && i < segments[s].count; ++i) runs[s]->read(i, tensors[at + i]);
    std::vector<const Program*> done;
    for (std::size_t s = 0; s < segments.size(); ++s) {
        const Program* const program = segments[s].rule->program;
        if (runs[s] == nullptr || std::find(done.begin(), done.end(), program) != done.end()) continue;
        done.push_back(program);
        std::vector<ParamUpdate> own;
        std::vector<Member> members;
        std::size_t tensor = 0;
        for (std::size_t k = 0; k < segments.size(); tensor += segments[k++].count) {
            if (segments[k].rule->program != program) continue;
            for (std::size_t i = 0; i < segments[k].count; ++i) {
                // Nothing is written for tensors without elements. If the program reduces over all tensors, they still
                // count among these.
                if (tensors[tensor + i].size == 0 && !program->measures_all()) continue;
                own.push_back(tensors[tensor + i]);
                members.push_back({runs[k], i});
            }
        }
        if (!members.empty()) measure_program(isa, *program, own, members, report);
    }
}

void measure_one(const Isa& isa, const ParamUpdate& t, ProgramRun& run, std::size_t tensor) {
    run.read(tensor, t);
    const Member member{&run, tensor};
    StepReport none;
    measure_program(isa, run.program(), {&t, 1}, {&member, 1}, none);
}

}  // namespace adaptk::detail
