// Bounds of variables, and the minimum of a quadratic within them.
//
//   D. P. Bertsekas, Projected Newton methods for optimization problems with simple constraints, SIAM J. Control Optim.
//   20 (1982)
#pragma once

#include "adaptk/solve/linalg.hpp"

namespace adaptk::solve {

// A view of the bounds; vectors without elements are no bounds.
template <class T> class Box {
  public:
    Box() = default;
    Box(const Vector<T>& lower, const Vector<T>& upper)
        : low_(lower.data()), high_(upper.data()), n_(int(lower.size())) {}
    explicit operator bool() const { return n_ > 0; }

    T lower(int i) const { return low_[i]; }
    T upper(int i) const { return high_[i]; }
    T inside(int i, T x) const { return std::min(std::max(x, low_[i]), high_[i]); }
    // x becomes the nearest point within the bounds; true if that is another one.
    bool clip(Vector<T>& x) const {
        bool moved = false;
        for (int i = 0; i < n_; ++i) {
            if (!(x[i] < low_[i]) && !(x[i] > high_[i])) continue;
            x[i] = inside(i, x[i]);
            moved = true;
        }
        return moved;
    }
    // The same for a point x + p, which also goes to a bound that it misses by the rounding of this sum.
    void snap(Vector<T>& point, const Vector<T>& x) const {
        for (int i = 0; i < n_; ++i) {
            const T size = 4 * epsilon<T> * std::max(std::abs(x[i]), std::abs(point[i]));
            if (point[i] < x[i] && !(point[i] - low_[i] > size)) point[i] = low_[i];
            if (point[i] > x[i] && !(high_[i] - point[i] > size)) point[i] = high_[i];
            point[i] = inside(i, point[i]);
        }
    }
    bool on_bound(int i, T x) const { return x <= low_[i] || x >= high_[i]; }
    // Whether variable i is at a bound, and a step d leads out.
    bool leads_out(int i, T x, T d) const { return (d < 0 && x <= low_[i]) || (d > 0 && x >= high_[i]); }
    // Whether a bound holds the variable: f falls outward, or there is no room at all.
    bool holds(int i, T x, T slope) const { return leads_out(i, x, -slope) || low_[i] == high_[i]; }
    // out becomes the slopes of what no bound holds.
    void project(const Vector<T>& x, const Vector<T>& g, Vector<T>& out) const {
        for (int i = 0; i < n_; ++i) out[i] = holds(i, x[i], g[i]) ? T(0) : g[i];
    }
    // The largest t for which x + t side d is within the bounds.
    T room(const Vector<T>& x, const Vector<T>& d, T side) const {
        T t = std::numeric_limits<T>::infinity();
        for (int i = 0; i < n_; ++i) {
            const T di = side * d[i];
            if (di < 0) t = std::min(t, (low_[i] - x[i]) / di);
            if (di > 0) t = std::min(t, (high_[i] - x[i]) / di);
        }
        return std::max(t, T(0));
    }

  private:
    const T *low_ = nullptr, *high_ = nullptr;
    int n_ = 0;
};

template <class T> struct BoxWork {
    void resize(int n) {
        for (Vector<T>* v : {&low, &high, &r, &slopes, &d, &next}) v->resize(n);
        fixed.resize(n);
        l.resize(n, n);
    }
    Vector<T> low, high;  // the bounds of s
    Vector<T> r, slopes, d, next;
    Eigen::Array<bool, Eigen::Dynamic, 1> fixed;
    Matrix<T> l;
};

// Minimises g's + s'(H + shift I)s/2 for w.low <= s <= w.high from s, which is within these bounds. H + shift I is
// positive definite. Each iteration is Newton's for the variables that no bound holds, and its step is projected onto
// the bounds and halved until the quadratic falls. True if the minimum was found up to rounding.
template <class Linalg, class T>
bool minimise_in_box(const Matrix<T>& h, T shift, const Vector<T>& g, BoxWork<T>& w, Vector<T>& s) {
    constexpr int most = 100, most_halvings = 40;
    const Box<T> box(w.low, w.high);
    const int n = int(s.size());
    const T g_norm = norm(g);
    // r = (H + shift I) s, and the quadratic.
    const auto quadratic = [&](const Vector<T>& at) {
        w.r.noalias() = h.template selfadjointView<Eigen::Lower>() * at;
        w.r += shift * at;
        return at.dot(g) + at.dot(w.r) / 2;
    };
    T value = quadratic(s);
    for (int iteration = 0; iteration < most; ++iteration) {
        w.r += g;
        T rest = 0;
        for (int i = 0; i < n; ++i) {
            w.fixed[i] = box.holds(i, s[i], w.r[i]);
            if (!w.fixed[i]) rest = std::max(rest, std::abs(w.r[i]));
        }
        if (rest <= T(n) * epsilon<T> * g_norm) return true;
        w.l = h;
        w.l.diagonal().array() += shift;
        for (int i = 0; i < n; ++i) {
            w.d[i] = w.fixed[i] ? T(0) : -w.r[i];
            if (!w.fixed[i]) continue;
            w.l.row(i).setZero();
            w.l.col(i).setZero();
            w.l(i, i) = 1;
        }
        if (!Linalg::cholesky(w.l)) return false;
        Linalg::cholesky_solve(w.l, w.d);
        if (!w.d.allFinite()) return false;
        bool fell = false;
        T t = 1;
        const T slope = w.r.dot(w.d);
        w.slopes = w.r;
        for (int i = 0; i < most_halvings && !fell; ++i, t /= 2) {
            w.next = s + t * w.d;
            const bool bent = box.clip(w.next);
            const T there = quadratic(w.next);
            const T promised = bent ? w.slopes.dot(w.next - s) : t * slope;
            fell = there < value && there <= value + T(1e-4) * promised;
            if (fell) value = there;
        }
        // Only rounding is left to gain.
        if (!fell) return rest <= std::sqrt(epsilon<T>) * g_norm;
        s.swap(w.next);
    }
    return false;
}

}  // namespace adaptk::solve
