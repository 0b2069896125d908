#include "step.hpp"

#include "compiler.hpp"
#include "dispatch.hpp"
#include "pool.hpp"
#include "threads.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace adaptk::detail {
namespace {

// Elements of a tile: what does not compute in place is widened into scratch, updated there, and narrowed back. Few, so
// that memory does not idle while a stage works in the cache; measured with RMSProp, AdaDelta and AdaGrad on bfloat16,
// 64M elements, two cores: 256 ran at 0.93 to 1.1 times float32's speed; 64 and 128 varied from 0.75 to 1.2, and 1024
// reached 0.6.
constexpr std::size_t tile = 256;

// A tile's memory is asked for this many tiles before it is used.
constexpr std::int64_t tiles_ahead = 4;

// Below this much work for each thread, waking another one costs more than it brings: some microseconds where it spins
// already and some tens where it sleeps, beside 10 us that a heavy rule takes for this many elements in cache.
constexpr std::int64_t least_work = 32768;

// Cuts between threads fall on multiples of this within a tensor, so that two threads never write one cache line, and
// tiles and rows of lanes stay whole.
constexpr std::int64_t cut_grain = 1024;

constexpr std::size_t line = cache_line;

int threads_for(std::int64_t elements) {
    const std::int64_t useful = elements / least_work;
    return int(std::clamp<std::int64_t>(useful, 1, num_threads()));
}

// run_on_threads under the floating-point mode of the contract, which the caller's thread is in already.
template <class Body> void in_parallel(int threads, const Body& body) {
    if (threads <= 1) {
        body(0, 1);
        return;
    }
    run_on_threads(threads, [&](int k, int n) {
        const FloatingPointMode mode;
        body(k, n);
    });
}

std::int64_t total_size(std::span<const TensorStep> tensors) {
    std::int64_t n = 0;
    for (const TensorStep& t : tensors) n += t.size;
    return n;
}

// A walk over the pieces of tensors that lie in [begin, end) of the flat index space, all tensors end to end.
// visit(tensor index, first element, elements).
template <class Visit>
void for_pieces(std::span<const TensorStep> tensors, std::int64_t begin, std::int64_t end, std::size_t tensor,
                std::int64_t offset, const Visit& visit) {
    for (; tensor < tensors.size() && offset < end; ++tensor) {
        const std::int64_t size = tensors[tensor].size;
        const std::int64_t first = std::max<std::int64_t>(begin - offset, 0);
        const std::int64_t last = std::min(end - offset, size);
        if (first < last) visit(tensor, first, last - first);
        offset += size;
    }
}

// Where thread k's share of the flat index space begins, moved to the grain of the tensor it falls into.
struct Cut {
    std::int64_t at;
    std::size_t tensor;   // that contains it
    std::int64_t offset;  // flat index of that tensor's first element
};

Cut cut_at(std::span<const TensorStep> tensors, std::int64_t total, int k, int n) {
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

bool aligned(const void* p, std::size_t to) { return reinterpret_cast<std::uintptr_t>(p) % to == 0; }

std::byte* at(const TensorStep& t, std::size_t buffer, DType type, std::int64_t element) {
    return static_cast<std::byte*>(t.buffer[buffer]) + std::size_t(element) * size_of(type);
}

// Storage to compute type and back, n <= tile elements. memcpy reads memory of any alignment.
void load(const KernelTable& k, DType from, const void* x, float* y, std::size_t n) {
    alignas(line) std::uint16_t moved[tile];
    if (from == DType::f32) {
        std::memcpy(y, x, n * sizeof(float));
        return;
    }
    if (!aligned(x, 2)) {
        std::memcpy(moved, x, n * 2);
        x = moved;
    }
    (from == DType::bf16 ? k.widen_bf16 : k.widen_f16)(x, y, n);
}

void load(const KernelTable& k, DType from, const void* x, double* y, std::size_t n) {
    if (from == DType::f64) {
        std::memcpy(y, x, n * sizeof(double));
        return;
    }
    alignas(line) float widened[tile];
    load(k, from, x, widened, n);
    k.widen_f32(widened, y, n);
}

void store(const KernelTable& k, DType to, const float* x, void* y, std::size_t n) {
    alignas(line) std::uint16_t moved[tile];
    if (to == DType::f32) {
        std::memcpy(y, x, n * sizeof(float));
        return;
    }
    void* out = aligned(y, 2) ? y : moved;
    (to == DType::bf16 ? k.narrow_bf16 : k.narrow_f16)(x, out, n);
    if (out != y) std::memcpy(y, moved, n * 2);
}

void store(const KernelTable&, DType, const double* x, void* y, std::size_t n) {
    std::memcpy(y, x, n * sizeof(double));
}

// A kernel over part of a tensor whose buffers are not all of type T and aligned for it.
template <class T>
void run_tiles(const KernelTable& k, StepKernel kernel, const void* scalars, const TensorStep& t, std::size_t buffers,
               std::int64_t first, std::int64_t n) {
    constexpr DType type = sizeof(T) == 4 ? DType::f32 : DType::f64;
    alignas(line) T scratch[max_buffers][tile];
    for (std::int64_t done = 0; done < n; done += std::int64_t(tile)) {
        const std::int64_t from = first + done;
        const auto m = std::size_t(std::min(n - done, std::int64_t(tile)));
        void* work[max_buffers] = {};
        void* home[max_buffers] = {};
        for (std::size_t b = 0; b < buffers; ++b) {
            const DType stored = b == 0 ? t.param : b == 1 ? t.grad : type;
            home[b] = at(t, b, stored, from);
            if (n - done > (tiles_ahead + 1) * std::int64_t(tile)) {
                const std::size_t bytes = tile * size_of(stored);
                prefetch(static_cast<const std::byte*>(home[b]), std::size_t(tiles_ahead) * bytes, bytes);
            }
            if (stored == type && aligned(home[b], sizeof(T))) {
                work[b] = home[b];
            } else {
                work[b] = scratch[b];
                load(k, stored, home[b], scratch[b], m);
            }
        }
        kernel(scalars, work, m);
        for (std::size_t b = 0; b < buffers; ++b) {
            if (b == 1 || work[b] == home[b]) continue;
            store(k, b == 0 ? t.param : type, scratch[b], home[b], m);
        }
    }
}

// A kernel over part of a tensor.
template <class T>
void run_piece(const KernelTable& k, StepKernel kernel, const void* scalars, const TensorStep& t, std::size_t buffers,
               std::int64_t first, std::int64_t n) {
    constexpr DType type = sizeof(T) == 4 ? DType::f32 : DType::f64;
    bool direct = t.param == type && t.grad == type;
    std::uintptr_t addresses = 0;
    for (std::size_t b = 0; b < buffers; ++b) addresses |= reinterpret_cast<std::uintptr_t>(t.buffer[b]);
    direct = direct && addresses % sizeof(T) == 0;
    if (!direct) {
        run_tiles<T>(k, kernel, scalars, t, buffers, first, n);
        return;
    }
    void* work[max_buffers];
    for (std::size_t b = 0; b < buffers; ++b) work[b] = at(t, b, type, first);
    kernel(scalars, work, std::size_t(n));
}

// Sums of squares of all gradients as a fixed tree: see norm_leaf. One slot a leaf, each written by one thread.
struct NormTree {
    std::vector<double> leaves;
    double scale = 1.0;                    // of the values before they are squared
    std::span<const double> factors = {};  // of each tensor, where they differ

    explicit NormTree(std::int64_t total)
        : leaves(std::size_t((total + std::int64_t(norm_leaf) - 1) / std::int64_t(norm_leaf))) {}

    void run_share(const KernelTable& k, std::span<const TensorStep> tensors, int thread, int threads) {
        const std::size_t begin = leaves.size() * std::size_t(thread) / std::size_t(threads);
        const std::size_t end = leaves.size() * std::size_t(thread + 1) / std::size_t(threads);
        const auto size = std::int64_t(norm_leaf);
        std::size_t tensor = 0;
        std::int64_t offset = 0;
        for (std::size_t leaf = begin; leaf < end; ++leaf) {
            const std::int64_t from = std::int64_t(leaf) * size;
            while (tensor < tensors.size() && offset + tensors[tensor].size <= from) offset += tensors[tensor++].size;
            alignas(line) double lanes[norm_lanes] = {};
            std::size_t phase = 0;
            for_pieces(
                tensors, from, from + size, tensor, offset, [&](std::size_t i, std::int64_t first, std::int64_t n) {
                    add_piece(k, tensors[i], first, n, phase, factors.empty() ? scale : scale * factors[i], lanes);
                    phase += std::size_t(n);
                });
            for (std::size_t w = norm_lanes / 2; w > 0; w /= 2)
                for (std::size_t i = 0; i < w; ++i) lanes[i] = lanes[i] + lanes[i + w];
            leaves[leaf] = lanes[0];
        }
    }

    static void add_piece(const KernelTable& k, const TensorStep& t, std::int64_t first, std::int64_t n,
                          std::size_t phase, double scale, double* lanes) {
        const void* x = at(t, 1, t.grad, first);
        if (t.grad == DType::f32 && aligned(x, 4)) {
            k.squares_f32(static_cast<const float*>(x), std::size_t(n), phase % norm_lanes, scale, lanes);
        } else if (t.grad == DType::f64 && aligned(x, 8)) {
            k.squares_f64(static_cast<const double*>(x), std::size_t(n), phase % norm_lanes, scale, lanes);
        } else {
            for (std::int64_t done = 0; done < n; done += std::int64_t(tile)) {
                const auto m = std::size_t(std::min(n - done, std::int64_t(tile)));
                const void* from = at(t, 1, t.grad, first + done);
                const std::size_t lane = (phase + std::size_t(done)) % norm_lanes;
                if (t.grad == DType::f64) {
                    alignas(line) double widened[tile];
                    load(k, t.grad, from, widened, m);
                    k.squares_f64(widened, m, lane, scale, lanes);
                } else {
                    alignas(line) float widened[tile];
                    load(k, t.grad, from, widened, m);
                    k.squares_f32(widened, m, lane, scale, lanes);
                }
            }
        }
    }

    double sum() const {
        std::vector<double> level = leaves;
        std::size_t n = level.size();
        if (n == 0) return 0.0;
        for (; n > 1; n = (n + 1) / 2) {
            for (std::size_t i = 0; i < n / 2; ++i) level[i] = level[2 * i] + level[2 * i + 1];
            if (n % 2 != 0) level[n / 2] = level[n - 1];
        }
        return level[0];
    }
};

// Squares of float64 gradients beyond 1e154 overflow and those below 1e-154 vanish: the norm is then taken once more
// of values scaled by a power of two, which changes no digit. The other types cannot get there.
double norm_of(NormTree& tree, const KernelTable& k, std::span<const TensorStep> tensors, bool& finite) {
    const double sum = tree.sum();
    finite = std::isfinite(sum);
    if (finite && sum >= 0x1p-900) return std::sqrt(sum);
    if (tree.factors.empty() &&
        std::none_of(tensors.begin(), tensors.end(), [](const TensorStep& t) { return t.grad == DType::f64; }))
        return std::sqrt(sum);
    tree.scale = sum < 1.0 ? 0x1p600 : 0x1p-600;
    tree.run_share(k, tensors, 0, 1);
    const double scaled = tree.sum();
    finite = std::isfinite(scaled);
    return std::sqrt(scaled) / tree.scale;
}

StepReport norm(std::span<const TensorStep> tensors, double scale, std::span<const double> factors) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    const std::int64_t total = total_size(tensors);
    NormTree tree(total);
    tree.factors = factors;
    in_parallel(threads_for(total), [&](int thread, int threads) { tree.run_share(k, tensors, thread, threads); });
    StepReport report;
    report.has_norm = true;
    report.grad_norm = std::fabs(scale) * norm_of(tree, k, tensors, report.finite);
    return report;
}

// Of the gradients times the step's factor and the one of their group's own.
StepReport norm_of_scaled(std::span<const TensorStep> tensors, std::span<const Segment> segments, double scale) {
    if (segments.empty()) return norm(tensors, scale, {});
    const auto own = [](const Segment& s) { return s.rule->grad_scale(s.hyper); };
    const double first = own(segments[0]);
    if (std::all_of(segments.begin(), segments.end(), [&](const Segment& s) { return own(s) == first; }))
        return norm(tensors, scale * first, {});
    std::vector<double> factors;
    for (const Segment& s : segments) factors.insert(factors.end(), s.count, own(s));
    return norm(tensors, scale, factors);
}

struct PreparedSegment {
    StepKernel kernel[2];
    std::size_t buffers;
    alignas(line) std::byte scalars[2][max_scalars_bytes];
};

void prepare(PreparedSegment& out, const Isa& isa, const Segment& s, double grad_scale, bool f32, bool f64) {
    const std::size_t index = s.rule->index;
    const bool coupled = s.rule->coupled_decay(s.hyper);
    out.buffers = 2 + s.rule->states.size();
    for (int type = 0; type < 2; ++type) {
        if (!(type == 0 ? f32 : f64)) continue;
        out.kernel[type] = isa.kernels->step[index][type][coupled ? 1 : 0];
        isa.scalars->prepare[index][type](s.hyper.value, grad_scale, s.step, out.scalars[type],
                                          s.has_memo ? s.memo : nullptr);
    }
}

void run_prepared(const KernelTable& k, const PreparedSegment& s, const TensorStep& t, std::int64_t first,
                  std::int64_t n) {
    if (t.param == DType::f64) {
        run_piece<double>(k, s.kernel[1], s.scalars[1], t, s.buffers, first, n);
    } else {
        run_piece<float>(k, s.kernel[0], s.scalars[0], t, s.buffers, first, n);
    }
}

}  // namespace

StepReport run_step(std::span<const TensorStep> tensors, std::span<const Segment> segments,
                    const StepOptions& options) {
    const FloatingPointMode mode;
    const Isa& isa = current_isa();
    const KernelTable& k = *isa.kernels;
    const std::int64_t total = total_size(tensors);
    StepReport report;
    double clip = 1.0;

    if (options.clip_norm >= 0.0 || options.skip_nonfinite || options.want_norm) {
        report = norm_of_scaled(tensors, segments, options.grad_scale);
        if (options.skip_nonfinite && !report.finite) {
            report.skipped = true;
            return report;
        }
        if (options.clip_norm >= 0.0 && !(report.grad_norm <= options.clip_norm))
            clip = options.clip_norm / report.grad_norm;
    }

    // One segment is the common case and takes no allocation.
    PreparedSegment single;
    std::vector<PreparedSegment> several(segments.size() > 1 ? segments.size() : 0);
    PreparedSegment* prepared = several.empty() ? &single : several.data();
    std::size_t tensor = 0;
    for (std::size_t s = 0; s < segments.size(); ++s) {
        bool f32 = false;
        bool f64 = false;
        for (std::size_t i = 0; i < segments[s].count; ++i, ++tensor)
            (tensors[tensor].param == DType::f64 ? f64 : f32) = true;
        const double scale = segments[s].rule->grad_scale(segments[s].hyper) * options.grad_scale * clip;
        prepare(prepared[s], isa, segments[s], scale, f32, f64);
    }

    in_parallel(threads_for(total), [&](int thread, int threads) {
        const Cut begin = cut_at(tensors, total, thread, threads);
        const Cut end = cut_at(tensors, total, thread + 1, threads);
        std::size_t segment = 0;
        std::size_t segment_end = segments.empty() ? 0 : segments[0].count;
        for_pieces(tensors, begin.at, end.at, begin.tensor, begin.offset,
                   [&](std::size_t i, std::int64_t first, std::int64_t n) {
                       while (i >= segment_end) segment_end += segments[++segment].count;
                       run_prepared(k, prepared[segment], tensors[i], first, n);
                   });
    });
    return report;
}

StepReport global_norm(std::span<const TensorStep> tensors, double scale) { return norm(tensors, scale, {}); }

void run_ceiling(std::span<const TensorStep> tensors, std::size_t written) {
    const FloatingPointMode mode;
    const KernelTable& k = *current_isa().kernels;
    const std::int64_t total = total_size(tensors);
    PreparedSegment s{};
    s.kernel[0] = k.ceiling[written - 1][0];
    s.kernel[1] = k.ceiling[written - 1][1];
    s.buffers = 1 + written;
    in_parallel(threads_for(total), [&](int thread, int threads) {
        const Cut begin = cut_at(tensors, total, thread, threads);
        const Cut end = cut_at(tensors, total, thread + 1, threads);
        for_pieces(
            tensors, begin.at, end.at, begin.tensor, begin.offset,
            [&](std::size_t i, std::int64_t first, std::int64_t n) { run_prepared(k, s, tensors[i], first, n); });
    });
}

void fill(void* state, std::int64_t size, DType type, double value) {
    if (type == DType::f64) {
        std::fill_n(static_cast<double*>(state), size, value);
    } else {
        std::fill_n(static_cast<float*>(state), size, float(value));
    }
}

void add_scaled(std::span<const TensorStep> tensors, double factor) {
    // p - lr * g with lr = -factor and g = the vector to add: gradient descent's kernel.
    Segment s{find_rule("sgd"), {}, 1, tensors.size()};
    s.hyper.value[0] = -factor;
    s.hyper.value[s.rule->own.size() + 3] = 1.0;
    run_step(tensors, {&s, 1}, {});
}

}  // namespace adaptk::detail
