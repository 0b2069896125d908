#include "hogwild.hpp"

#include "compiler.hpp"
#include "pool.hpp"
#include "threads.hpp"

#include "adaptk/random.hpp"
#include "adaptk/rounding.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <vector>

// Before a loop whose arrays do not overlap. Not for Clang, which finds this out itself and would warn about loops that
// it cannot vectorise.
#if defined(__clang__)
#define ADAPTK_NO_OVERLAP
#else
#define ADAPTK_NO_OVERLAP ADAPTK_INDEPENDENT
#endif

namespace adaptk::detail {
namespace {

using std::int32_t;
using std::int64_t;
using std::size_t;
using std::uint32_t;
using std::uint64_t;

// Relaxed accesses to memory that other threads may write at the same time. Some standard libraries have no atomic_ref
// yet.
#if defined(__cpp_lib_atomic_ref)
template <class T> ADAPTK_HD T load(const T* p) {
    return std::atomic_ref<T>(*const_cast<T*>(p)).load(std::memory_order_relaxed);
}
template <class T> ADAPTK_HD void store(T* p, T x) { std::atomic_ref<T>(*p).store(x, std::memory_order_relaxed); }
template <class T> ADAPTK_HD bool exchange(T* p, T& expected, T x) {
    return std::atomic_ref<T>(*p).compare_exchange_weak(expected, x, std::memory_order_relaxed);
}
#else
template <class T> ADAPTK_HD T load(const T* p) {
    T x;
    __atomic_load(const_cast<T*>(p), &x, __ATOMIC_RELAXED);
    return x;
}
template <class T> ADAPTK_HD void store(T* p, T x) { __atomic_store(p, &x, __ATOMIC_RELAXED); }
template <class T> ADAPTK_HD bool exchange(T* p, T& expected, T x) {
    return __atomic_compare_exchange(p, &expected, &x, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}
#endif

// Two floats or one double: the unit of an atomic addition.
template <class T> using CellOf = std::conditional_t<sizeof(T) == 4, uint64_t, T>;

// Prefetches a line that will be written. The instruction does nothing on old processors that do not have it. Without
// an option, compilers would use the prefetch for reading, and the line would be fetched twice.
ADAPTK_HD void prefetch_to_write([[maybe_unused]] const void* p) {
#if defined(ADAPTK_GNU) && defined(__x86_64__)
    asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(p)));
#elif defined(ADAPTK_GNU)
    __builtin_prefetch(p, 1);
#endif
}

// e^x for x <= 0, within one or two units in the last place. It has the same bits everywhere, unlike the C library's. x
// = k ln 2 + r with |r| < 0.35; Taylor's series of 14 terms, of which the next is below 2^-57.
ADAPTK_HD double exp_of(double x) {
    const double bounded = x < -708.0 ? -708.0 : x;
    const double k = (bounded * 1.4426950408889634 + 0x1.8p52) - 0x1.8p52;
    const double r = (bounded - k * 0x1.62e42feep-1) - k * 0x1.a39ef35793c76p-33;
    const double r2 = r * r, r4 = r2 * r2;
    const double a = (1 + r) + r2 * (1.0 / 2 + r * (1.0 / 6));
    const double b = (1.0 / 24 + r * (1.0 / 120)) + r2 * (1.0 / 720 + r * (1.0 / 5040));
    const double c = (1.0 / 40320 + r * (1.0 / 362880)) + r2 * (1.0 / 3628800 + r * (1.0 / 39916800));
    const double d = 1.0 / 479001600 + r * (1.0 / 6227020800);
    const double sum = a + r4 * (b + r4 * (c + r4 * d));
    return sum * random_detail::bits_as<double>(uint64_t(int64_t(k) + 1023) << 52);
}

double power_of(double base, int64_t n) {
    double result = 1, square = base;
    for (; n > 0; n >>= 1, square *= square)
        if ((n & 1) != 0) result *= square;
    return result;
}

// Calls body(thread, threads) on this many threads in the floating-point mode that the library guarantees.
template <class Body> void share(int threads, const Body& body) {
    run_on_threads(threads, [&](int k, int n) {
        const FloatingPointMode mode;
        body(k, n);
    });
}

// With fewer stored elements for each thread, another thread saves no time.
constexpr int64_t min_elements = 32768;

int useful_threads(int threads, int64_t elements) {
    const int most = in_forked_child() ? 1 : std::max(threads, 1);
    return int(std::clamp<int64_t>(elements / min_elements, 1, most));
}

// ---------------------------------------------------------------------------------------------------------------------
// Rows

// Calls body(indices) with a pointer of their type. Only loops over indices exist for both types: a trainer for each
// type would add half of this file's compile time.
template <class Body> ADAPTK_HD void with_indices(const void* indices, bool wide, const Body& body) {
    if (wide) {
        body(static_cast<const int64_t*>(indices));
    } else {
        body(static_cast<const int32_t*>(indices));
    }
}

template <class T> struct Row {
    const T* x;
    const void* index;
    int64_t size;
    bool wide;  // of the index

    template <class Body> ADAPTK_HD void with_index(const Body& body) const { with_indices(index, wide, body); }
};

template <class T> class RowReader {
  public:
    explicit RowReader(const Rows& r)
        : data_(static_cast<const T*>(r.data)), indices_(r.indices), starts_(r.starts), columns_(r.columns),
          wide_starts_(r.wide_starts), wide_indices_(r.wide_indices) {}

    int64_t start(int64_t i) const {
        return wide_starts_ ? static_cast<const int64_t*>(starts_)[i]
                            : int64_t(static_cast<const int32_t*>(starts_)[i]);
    }
    Row<T> operator()(int64_t i) const {
        if (starts_ == nullptr) return {data_ + i * columns_, indices_, columns_, wide_indices_};
        const int64_t begin = start(i);
        return {data_ + begin, static_cast<const std::byte*>(indices_) + begin * index_bytes(), start(i + 1) - begin,
                wide_indices_};
    }
    // Inline, because GCC removes calls of functions that only prefetch.
    ADAPTK_HD void prefetch_start(int64_t i) const {
        if (starts_ != nullptr)
            prefetch<CacheLevel::first>(starts_, size_t(i) * (wide_starts_ ? sizeof(int64_t) : sizeof(int32_t)), 1);
    }
    ADAPTK_HD void prefetch_row(int64_t i) const {
        const Row<T> row = (*this)(i);
        prefetch<CacheLevel::first>(row.x, 0, size_t(row.size) * sizeof(T));
        if (starts_ != nullptr) prefetch<CacheLevel::first>(row.index, 0, size_t(row.size * index_bytes()));
    }

  private:
    int64_t index_bytes() const { return wide_indices_ ? sizeof(int64_t) : sizeof(int32_t); }

    const T* data_;
    const void* indices_;
    const void* starts_;
    int64_t columns_;
    bool wide_starts_, wide_indices_;
};

// Calls work.template operator()<T>() for the type of the values.
template <class Work> auto with_type(bool doubles, const Work& work) {
    return doubles ? work.template operator()<double>() : work.template operator()<float>();
}

int64_t first_of(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : std::min(a, b); }

template <class T> RowsReport check_as(const Rows& r, int64_t stored, int64_t* counts) {
    RowsReport report;
    const RowReader<T> rows(r);
    if (r.starts != nullptr) {
        for (int64_t i = 0; i < r.rows && report.decreasing < 0; ++i)
            if (rows.start(i) < 0 || rows.start(i + 1) < rows.start(i) || rows.start(i + 1) > stored)
                report.decreasing = i;
        if (report.decreasing >= 0) return report;
    }
    report.stored = r.rows == 0 ? 0 : r.starts == nullptr ? r.rows * r.columns : rows.start(r.rows) - rows.start(0);
    const int threads = useful_threads(num_threads(), report.stored);
    std::vector<RowsReport> reports(static_cast<size_t>(threads));
    std::vector<std::vector<int64_t>> all_counts(size_t(threads),
                                                 std::vector<int64_t>(counts != nullptr ? size_t(r.columns) : 0));
    share(threads, [&](int thread, int n) {
        RowsReport& own = reports[size_t(thread)];
        std::vector<int64_t>& count = all_counts[size_t(thread)];
        for (int64_t i = r.rows * thread / n; i < r.rows * (thread + 1) / n; ++i) {
            const Row<T> row = rows(i);
            own.longest = std::max(own.longest, row.size);
            T sum = 0;  // NaN if an element is infinite or NaN
            for (int64_t j = 0; j < row.size; ++j) sum += row.x[j] * T(0);
            if (!(sum == T(0)) && own.not_finite < 0) own.not_finite = i;
            if (r.starts == nullptr) continue;
            int64_t last = -1;
            bool outside = false, increasing = true;
            row.with_index([&](const auto* index) {
                for (int64_t j = 0; j < row.size; ++j) {
                    const int64_t u = index[j];
                    outside |= u < 0 || u >= r.columns;
                    increasing &= u > last;
                    last = u;
                }
            });
            if (outside) {
                if (own.out_of_range < 0) own.out_of_range = i;
                continue;
            }
            if (!increasing && own.not_canonical < 0) own.not_canonical = i;
            if (counts != nullptr)
                row.with_index([&](const auto* index) {
                    for (int64_t j = 0; j < row.size; ++j) ++count[size_t(index[j])];
                });
        }
    });
    for (const RowsReport& own : reports) {
        report.out_of_range = first_of(report.out_of_range, own.out_of_range);
        report.not_finite = first_of(report.not_finite, own.not_finite);
        report.not_canonical = first_of(report.not_canonical, own.not_canonical);
        report.longest = std::max(report.longest, own.longest);
    }
    // A dense row has all features.
    if (counts != nullptr && r.starts == nullptr)
        for (int64_t u = 0; u < r.columns; ++u) counts[u] += r.rows;
    if (counts != nullptr)
        for (const std::vector<int64_t>& count : all_counts)
            for (size_t u = 0; u < count.size(); ++u) counts[u] += count[u];
    return report;
}

// ---------------------------------------------------------------------------------------------------------------------
// Order of the examples

// For large data, this many neighbouring examples are used at about the same time. If each row were at a random
// address, most of the time would go into TLB misses: measured, 1.2 to 1.8 us per row instead of 0.3 to 0.8, on a
// loaded machine.
constexpr int64_t chunk_examples = 16;
constexpr int64_t pool_examples = 128;
constexpr int64_t block_examples = 1024;

// The examples in an order that depends on seed and epoch alone, in blocks that each thread can compute for itself.
// There is no list of all examples: the chunks of a block are terms of an arithmetic progression modulo the number of
// chunks, with a random step coprime to it. The examples of several chunks are shuffled together.
class Order {
  public:
    Order(int64_t examples, int64_t block, bool shuffle, uint64_t seed, uint64_t epoch)
        : n_(examples), block_(block), shuffle_(shuffle && examples > 1), key_(mix_bits(mix_bits(seed) + epoch)),
          chunk_(shuffle_ && block == block_examples && examples >= 16 * block_examples ? chunk_examples : 1),
          blocks_(std::max<int64_t>((examples / chunk_ * chunk_ + block - 1) / block, examples > 0 ? 1 : 0)) {
        if (!shuffle_) return;
        const RandomWords w = random_words(key_, 0, 0);
        const auto n = uint64_t(n_ / chunk_);
        step_ = std::max<uint64_t>(n / 4 + random_detail::joined(w.w0, w.w1) % (n / 2 + 1), 1);
        while (std::gcd(step_, n) != 1) ++step_;
        step_ %= n;
        first_ = random_detail::joined(w.w2, w.w3) % n;
    }

    int64_t blocks() const { return blocks_; }
    // The last block also has the examples that do not fill a chunk.
    int64_t size(int64_t b) const { return b + 1 < blocks_ ? block_ : n_ - b * block_; }
    int64_t most() const { return block_ + chunk_ - 1; }
    void fill(int64_t b, int64_t* order) const {
        const int64_t size = this->size(b), begin = b * block_;
        if (!shuffle_) {
            std::iota(order, order + size, begin);
            return;
        }
        const auto chunks = uint64_t(n_ / chunk_);
        uint64_t at = (first_ + product(uint64_t(begin / chunk_), step_, chunks)) % chunks;
        int64_t i = 0;
        for (; i + chunk_ <= size; i += chunk_) {
            for (int64_t j = 0; j < chunk_; ++j) order[i + j] = int64_t(at) * chunk_ + j;
            at += step_;
            at = at >= chunks ? at - chunks : at;
        }
        for (; i < size; ++i) order[i] = begin + i;
        // The shuffle of Fisher and Yates, with the upper half of D. E. Knuth's linear congruential generator.
        uint64_t state = mix_bits(key_ + uint64_t(b) + 1);
        const int64_t pool = chunk_ > 1 ? pool_examples : size;
        for (int64_t from = 0; from < size; from += pool) {
            int64_t* const part = order + from;
            for (int64_t k = std::min(pool, size - from) - 1; k > 0; --k) {
                state = state * 6364136223846793005u + 1442695040888963407u;
                std::swap(part[k], part[((state >> 32) * uint64_t(k + 1)) >> 32]);
            }
        }
    }

  private:
    // a * b modulo n, for a, b < n < 2^62.
    static uint64_t product(uint64_t a, uint64_t b, uint64_t n) {
        if ((a | b) < (uint64_t{1} << 32)) return a * b % n;
        uint64_t sum = 0;
        for (; b != 0; b >>= 1) {
            if ((b & 1) != 0) sum = sum + a >= n ? sum + a - n : sum + a;
            a = a + a >= n ? a + a - n : a + a;
        }
        return sum;
    }

    int64_t n_, block_;
    bool shuffle_;
    uint64_t key_;
    int64_t chunk_, blocks_;
    uint64_t step_ = 1, first_ = 0;
};

// ---------------------------------------------------------------------------------------------------------------------
// Losses

// A sum of log(1 + e), as the logarithm of a product that is taken when the product gets large: few logarithms are
// computed.
class LossSum {
  public:
    void add(double loss) { sum_ += loss; }
    void add_log1p(double e) {
        product_ *= 1.0 + e;
        if (product_ > 0x1p500) settle();
    }
    double total() {
        settle();
        return sum_;
    }

  private:
    void settle() {
        sum_ += log_of_normal(product_);
        product_ = 1;
    }
    double sum_ = 0, product_ = 1;
};

// The derivative of the loss at the prediction p, times the example's weight.
ADAPTK_HD double derivative(const LinearOptions& o, double p, double y, double weight, LossSum& sum) {
    double d = 0, loss = 0;
    switch (o.loss) {
    case LinearLoss::log_loss: {
        const double z = y * p;
        const double e = exp_of(z < 0 ? z : -z);
        d = -y * ((z < 0 ? 1.0 : e) / (1.0 + e));
        if (weight == 1) {
            sum.add_log1p(e);
            sum.add(z < 0 ? -z : 0.0);
            return d;
        }
        loss = log_of_normal(1.0 + e) + (z < 0 ? -z : 0.0);
        break;
    }
    case LinearLoss::hinge: {
        const double violation = 1 - y * p;
        if (violation > 0) {
            loss = violation;
            d = -y;
        }
        break;
    }
    case LinearLoss::squared_hinge: {
        const double violation = 1 - y * p;
        if (violation > 0) {
            loss = violation * violation;
            d = -2 * y * violation;
        }
        break;
    }
    case LinearLoss::squared_error: {
        d = p - y;
        loss = d * d / 2;
        break;
    }
    case LinearLoss::huber: {
        const double r = p - y;
        const bool inside = (r < 0 ? -r : r) <= o.epsilon;
        d = inside ? r : r < 0 ? -o.epsilon : o.epsilon;
        loss = inside ? r * r / 2 : o.epsilon * ((r < 0 ? -r : r) - o.epsilon / 2);
        break;
    }
    }
    sum.add(weight * loss);
    // An outlier must not make the weights infinite.
    return weight * clamp(d, -1e12, 1e12);
}

// ---------------------------------------------------------------------------------------------------------------------
// Rules

template <SparseRule R> inline constexpr int fields = R == SparseRule::sgd ? 1 : R == SparseRule::adam ? 4 : 2;

// The numbers of a step that are the same for all weights of an example.
template <class T> struct StepNumbers {
    T g = 0;  // the derivative by the prediction; sgd: times the step size, in units of scaled weights
    T eta = 0, l1 = 0, l2 = 0, eps = 0, beta1 = 0, rest1 = 0, beta2 = 0, rest2 = 0;
};

template <class T> struct Weight {
    T a, b, c;
};

template <class T> ADAPTK_HD T soft_threshold(T x, T by) { return x > by ? x - by : x < -by ? x + by : T(0); }

// The weight itself. ftrl: the minimiser of the linear function z plus the quadratic terms and the penalties of all
// steps.
template <SparseRule R, class T> ADAPTK_HD T value_of(const Weight<T>& w, const StepNumbers<T>& s) {
    if constexpr (R == SparseRule::ftrl) {
        return -soft_threshold(w.a, s.l1) / ((s.beta1 + sqrt(w.b)) / s.eta + s.l2);
    } else {
        return w.a;
    }
}

// Updates a weight after an example with the value x of this feature. Penalties are multiplied by `rare`; `value` is
// value_of(w).
template <SparseRule R, bool Penalised, class T>
ADAPTK_HD Weight<T> updated(const Weight<T>& w, T value, T x, T rare, const StepNumbers<T>& s) {
    const T g = s.g * x;
    if constexpr (R == SparseRule::sgd) {
        const T a = w.a - g;
        return {Penalised ? soft_threshold(a, s.l1 * rare) : a, T(0), T(0)};
    } else if constexpr (R == SparseRule::adagrad) {
        const T squares = w.b + g * g;
        const T step = squares > T(0) ? s.eta / (sqrt(squares) + s.eps) : T(0);
        T a = w.a - step * g;
        if constexpr (Penalised) a = soft_threshold(a, step * s.l1 * rare) / (T(1) + step * s.l2 * rare);
        return {a, squares, T(0)};
    } else if constexpr (R == SparseRule::adam) {
        const T m = s.beta1 * w.b + s.rest1 * g;
        const T v = s.beta2 * w.c + s.rest2 * (g * g);
        const T step = v > T(0) ? s.eta / (sqrt(v) + s.eps) : T(0);
        T a = w.a - step * m;
        if constexpr (Penalised) a = soft_threshold(a, step * s.l1 * rare) / (T(1) + step * s.l2 * rare);
        return {a, m, v};
    } else {
        const T squares = w.b + g * g;
        const T sigma = (sqrt(squares) - sqrt(w.b)) / s.eta;
        return {w.a + (g - sigma * value), squares, T(0)};
    }
}

template <SparseRule R, class T> ADAPTK_HD Weight<T> load_weight(const T* p) {
    Weight<T> w{load(p), T(0), T(0)};
    if constexpr (fields<R> > 1) w.b = load(p + 1);
    if constexpr (fields<R> > 2) w.c = load(p + 2);
    return w;
}

template <SparseRule R, class T> ADAPTK_HD void store_weight(T* p, const Weight<T>& w) {
    store(p, w.a);
    if constexpr (fields<R> > 1) store(p + 1, w.b);
    if constexpr (fields<R> > 2) store(p + 2, w.c);
}

// ---------------------------------------------------------------------------------------------------------------------
// Frequent weights

// A cache line that two threads write often moves from one cache to the other each time. So each thread has copies of
// the weights of frequent features, and after about publish_every updates it adds its changes to the shared ones. These
// are then adjacent and in the same order, so that one cache line has sixteen weights. Features are in tiers by
// frequency: tier b has those in at least one of 2^(b+1) examples and is published every publish_every * 2^b examples.
//
// If there are not too many weights, each thread has copies of all of them, in their own order, and the last tier has
// all other features: rare features have neighbours in their cache line, so lines move between caches at almost every
// use. Measured on data in the shape of RCV1 with two threads: this took two thirds of the time.
struct FrequentWeights {
    static constexpr int max_tiers = 12;
    static constexpr int64_t max_numbers = int64_t{1} << 18;  // of a thread's copies of all weights
    bool all = false;
    // By feature: its index, or the index of its copy minus the number of copies.
    std::vector<int32_t> place;
    std::vector<int32_t> feature;  // of each copy
    std::vector<size_t> tier_end;

    size_t size() const { return feature.size(); }
};

// `columns` is the index of the intercept, which is in the first tier.
FrequentWeights frequent_weights(const LinearTask& t, const LinearOptions& o, int64_t publish_every,
                                 int64_t examples_of_a_thread, double mean_size) {
    FrequentWeights f;
    const int64_t columns = t.rows.columns;
    // Making and publishing all copies must take little of a round's time.
    f.all = (columns + 1) * fields_of(o.rule) <= FrequentWeights::max_numbers &&
            8.0 * double(columns) <= mean_size * double(examples_of_a_thread);
    std::vector<std::vector<int32_t>> tiers(1);
    if (o.intercept) tiers[0].push_back(int32_t(columns));
    int allowed = 1;
    while (allowed < FrequentWeights::max_tiers && (publish_every << allowed) <= examples_of_a_thread) ++allowed;
    tiers.resize(size_t(allowed));
    const int64_t least = std::max<int64_t>(t.counted_rows >> allowed, 1);
    for (int64_t u = 0; u < columns; ++u) {
        if (t.counts[u] < least && !f.all) continue;
        const auto one_in = uint64_t(std::max<int64_t>(t.counted_rows / std::max<int64_t>(t.counts[u], 1), 1));
        const int tier = std::bit_width(one_in) - 1;
        if (tier < allowed || f.all) tiers[size_t(std::min(tier, allowed - 1))].push_back(int32_t(u));
    }
    if (f.all && !o.intercept) tiers.back().push_back(int32_t(columns));
    for (const std::vector<int32_t>& tier : tiers) {
        f.feature.insert(f.feature.end(), tier.begin(), tier.end());
        f.tier_end.push_back(f.feature.size());
    }
    if (f.all) return f;
    f.place.resize(size_t(columns) + 1);
    std::iota(f.place.begin(), f.place.end(), 0);
    for (size_t i = 0; i < f.size(); ++i) f.place[size_t(f.feature[i])] = int32_t(int64_t(i) - int64_t(f.size()));
    return f;
}

// ---------------------------------------------------------------------------------------------------------------------
// Linear models

// If step sizes change, they change once per this many examples.
constexpr int64_t group = 16;

// The distance of prefetches, in examples.
constexpr int64_t ahead = 4;

class StepSizes {
  public:
    explicit StepSizes(const LinearOptions& o) : o_(o) {}
    // The step size for examples from t on, where t is the number of examples before.
    double at(int64_t t) const {
        if (o_.schedule == StepSchedule::optimal) return 1.0 / (o_.optimal_scale * (o_.optimal_t0 + double(t)));
        if (o_.schedule == StepSchedule::constant || t == 0) return o_.eta;
        const double exponent = o_.power_t * log_of_normal(double(t + 1));
        return exponent >= 0 ? o_.eta * exp_of(-exponent) : o_.eta / exp_of(exponent);
    }

  private:
    const LinearOptions& o_;
};

template <class T, SparseRule R> class LinearTrainer {
  public:
    LinearTrainer(const LinearTask& task, const LinearOptions& options)
        : t_(task), o_(options), rows_(task.rows), steps_(options), scaled_(R == SparseRule::sgd && options.l2 > 0),
          penalised_(penalised()),
          order_(task.examples, block(), options.shuffle, options.seed, uint64_t(options.epoch)) {}

    int run(double* losses, StopCheck stop_check) {
        const int64_t problems = std::max<int64_t>(t_.classes, 1);
        std::fill(losses, losses + problems, 0.0);
        if (t_.examples == 0) return 1;
        const double mean_size = double(t_.stored) / double(std::max<int64_t>(t_.rows.rows, 1));
        const auto elements = int64_t(mean_size * double(t_.examples));
        // About 10 ms of work between two calls of `stop_check`, more if there are many problems.
        const double wanted = double(1 << 24) / (std::max(mean_size, 8.0) * double(block()));
        const auto round = int64_t(std::clamp(wanted, 1.0, 1e6));
        if (o_.mode == TrainingMode::deterministic) {
            const int threads = int(std::min<int64_t>(useful_threads(o_.threads, elements * problems), problems));
            return run_in_order(threads, round, losses, stop_check);
        }
        const int threads = int(std::min<int64_t>(useful_threads(o_.threads, elements), order_.blocks()));
        if (threads == 1) return run_in_order(1, round, losses, stop_check);
        // Then about this many updates of a weight, over all threads, use values that other threads have changed since.
        constexpr int stale_updates = 128;
        publish_every_ = o_.publish_every > 0 ? o_.publish_every : std::max(stale_updates / threads, 16);
        if (o_.mode == TrainingMode::hogwild && publish_every_ > 1 && t_.counts != nullptr &&
            t_.rows.columns < INT32_MAX)
            frequent_ =
                frequent_weights(t_, o_, publish_every_, std::min(round * block(), t_.examples) / threads, mean_size);
        for (int64_t k = 0; k < problems; ++k)
            if (!run_hogwild(k, threads, round, losses[k], stop_check)) return 0;
        return threads;
    }

  private:
    using Pair = CellOf<T>;
    static constexpr size_t in_pair = sizeof(Pair) / sizeof(T);
    static constexpr size_t pairs_per_prefetch = 4 * cache_line / sizeof(Pair);

    // The memory of a thread. It is allocated before the threads start, because no exception may leave a thread.
    struct alignas(cache_line) Scratch {
        Scratch(int64_t longest, size_t copies, int64_t block)
            : order(size_t(block)), a(size_t(longest)), b(fields<R> > 1 ? size_t(longest) : 0),
              c(fields<R> > 2 ? size_t(longest) : 0), value(R == SparseRule::ftrl ? size_t(longest) : 0),
              rare(size_t(longest), T(1)), place(size_t(longest)), mine(copies * size_t(fields<R>)),
              before((copies * size_t(fields<R>) + in_pair - 1) / in_pair * in_pair) {}
        std::vector<int64_t> order;
        std::vector<T> a, b, c, value, rare;
        std::vector<T*> place;
        std::vector<T> mine, before;  // copies of frequent weights, and as they were when last published
        int64_t examples = 0;
        int team = 1;
        LossSum loss;
    };
    std::vector<Scratch> scratch_for(int threads) const {
        return std::vector<Scratch>(static_cast<size_t>(threads), Scratch(t_.longest, frequent_.size(), order_.most()));
    }

    struct Round {
        int64_t begin = 0, end = 0;  // blocks
        std::vector<double> scale;   // at the beginning of each, and at the end
    };

    bool penalised() const {
        return t_.rarity != nullptr && R != SparseRule::ftrl && (o_.l1 > 0 || (o_.l2 > 0 && R != SparseRule::sgd));
    }

    // Examples of a block: no scale gets smaller within one than 1e-6.
    int64_t block() const {
        if (!scaled_) return block_examples;
        const double decay = std::log1p(steps_.at(o_.steps_before) * o_.l2);
        return int64_t(std::clamp(13.8 / std::max(decay, 1e-9), 1.0, double(block_examples)));
    }

    // Weights of sgd are stored divided by a scale. The L2 penalty of an example multiplies the scale: one
    // multiplication instead of one for every weight. The scale of a block follows from its position in the order, and
    // does not depend on the thread.
    Round plan(int64_t begin, int64_t most) const {
        Round r{begin, begin, {1.0}};
        while (r.end < order_.blocks() && r.end - r.begin < most && r.scale.back() > 1e-6) {
            double scale = r.scale.back();
            if (scaled_) {
                const int64_t size = order_.size(r.end), first = o_.steps_before + r.end * block();
                if (o_.schedule == StepSchedule::constant) {
                    scale *= power_of(shrink(first), size);
                } else {
                    for (int64_t i = 0; i < size; i += group)
                        scale *= power_of(shrink(first + i), std::min(group, size - i));
                }
            }
            r.scale.push_back(scale);
            ++r.end;
        }
        return r;
    }
    double shrink(int64_t t) const { return 1.0 / (1.0 + steps_.at(t) * o_.l2); }

    T* weights(int64_t problem) const {
        return static_cast<T*>(t_.weights) + problem * (t_.rows.columns + 1) * fields<R>;
    }

    void fold(int64_t problem, double scale) const {
        if (scale == 1.0) return;
        T* w = weights(problem);
        for (int64_t u = 0; u < t_.rows.columns; ++u) w[u] = T(double(w[u]) * scale);
    }

    // Each problem on one thread, in the order of the examples.
    int run_in_order(int threads, int64_t round, double* losses, StopCheck stop_check) {
        const int64_t problems = std::max<int64_t>(t_.classes, 1);
        std::vector<LossSum> sums(static_cast<size_t>(problems));
        std::vector<Scratch> scratch = scratch_for(threads);
        int worked = 1;
        for (Round r = plan(0, round); r.begin < r.end; r = plan(r.end, round)) {
            std::atomic<int64_t> next{0};
            std::atomic<int> team{1};
            share(threads, [&](int thread, int n) {
                if (thread == 0) team.store(n, std::memory_order_relaxed);
                Scratch& s = scratch[size_t(thread)];
                for (int64_t k; (k = next.fetch_add(1, std::memory_order_relaxed)) < problems;) {
                    s.loss = sums[size_t(k)];
                    for (int64_t b = r.begin; b < r.end; ++b) one_block(k, b, r.scale[size_t(b - r.begin)], s, nullptr);
                    fold(k, r.scale.back());
                    sums[size_t(k)] = s.loss;
                }
            });
            worked = team.load(std::memory_order_relaxed);
            if (stop_check.call != nullptr && !stop_check.call(stop_check.context)) return 0;
        }
        for (int64_t k = 0; k < problems; ++k) losses[k] = sums[size_t(k)].total();
        return worked;
    }

    // All threads work on one problem.
    bool run_hogwild(int64_t problem, int threads, int64_t round, double& loss, StopCheck stop_check) {
        std::mutex mutex;
        std::vector<Scratch> scratch = scratch_for(threads);
        exchanged_.resize((numbers() + in_pair - 1) / in_pair);
        loss = 0;
        for (Round r = plan(0, round); r.begin < r.end; r = plan(r.end, round)) {
            std::atomic<int64_t> next{r.begin};
            T* const w = weights(problem);
            for_frequent([&](size_t i, int64_t u) { std::memcpy(exchanged(i), w + u, sizeof(T)); });
            share(threads, [&](int thread, int n) {
                Scratch& s = scratch[size_t(thread)];
                s.team = n;
                for (size_t p = 0; p < exchanged_.size(); ++p) take(p, load(&exchanged_[p]), s);
                for (int64_t b; (b = next.fetch_add(1, std::memory_order_relaxed)) < r.end;)
                    one_block(problem, b, r.scale[size_t(b - r.begin)], s,
                              o_.mode == TrainingMode::locked ? &mutex : nullptr);
                publish(0, frequent_.size(), s);
            });
            for_frequent([&](size_t i, int64_t u) { std::memcpy(w + u, exchanged(i), sizeof(T)); });
            if (R == SparseRule::adam) {
                // Changes of an average of squares may add up to a negative number.
                for (const int64_t u : frequent_.feature) w[u * fields<R> + 2] = std::max(w[u * fields<R> + 2], T(0));
            }
            fold(problem, r.scale.back());
            if (stop_check.call != nullptr && !stop_check.call(stop_check.context)) return false;
        }
        for (Scratch& s : scratch) loss += s.loss.total();
        return true;
    }

    // Calls body(index in the order of tiers, index of the shared number) for all numbers of copies.
    template <class Body> void for_frequent(const Body& body) const {
        for (size_t i = 0; i < frequent_.size(); ++i)
            for (int64_t f = 0; f < fields<R>; ++f)
                body(i * size_t(fields<R>) + size_t(f), int64_t(frequent_.feature[i]) * fields<R> + f);
    }
    // The index of a thread's copy of number i in the order of tiers.
    ADAPTK_HD size_t copy(size_t i) const {
        constexpr auto n = size_t(fields<R>);
        return frequent_.all ? size_t(frequent_.feature[i / n]) * n + i % n : i;
    }

    // The count of copied numbers, and how many are in a pair: the last pair may be padded.
    size_t numbers() const { return frequent_.size() * size_t(fields<R>); }
    size_t in_this(size_t pair) const { return std::min(in_pair, numbers() - pair * in_pair); }

    std::byte* exchanged(size_t i) { return reinterpret_cast<std::byte*>(exchanged_.data()) + i * sizeof(T); }

    // Sets `before` and the copies to the present value of a pair.
    void take(size_t pair, Pair now, Scratch& s) const {
        T* const before = s.before.data() + pair * in_pair;
        std::memcpy(before, &now, sizeof now);
        for (size_t k = 0; k < in_this(pair); ++k) s.mine[copy(pair * in_pair + k)] = before[k];
    }

    // Changes of sums are added, those of adam's averages are divided by the number of threads first. A pair that
    // extends beyond the range is included.
    void publish(size_t begin, size_t end, Scratch& s) {
        constexpr auto n = size_t(fields<R>);
        const T part = T(1) / T(s.team);
        for (size_t pair = begin * n / in_pair; pair * in_pair < end * n; ++pair) {
            if (pair % pairs_per_prefetch == 0) prefetch_pairs_to_write(pair + pairs_per_prefetch);
            T change[in_pair] = {}, sum[in_pair];
            const T* const before = s.before.data() + pair * in_pair;
            bool changed = false;
            for (size_t k = 0; k < in_this(pair); ++k) {
                const size_t i = pair * in_pair + k;
                change[k] = (R == SparseRule::adam && i % n > 0 ? part : T(1)) * (s.mine[copy(i)] - before[k]);
                changed |= change[k] != T(0);
            }
            Pair* const shared = exchanged_.data() + pair;
            if (!changed) {
                take(pair, load(shared), s);
                continue;
            }
            // Begins with the value seen last: a load would fetch the line twice, for reading and for writing.
            Pair seen, next;
            std::memcpy(&seen, before, sizeof seen);
            do {
                std::memcpy(sum, &seen, sizeof sum);
                for (size_t k = 0; k < in_pair; ++k) sum[k] += change[k];
                std::memcpy(&next, sum, sizeof next);
            } while (!exchange(shared, seen, next));
            take(pair, next, s);
        }
    }

    // Prefetches pairs that this thread will change. An atomic addition waits for its line, and delays what follows.
    ADAPTK_HD void prefetch_pairs_to_write(size_t pair) const {
        for (size_t p = pair; p < std::min(pair + pairs_per_prefetch, exchanged_.size());
             p += cache_line / sizeof(Pair))
            prefetch_to_write(exchanged_.data() + p);
    }

    void publish_due(Scratch& s) {
        size_t begin = 0;
        for (size_t tier = 0; tier < frequent_.tier_end.size(); ++tier) {
            if (s.examples % (publish_every_ << tier) != 0) break;
            publish(begin, frequent_.tier_end[tier], s);
            begin = frequent_.tier_end[tier];
        }
    }

    void one_block(int64_t problem, int64_t b, double scale, Scratch& s, std::mutex* mutex) {
        const int64_t size = order_.size(b), first = o_.steps_before + b * block();
        order_.fill(b, s.order.data());
        if (t_.subset != nullptr)
            for (int64_t i = 0; i < size; ++i) s.order[size_t(i)] = t_.subset[s.order[size_t(i)]];
        StepNumbers<T> numbers;
        numbers.eps = T(o_.eps);
        numbers.beta1 = T(o_.beta1);
        numbers.rest1 = T(1.0 - o_.beta1);
        numbers.beta2 = T(o_.beta2);
        numbers.rest2 = T(1.0 - o_.beta2);
        const bool adam = R == SparseRule::adam;
        double power1 = adam ? power_of(o_.beta1, first) : 0, power2 = adam ? power_of(o_.beta2, first) : 0;
        double eta = 0, decay = 1, growth = 1, inverse = 1.0 / scale;
        for (int64_t i = 0; i < size; ++i) {
            if (i % group == 0) {
                eta = steps_.at(first + i);
                growth = scaled_ ? 1.0 + eta * o_.l2 : 1.0;
                decay = 1.0 / growth;
                numbers.eta = T(eta);
                numbers.l1 = T(o_.l1);
                numbers.l2 = T(o_.l2);
            }
            if constexpr (R == SparseRule::adam) {
                power1 *= o_.beta1;
                power2 *= o_.beta2;
                const double root = sqrt(1.0 - power2);
                numbers.eta = T(eta * root / (1.0 - power1));
                numbers.eps = T(o_.eps * root);
            }
            if constexpr (R == SparseRule::ftrl) {
                numbers.l1 = T(o_.l1 * double(first + i));
                numbers.l2 = T(o_.l2 * double(first + i));
            }
            if (i + 2 * ahead < size) {
                const int64_t row = s.order[size_t(i + 2 * ahead)];
                rows_.prefetch_start(row);
                prefetch<CacheLevel::first>(t_.targets, size_t(row) * sizeof(double), 1);
            }
            if (i + ahead < size) rows_.prefetch_row(s.order[size_t(i + ahead)]);
            if (frequent_.size() > 0 && (s.examples + 1) % publish_every_ == 0) prefetch_pairs_to_write(0);
            if (mutex != nullptr) {
                const std::lock_guard lock(*mutex);
                one_example(problem, s.order[size_t(i)], scale, inverse, eta, numbers, s);
            } else {
                one_example(problem, s.order[size_t(i)], scale, inverse, eta, numbers, s);
            }
            scale *= decay;
            inverse *= growth;
            ++s.examples;
            if (frequent_.size() > 0 && s.examples % publish_every_ == 0) publish_due(s);
        }
    }

    void one_example(int64_t problem, int64_t i, double scale, double inverse, double eta, StepNumbers<T>& numbers,
                     Scratch& s) const {
        const Row<T> row = rows_(i);
        const auto n = size_t(row.size);
        T* const shared = frequent_.all ? s.mine.data() : weights(problem);
        const bool copies = !frequent_.place.empty();
        const Gathered own(s);
        T* const ends = s.mine.data() + s.mine.size();
        if (copies) {
            const int32_t* ADAPTK_RESTRICT const places = frequent_.place.data();
            T** ADAPTK_RESTRICT const place = s.place.data();
            row.with_index([&](const auto* index) {
                for (size_t j = 0; j < n; ++j) {
                    const int64_t where = places[index[j]];
                    T* const w = (where < 0 ? ends : shared) + where * fields<R>;
                    place[j] = w;
                    own.take(j, load_weight<R>(w));
                }
            });
        } else {
            row.with_index([&](const auto* index) {
                for (size_t j = 0; j < n; ++j) own.take(j, load_weight<R>(shared + int64_t(index[j]) * fields<R>));
            });
        }
        if constexpr (R == SparseRule::ftrl) values(n, s, numbers);
        const T dot = inner(row.x, R == SparseRule::ftrl ? s.value.data() : s.a.data(), n);

        T* const at = copies && o_.intercept ? ends + int64_t(frequent_.place.back()) * fields<R>
                                             : shared + t_.rows.columns * fields<R>;
        StepNumbers<T> unpenalised = numbers;
        unpenalised.l1 = unpenalised.l2 = T(0);
        const Weight<T> b = o_.intercept ? load_weight<R>(at) : Weight<T>{};
        const T intercept = o_.intercept ? value_of<R>(b, unpenalised) : T(0);
        const double prediction = double(dot) * scale + double(intercept);

        double y = t_.targets[i], weight = t_.row_weights != nullptr ? t_.row_weights[i] : 1.0;
        if (t_.classes > 0) {
            const bool is = y == double(t_.classes == 1 ? 1 : problem);
            y = is ? 1 : -1;
            if (t_.class_weights != nullptr) weight *= t_.class_weights[2 * problem + (is ? 1 : 0)];
        }
        const double g = derivative(o_, prediction, y, weight, s.loss);
        if constexpr (R == SparseRule::sgd) {
            numbers.g = T(eta * g * inverse);
            numbers.l1 = T(eta * o_.l1 * inverse);
            unpenalised.g = T(eta * g);
        } else {
            numbers.g = unpenalised.g = T(g);
        }
        if (o_.intercept) store_weight<R>(at, updated<R, false>(b, intercept, T(1), T(1), unpenalised));
        if (R == SparseRule::sgd && g == 0 && !penalised_) return;
        if (penalised_) {
            row.with_index([&](const auto* index) {
                for (size_t j = 0; j < n; ++j) s.rare[j] = T(t_.rarity[index[j]]);
            });
            update<true>(row.x, n, s, numbers);
        } else {
            update<false>(row.x, n, s, numbers);
        }
        if (copies) {
            T* const* ADAPTK_RESTRICT const place = s.place.data();
            for (size_t j = 0; j < n; ++j) store_weight<R>(place[j], own.taken(j));
        } else {
            row.with_index([&](const auto* index) {
                for (size_t j = 0; j < n; ++j) store_weight<R>(shared + int64_t(index[j]) * fields<R>, own.taken(j));
            });
        }
    }

    // The weights of a row, gathered from the shared ones.
    struct Gathered {
        explicit Gathered(Scratch& s) : a(s.a.data()), b(s.b.data()), c(s.c.data()) {}
        ADAPTK_HD void take(size_t j, const Weight<T>& w) const {
            a[j] = w.a;
            if constexpr (fields<R> > 1) b[j] = w.b;
            if constexpr (fields<R> > 2) c[j] = w.c;
        }
        ADAPTK_HD Weight<T> taken(size_t j) const {
            return {a[j], fields<R> > 1 ? b[j] : T(0), fields<R> > 2 ? c[j] : T(0)};
        }
        T* const a;
        T* const b;
        T* const c;
    };

    static void values(size_t n, Scratch& s, const StepNumbers<T>& numbers) {
        const T* ADAPTK_RESTRICT a = s.a.data();
        const T* ADAPTK_RESTRICT b = s.b.data();
        T* ADAPTK_RESTRICT out = s.value.data();
        ADAPTK_NO_OVERLAP
        for (size_t j = 0; j < n; ++j) out[j] = value_of<R>(Weight<T>{a[j], b[j], T(0)}, numbers);
    }

    template <bool Penalised> static void update(const T* x, size_t n, Scratch& s, const StepNumbers<T>& numbers) {
        const StepNumbers<T> numbers_here = numbers;
        const T* ADAPTK_RESTRICT from = x;
        const T* ADAPTK_RESTRICT rare = s.rare.data();
        const T* ADAPTK_RESTRICT value = s.value.data();
        T* ADAPTK_RESTRICT a = s.a.data();
        T* ADAPTK_RESTRICT b = s.b.data();
        T* ADAPTK_RESTRICT c = s.c.data();
        ADAPTK_NO_OVERLAP
        for (size_t j = 0; j < n; ++j) {
            const Weight<T> w = updated<R, Penalised>(
                Weight<T>{a[j], fields<R> > 1 ? b[j] : T(0), fields<R> > 2 ? c[j] : T(0)},
                R == SparseRule::ftrl ? value[j] : T(0), from[j], Penalised ? rare[j] : T(1), numbers_here);
            a[j] = w.a;
            if constexpr (fields<R> > 1) b[j] = w.b;
            if constexpr (fields<R> > 2) c[j] = w.c;
        }
    }

    // Eight sums in a fixed order, for vectors of any width.
    static T inner(const T* x, const T* w, size_t n) {
        T sum[8] = {};
        size_t j = 0;
        for (; j + 8 <= n; j += 8) {
            ADAPTK_UNROLL
            for (size_t k = 0; k < 8; ++k) sum[k] += x[j + k] * w[j + k];
        }
        for (size_t k = 0; j < n; ++j, ++k) sum[k] += x[j] * w[j];
        return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    }

    const LinearTask& t_;
    const LinearOptions& o_;
    RowReader<T> rows_;
    StepSizes steps_;
    bool scaled_, penalised_;
    Order order_;
    int64_t publish_every_ = 1;
    FrequentWeights frequent_;
    std::vector<Pair> exchanged_;  // the shared weights of which threads have copies, in the order of the copies
};

}  // namespace

RowsReport check_rows(const Rows& rows, int64_t stored, int64_t* counts) {
    return with_type(rows.doubles, [&]<class T>() { return check_as<T>(rows, stored, counts); });
}

int fields_of(SparseRule rule) {
    switch (rule) {
    case SparseRule::sgd: return fields<SparseRule::sgd>;
    case SparseRule::adagrad: return fields<SparseRule::adagrad>;
    case SparseRule::adam: return fields<SparseRule::adam>;
    case SparseRule::ftrl: break;
    }
    return fields<SparseRule::ftrl>;
}

int train_linear(const LinearTask& task, const LinearOptions& options, double* losses, StopCheck stop_check) {
    const FloatingPointMode mode;
    return with_type(task.rows.doubles, [&]<class T>() {
        switch (options.rule) {
        case SparseRule::sgd: return LinearTrainer<T, SparseRule::sgd>(task, options).run(losses, stop_check);
        case SparseRule::adagrad: return LinearTrainer<T, SparseRule::adagrad>(task, options).run(losses, stop_check);
        case SparseRule::adam: return LinearTrainer<T, SparseRule::adam>(task, options).run(losses, stop_check);
        case SparseRule::ftrl: break;
        }
        return LinearTrainer<T, SparseRule::ftrl>(task, options).run(losses, stop_check);
    });
}

void linear_scores(const Rows& rows, const double* coefficients, const double* intercepts, int64_t outputs, double* out,
                   int threads) {
    with_type(rows.doubles, [&]<class T>() {
        const RowReader<T> reader(rows);
        const int64_t begin = rows.rows == 0 || rows.starts == nullptr ? 0 : reader.start(0);
        const int64_t stored = rows.starts == nullptr ? rows.rows * rows.columns : reader.start(rows.rows) - begin;
        share(useful_threads(threads, stored * outputs), [&](int thread, int n) {
            for (int64_t i = rows.rows * thread / n; i < rows.rows * (thread + 1) / n; ++i) {
                const Row<T> row = reader(i);
                row.with_index([&](const auto* index) {
                    for (int64_t k = 0; k < outputs; ++k) {
                        const double* const c = coefficients + k * rows.columns;
                        double sum[4] = {};
                        for (int64_t j = 0; j < row.size; ++j) sum[j & 3] += double(row.x[j]) * c[index[j]];
                        out[i * outputs + k] = intercepts[k] + ((sum[0] + sum[2]) + (sum[1] + sum[3]));
                    }
                });
            }
        });
        return 0;
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Matrix factorisation

namespace {

// Factors are padded to whole vectors; the bias follows them.
constexpr int64_t factor_grain = 8;

// Each row of the matrix belongs to one thread, which works on its examples: factors that two threads write would move
// between their caches at almost every example. (If there are more columns than rows, exchange "row" and "column"
// here.) The factors of columns are shared. There would be contention for those of popular columns, as for frequent
// weights. So each thread has copies of them, and adds its changes to the shared ones after some updates.
struct Popular {
    static constexpr int64_t one_in = 16384, max_numbers = 1 << 16, publish_every = 32;
    std::vector<int32_t> place;  // by column: the index of its copy, or -1; empty if there are none
    std::vector<int64_t> which;  // of each copy

    size_t size() const { return which.size(); }
};

// The rows or the columns of examples.
class Places {
  public:
    Places(const void* p, bool wide) : p_(p), wide_(wide) {}
    ADAPTK_HD int64_t operator[](int64_t i) const {
        return wide_ ? static_cast<const int64_t*>(p_)[i] : int64_t(static_cast<const int32_t*>(p_)[i]);
    }
    ADAPTK_HD void prefetch_element(size_t i) const {
        const size_t bytes = wide_ ? sizeof(int64_t) : sizeof(int32_t);
        prefetch<CacheLevel::first>(p_, i * bytes, 1);
    }

  private:
    const void* p_;
    bool wide_;
};

Popular popular(const Places& of, int64_t examples, int64_t count, int64_t stride) {
    Popular p;
    if (count == 0 || count >= INT32_MAX) return p;
    // Some of the examples are enough for an estimate.
    const int64_t every = std::clamp<int64_t>(examples / (64 * Popular::one_in), 1, 16);
    std::vector<int32_t> seen(size_t(count), 0);
    for (int64_t i = 0; i < examples; i += every) ++seen[size_t(of[i])];
    const int64_t least = std::max<int64_t>(examples / every / Popular::one_in, 4);
    for (int64_t u = 0; u < count; ++u)
        if (seen[size_t(u)] >= least) p.which.push_back(u);
    const auto most = size_t(std::max<int64_t>(Popular::max_numbers / stride, 1));
    if (p.size() > most) {
        std::nth_element(p.which.begin(), p.which.begin() + int64_t(most), p.which.end(), [&](int64_t a, int64_t b) {
            return seen[size_t(a)] != seen[size_t(b)] ? seen[size_t(a)] > seen[size_t(b)] : a < b;
        });
        p.which.resize(most);
    }
    if (p.which.empty()) return p;
    p.place.assign(size_t(count), -1);
    for (size_t i = 0; i < p.size(); ++i) p.place[size_t(p.which[i])] = int32_t(i);
    return p;
}

template <class T> class FactorTrainer {
  public:
    FactorTrainer(const FactorTask& task, const FactorOptions& options)
        : t_(task), o_(options), rows_(task.rows, task.wide_indices), columns_(task.columns, task.wide_indices),
          values_(static_cast<const T*>(task.values)), stride_(factor_stride(task.rank)) {}

    int run(double* loss, StopCheck stop_check) {
        *loss = 0;
        if (t_.examples == 0) return 1;
        const int threads = useful_threads(o_.threads, t_.examples * stride_);
        return o_.mode == TrainingMode::deterministic ? run_by_blocks(threads, loss, stop_check)
                                                      : run_asynchronously(threads, loss, stop_check);
    }

  private:
    // The unit in which shared numbers are read and written.
    using Cell = CellOf<T>;
    static constexpr int64_t in_cell = int64_t(sizeof(Cell) / sizeof(T));

    // Copies of popular rows' or columns' factors, or of their sums of squares.
    struct Copies {
        std::vector<Cell> mine, before;
    };

    struct alignas(cache_line) Scratch {
        explicit Scratch(int64_t stride)
            : order(size_t(block_examples + chunk_examples)), a(size_t(stride)), b(size_t(stride)), a2(size_t(stride)),
              b2(size_t(stride)) {}
        std::vector<int64_t> order;
        std::vector<T> a, b, a2, b2;
        Copies factors, squares;       // of the popular
        std::vector<int32_t> updates;  // of each copy, since it was published
        double loss = 0;
    };

    std::vector<Scratch> scratch_for(int threads) const {
        return std::vector<Scratch>(static_cast<size_t>(threads), Scratch(stride_));
    }

    int64_t cells() const { return stride_ / in_cell; }

    void* shared_factors() const { return by_rows_ ? t_.column_factors : t_.row_factors; }
    void* shared_squares() const { return by_rows_ ? t_.column_squares : t_.row_squares; }

    void copy_frequent(Scratch& s) const {
        const auto take = [&](const void* shared, Copies& c) {
            c.mine.resize(popular_.size() * size_t(cells()));
            for (size_t i = 0; i < popular_.size(); ++i)
                for (int64_t j = 0; j < cells(); ++j)
                    c.mine[i * size_t(cells()) + size_t(j)] =
                        load(static_cast<const Cell*>(shared) + popular_.which[i] * cells() + j);
            c.before = c.mine;
        };
        take(shared_factors(), s.factors);
        if (o_.rule == SparseRule::adagrad) take(shared_squares(), s.squares);
        s.updates.assign(popular_.size(), 0);
    }

    // Adds the changes of a copy to the shared numbers, and sets the copy to the result.
    void publish(Copies& c, size_t i, Cell* shared) const {
        for (int64_t j = 0; j < cells(); ++j) {
            Cell& mine = c.mine[i * size_t(cells()) + size_t(j)];
            Cell& before = c.before[i * size_t(cells()) + size_t(j)];
            T change[in_cell], from[in_cell], sum[in_cell];
            std::memcpy(change, &mine, sizeof mine);
            std::memcpy(from, &before, sizeof before);
            for (int64_t k = 0; k < in_cell; ++k) change[k] -= from[k];
            Cell seen = before, next;
            do {
                std::memcpy(sum, &seen, sizeof seen);
                for (int64_t k = 0; k < in_cell; ++k) sum[k] += change[k];
                std::memcpy(&next, sum, sizeof next);
            } while (!exchange(shared + j, seen, next));
            mine = before = next;
        }
    }
    void publish(Scratch& s, size_t i) const {
        const int64_t at = popular_.which[i] * cells();
        publish(s.factors, i, static_cast<Cell*>(shared_factors()) + at);
        if (o_.rule == SparseRule::adagrad) publish(s.squares, i, static_cast<Cell*>(shared_squares()) + at);
        s.updates[i] = 0;
    }
    void publish_all(Scratch& s) const {
        for (size_t i = 0; i < popular_.size(); ++i)
            if (s.updates[i] > 0) publish(s, i);
    }

    // The examples of a round by the thread that they belong to, in the order of training: a list for each block and
    // thread.
    struct Dealt {
        int64_t first_block, threads;
        std::vector<int64_t> examples, starts;

        Dealt(int64_t begin, int64_t end, int64_t n)
            : first_block(begin), threads(n), examples(size_t((end - begin) * block_examples)),
              starts(size_t((end - begin) * (n + 1))) {}
        int64_t* block(int64_t b) { return examples.data() + (b - first_block) * block_examples; }
        int64_t* starts_of(int64_t b) { return starts.data() + (b - first_block) * (threads + 1); }
    };

    // Divides the order of block b: an example belongs to the owner of its row, or of its column.
    void deal(Dealt& to, const Order& order, int64_t b, Scratch& s) const {
        order.fill(b, s.order.data());
        const Places owned = by_rows_ ? rows_ : columns_;
        const int64_t size = order.size(b);
        std::uint16_t owner[block_examples];
        int64_t* const starts = to.starts_of(b);
        std::fill_n(starts, to.threads + 1, 0);
        for (int64_t i = 0; i < size; ++i) {
            if (i + 32 < size) owned.prefetch_element(size_t(s.order[size_t(i + 32)]));
            const uint64_t spread = uint64_t(owned[s.order[size_t(i)]]) * 0x9e3779b97f4a7c15u >> 32;
            owner[i] = std::uint16_t((spread * uint64_t(to.threads)) >> 32);
            ++starts[owner[i] + 1];
        }
        std::partial_sum(starts, starts + to.threads + 1, starts);
        std::vector<int64_t> next(starts, starts + to.threads);
        int64_t* const out = to.block(b);
        for (int64_t i = 0; i < size; ++i) out[next[owner[i]]++] = s.order[size_t(i)];
    }

    int64_t round() const { return std::clamp<int64_t>((int64_t{1} << 24) / (stride_ * block_examples), 1, 1 << 20); }

    int run_asynchronously(int threads, double* loss, StopCheck stop_check) {
        const Order order(t_.examples, block_examples, o_.shuffle, o_.seed, uint64_t(o_.epoch));
        std::mutex mutex;
        std::vector<Scratch> scratch = scratch_for(threads);
        const bool divided = threads > 1 && o_.mode == TrainingMode::hogwild;
        by_rows_ = t_.row_count >= t_.column_count;
        if (divided)
            popular_ = by_rows_ ? popular(columns_, t_.examples, t_.column_count, stride_)
                                : popular(rows_, t_.examples, t_.row_count, stride_);
        int worked = 1;
        for (int64_t begin = 0; begin < order.blocks(); begin += round()) {
            const int64_t end = std::min(order.blocks(), begin + round());
            std::atomic<int64_t> next{begin};
            std::atomic<int> team{1};
            Dealt dealt(begin, divided ? end : begin, threads);
            if (divided)
                share(threads, [&](int thread, int) {
                    for (int64_t b; (b = next.fetch_add(1, std::memory_order_relaxed)) < end;)
                        deal(dealt, order, b, scratch[size_t(thread)]);
                });
            share(threads, [&](int thread, int n) {
                if (thread == 0) team.store(n, std::memory_order_relaxed);
                Scratch& s = scratch[size_t(thread)];
                if (divided) {
                    copy_frequent(s);
                    for (int64_t b = begin; b < end; ++b) {
                        const int64_t* const starts = dealt.starts_of(b);
                        for (int64_t own = thread; own < threads; own += n) {
                            std::copy(dealt.block(b) + starts[own], dealt.block(b) + starts[own + 1], s.order.begin());
                            work(starts[own + 1] - starts[own], s, nullptr);
                        }
                    }
                    publish_all(s);
                    return;
                }
                for (int64_t b; (b = next.fetch_add(1, std::memory_order_relaxed)) < end;) {
                    order.fill(b, s.order.data());
                    work(order.size(b), s, o_.mode == TrainingMode::locked && n > 1 ? &mutex : nullptr);
                }
            });
            worked = team.load(std::memory_order_relaxed);
            if (stop_check.call != nullptr && !stop_check.call(stop_check.context)) return 0;
        }
        for (const Scratch& s : scratch) *loss += s.loss;
        return worked;
    }

    // Groups of rows and columns: in turn g, row group i is updated with column group i + g, so no two threads have a
    // row or a column in common (R. Gemulla, E. Nijkamp, P. J. Haas, Y. Sismanis, Large-scale matrix factorization with
    // distributed stochastic gradient descent, KDD 2011).
    int run_by_blocks(int threads, double* loss, StopCheck stop_check) {
        constexpr int64_t groups = factor_groups;
        const auto first = int64_t(random_words(mix_bits(o_.seed), 1, uint64_t(o_.epoch)).w0 % uint64_t(groups));
        std::vector<double> sums(size_t(groups), 0.0);
        const int wanted = int(std::min<int64_t>(threads, groups));
        std::vector<Scratch> scratch = scratch_for(wanted);
        int worked = 1;
        for (int64_t turn = 0; turn < groups; ++turn) {
            std::atomic<int64_t> next{0};
            std::atomic<int> team{1};
            share(wanted, [&](int thread, int n) {
                if (thread == 0) team.store(n, std::memory_order_relaxed);
                Scratch& s = scratch[size_t(thread)];
                for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < groups;) {
                    const int64_t block = i * groups + (i + turn + first) % groups;
                    const int64_t begin = t_.block_starts[block], size = t_.block_starts[block + 1] - begin;
                    const Order order(size, block_examples, o_.shuffle, o_.seed + uint64_t(block), uint64_t(o_.epoch));
                    s.loss = sums[size_t(i)];
                    for (int64_t b = 0; b < order.blocks(); ++b) {
                        order.fill(b, s.order.data());
                        for (int64_t j = 0; j < order.size(b); ++j)
                            s.order[size_t(j)] = t_.order[begin + s.order[size_t(j)]];
                        work(order.size(b), s, nullptr);
                    }
                    sums[size_t(i)] = s.loss;
                }
            });
            worked = team.load(std::memory_order_relaxed);
            if (stop_check.call != nullptr && !stop_check.call(stop_check.context)) return 0;
        }
        *loss = std::accumulate(sums.begin(), sums.end(), 0.0);
        return worked;
    }

    // The factors of a row or a column that a thread works with.
    struct Place {
        Cell* factors;
        Cell* squares;  // null: there are none
        int64_t copy;   // its index, or -1
    };
    Place place(bool shared, int64_t u, void* factors, void* squares, Scratch& s) const {
        const int64_t copy = !shared || popular_.place.empty() ? -1 : popular_.place[size_t(u)];
        const bool squared = o_.rule == SparseRule::adagrad;
        if (copy < 0)
            return {static_cast<Cell*>(factors) + u * cells(),
                    squared ? static_cast<Cell*>(squares) + u * cells() : nullptr, copy};
        return {s.factors.mine.data() + copy * cells(), squared ? s.squares.mine.data() + copy * cells() : nullptr,
                copy};
    }
    Place row_place(int64_t i, Scratch& s) const {
        return place(!by_rows_, rows_[i], t_.row_factors, t_.row_squares, s);
    }
    Place column_place(int64_t i, Scratch& s) const {
        return place(by_rows_, columns_[i], t_.column_factors, t_.column_squares, s);
    }

    void work(int64_t n, Scratch& s, std::mutex* mutex) const {
        const std::vector<int64_t>& order = s.order;
        const auto bytes = size_t(stride_) * sizeof(T);
        for (int64_t i = 0; i < n; ++i) {
            if (i + 8 < n) {
                const auto ahead = size_t(order[size_t(i + 8)]);
                rows_.prefetch_element(ahead);
                columns_.prefetch_element(ahead);
                prefetch<CacheLevel::first>(values_, ahead * sizeof(T), 1);
            }
            if (i + 3 < n) {
                const int64_t ahead = order[size_t(i + 3)];
                for (const Place& at : {row_place(ahead, s), column_place(ahead, s)}) {
                    prefetch<CacheLevel::first>(at.factors, 0, bytes);
                    if (at.squares != nullptr) prefetch<CacheLevel::first>(at.squares, 0, bytes);
                }
            }
            if (mutex != nullptr) {
                const std::lock_guard lock(*mutex);
                one_example(order[size_t(i)], s);
            } else {
                one_example(order[size_t(i)], s);
            }
        }
    }

    static void gather(const Cell* from, T* to, int64_t n) {
        for (int64_t j = 0; j < n / in_cell; ++j) {
            const Cell cell = load(from + j);
            std::memcpy(to + j * in_cell, &cell, sizeof cell);
        }
    }
    static void scatter(const T* from, Cell* to, int64_t n) {
        for (int64_t j = 0; j < n / in_cell; ++j) {
            Cell cell;
            std::memcpy(&cell, from + j * in_cell, sizeof cell);
            store(to + j, cell);
        }
    }

    static T inner(const T* a, const T* b, int64_t n) {
        T sum[8] = {};
        for (int64_t j = 0; j < n; j += 8) {
            ADAPTK_UNROLL
            for (int64_t k = 0; k < 8; ++k) sum[k] += a[j + k] * b[j + k];
        }
        return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    }

    void count_update(const Place& at, Scratch& s) const {
        if (at.copy >= 0 && ++s.updates[size_t(at.copy)] == Popular::publish_every) publish(s, size_t(at.copy));
    }

    void one_example(int64_t i, Scratch& s) const {
        const Place at_row = row_place(i, s), at_column = column_place(i, s);
        Cell* const row = at_row.factors;
        Cell* const column = at_column.factors;
        T* ADAPTK_RESTRICT a = s.a.data();
        T* ADAPTK_RESTRICT b = s.b.data();
        gather(row, a, stride_);
        gather(column, b, stride_);
        const int64_t bias = t_.rank;
        const T row_bias = a[bias], column_bias = b[bias];
        a[bias] = b[bias] = T(0);
        const double error =
            double(values_[i]) - (t_.mean + double(row_bias) + double(column_bias) + double(inner(a, b, stride_)));
        s.loss += error * error;
        const T e = T(clamp(error, -1e12, 1e12)), eta = T(o_.eta), alpha = T(o_.alpha);
        const T row_slope = o_.bias ? alpha * row_bias - e : T(0);
        const T column_slope = o_.bias ? alpha * column_bias - e : T(0);
        if (o_.rule == SparseRule::adagrad) {
            T* ADAPTK_RESTRICT a2 = s.a2.data();
            T* ADAPTK_RESTRICT b2 = s.b2.data();
            Cell* const row2 = at_row.squares;
            Cell* const column2 = at_column.squares;
            gather(row2, a2, stride_);
            gather(column2, b2, stride_);
            const T eps = T(o_.eps);
            const T row_squares = a2[bias] + row_slope * row_slope;
            const T column_squares = b2[bias] + column_slope * column_slope;
            ADAPTK_NO_OVERLAP
            for (int64_t j = 0; j < stride_; ++j) {
                const T ga = alpha * a[j] - e * b[j], gb = alpha * b[j] - e * a[j];
                a2[j] += ga * ga;
                b2[j] += gb * gb;
                a[j] -= eta * ga / (sqrt(a2[j]) + eps);
                b[j] -= eta * gb / (sqrt(b2[j]) + eps);
            }
            a[bias] = row_bias - eta * row_slope / (sqrt(row_squares) + eps);
            b[bias] = column_bias - eta * column_slope / (sqrt(column_squares) + eps);
            a2[bias] = row_squares;
            b2[bias] = column_squares;
            scatter(a2, row2, stride_);
            scatter(b2, column2, stride_);
        } else {
            ADAPTK_NO_OVERLAP
            for (int64_t j = 0; j < stride_; ++j) {
                const T ga = alpha * a[j] - e * b[j], gb = alpha * b[j] - e * a[j];
                a[j] -= eta * ga;
                b[j] -= eta * gb;
            }
            a[bias] = row_bias - eta * row_slope;
            b[bias] = column_bias - eta * column_slope;
        }
        scatter(a, row, stride_);
        scatter(b, column, stride_);
        count_update(at_row, s);
        count_update(at_column, s);
    }

    const FactorTask& t_;
    const FactorOptions& o_;
    const Places rows_, columns_;
    const T* values_;
    int64_t stride_;
    bool by_rows_ = true;
    Popular popular_;
};

}  // namespace

int64_t factor_stride(int64_t rank) { return (rank + 1 + factor_grain - 1) / factor_grain * factor_grain; }

void factor_blocks(const FactorTask& t, int64_t* order, int64_t* starts) {
    const Places rows(t.rows, t.wide_indices), columns(t.columns, t.wide_indices);
    constexpr int64_t blocks = factor_groups * factor_groups;
    const auto block_of = [&](int64_t i) {
        return rows[i] % factor_groups * factor_groups + columns[i] % factor_groups;
    };
    std::fill(starts, starts + blocks + 1, 0);
    for (int64_t i = 0; i < t.examples; ++i) ++starts[block_of(i) + 1];
    for (int64_t b = 0; b < blocks; ++b) starts[b + 1] += starts[b];
    std::vector<int64_t> next(starts, starts + blocks);
    for (int64_t i = 0; i < t.examples; ++i) order[next[size_t(block_of(i))]++] = i;
}

int train_factors(const FactorTask& task, const FactorOptions& options, double* loss, StopCheck stop_check) {
    const FloatingPointMode mode;
    return with_type(task.doubles, [&]<class T>() { return FactorTrainer<T>(task, options).run(loss, stop_check); });
}

}  // namespace adaptk::detail
