#include "step.hpp"

#include "checks.hpp"
#include "dispatch.hpp"
#include "measure.hpp"
#include "parallel.hpp"
#include "reduce.hpp"
#include "rows.hpp"
#include "rule_program.hpp"
#include "stream.hpp"
#include "vector_form.hpp"

#include <atomic>
#include <cmath>
#include <vector>

namespace adaptk::detail {
namespace {

// A tile is prefetched this many tiles before it is used, into the second level of the cache. A tile is 20 to 80 lines
// at once, more than the miss buffers of the first level hold, and a prefetch that finds them full stalls as a load
// does. Measured with Adam on bfloat16 states, 32M elements, two cores: 1.3 to 1.4 of float32's speed, and 0.9 with
// prefetches into the first level.
constexpr std::int64_t tiles_ahead = 8;

// Calls visit(tensor index, first element, elements) for the pieces of tensors in [begin, end) of the flat index space,
// which is all tensors end to end.
template <class Visit>
void for_each_chunk(std::span<const ParamUpdate> tensors, std::int64_t begin, std::int64_t end, std::size_t tensor,
                    std::int64_t offset, Visit&& visit) {
    for (; tensor < tensors.size() && offset < end; ++tensor) {
        const std::int64_t size = tensors[tensor].size;
        const std::int64_t first = std::max<std::int64_t>(begin - offset, 0);
        const std::int64_t last = std::min(end - offset, size);
        if (first < last) visit(tensor, first, last - first);
        offset += size;
    }
}

// Where thread k's share of the flat index space begins, rounded down to a multiple of cut_grain in its tensor.
struct Cut {
    std::int64_t at;
    std::size_t tensor;   // that contains it
    std::int64_t offset;  // flat index of that tensor's first element
};

Cut cut_at(std::span<const ParamUpdate> tensors, std::int64_t total, int k, int n) {
    const auto wanted = std::int64_t(double(total) * k / n);
    if (k == n) return {total, tensors.size(), total};
    std::int64_t offset = 0;
    for (std::size_t i = 0; i < tensors.size(); ++i) {
        const std::int64_t size = tensors[i].size;
        if (wanted < offset + size) {
            const std::int64_t inside = (wanted - offset) / cut_grain * cut_grain;
            return {offset + inside, i, offset};
        }
        offset += size;
    }
    return {total, tensors.size(), total};
}

// The number of elements that a rule updates before its epilogues run: enough of each buffer for a long loop
// (rule_loop.hpp), and few enough that what the rule has touched is still in the cache.
template <class T> constexpr std::int64_t epilogue_block = 16384 / sizeof(T);
// The same for the kernels of stored buffers, whose prefetches then fetch the next block while an epilogue runs.
// Offloaded AdamW ran at 0.9 of the ceiling with 512 elements, at 0.85 with 4096.
constexpr std::int64_t stored_epilogue_block = 512;

// A step of at least this many elements writes copies with non-temporal stores. The cache would not hold the copies
// until they are read, and other stores read each line first: 2 of 30 bytes per param in offloaded AdamW, which went
// from 0.85 to 0.92 of the ceiling (64M elements). A step followed by a read of the copies took as long with 1M
// elements, and less with 4M.
constexpr std::int64_t streamed_step = std::int64_t(1) << 21;

// Runs the epilogues after the rule, on each part of a tensor.
struct EpilogueRun {
    const KernelTable& k;
    const StepOptions& options;
    const Epilogue* epilogue;  // the tensor's, or null
    bool streams = false;      // copies have non-temporal stores

    EpilogueRun(const KernelTable& kernels, const StepOptions& of_step, std::size_t tensor, std::int64_t elements = 0)
        : k(kernels), options(of_step), epilogue(of_step.epilogues.empty() ? nullptr : &of_step.epilogues[tensor]),
          streams(can_stream && elements >= streamed_step && epilogue != nullptr && epilogue->copy.data != nullptr &&
                  !info_of(epilogue->copy.format).stochastic) {}
    EpilogueRun(const EpilogueRun&) = delete;
    EpilogueRun& operator=(const EpilogueRun&) = delete;
    ~EpilogueRun() {
        if (streams) end_streams();
    }

    // Elements first ... first + n - 1; `first` begins a tile.
    template <class T> void run(const ParamUpdate& t, std::int64_t first, std::int64_t n) const {
        if (options.zero_grad) std::memset(at(t, 1, first), 0, storage_bytes(t.grad(), n));
        write_epilogues<T>(t, first, n);
    }
    template <class T> void write_epilogues(const ParamUpdate& t, std::int64_t first, std::int64_t n) const {
        if (epilogue == nullptr || (epilogue->copy.data == nullptr && epilogue->average.data == nullptr)) return;
        const bool in_place = t.param() == native_format<T> && aligned(t.buffer[0], sizeof(T));
        for (std::int64_t done = 0; done < n; done += std::int64_t(tile)) {
            const std::int64_t from = first + done;
            const auto m = std::size_t(std::min(n - done, std::int64_t(tile)));
            alignas(cache_line) T decoded[tile];
            const T* p = decoded;
            if (in_place) {
                p = reinterpret_cast<const T*>(at(t, 0, from));
            } else {
                decode_tile(k, t, 0, from, m, decoded);
            }
            if (epilogue->copy.data != nullptr) copy(p, epilogue->copy, from, m);
            if (epilogue->average.data != nullptr) average(p, epilogue->average, from, m);
        }
    }

  private:
    template <class T> void copy(const T* p, const Slot& to, std::int64_t first, std::size_t n) const {
        if (!streams || !aligned(at(to, first), stream_alignment)) {
            encode_tile(k, p, to, first, n, 0);
            return;
        }
        alignas(cache_line) std::byte encoded[tile * sizeof(double)];
        k.format[std::size_t(to.format)].encode[sizeof(T) == 8 ? 1 : 0](p, encoded, to.side, first, n, 0);
        stream(at(to, first), encoded, std::size_t(storage_bytes(to.format, std::int64_t(n))));
    }
    template <class T> void average(const T* p, const Slot& to, std::int64_t first, std::size_t n) const {
        const AddToAverage add = k.add_to_average[sizeof(T) == 8 ? 1 : 0];
        const double weight = 1.0 - options.average_decay;
        if (to.format == native_format<T> && aligned(to.data, sizeof(T))) {
            add(at(to, first), p, weight, n);
            return;
        }
        alignas(cache_line) T decoded[tile];
        decode_tile(k, to, first, n, decoded);
        add(decoded, p, weight, n);
        encode_tile(k, decoded, to, first, n, 0);
    }
};

// Runs a kernel over part of a tensor whose buffers are not all of type T and aligned for it. `after` may be null, and
// so may `grad`, which replaces buffer 1 from the part's first element on, and `beside`, the operands after the
// buffers.
template <class T>
void run_tiles(const KernelTable& k, StepKernel kernel, const void* coefficients, std::uint64_t key,
               const ParamUpdate& t, std::size_t buffers, std::int64_t first, std::int64_t n, const EpilogueRun* after,
               const T* grad, const Operands* beside) {
    alignas(cache_line) T scratch[max_buffers][tile];
    alignas(cache_line) T lines[max_operands][tile];
    bool in_place[max_buffers];
    std::size_t tile_bytes[max_buffers];
    std::uint64_t keys[max_buffers];
    for (std::size_t b = 0; b < buffers; ++b) {
        in_place[b] = t.format[b] == native_format<T> && aligned(t.buffer[b], sizeof(T));
        tile_bytes[b] = storage_bytes(t.format[b], std::int64_t(tile));
        keys[b] = info_of(t.format[b]).stochastic ? buffer_key(key, t.number, std::uint32_t(b)) : 0;
    }
    for (std::int64_t done = 0; done < n; done += std::int64_t(tile)) {
        const std::int64_t from = first + done;
        const auto m = std::size_t(std::min(n - done, std::int64_t(tile)));
        const bool ask = n - done > (tiles_ahead + 1) * std::int64_t(tile);
        void* work[max_buffers + max_operands];
        for (std::size_t b = 0; b < buffers; ++b) {
            if (b == 1 && grad != nullptr) {
                work[1] = const_cast<T*>(grad + done);
                continue;
            }
            if (ask)
                prefetch<CacheLevel::second>(at(t, b, from), std::size_t(tiles_ahead) * tile_bytes[b], tile_bytes[b]);
            if (in_place[b]) {
                work[b] = at(t, b, from);
            } else {
                work[b] = scratch[b];
                decode_tile(k, t, b, from, m, scratch[b]);
            }
        }
        if (beside != nullptr) beside->put(from, m, lines, work + buffers);
        kernel(coefficients, work, m);
        for (std::size_t b = 0; b < buffers; ++b)
            if (b != 1 && !in_place[b]) encode_tile(k, scratch[b], t, b, from, m, keys[b]);
        if (after != nullptr) after->run<T>(t, from, std::int64_t(m));
    }
}

// The kernel that a segment runs on buffers of 16 bits and states in the formats of `8bit`, if it has one.
struct StoredStep {
    StoredKernel kernel = nullptr;
    bool coupled = false;
    bool nonnegative[max_states] = {};  // of the rule's states

    // How a buffer of the rule is stored; `other`, of a state, if the kernel does not know it.
    StoredAs kind(std::size_t buffer, Format format) const {
        static const Format linear = find_format("int8")->id, logarithmic = find_format("uint8")->id,
                            nearest = find_format("uint8_nearest")->id, bfloat16_sr = find_format("bfloat16_sr")->id,
                            float16_sr = find_format("float16_sr")->id,
                            remainder16 = find_format("bfloat16_remainder16")->id;
        if (format == Format::float32) return StoredAs::float32;
        if (format == Format::bfloat16) return StoredAs::bfloat16;
        if (format == bfloat16_sr) return StoredAs::bfloat16_sr;
        if (format == Format::float16 || format == float16_sr) return StoredAs::float16;
        if (buffer == 0 && format == remainder16) return StoredAs::remainder16;
        if (buffer < 2) return StoredAs::other;
        const bool fits = nonnegative[buffer - 2] ? format == logarithmic || format == nearest : format == linear;
        return fits ? StoredAs::codes : StoredAs::other;
    }
};

// run_tiles for whole blocks, in float. Returns the number of elements that are done.
std::int64_t run_stored(const KernelTable& k, const StoredStep& step, const void* coefficients, std::uint64_t key,
                        const ParamUpdate& t, std::size_t buffers, std::int64_t first, std::int64_t n,
                        const EpilogueRun* after, const float* grad) {
    static const std::int64_t block = info_of(find_format("int8")->id).block;
    if (step.kernel == nullptr || n < block || first % block != 0) return 0;
    StoredPiece piece{};
    piece.buffers = buffers;
    for (std::size_t b = 0; b < buffers; ++b) {
        StoredBuffer& buffer = piece.buffer[b];
        const bool given = b == 1 && grad != nullptr;
        const Format format = given ? Format::float32 : t.format[b];
        const FormatInfo& info = info_of(format);
        if (!given && !aligned(t.buffer[b], info.alignment)) return 0;
        buffer.as = step.kind(b, format);
        // States are all codes, which have a loop of their own, or none is.
        if (b >= 2 &&
            (buffer.as == StoredAs::other || (buffer.as == StoredAs::codes) != (piece.buffer[2].as == StoredAs::codes)))
            return 0;
        buffer.bytes = size_of(format);
        buffer.decode = k.format[std::size_t(format)].decode[0];
        buffer.encode = k.format[std::size_t(format)].encode[0];
        buffer.side = given ? nullptr : t.side[b];
        buffer.stochastic = info.stochastic;
        buffer.key = info.stochastic ? buffer_key(key, t.number, std::uint32_t(b)) : 0;
    }
    const std::int64_t whole = n / block * block;
    const std::int64_t part = after != nullptr ? stored_epilogue_block : whole;
    for (std::int64_t done = 0; done < whole; done += part) {
        const std::int64_t from = first + done;
        piece.first = from;
        piece.n = std::size_t(std::min(whole - done, part));
        for (std::size_t b = 0; b < buffers; ++b)
            piece.buffer[b].data =
                b == 1 && grad != nullptr ? const_cast<float*>(grad + done) : static_cast<void*>(at(t, b, from));
        step.kernel(coefficients, step.coupled, piece);
        if (after != nullptr) after->run<float>(t, from, std::int64_t(piece.n));
    }
    return whole;
}

// The number of elements for which operands of rows and columns are laid out at once.
template <class T> constexpr std::size_t operand_block = 4096 / sizeof(T);

// Runs a kernel over part of a tensor. `after`, `grad` and `beside` are those of run_tiles.
template <class T>
void run_piece(const KernelTable& k, StepKernel kernel, const StoredStep& stored, const void* coefficients,
               std::uint64_t key, const ParamUpdate& t, std::size_t buffers, std::int64_t first, std::int64_t n,
               const EpilogueRun* after, const T* grad = nullptr, const Operands* beside = nullptr) {
    bool direct = true;
    std::uintptr_t addresses = 0;
    for (std::size_t b = 0; b < buffers; ++b) {
        if (b == 1 && grad != nullptr) continue;
        direct = direct && t.format[b] == native_format<T>;
        addresses |= reinterpret_cast<std::uintptr_t>(t.buffer[b]);
    }
    if (!direct || addresses % sizeof(T) != 0) {
        if constexpr (sizeof(T) == 4) {
            const std::int64_t done = run_stored(k, stored, coefficients, key, t, buffers, first, n, after, grad);
            first += done;
            n -= done;
            if (grad != nullptr) grad += done;
        }
        run_tiles<T>(k, kernel, coefficients, key, t, buffers, first, n, after, grad, beside);
        return;
    }
    if (beside != nullptr) {
        alignas(cache_line) T lines[max_operands][operand_block<T>];
        for (std::int64_t done = 0; done < n; done += std::int64_t(operand_block<T>)) {
            const auto m = std::size_t(std::min(n - done, std::int64_t(operand_block<T>)));
            void* work[max_buffers + max_operands];
            for (std::size_t b = 0; b < buffers; ++b) work[b] = static_cast<T*>(t.buffer[b]) + first + done;
            beside->put(first + done, m, lines, work + buffers);
            kernel(coefficients, work, m);
            if (after != nullptr) after->run<T>(t, first + done, std::int64_t(m));
        }
        return;
    }
    const std::int64_t block = after != nullptr ? epilogue_block<T> : n;
    for (std::int64_t done = 0; done < n; done += block) {
        const std::int64_t m = std::min(n - done, block);
        void* work[max_buffers];
        for (std::size_t b = 0; b < buffers; ++b)
            work[b] =
                b == 1 && grad != nullptr ? const_cast<T*>(grad + done) : static_cast<T*>(t.buffer[b]) + first + done;
        kernel(coefficients, work, std::size_t(m));
        if (after != nullptr) after->run<T>(t, first + done, m);
    }
}

// What a segment's tensors run, by compute type: [0 float, 1 double].
struct PreparedSegment {
    StepKernel kernel[2];
    StoredStep stored;
    std::size_t buffers;
    std::uint64_t key;  // of stochastic rounding
    alignas(cache_line) std::byte coefficients[2][max_coefficients_bytes];
    ProgramRun program;
    bool measures = false;  // the coefficients are each tensor's own
    const Segment* segment;
    const RowWiseKernels* row_wise[2];  // of rules that keep one number for each row, else null

    void run(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::int64_t n,
             const EpilogueRun* after = nullptr) const {
        run_with(k, coefficients[t.compute()], t, first, n, after);
    }
    void run_with(const KernelTable& k, const void* of_step, const ParamUpdate& t, std::int64_t first, std::int64_t n,
                  const EpilogueRun* after, const Operands* beside = nullptr) const {
        if (t.compute() == 1) {
            run_piece<double>(k, kernel[1], stored, of_step, key, t, buffers, first, n, after, nullptr, beside);
        } else {
            run_piece<float>(k, kernel[0], stored, of_step, key, t, buffers, first, n, after, nullptr, beside);
        }
    }
    // The same with a gradient that has values for some rows and is 0 in all others.
    template <class T>
    void run_with_zeros(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::int64_t n,
                        const EpilogueRun* after) const {
        constexpr std::int64_t part = 4 * std::int64_t(tile);
        constexpr std::size_t type = sizeof(T) == 8 ? 1 : 0;
        alignas(cache_line) T grad[part];
        for (std::int64_t done = 0; done < n; done += part) {
            const std::int64_t m = std::min(n - done, part);
            gradient_of_rows(k, *t.rows, first + done, std::size_t(m), grad);
            run_piece<T>(k, kernel[type], stored, coefficients[type], key, t, buffers, first + done, m, after, grad);
        }
    }
    // A step of a tensor whose gradient has values for some rows, or whose rule keeps one number for each row.
    void run_rows(const KernelTable& k, const ParamUpdate& t, const EpilogueRun* after) const;
};

void prepare(PreparedSegment& out, const Isa& isa, const Segment& s, double grad_scale, const bool (&used)[2]) {
    const RuleCode& code = s.rule->code[isa.number];
    const bool coupled = s.rule->coupled_decay(s.hyper);
    // Only buffers with a number for each element. Others are read before the step and written after it.
    out.buffers = s.rule->measures ? 2 + s.rule->program->element_states() : s.rule->buffers();
    out.key = s.key();
    out.stored = {code.stored, coupled, {}};
    for (std::size_t i = 0; i < s.rule->states.size(); ++i) out.stored.nonnegative[i] = s.rule->states[i].nonnegative;
    out.segment = &s;
    out.measures = s.rule->measures;
    const RuleCode* compiled = nullptr;
    if (s.rule->program != nullptr) {
        if (!out.measures) compiled = s.rule->program->compiled(isa.number);
        const bool expanded = compiled == nullptr;
        out.program.begin(isa, s, grad_scale, {used[0] && expanded, used[1] && expanded});
    }
    for (int type = 0; type < 2; ++type) {
        if (!used[type]) continue;
        out.kernel[type] = code.step[type][coupled ? 1 : 0];
        out.row_wise[type] = code.row_wise == nullptr ? nullptr : &code.row_wise[type][coupled ? 1 : 0];
        if (const Program* const program = s.rule->program; program != nullptr) {
            if (out.measures) continue;
            if (compiled != nullptr) {
                out.kernel[type] = compiled->step[type][coupled ? 1 : 0];
                program->coefficients(*s.rule, s.hyper, grad_scale, type, out.program.values.data(),
                                      out.coefficients[type]);
                continue;
            }
            std::vector<CacheLine> none;
            const ProgramStep step = out.program.step_of(isa, 0, type, none);
            static_assert(sizeof step <= max_coefficients_bytes);
            std::memcpy(out.coefficients[type], &step, sizeof step);
            continue;
        }
        code.prepare[type](s.hyper.value, grad_scale, s.step, out.coefficients[type], s.has_memo ? s.memo : nullptr);
    }
}

// Calls make_run()(tensor, first element, elements) for all tensors, on as many threads as the work is worth.
template <class Run> void share_out(std::span<const ParamUpdate> tensors, std::int64_t total, const Run& make_run) {
    in_parallel(threads_for(total), [&](int thread, int threads) {
        const Cut begin = cut_at(tensors, total, thread, threads);
        const Cut end = cut_at(tensors, total, thread + 1, threads);
        for_each_chunk(tensors, begin.at, end.at, begin.tensor, begin.offset, make_run());
    });
}

void PreparedSegment::run_rows(const KernelTable& k, const ParamUpdate& t, const EpilogueRun* after) const {
    const std::size_t type = t.compute();
    const RowKernel run{kernel[type], coefficients[type], key, buffers, *segment, row_wise[type]};
    const bool all = t.rows == nullptr || t.rows->whole || t.rows->mode == SparseMode::dense;
    const bool with_zeros = all && t.row_buffer == 0;
    if (!all) {
        detail::run_rows(k, run, t);
    } else if (!with_zeros) {
        run_all_rows(k, run, t);
    }
    if (!with_zeros && after == nullptr) return;
    share_out({&t, 1}, t.size, [&] {
        return [&](std::size_t, std::int64_t first, std::int64_t n) {
            if (type == 1) {
                with_zeros ? run_with_zeros<double>(k, t, first, n, after) : after->run<double>(t, first, n);
            } else {
                with_zeros ? run_with_zeros<float>(k, t, first, n, after) : after->run<float>(t, first, n);
            }
        };
    });
}

double own_scale(const Segment& s) { return s.rule->grad_scale(s.hyper); }

// The norm of the gradients times the step's factor and that of their group.
StepReport norm_of_scaled(std::span<const ParamUpdate> tensors, std::span<const Segment> segments, double scale) {
    if (segments.empty()) return norm_of_gradients(tensors, scale, {});
    if (one_grad_scale(segments)) return norm_of_gradients(tensors, scale * own_scale(segments[0]), {});
    std::vector<double> factors;
    for (const Segment& s : segments) factors.insert(factors.end(), s.count, own_scale(s));
    return norm_of_gradients(tensors, scale, factors);
}

}  // namespace

bool one_grad_scale(std::span<const Segment> segments) {
    return std::all_of(segments.begin(), segments.end(),
                       [&](const Segment& s) { return own_scale(s) == own_scale(segments[0]); });
}

StepReport report_of_known_norm(std::span<const Segment> segments, const StepOptions& options) {
    StepReport report;
    const double scale = segments.empty() ? options.grad_scale : options.grad_scale * own_scale(segments[0]);
    report.grad_norm = std::fabs(scale) * options.known_norm;
    report.has_norm = true;
    report.finite = std::isfinite(options.known_norm);
    return report;
}

namespace {

// Elements first ... first + n - 1 of a tensor, whose program has been measured. `own` is scratch.
void update_measured(const Isa& isa, const PreparedSegment& s, std::size_t of, const ParamUpdate& t, std::int64_t first,
                     std::int64_t n, const EpilogueRun* behind, std::vector<CacheLine>& own) {
    const ProgramStep step = s.program.step_of(isa, of, int(t.compute()), own);
    const Operands beside = s.program.operands_of(of, t, s.program.program().update());
    s.run_with(*isa.kernels, &step, t, first, n, behind, beside.count > 0 ? &beside : nullptr);
}

// Steps small tensors whose programs have no reductions over several tensors. Each is stepped from its first pass to
// its update while it is in a thread's cache. Returns the tensors, of which those that are done are empty, or none if
// there were no such tensors.
std::vector<ParamUpdate> step_small(const Isa& isa, std::span<const ParamUpdate> tensors,
                                    std::span<const Segment> segments, PreparedSegment* prepared,
                                    const StepOptions& options) {
    struct Small {
        std::size_t segment, of;  // the tensor of that segment
        std::size_t tensor;
    };
    std::vector<Small> small;
    std::int64_t total = 0;
    std::size_t tensor = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) {
        const bool alone = prepared[s].measures && !segments[s].rule->program->measures_all();
        for (std::size_t i = 0; i < segments[s].count; ++i, ++tensor) {
            if (!alone || tensors[tensor].size == 0 || !is_small(tensors[tensor])) continue;
            small.push_back({s, i, tensor});
            total += tensors[tensor].size;
        }
    }
    if (small.empty()) return {};
    in_parallel(threads_for(total), [&](int thread, int threads) {
        std::vector<CacheLine> own;
        std::int64_t offset = 0;
        for (const Small& one : small) {
            const ParamUpdate& t = tensors[one.tensor];
            const std::int64_t middle = offset + t.size / 2;
            offset += t.size;
            if (middle < total * thread / threads || middle >= total * (thread + 1) / threads) continue;
            PreparedSegment& s = prepared[one.segment];
            measure_one(isa, t, s.program, one.of);
            const EpilogueRun after(*isa.kernels, options, one.tensor);
            update_measured(isa, s, one.of, t, 0, t.size, options.has_epilogue() ? &after : nullptr, own);
            s.program.write(one.of, t);
        }
    });
    std::vector<ParamUpdate> others(tensors.begin(), tensors.end());
    for (const Small& one : small) others[one.tensor].size = 0;
    return others;
}

// The part of run_step after the gradients' factor is known.
void run_segments(const Isa& isa, std::span<const ParamUpdate> tensors, std::span<const Segment> segments,
                  const StepOptions& options, double clip, StepReport& report) {
    // One segment is the common case and takes no allocation.
    PreparedSegment single;
    std::vector<PreparedSegment> several(segments.size() > 1 ? segments.size() : 0);
    PreparedSegment* prepared = several.empty() ? &single : several.data();
    std::size_t tensor = 0;
    std::int64_t total = 0;
    bool some_rows = false;
    for (std::size_t s = 0; s < segments.size(); ++s) {
        bool used[2] = {};
        for (std::size_t i = 0; i < segments[s].count; ++i, ++tensor) {
            used[tensors[tensor].compute()] = true;
            total += tensors[tensor].size;
            some_rows = some_rows || tensors[tensor].rows != nullptr || tensors[tensor].row_buffer != 0;
        }
        const double scale = segments[s].rule->grad_scale(segments[s].hyper) * options.grad_scale * clip;
        prepare(prepared[s], isa, segments[s], scale, used);
    }

    std::vector<ParamUpdate> others;
    if (std::any_of(segments.begin(), segments.end(), [](const Segment& s) { return s.rule->measures; })) {
        others = step_small(isa, tensors, segments, prepared, options);
        if (!others.empty()) {
            tensors = others;
            total = total_size(tensors);
        }
        std::vector<ProgramRun*> runs;
        for (std::size_t s = 0; s < segments.size(); ++s)
            runs.push_back(prepared[s].measures ? &prepared[s].program : nullptr);
        measure(isa, tensors, runs, segments, report);
    }

    const bool has_epilogue = options.has_epilogue();
    if (some_rows) {
        // Tensors with rows have parallel regions of their own.
        if (others.empty()) others.assign(tensors.begin(), tensors.end());
        total = 0;
        tensor = 0;
        for (std::size_t s = 0; s < segments.size(); ++s) {
            for (std::size_t i = 0; i < segments[s].count; ++i, ++tensor) {
                const ParamUpdate& t = tensors[tensor];
                const bool whole = t.rows != nullptr && t.rows->whole;
                if (whole) {
                    catch_up_rows(*isa.kernels, segments[s], t, segments[s].step - 1);
                    std::fill_n(t.rows->last_step, t.rows->rows(), segments[s].step);
                }
                if ((t.rows != nullptr && !whole) || t.row_buffer != 0) {
                    const EpilogueRun after(*isa.kernels, options, tensor);
                    prepared[s].run_rows(*isa.kernels, t, has_epilogue ? &after : nullptr);
                    others[tensor].size = 0;
                }
                total += others[tensor].size;
            }
        }
        tensors = others;
    }
    share_out(tensors, total, [&] {
        std::size_t segment = 0;
        std::size_t segment_end = segments.empty() ? 0 : segments[0].count;
        return [&, segment, segment_end, own = std::vector<CacheLine>()](std::size_t i, std::int64_t first,
                                                                         std::int64_t n) mutable {
            while (i >= segment_end) segment_end += segments[++segment].count;
            const PreparedSegment& s = prepared[segment];
            const ParamUpdate& t = tensors[i];
            const EpilogueRun after(*isa.kernels, options, i, total);
            const EpilogueRun* const behind = has_epilogue ? &after : nullptr;
            if (!s.measures) {
                s.run(*isa.kernels, t, first, n, behind);
                return;
            }
            update_measured(isa, s, i - (segment_end - segments[segment].count), t, first, n, behind, own);
        };
    });
    tensor = 0;
    for (std::size_t s = 0; s < segments.size(); tensor += segments[s++].count)
        for (std::size_t i = 0; prepared[s].measures && i < segments[s].count; ++i)
            prepared[s].program.write(i, tensors[tensor + i]);
}

}  // namespace

StepReport run_step(std::span<const ParamUpdate> tensors, std::span<const Segment> segments,
                    const StepOptions& options) {
    ADAPTK_CHECKS(check_work(tensors, segments));
    const FloatingPointMode mode;
    const Isa& isa = current_isa();
    StepReport report;
    double clip = options.clipped_by;
    if (options.needs_norm()) {
        report = options.has_norm ? report_of_known_norm(segments, options)
                                  : norm_of_scaled(tensors, segments, options.grad_scale);
        if (options.skip_nonfinite && !report.finite) {
            report.skipped = true;
            if (options.zero_grad) zero_grads(tensors);
            return report;
        }
        clip = options.clip_factor(report.grad_norm);
    }

    if (!Arranged::needed(tensors, segments)) {
        run_segments(isa, tensors, segments, options, clip, report);
        return report;
    }
    const Arranged arranged(tensors, segments, options.epilogues);
    StepOptions of_arranged = options;
    of_arranged.epilogues = arranged.epilogues;
    run_segments(isa, arranged.tensors, arranged.segments, of_arranged, clip, report);
    return report;
}

void set_shape(ParamUpdate& update, const RuleInfo& rule, std::int32_t ndim, const std::int64_t* shape) {
    for (std::size_t s = 0; s < rule.states.size(); ++s) update.per[s] = rule.states[s].per;
    if (rule.is_row_wise()) {
        update.row_buffer = 2 + rule.row_state;
        update.row_count = ndim > 0 ? shape[0] : 1;
    }
    if (!rule.measures) return;
    Grid& g = update.grid;
    g = {1, 1, 1, ndim < 2};
    if (ndim > 0) g.columns = shape[ndim - 1];
    if (ndim > 1) g.rows = shape[ndim - 2];
    for (std::int32_t i = 0; i + 2 < ndim; ++i) g.matrices *= shape[i];
}

void run_epilogues(std::span<const ParamUpdate> tensors, const StepOptions& options) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    const std::int64_t total = total_size(tensors);
    share_out(tensors, total, [&] {
        return [&](std::size_t i, std::int64_t first, std::int64_t n) {
            const EpilogueRun run(k, options, i, total);
            if (tensors[i].compute() == 1) {
                run.write_epilogues<double>(tensors[i], first, n);
            } else {
                run.write_epilogues<float>(tensors[i], first, n);
            }
        };
    });
}

void zero_grads(std::span<const ParamUpdate> tensors) {
    share_out(tensors, total_size(tensors), [&] {
        return [&](std::size_t i, std::int64_t first, std::int64_t n) {
            std::memset(at(tensors[i], 1, first), 0, storage_bytes(tensors[i].grad(), n));
        };
    });
}

StepReport global_norm(std::span<const ParamUpdate> tensors, double scale) {
    return norm_of_gradients(tensors, scale, {});
}

void run_bandwidth_probe(std::span<const ParamUpdate> tensors, std::size_t written) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    PreparedSegment s{};
    s.kernel[0] = k.bandwidth_probe[written - 1][0];
    s.kernel[1] = k.bandwidth_probe[written - 1][1];
    s.buffers = 1 + written;
    share_out(tensors, total_size(tensors), [&] {
        return [&](std::size_t i, std::int64_t first, std::int64_t n) { s.run(k, tensors[i], first, n); };
    });
}

std::uint64_t run_read_probe(const void* lines, std::int64_t count) {
    const KernelTable& k = *current_isa().kernels;
    std::atomic<std::uint64_t> seen{0};
    in_parallel(threads_for(count * std::int64_t(cache_line / sizeof(float))), [&](int thread, int threads) {
        const std::int64_t begin = count * thread / threads, end = count * (thread + 1) / threads;
        seen |= k.read_probe(static_cast<const std::byte*>(lines) + begin * std::int64_t(cache_line),
                             std::size_t(end - begin));
    });
    return seen;
}

void add_scaled(const KernelTable& k, const ParamUpdate& t, std::int64_t first, std::int64_t n, double factor) {
    if (t.compute() == 1) {
        run_piece<double>(k, k.add_scaled[1], {}, &factor, 0, t, 2, first, n, nullptr);
    } else {
        run_piece<float>(k, k.add_scaled[0], {}, &factor, 0, t, 2, first, n, nullptr);
    }
}

void add_scaled(std::span<const ParamUpdate> tensors, double factor) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    share_out(tensors, total_size(tensors), [&] {
        return [&](std::size_t i, std::int64_t first, std::int64_t n) { add_scaled(k, tensors[i], first, n, factor); };
    });
}

void fill(const Slot& state, std::int64_t size, double value) {
    const KernelTable& k = *current_isa().kernels;
    ParamUpdate t;
    t.size = size;
    t.set(0, state);
    const bool wide = compute_format(state.format) == Format::float64;
    alignas(cache_line) double doubles[tile];
    alignas(cache_line) float floats[tile];
    std::fill_n(doubles, tile, value);
    std::fill_n(floats, tile, float(value));
    for (std::int64_t at = 0; at < size; at += std::int64_t(tile)) {
        const auto n = std::size_t(std::min(size - at, std::int64_t(tile)));
        if (wide) {
            encode_tile(k, doubles, t, 0, at, n, 0);
        } else {
            encode_tile(k, floats, t, 0, at, n, 0);
        }
    }
}

namespace {

// Calls run(update of the one buffer, first element, elements <= tile) for each tile.
template <class Run> void for_tiles(const Slot& slot, std::int64_t size, const Run& run) {
    const FloatingPointMode mode;
    ParamUpdate t;
    t.size = size;
    t.set(0, slot);
    share_out({&t, 1}, size, [&] {
        return [&](std::size_t, std::int64_t first, std::int64_t n) {
            for (std::int64_t done = 0; done < n; done += std::int64_t(tile))
                run(t, first + done, std::size_t(std::min(n - done, std::int64_t(tile))));
        };
    });
}

}  // namespace

void encode(const float* from, const Slot& to, std::int64_t size, std::uint64_t buffer_key) {
    const KernelTable& k = *current_isa().kernels;
    for_tiles(to, size, [&](const ParamUpdate& t, std::int64_t first, std::size_t n) {
        encode_tile(k, from + first, t, 0, first, n, buffer_key);
    });
}

void decode(const Slot& from, float* to, std::int64_t size) {
    const KernelTable& k = *current_isa().kernels;
    for_tiles(from, size, [&](const ParamUpdate& t, std::int64_t first, std::size_t n) {
        decode_tile(k, t, 0, first, n, to + first);
    });
}

}  // namespace adaptk::detail
