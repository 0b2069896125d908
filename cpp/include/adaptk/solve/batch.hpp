// Many small least-squares problems with one model, solved side by side: each lane of a vector register works on its
// own problem, and takes the next one when that has ended. Lanes are independent, so a problem's result does not depend
// on its neighbours, on the width of the registers or on the number of threads, bit for bit.
//
//   D. W. Marquardt, J. SIAM 11 (1963)
//   J. J. More, The Levenberg-Marquardt algorithm: implementation and theory, LNM 630 (1978): scaling, tests of the end
//   H. B. Nielsen, Damping parameter in Marquardt's method, IMM-REP-1999-05 (1999)
//   C. L. Lawson, R. J. Hanson, Solving Least Squares Problems (1974), chapter 27: QR of a matrix that comes in blocks
//   C. Kanzow, N. Yamashita, M. Fukushima, J. Comput. Appl. Math. 172 (2004): bounds by projection
//
// With residuals r = sqrt(w) (model - data) and their Jacobian J = Q R, the step p minimises
//     |R p + Q'r|^2 + mu |D p|^2,
// where D holds the largest norm so far of each column of J. A column that is zero at the start does not show the scale
// of its variable. Its D is then |r| over the variable's size, so that a step of that size is damped like others, and
// |D x| counts the variable as at most a few thousand times that size. Variables at a bound that the gradient pushes
// against are held. Variables that the step would take beyond a bound are set to the bound, and the step is computed
// again for the others. A trial point is accepted if it has a lower sum of squares. Values and derivatives are computed
// together, so each trial is one pass over the points. A problem ends, in this order, with
//   indefinite Tukey's loss, and every residual of the start is beyond its scale
//   nonfinite  the start's residuals or derivatives are not finite
//   reduction  the actual and the predicted relative reduction of |r|^2 are <= ftol, and actual <= 2 predicted
//   step       |D p| <= xtol |D x|
//   both       reduction and step
//   gradient   |J_j' r| <= gtol |J_j| |r| for every j that is not held
//   precision  the step changes no variable
//   limit      max_iterations trial points
// A problem that has converged (not nonfinite or limit) is then polished by undamped steps, as long as |D p| shrinks by
// at least a tenth and |r| does not grow by more than its rounding. This gives x the digits that J and r have, which
// the reduction of |r|^2 no longer shows. If the first of these steps is long, the solution is not near: damped steps
// then continue, once, to tolerances that are smaller by sqrt(eps).
#pragma once

#include "adaptk/solve/batch_losses.hpp"
#include "adaptk/solve/batch_models.hpp"
#include "adaptk/solve/batch_problem.hpp"
#include "adaptk/solve/result.hpp"

#include <atomic>
#include <cstddef>
#include <memory>

// For functions that run once per problem: compiled small rather than fast, since there is a copy for each number of
// parameters.
#if defined(__CUDACC__)
#define ADAPTK_ONCE ADAPTK_KERNEL_TOO
#elif defined(ADAPTK_GNU)
#define ADAPTK_ONCE __attribute__((cold, noinline))
#else
#define ADAPTK_ONCE
#endif

namespace adaptk::solve {

// A queue of problems; `more` returns false if none are left. Several threads call it concurrently.
struct BatchFeed {
    bool (*more)(void* context, std::int64_t& begin, std::int64_t& end) = nullptr;
    bool (*go)(void* context) = nullptr;  // called periodically; returns false to stop at once
    void* context = nullptr;

    bool take(std::int64_t& begin, std::int64_t& end) const { return more(context, begin, end); }
    bool goes_on() const { return go(context); }
};

inline namespace ADAPTK_TARGET {

// Rows(p, points, stride, count, out) writes n + 1 lanes for each of `count` points: the derivatives, then model -
// data. The points start `stride` lanes apart, each with its data and then its coordinates.
template <class Model, class V> struct ModelRows {
    Model model;
    template <class Points>
    ADAPTK_KERNEL_TOO void operator()(const V* p, Points points, int stride, int count, V* out) const {
        constexpr int n = Model::size;
        // Copies: stores to `out` could alias the parameters.
        V q[n];
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) q[j] = p[j];
        const Model m = model;
        for (int i = 0; i < count; ++i, points += stride, out += n + 1) {
            V x[Model::inputs], slope[n], value;
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j < Model::inputs; ++j) x[j] = points[1 + j];
            m(q, x, value, slope);
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j < n; ++j) out[j] = slope[j];
            out[n] = value - points[0];
        }
    }
};

// The storage of lanes for each point: `Points` holds the data; rows of J are in a local array, one block at a time.
// Threads of a CUDA kernel store both differently (cuda/batch_kernels.cu) and compute rows one by one.
template <class V> struct LaneMemory {
    using Points = V*;
    static constexpr bool row_by_row = false;
    Points points;  // points * stride lanes
};

// One register of problems. Everything here is a member of a template over Rows, so that each instruction set has its
// own code if it has its own type Rows.
template <class V, int n, class Rows, class Memory = LaneMemory<V>> class BatchLanes {
  public:
    using T = Element<V>;
    using M = Mask<V>;
    using Losses = BatchLosses<Rows, V>;
    static constexpr int width = int(sizeof(V) / sizeof(T));

    // A point holds its data, its coordinates, and the root of its weight if there are weights.
    ADAPTK_KERNEL_TOO static int stride(const BatchProblem<T>& problem, int inputs) {
        return 1 + inputs + (problem.weights != nullptr ? 1 : 0);
    }

    ADAPTK_KERNEL_TOO BatchLanes(const Rows& rows, const BatchProblem<T>& problem, const BatchOptions<T>& options,
                                 int inputs, Memory memory)
        : rows_(rows), f(problem), o(options), inputs_(inputs), stride_(stride(problem, inputs)), memory_(memory),
          squares_(options.loss == Loss::linear && !options.poisson) {}

    template <class Feed> ADAPTK_KERNEL_TOO void run(Feed& feed) {
        const Points points = memory_.points;
        for (std::int64_t i = 0; i < std::int64_t(f.points) * stride_; ++i) points[i] = V{};
        if (f.coordinates_stride == 0) {
            for (int i = 0; i < f.points; ++i)
                for (int c = 0; c < inputs_; ++c)
                    points[std::int64_t(i) * stride_ + 1 + c] = lane<V>(f.coordinates[std::int64_t(i) * inputs_ + c]);
        }
        scale = lane<V>(1);
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) unit[j] = inverse_unit[j] = factor[j] = scale;
        for (int l = 0; l < width; ++l) index_[l] = -1;
        int active = 0;
        for (int l = 0; l < width; ++l) active += load(l, feed);
        // goes_on() costs about as much as some hundred points.
        const std::int64_t patience = 1 + 4096 / (f.points + 1);
        for (std::int64_t round = 1; active > 0; ++round) {
            if (round % patience == 0 && !feed.goes_on()) return;
            if (uncalibrated_) calibrate();
            evaluate();
            judge();
            if (any<M>(status != T(running))) {
                for (int l = 0; l < width; ++l) {
                    if (index_[l] < 0 || at(status, l) == T(running)) continue;
                    store(l);
                    active -= !load(l, feed);
                }
            }
            if (active > 0) propose();
        }
    }

  private:
    using Points = typename Memory::Points;
    static constexpr int running = 100;
    static constexpr int block = 32;  // rows of J at once, in L1
    static constexpr int rows_at_once = Memory::row_by_row ? 1 : block;
    static constexpr T infinity = solve::infinity<T>;
    static constexpr T smallest = smallest_normal<T>;
    // The smallest damping: one this small no longer changes |R p + Q'r|.
    static constexpr T least_damping = epsilon<T> * epsilon<T>;
    // The first damping, for columns of norm 1, and the smallest factor between two dampings: of those tried on NIST's
    // sets (1e-4 to 1, 0.003 to 1/3), the pair that gave the most digits, with nearly the fewest trial points.
    static constexpr T first_damping = T(1e-3), least_factor = T(0.03);
    // A column smaller than this fraction of the others is considered cancellation.
    static constexpr T cancellation_share = 64 * epsilon<T>;
    // |D x| counts a variable as at most this many times its initial size.
    static constexpr T max_growth = T(4096);

    // The power of two below a size that is far from 1, else 1.
    ADAPTK_KERNEL_TOO static T unit_of(T size) {
        using I = typename LaneOf<T>::Integer;
        constexpr I exponent = __builtin_bit_cast(I, infinity);
        constexpr T far = sizeof(T) == 4 ? T(0x1p20) : T(0x1p200);
        if (!((size > far && size < infinity) || (size < 1 / far && size >= smallest))) return 1;
        return __builtin_bit_cast(T, I(__builtin_bit_cast(I, size) & exponent));
    }

    // The number of rows to compute at once, from row `first` on.
    ADAPTK_KERNEL_TOO int rows_from(int first) const {
        return rows_at_once == 1 || f.points - first >= rows_at_once ? rows_at_once : f.points - first;
    }

    ADAPTK_KERNEL_TOO static void set(M& mask, int l, bool value = true) {
        if constexpr (std::is_same_v<M, bool>) {
            mask = value;
        } else {
            mask[l] = value ? -1 : 0;
        }
    }

    ADAPTK_KERNEL_TOO static bool at_mask(const M& mask, int l) {
        if constexpr (std::is_same_v<M, bool>) {
            return mask;
        } else {
            return mask[l] != 0;
        }
    }

    // Loads the next problem into lane l; false if there is none.
    template <class Feed> ADAPTK_ONCE bool load(int l, Feed& feed) {
        if (next_ == end_ && !feed.take(next_, end_)) {
            next_ = end_ = 0;
            index_[l] = -1;
            return false;
        }
        const std::int64_t k = index_[l] = next_++;
        const Points points = memory_.points;
        const T* data = f.data + k * f.points;
        T largest = 0;
        freedom_[l] = f.points;
        if (f.coordinates_stride != 0) {
            const T* x = f.coordinates + k * f.coordinates_stride;
            for (int i = 0; i < f.points; ++i)
                for (int c = 0; c < inputs_; ++c) at(points[std::int64_t(i) * stride_ + 1 + c], l) = *x++;
        }
        if (f.weights != nullptr) {
            const T* weights = f.weights + k * f.weights_stride;
            freedom_[l] = 0;
            for (int i = 0; i < f.points; ++i) {
                const T root = sqrt<T>(weights[i]);
                const T y = root == 0 ? T(0) : data[i];
                freedom_[l] += root != 0;
                at(points[std::int64_t(i) * stride_], l) = y;
                at(points[std::int64_t(i) * stride_ + stride_ - 1], l) = root;
                largest = greater_of<T>(largest, absolute<T>(y * root));
            }
        } else {
            for (int i = 0; i < f.points; ++i) {
                at(points[std::int64_t(i) * stride_], l) = data[i];
                largest = greater_of<T>(largest, absolute<T>(data[i]));
            }
        }
        // Very large and very small residuals and variables are rescaled, so that squares do not overflow or
        // underflow.
        at(scale, l) = 1 / unit_of(largest);
        const T* start = f.start + k * f.start_stride;
        const T* lower = f.lower == nullptr ? nullptr : f.lower + k * f.bounds_stride;
        const T* upper = f.lower == nullptr ? nullptr : f.upper + k * f.bounds_stride;
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) {
            at(x[j], l) = at(trial[j], l) = start[j];
            if (lower != nullptr) {
                at(low[j], l) = lower[j];
                at(high[j], l) = upper[j];
            }
            at(d[j], l) = 0;
            at(unit[j], l) = unit_of(absolute<T>(start[j]));
            at(inverse_unit[j], l) = 1 / at(unit[j], l);
            at(factor[j], l) = at(scale, l) * at(unit[j], l);
            const T size = absolute<T>(start[j]);
            at(typical[j], l) = size > 0 ? size : T(1);
            set(kept[j], l, f.fixed != nullptr && f.fixed[k * f.fixed_stride + j]);
        }
        if (f.loss_scale != nullptr) at(loss_scale, l) = f.loss_scale[k * f.loss_scale_stride] * at(scale, l);
        scaled_ = any<M>(scale != T(1));
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) scaled_ = scaled_ || any<M>(unit[j] != T(1));
        // Squares of columns, such as that of an offset of 0, could overflow or underflow once residuals are scaled.
        constexpr T very_far = sizeof(T) == 4 ? T(0x1p40) : T(0x1p400);
        const bool calibrates = at(scale, l) > very_far || at(scale, l) < 1 / very_far;
        set(uncertain, l, calibrates);
        uncalibrated_ = uncalibrated_ || calibrates;
        set(polishing, l, false);
        at(strict, l) = 1;
        at(mu, l) = first_damping;
        at(nu, l) = 2;
        at(iterations, l) = 0;
        set(fresh, l);
        at(cost, l) = not_a_number<T>;
        return true;
    }

    // Sets the units of the variables from their columns at the start, in the `uncertain` lanes.
    ADAPTK_ONCE void calibrate() {
        V rows[rows_at_once][n + 1], most[n] = {};
        for (int first = 0; first < f.points; first += rows_at_once) {
            const int count = rows_from(first);
            const Points points = memory_.points + std::int64_t(first) * stride_;
            rows_(trial, points, stride_, count, &rows[0][0]);
            for (int i = 0; i < count; ++i) {
                const V root = f.weights != nullptr ? points[std::int64_t(i) * stride_ + stride_ - 1] : lane<V>(1);
                ADAPTK_KERNEL_UNROLL
                for (int j = 0; j < n; ++j)
                    most[j] = greater_of(root == T(0) ? V{} : absolute(rows[i][j] * root), most[j]);
            }
        }
        for (int l = 0; l < width; ++l) {
            if (!at_mask(uncertain, l)) continue;
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j < n; ++j) {
                at(unit[j], l) = 1 / unit_of(at(most[j], l) * at(scale, l));
                at(inverse_unit[j], l) = 1 / at(unit[j], l);
                at(factor[j], l) = at(scale, l) * at(unit[j], l);
            }
        }
        uncertain = M(V{} != V{});
        uncalibrated_ = false;
    }

    // Computes rows of J and residuals at a point, weighted and in the lanes' units, and the terms of a loss other than
    // squares.
    ADAPTK_KERNEL_TOO void rows_at(const V* at, int first, int count, V (*rows)[n + 1], V* terms,
                                   V* missing = nullptr) {
        const Points points = memory_.points + std::int64_t(first) * stride_;
        rows_(at, points, stride_, count, &rows[0][0]);
        if (o.poisson) Losses::poisson_rows(points, stride_, n, count, &rows[0][0], terms);
        if (f.weights != nullptr) {
            for (int i = 0; i < count; ++i) {
                const V root = points[std::int64_t(i) * stride_ + stride_ - 1];
                // A point of weight 0 contributes nothing, even if it is NaN.
                ADAPTK_KERNEL_UNROLL
                for (int j = 0; j <= n; ++j) rows[i][j] = root == T(0) ? V{} : rows[i][j] * root;
                if (o.poisson) terms[i] = root == T(0) ? V{} : terms[i] * root * root;
            }
        }
        if (scaled_) {
            for (int i = 0; i < count; ++i) {
                ADAPTK_KERNEL_UNROLL
                for (int j = 0; j < n; ++j) rows[i][j] *= factor[j];
                rows[i][n] *= scale;
                if (o.poisson) terms[i] *= scale * scale;
            }
        }
        if (o.loss != Loss::linear) Losses::robust_rows(o.loss, loss_scale, n, count, &rows[0][0], terms, missing);
    }

    // At the trial point, computes `to`, which is R with Q'r as its last column, and `cost_n`, the sum of terms.
    ADAPTK_KERNEL_TOO void evaluate() {
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) ADAPTK_KERNEL_UNROLL
        for (int k = j; k <= n; ++k) to[j][k] = V{};
        V total{};
        for (int first = 0; first < f.points; first += block) {
            const int count = f.points - first < block ? f.points - first : block;
            V sum[n + 1] = {};
            if constexpr (Memory::row_by_row) {
                const auto rows = memory_.rows;
                for (int i = 0; i < count; ++i) {
                    V row[1][n + 1], term[1];
                    rows_at(trial, first + i, 1, row, term);
                    total += squares_ ? row[0][n] * row[0][n] : term[0];
                    ADAPTK_UNROLL
                    for (int k = 0; k <= n; ++k) {
                        rows[i][k] = row[0][k];
                        sum[k] += row[0][0] * row[0][k];
                    }
                }
                reduce<0>(rows, count, sum);
            } else {
                V rows[block][n + 1], terms[block];
                rows_at(trial, first, count, rows, terms);
                if (!squares_)
                    for (int i = 0; i < count; ++i) total += terms[i];
                for (int i = 0; i < count; ++i) {
                    if (squares_) total += rows[i][n] * rows[i][n];
                    const V left = rows[i][0];
                    ADAPTK_UNROLL
                    for (int k = 0; k <= n; ++k) sum[k] += left * rows[i][k];
                }
                reduce<0>(&rows[0], count, sum);
            }
        }
        cost_n = total;
    }

    // The reflection that clears column j of the rows below R. sum[k] holds the product of columns j and k of these
    // rows. The pass that updates the rows also computes the products for the next column.
    template <int j, class Block> ADAPTK_HD void reduce(Block rows, int count, const V* sum) {
        const V pivot = to[j][j];
        const V square = pivot * pivot + sum[j];
        const V norm = sqrt(square);
        const M some = square >= smallest;
        const V corner = some ? (pivot > T(0) ? -norm : norm) : pivot;
        const V head = pivot - corner;
        // 2 / v'v is -1 / (corner head).
        const V inverse = some ? T(1) / (corner * head) : V{};
        to[j][j] = square != square ? square : corner;
        V s[n + 1];
        ADAPTK_UNROLL
        for (int k = j + 1; k <= n; ++k) {
            s[k] = (head * to[j][k] + sum[k]) * inverse;
            to[j][k] += s[k] * head;
        }
        if constexpr (j + 1 < n) {
            V next[n + 1] = {};
            for (int i = 0; i < count; ++i) {
                const V v = rows[i][j];
                const V left = rows[i][j + 1] + s[j + 1] * v;
                ADAPTK_UNROLL
                for (int k = j + 1; k <= n; ++k) {
                    const V updated = rows[i][k] + s[k] * v;
                    rows[i][k] = updated;
                    next[k] += left * updated;
                }
            }
            reduce<j + 1>(rows, count, next);
        }
    }

    // Sets D at the start for each column that is zero, or so small relative to all others that it is only
    // cancellation.
    ADAPTK_KERNEL_TOO void assume(const V* norm) {
        V least = lane<V>(infinity), second = least;
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            const V size = norm[k] * inverse_unit[k];
            second = size < least ? least : lesser_of(size, second);
            least = lesser_of(size, least);
        }
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            const V size = norm[k] * inverse_unit[k];
            const M silent = M(size == T(0)) | (M(second < infinity) & M(size <= cancellation_share * second));
            const V assumed = sqrt(cost_n) / (typical[k] * inverse_unit[k]);
            d[k] = (fresh & silent & M(assumed < infinity)) ? assumed : d[k];
        }
    }

    // Accepts or rejects the trial point, and sets the status of each lane.
    ADAPTK_KERNEL_TOO void judge() {
        V norm[n], finite_sum = cost_n;
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            V square{};
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j <= k; ++j) square += to[j][k] * to[j][k];
            norm[k] = sqrt(square);
            finite_sum += norm[k];
        }
        const M finite = finite_sum < infinity;  // false for NaN
        const V actual = (cost - cost_n) / cost;
        const V ratio = predicted > T(0) ? actual / predicted : lane<V>(-1);
        const M better = finite & M(sqrt(cost_n) <= most) & M(spent == 0);
        const M taken = fresh ? finite : (polishing ? better : finite & M(cost_n < cost));
        const M moved = M(fresh == 0);
        if (any<M>(fresh)) assume(norm);
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            x[k] = taken ? trial[k] : x[k];
            norms[k] = taken ? norm[k] : norms[k];
            d[k] = taken ? greater_of(d[k], norm[k]) : d[k];
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j <= k; ++j) r[j][k] = taken ? to[j][k] : r[j][k];
            r[k][n] = taken ? to[k][n] : r[k][n];
        }
        const V w = T(2) * ratio - T(1);
        const V factor = greater_of(T(1) - w * w * w, lane<V>(least_factor));
        const V damping = taken ? greater_of(mu * factor, lane<V>(least_damping)) : mu * nu;
        const V doubled = taken ? lane<V>(2) : T(2) * nu;
        mu = moved ? damping : mu;
        nu = moved ? doubled : nu;
        iterations = moved ? iterations + T(1) : iterations;
        cost = taken ? cost_n : cost;

        // The gradient, and the variables that it pushes against their bounds.
        M stationary = M(V{} == V{});
        const V length = sqrt(cost);
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            V g{};
            ADAPTK_KERNEL_UNROLL
            for (int j = 0; j <= k; ++j) g += r[j][k] * r[j][n];
            held[k] = kept[k];
            if (f.lower != nullptr) held[k] |= (M(x[k] <= low[k]) & M(g > T(0))) | (M(x[k] >= high[k]) & M(g < T(0)));
            stationary &= held[k] | M(absolute(g) <= o.gtol * strict * norms[k] * length);
        }
        const V ftol = o.ftol * strict;
        const V fall = absolute(actual), expected = absolute(predicted);
        const M reduced = moved & finite & M(fall <= ftol) & M(expected <= ftol) & M(ratio <= T(2));
        const M step = moved & small;
        // Later assignments take precedence.
        V s = lane<V>(running);
        s = iterations >= T(o.max_iterations) ? lane<V>(int(Status::limit)) : s;
        s = (moved & stuck) ? lane<V>(int(Status::precision)) : s;
        s = stationary ? lane<V>(int(Status::gradient)) : s;
        s = step ? lane<V>(int(Status::step)) : s;
        s = reduced ? (step ? lane<V>(int(Status::both)) : lane<V>(int(Status::reduction))) : s;
        const M again = polishing & overshot & M(strict == T(1)) & M(iterations < T(o.max_iterations));
        strict = again ? sqrt(lane<V>(epsilon<T>)) : strict;
        const M going = (taken | again) & M(iterations < T(o.max_iterations));
        s = polishing ? (going ? lane<V>(running) : ended) : s;
        s = (fresh & M(finite == 0)) ? lane<V>(int(Status::nonfinite)) : s;
        if (o.loss == Loss::tukey) {
            // If all residuals are beyond C, there is no gradient to follow.
            V some{};
            ADAPTK_KERNEL_UNROLL
            for (int k = 0; k < n; ++k) some += norm[k];
            s = (fresh & M(some == T(0)) & M(cost > T(0))) ? lane<V>(int(Status::indefinite)) : s;
        }
        if (o.polish) {
            const M begin = M(polishing == 0) & M(s > T(0)) & M(s != T(running)) & M(cost > T(0)) &
                            M(iterations < T(o.max_iterations));
            ended = begin ? s : ended;
            before = begin ? lane<V>(infinity) : before;
            polishing = begin | (polishing & M(again == 0));
            s = begin ? lane<V>(running) : s;
        }
        status = s;
        fresh = M(V{} != V{});
    }

    // Computes the next trial point.
    ADAPTK_KERNEL_TOO void propose() {
        V p[n], inverse[n];
        V end[n];
        M hold[n], cut[n];
        const V root = polishing ? V{} : sqrt(mu);
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            p[k] = V{};
            hold[k] = held[k];
            cut[k] = M(V{} != V{});
            end[k] = V{};
            d_used[k] = d[k] > T(0) ? d[k] : lane<V>(1);
            inverse[k] = T(1) / d_used[k];
        }
        for (int pass = 0; pass <= n; ++pass) {
            V a[n][n + 1], diagonal[n];
            ADAPTK_KERNEL_UNROLL
            for (int i = 0; i < n; ++i) {
                V right = r[i][n];
                ADAPTK_KERNEL_UNROLL
                for (int k = i; k < n; ++k) {
                    right += hold[k] ? r[i][k] * p[k] : V{};
                    a[i][k] = hold[k] ? V{} : r[i][k] * inverse[k];
                }
                a[i][n] = right;
                diagonal[i] = root;
            }
            eliminate<V>(a, diagonal);
            ADAPTK_KERNEL_UNROLL
            for (int k = n - 1; k >= 0; --k) {
                V y = -a[k][n];
                ADAPTK_KERNEL_UNROLL
                for (int j = k + 1; j < n; ++j) y -= a[k][j] * diagonal[j];
                y *= a[k][k];  // its inverse
                diagonal[k] = y;
                p[k] = hold[k] ? p[k] : y * inverse[k];
            }
            if (f.lower == nullptr) break;
            M beyond = M(V{} != V{});
            ADAPTK_KERNEL_UNROLL
            for (int k = 0; k < n; ++k) {
                const V next = x[k] + p[k] * unit[k];
                const M below = M(hold[k] == 0) & M(next < low[k]), above = M(hold[k] == 0) & M(next > high[k]);
                end[k] = below ? low[k] : end[k];
                end[k] = above ? high[k] : end[k];
                p[k] = (below | above) ? (end[k] - x[k]) * inverse_unit[k] : p[k];
                cut[k] |= below | above;
                hold[k] |= below | above;
                beyond |= below | above;
            }
            if (!any<M>(beyond)) break;
        }
        M same = M(V{} == V{});
        V step{}, size{}, gain{};
        ADAPTK_KERNEL_UNROLL
        for (int k = 0; k < n; ++k) {
            const V next = cut[k] ? end[k] : x[k] + p[k] * unit[k];
            same &= M(next == x[k]);
            trial[k] = fresh ? trial[k] : next;
            step += (d_used[k] * p[k]) * (d_used[k] * p[k]);
            const V at_unit = d_used[k] * (lesser_of(absolute(x[k]), max_growth * typical[k]) * inverse_unit[k]);
            size += at_unit * at_unit;
            V w{};
            ADAPTK_KERNEL_UNROLL
            for (int j = k; j < n; ++j) w += r[k][j] * p[j];
            gain -= w * (w + T(2) * r[k][n]);
        }
        predicted = gain / cost;
        step = sqrt(step);
        size = sqrt(size);
        small = step <= o.xtol * strict * size;
        stuck = same;
        // For polishing: a relative change of x by eps changes r by at most eps |D x|, so a smaller change is rounding.
        const V length = sqrt(cost);
        most = length + 4 * epsilon<T> * (length + size);
        spent = M(M(step < T(0.9) * before) == 0) | M(step <= epsilon<T> * size) | M(step > T(0.01) * size);
        overshot = M(before == infinity) & M(step > T(0.01) * size);
        before = step;
    }

    // Replaces a by the triangle of [a; diag(diagonal)], by reflections that also act on column n. The diagonal of the
    // result is inverted (0 for 0). a is upper triangular, so column j meets only j + 1 rows of the diagonal part.
    template <class U> ADAPTK_KERNEL_TOO static void eliminate(U (*a)[n + 1], const U* diagonal) {
        U e[n][n + 1];
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) {
            ADAPTK_KERNEL_UNROLL
            for (int k = j; k <= n; ++k) e[j][k] = U{};
            e[j][j] = diagonal[j];
        }
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) {
            const U pivot = a[j][j];
            U square = pivot * pivot;
            ADAPTK_KERNEL_UNROLL
            for (int i = 0; i <= j; ++i) square += e[i][j] * e[i][j];
            const U norm = sqrt(square);
            const Mask<U> some = square >= smallest;
            const U corner = pivot > T(0) ? -norm : norm;
            const U head = pivot - corner;
            const U inverse = some ? T(1) / (corner * head) : U{};
            a[j][j] = head * inverse;
            ADAPTK_KERNEL_UNROLL
            for (int k = j + 1; k <= n; ++k) {
                U dot = head * a[j][k];
                ADAPTK_KERNEL_UNROLL
                for (int i = 0; i <= j; ++i) dot += e[i][j] * e[i][k];
                const U s = dot * inverse;
                a[j][k] += s * head;
                ADAPTK_KERNEL_UNROLL
                for (int i = 0; i <= j; ++i) e[i][k] += s * e[i][j];
            }
        }
    }

    ADAPTK_KERNEL_TOO void store(int l) {
        const std::int64_t k = index_[l];
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) f.x[k * n + j] = at(x[j], l);
        f.cost[k] = at(cost, l) / 2 / at(scale, l) / at(scale, l);
        f.status[k] = int(at(status, l));
        f.iterations[k] = int(at(iterations, l));
        if (f.covariance != nullptr)
            covariance(l, f.covariance + k * n * n, f.deviation == nullptr ? nullptr : f.deviation + k * n);
    }

    // (J'J)^-1 from R, columns scaled to norm 1, times |r|^2 / degrees of freedom; for robust losses the sandwich
    // estimate, times points / degrees of freedom. Zero for fixed variables.
    ADAPTK_ONCE void covariance(int l, T* out, T* deviation) {
        T a[n][n + 1], diagonal[n], column[n];
        int freedom = freedom_[l];
        bool full = true;
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) {
            const bool is_fixed = at_mask(kept[j], l);
            freedom -= !is_fixed;
            diagonal[j] = is_fixed ? T(1) : T(0);
            const T inverse = is_fixed ? T(0) : 1 / at(norms[j], l);
            column[j] = inverse * at(unit[j], l);
            ADAPTK_KERNEL_UNROLL
            for (int i = 0; i <= j; ++i) a[i][j] = is_fixed ? T(0) : at(r[i][j], l) * inverse;
            a[j][n] = 0;
        }
        eliminate<T>(a, diagonal);
        const T most = 1 / (T(f.points) * epsilon<T>);
        ADAPTK_KERNEL_UNROLL
        for (int j = 0; j < n; ++j) full = full && absolute<T>(a[j][j]) < most && a[j][j] != 0;
        full = full && freedom >= 0 && at(status, l) != T(int(Status::nonfinite));
        const bool robust = o.loss != Loss::linear;
        T variance = robust ? T(1) : at(scale, l) * at(scale, l), sigma = robust ? T(1) : at(scale, l);
        if (!o.absolute_sigma && !o.poisson) {
            variance = freedom > 0 ? (robust ? T(freedom_[l]) : at(cost, l)) / T(freedom) : infinity;
            sigma = sqrt<T>(variance);
        }
        T meat[n][n] = {}, curvature[n][n] = {};
        if (robust && full) sandwich(l, a, meat, curvature);
        ADAPTK_KERNEL_UNROLL
        for (int i = n - 1; i >= 0 && full; --i) {
            // Row i of the inverse, in place of the row.
            ADAPTK_KERNEL_UNROLL
            for (int k = n - 1; k > i; --k) {
                T sum = 0;
                ADAPTK_KERNEL_UNROLL
                for (int j = i + 1; j <= k; ++j) sum += a[i][j] * a[j][k];
                out[k] = -sum * a[i][i];
            }
            ADAPTK_KERNEL_UNROLL
            for (int k = i + 1; k < n; ++k) a[i][k] = out[k];
        }
        if (robust && full) {
            T g[n][n], half[n][n];
            full = Losses::join(n, &a[0][0], n + 1, &curvature[0][0], &meat[0][0], &g[0][0], &half[0][0]);
        }
        ADAPTK_KERNEL_UNROLL
        for (int i = 0; i < n; ++i) {
            ADAPTK_KERNEL_UNROLL
            for (int k = i; k < n; ++k) {
                const bool is_fixed = at_mask(kept[i], l) || at_mask(kept[k], l);
                T sum = 0;
                if (robust) {
                    sum = full ? meat[i][k] : T(0);
                } else {
                    ADAPTK_KERNEL_UNROLL
                    for (int j = k; j < n && full; ++j) sum += a[i][j] * a[k][j];
                }
                T value = is_fixed ? T(0) : infinity;
                const bool known = full && !is_fixed && sigma < infinity;
                if (known) value = sum * column[i] * column[k] * variance;
                // Computed another way if a product overflows or underflows.
                const bool usual = value > smallest && value < infinity;
                if (known && !usual) value = (sum * (column[i] * sigma)) * (column[k] * sigma);
                out[i * n + k] = out[k * n + i] = value;
                if (i == k && deviation != nullptr)
                    deviation[i] = usual || !known ? sqrt<T>(value) : sqrt<T>(sum) * absolute<T>(column[i] * sigma);
            }
        }
    }

    // For rows u = R^-T (weighted row of J) of lane l: `meat` is the sum of psi^2 u u', where psi is the residual of
    // the row, and `curvature` is I plus the sum of `missing` u u' (batch_losses.hpp). `a` holds R, with the inverse of
    // its diagonal.
    ADAPTK_KERNEL_TOO void sandwich(int l, const T (*a)[n + 1], T (*meat)[n], T (*curvature)[n]) {
        for (int i = 0; i < n; ++i)
            for (int k = 0; k < n; ++k) {
                meat[i][k] = 0;
                curvature[i][k] = i == k;
            }
        V rows[rows_at_once][n + 1], terms[rows_at_once], missing[rows_at_once];
        for (int first = 0; first < f.points; first += rows_at_once) {
            const int count = rows_from(first);
            rows_at(x, first, count, rows, terms, missing);
            for (int i = 0; i < count; ++i) {
                T u[n];
                for (int j = 0; j < n; ++j) {
                    T sum = at_mask(kept[j], l) ? T(0) : at(rows[i][j], l) / at(norms[j], l);
                    for (int k = 0; k < j; ++k) sum -= a[k][j] * u[k];
                    u[j] = sum * a[j][j];
                }
                const T psi = at(rows[i][n], l), lacks = at(missing[i], l);
                for (int j = 0; j < n; ++j)
                    for (int k = 0; k < n; ++k) {
                        meat[j][k] += psi * psi * u[j] * u[k];
                        curvature[j][k] += lacks * u[j] * u[k];
                    }
            }
        }
    }

    const Rows& rows_;
    const BatchProblem<T>& f;
    const BatchOptions<T>& o;
    const int inputs_, stride_;
    const Memory memory_;
    const bool squares_;
    std::int64_t next_ = 0, end_ = 0;
    std::int64_t index_[width];
    int freedom_[width];
    bool scaled_ = false;
    bool uncalibrated_ = false;  // a lane is `uncertain`
    // Of the best point: x, R and Q'r, the columns' norms, |r|^2. Of the trial point: trial, to, cost_n.
    V x[n] = {}, r[n][n + 1] = {}, norms[n] = {}, cost = {};
    V trial[n] = {}, to[n][n + 1] = {}, cost_n = {};
    V low[n] = {}, high[n] = {}, d[n] = {}, d_used[n] = {};
    // Steps, R and d are of variables in these units, and R of residuals times `scale`.
    V unit[n] = {}, inverse_unit[n] = {}, factor[n] = {};
    V typical[n] = {};  // |start|, or 1 for 0
    V mu = {}, nu = {}, iterations = {}, status = {}, scale = {};
    V predicted = {};              // relative reduction
    M held[n] = {}, kept[n] = {};  // kept: fixed
    V loss_scale = {};
    M fresh = {};  // the trial point is the start
    M small = {}, stuck = {};
    V before = {}, most = {}, ended = {}, strict = {};
    M polishing = {}, spent = {}, overshot = {};
    M uncertain = {};  // the variables' units are not known yet
};

// Solves all problems with any model (batch_models.hpp defines what a model is), on this many threads (with OpenMP).
template <class Model, class T>
void levenberg_marquardt_batch(const Model& model, const BatchProblem<T>& problem, const BatchOptions<T>& options = {},
                               [[maybe_unused]] int threads = 1) {
    using V = Lanes<T>;
    using Rows = ModelRows<Model, V>;
    using Solver = BatchLanes<V, Model::size, Rows>;
    struct Queue {
        std::atomic<std::int64_t> next{0};
        std::int64_t count;
    };
    Queue queue{0, problem.count};
    const BatchFeed feed{[](void* context, std::int64_t& begin, std::int64_t& end) {
                             auto& q = *static_cast<Queue*>(context);
                             begin = q.next.fetch_add(lane_count<T>, std::memory_order_relaxed);
                             end = begin + lane_count<T> < q.count ? begin + lane_count<T> : q.count;
                             return begin < q.count;
                         },
                         [](void*) { return true; }, &queue};
    const std::size_t each = std::size_t(problem.points) * std::size_t(Solver::stride(problem, Model::inputs));
    if (threads < 1) threads = 1;
    const std::unique_ptr<V[]> blocks(new V[each * std::size_t(threads)]);
    const Rows rows{model};
#if defined(_OPENMP)
#pragma omp parallel for schedule(static, 1) num_threads(threads)
#endif
    for (int i = 0; i < threads; ++i)
        Solver(rows, problem, options, Model::inputs, {blocks.get() + each * std::size_t(i)}).run(feed);
}

}  // namespace ADAPTK_TARGET
}  // namespace adaptk::solve
