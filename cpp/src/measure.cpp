#include "measure.hpp"

#include "leaves.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace adaptk::detail {
namespace {

// Bytes of scratch memory for a buffer: as many as keep what a pass reads and writes in the first level of the cache.
constexpr std::size_t scratch_bytes = 4096;
template <class T> constexpr std::int64_t chunk = scratch_bytes / sizeof(T);

// The tensors of a step that one program updates.
struct Member {
    ProgramRun* run;
    std::size_t tensor;  // of the segment
};

class Pass {
  public:
    Pass(const Isa& isa, const Program& program, const Program::Pass& pass, std::span<const ParamUpdate> tensors,
         std::span<const Member> members)
        : isa_(isa), program_(program), pass_(pass), tensors_(tensors), members_(members), leaves_(tensors, parts()),
          sums_(std::size_t(leaves_.count()) * pass.reductions.size()) {}

    // Of each part the values of the reductions.
    std::vector<std::vector<double>> run() {
        std::vector<std::vector<double>> values = totals(1.0);
        const std::vector<std::vector<double>> sums = values;
        for (std::size_t r = 0; r < values.size(); ++r) {
            for (std::size_t p = 0; p < values[r].size(); ++p) {
                double& x = values[r][p];
                switch (what(r)) {
                case Reduce::norm: x = std::sqrt(x); break;
                case Reduce::mean: x = x / double(std::max<std::int64_t>(leaves_.parts()[p].size, 1)); break;
                default: break;
                }
            }
        }
        // Squares of float64 that overflow or vanish: of values scaled by a power of two, which changes no digit.
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
    std::vector<double> sums_;  // of each leaf those of the reductions

    std::vector<ReductionPart> parts() const {
        Reduction reduction;
        reduction.scope = pass_.over == Over::tensor ? Scope::tensor : Scope::all;
        return reduction_parts(tensors_, reduction);
    }
    Reduce what(std::size_t r) const { return program_.reductions[pass_.reductions[r]].what; }
    bool wide() const {
        return std::any_of(tensors_.begin(), tensors_.end(), [](const ParamUpdate& t) { return t.compute() == 1; });
    }

    std::vector<std::vector<double>> totals(double scale) {
        const std::size_t count = pass_.reductions.size();
        leaves_.run([&] {
            return [&, scale, own = std::vector<CacheLine>(), step = ProgramStep{},
                    of = tensors_.size()](std::int64_t leaf, Leaves::Place place, std::int64_t n) mutable {
                alignas(cache_line) double sums[max_reductions][reduction_width];
                for (std::size_t r = 0; r < count; ++r) std::fill_n(sums[r], reduction_width, 0.0);
                std::size_t row = 0;
                const Leaves::Place end =
                    leaves_.for_pieces(place, n, [&](std::size_t i, std::int64_t first, std::int64_t m) {
                        const ParamUpdate& t = tensors_[i];
                        const int type = int(t.compute());
                        if (of != i) {
                            step = members_[i].run->step_of(isa_, members_[i].tensor, type, own, &pass_);
                            of = i;
                        }
                        type == 1 ? add_piece<double>(step, t, first, m, row, scale, sums)
                                  : add_piece<float>(step, t, first, m, row, scale, sums);
                        row = (row + std::size_t(m)) % reduction_width;
                    });
                for (std::size_t r = 0; r < count; ++r) sums_[std::size_t(leaf) * count + r] = Leaves::fold(sums[r]);
                return end;
            };
        });
        std::vector<std::vector<double>> out;
        for (std::size_t r = 0; r < count; ++r) out.push_back(leaves_.totals(sums_.data() + r, count));
        return out;
    }

    template <class T>
    void add_piece(const ProgramStep& step, const ParamUpdate& t, std::int64_t first, std::int64_t n, std::size_t row,
                   double scale, double (&sums)[max_reductions][reduction_width]) const {
        constexpr int type = sizeof(T) == 8 ? 1 : 0;
        const KernelTable& k = *isa_.kernels;
        const std::size_t count = pass_.reductions.size();
        const std::size_t buffers = step.buffers - count;
        bool in_place[max_buffers];
        bool all = true;
        for (std::size_t b = 0; b < buffers; ++b) {
            in_place[b] = t.format[b] == native_format<T> && aligned(t.buffer[b], sizeof(T));
            all = all && in_place[b];
        }
        alignas(cache_line) T term[max_reductions][std::size_t(chunk<T>)];
        alignas(cache_line) T scratch[max_buffers][std::size_t(chunk<T>)];
        for (std::int64_t done = 0; done < n;) {
            // From a multiple of a tile on, if something is decoded: blocks of a format are whole.
            const std::int64_t from = first + done;
            const std::int64_t begin = all ? from : from / std::int64_t(tile) * std::int64_t(tile);
            const auto skipped = std::size_t(from - begin);
            const std::int64_t m = std::min(n - done, chunk<T> - std::int64_t(skipped));
            void* work[max_program_buffers];
            for (std::size_t b = 0; b < buffers; ++b) {
                work[b] = in_place[b] ? static_cast<void*>(at(t, b, begin)) : scratch[b];
                if (in_place[b]) continue;
                for (std::int64_t d = 0; d < std::int64_t(skipped) + m; d += std::int64_t(tile))
                    decode_tile(k, t, b, begin + d,
                                std::size_t(std::min(std::int64_t(skipped) + m - d, std::int64_t(tile))),
                                scratch[b] + d);
            }
            for (std::size_t r = 0; r < count; ++r) work[buffers + r] = term[r];
            k.program[type](&step, work, skipped + std::size_t(m));
            for (std::size_t r = 0; r < count; ++r) {
                const Term of = what(r) == Reduce::norm ? Term::square : Term::value;
                k.reduction[std::size_t(of)].add[type](term[r] + skipped, std::size_t(m),
                                                       (row + std::size_t(done)) % reduction_width, scale, sums[r]);
            }
            done += m;
        }
    }
};

void measure_program(const Isa& isa, const Program& program, std::span<const ParamUpdate> tensors,
                     std::span<const Member> members, StepReport& report) {
    const std::size_t count = program.scalars.size();
    std::vector<double> of_all(program.reductions.size());
    std::size_t known = 0;
    const auto know = [&](std::size_t phase) {
        while (known < phase) {
            ++known;
            for (const Member& m : members) {
                const Segment& s = *m.run->segment;
                program.evaluate(known, *s.rule, s.hyper, s.step, isa, m.run->values.data() + m.tensor * count);
            }
        }
    };
    for (const Program::Pass& pass : program.passes()) {
        know(pass.phase);
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
    if (!program.passes().empty()) know(program.passes().back().phase + 1);
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
    values.resize(count * of.count);
    for (std::size_t i = 1; i < of.count; ++i)
        std::copy_n(values.begin(), count, values.begin() + std::ptrdiff_t(i * count));
}

ProgramStep ProgramRun::step_of(const Isa& isa, std::size_t tensor, int type, std::vector<CacheLine>& own,
                                const Program::Pass* pass) const {
    const Program& p = program();
    if (p.own_constant_count() > 0) p.own_constants(isa, type, values_of(tensor), own);
    const std::size_t buffers = rule().buffers();
    const std::size_t outputs = pass == nullptr ? 0 : pass->reductions.size();
    const std::uint32_t own_buffers = (std::uint32_t{1} << buffers) - 1;
    const std::uint32_t all = (std::uint32_t{1} << (buffers + outputs)) - 1;
    return {p.code(rule(), segment->hyper, grad_scale, pass),
            buffers + outputs,
            pass == nullptr ? own_buffers & ~std::uint32_t{2} : all & ~own_buffers,
            p.constant_count(),
            constants[type].data(),
            p.own_constant_count(),
            own.data()};
}

void measure(const Isa& isa, std::span<const ParamUpdate> tensors, std::span<ProgramRun* const> runs,
             std::span<const Segment> segments, StepReport& report) {
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
                own.push_back(tensors[tensor + i]);
                members.push_back({runs[k], i});
            }
        }
        measure_program(isa, *program, own, members, report);
    }
}

}  // namespace adaptk::detail
