// The solvers in C++: functors, both types, and no allocation between the first and the last call of a function.
#include "adaptk/solve.hpp"
#include "check.hpp"

#include <cstdlib>
#include <new>
#include <random>
#include <vector>

namespace {
long allocations = 0;
}

void* operator new(std::size_t size) {
    ++allocations;
    if (void* p = std::malloc(size)) return p;
    throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(ADAPTK_STATIC_PROGRAM)
// Eigen calls malloc itself. A static program cannot have a second one.
extern "C" void* __libc_malloc(std::size_t);
extern "C" void* malloc(std::size_t size) {
    ++allocations;
    return __libc_malloc(size);
}
#endif

namespace adaptk::test {
namespace {

using namespace adaptk::solve;

// Counts allocations from the first evaluation to the last.
struct Counted {
    long first = -1, last = -1, calls = 0;
    long limit = -1;  // the evaluation that fails
    bool count() {
        last = allocations;
        if (first < 0) first = allocations;
        return ++calls != limit;
    }
};

template <class T> struct Rosenbrock : Counted {
    int n;
    explicit Rosenbrock(int n_) : n(n_) {}
    bool value(const T* x, T& f) {
        f = 0;
        for (int i = 0; i + 1 < n; ++i) {
            const T a = x[i + 1] - x[i] * x[i], b = 1 - x[i];
            f += 100 * a * a + b * b;
        }
        return count();
    }
    bool gradient(const T* x, T* g) {
        for (int i = 0; i < n; ++i) g[i] = 0;
        for (int i = 0; i + 1 < n; ++i) {
            const T a = x[i + 1] - x[i] * x[i];
            g[i] += -400 * x[i] * a - 2 * (1 - x[i]);
            g[i + 1] += 200 * a;
        }
        return count();
    }
    bool hessian(const T* x, T* h) {
        for (int i = 0; i < n * n; ++i) h[i] = 0;
        for (int i = 0; i + 1 < n; ++i) {
            h[i * n + i] += 1200 * x[i] * x[i] - 400 * x[i + 1] + 2;
            h[i * n + i + 1] = h[(i + 1) * n + i] = -400 * x[i];
            h[(i + 1) * n + i + 1] += 200;
        }
        return count();
    }
    bool product(const T* x, const T* v, T* hv) {
        for (int i = 0; i < n; ++i) hv[i] = 0;
        for (int i = 0; i + 1 < n; ++i) {
            hv[i] += (1200 * x[i] * x[i] - 400 * x[i + 1] + 2) * v[i] - 400 * x[i] * v[i + 1];
            hv[i + 1] += 200 * v[i + 1] - 400 * x[i] * v[i];
        }
        return count();
    }
};

template <class T> struct Decay : Counted {
    int m = 40;
    static T at(int i) { return T(i) / 10; }
    bool residuals(const T* x, T* r) {
        for (int i = 0; i < m; ++i) r[i] = x[0] * std::exp(-x[1] * at(i)) + x[2] - std::cos(at(i));
        return count();
    }
    bool jacobian(const T* x, const T*, T* j) {
        for (int i = 0; i < m; ++i) {
            const T e = std::exp(-x[1] * at(i));
            j[3 * i] = e;
            j[3 * i + 1] = -x[0] * at(i) * e;
            j[3 * i + 2] = 1;
        }
        return count();
    }
};

template <class T> void check_ones(const Vector<T>& x, const Summary<T>& s, const char* what) {
    CHECK_THAT(s.status > Status::limit, "%s: status %d", what, int(s.status));
    const T off = (x.array() - 1).abs().maxCoeff();
    CHECK_THAT(off < (sizeof(T) == 4 ? T(0.1) : T(1e-6)), "%s: off by %g", what, double(off));
}

void check_counts(const Counted& c, const char* what) {
    CHECK_THAT(c.calls > 10, "%s: %ld calls", what, c.calls);
    CHECK_THAT(c.first == c.last, "%s: %ld allocations", what, c.last - c.first);
}

template <class T> void start(Vector<T>& x) {
    for (int i = 0; i < int(x.size()); ++i) x[i] = i % 2 == 0 ? T(-1.2) : T(1);
}

template <class T> void minimisers() {
    for (const int n : {2, 5, 20}) {
        for (const Damping damping : {Damping::trust_region, Damping::levenberg}) {
            NewtonOptions<T> o;
            o.damping = damping;
            o.eigenvalue = n < 20;
            NewtonWork<T> w;
            w.resize(n);
            start(w.x);
            Rosenbrock<T> f(n);
            const Summary<T> s = newton<T>(f, o, w);
            if (n == 2) check_ones(w.x, s, "newton");
            check_counts(f, "newton");
            CHECK(s.lambda_min > 0 || !o.eigenvalue);
        }
        {
            NewtonCgWork<T> w;
            w.resize(n);
            start(w.x);
            Rosenbrock<T> f(n);
            const Summary<T> s = newton_cg<T>(f, NewtonOptions<T>{}, w);
            if (n == 2) check_ones(w.x, s, "newton_cg");
            check_counts(f, "newton_cg");
        }
        for (const Beta beta : {Beta::hz, Beta::pr_plus, Beta::fr, Beta::hs, Beta::dy}) {
            ConjugateGradientOptions<T> o;
            o.beta = beta;
            ConjugateGradientWork<T> w;
            w.resize(n);
            start(w.x);
            Rosenbrock<T> f(n);
            const Summary<T> s = conjugate_gradient<T>(f, o, w);
            if (n == 2) check_ones(w.x, s, "conjugate_gradient");
            check_counts(f, "conjugate_gradient");
        }
        for (const StepRule rule : {StepRule::wolfe, StepRule::exact, StepRule::bb}) {
            SteepestDescentOptions<T> o;
            o.rule = rule;
            o.max_iterations = 200;
            LineWork<T> w;
            w.resize(n);
            start(w.x);
            Rosenbrock<T> f(n);
            const Summary<T> s = steepest_descent<T>(f, o, w);
            T first = 0;
            Vector<T> x0(n);
            start(x0);
            f.value(x0.data(), first);
            CHECK(s.value < first);
            CHECK(s.nit > 0);
        }
    }
}

template <class T> void least_squares() {
    for (const Loss loss : {Loss::linear, Loss::huber, Loss::soft_l1, Loss::cauchy, Loss::arctan, Loss::tukey}) {
        LevenbergMarquardtOptions<T> o;
        o.loss = loss;
        o.bounded = loss == Loss::huber;
        o.accelerate = 1;
        LevenbergMarquardtWork<T> w;
        w.resize(40, 3);
        w.x << T(1), T(1), T(0);
        if (o.bounded) {
            w.lower.setConstant(T(-0.5));
            w.upper.setConstant(T(2));
        }
        Decay<T> f;
        const Summary<T> s = levenberg_marquardt<T>(f, o, w);
        CHECK_THAT(s.status > Status::limit, "loss %d: status %d", int(loss), int(s.status));
        check_counts(f, "levenberg_marquardt");
        if (o.bounded) CHECK((w.x.array() >= T(-0.5)).all() && (w.x.array() <= T(2)).all());
    }
}

// Within bounds that leave out the minimum, no call is outside, nothing is allocated, and the result is that of one
// variable less.
template <class T> struct Fenced : Rosenbrock<T> {
    using Rosenbrock<T>::Rosenbrock;
    bool inside = true;
    void look(const T* x) {
        for (int i = 0; i < this->n; ++i) inside = inside && x[i] >= T(-1.5) && x[i] <= T(0.5);
    }
    bool value(const T* x, T& f) {
        look(x);
        return Rosenbrock<T>::value(x, f);
    }
    bool gradient(const T* x, T* g) {
        look(x);
        return Rosenbrock<T>::gradient(x, g);
    }
};

template <class T, class Work> void fence(Work& w, int n) {
    w.resize(n);
    w.lower.setConstant(n, T(-1.5));
    w.upper.setConstant(n, T(0.5));
    for (int i = 0; i < n; ++i) w.x[i] = i % 2 == 0 ? T(-1.2) : T(2);  // outside: the nearest point is the start
}

template <class T> void check_fenced(const Fenced<T>& f, const Vector<T>& x, const Summary<T>& s, const char* what) {
    CHECK(f.inside);
    CHECK_THAT(s.status > Status::limit, "%s: status %d", what, int(s.status));
    CHECK_THAT(x[0] == T(0.5), "%s: x[0] %g", what, double(x[0]));
    const T off = std::abs(x[1] - T(0.25));
    CHECK_THAT(off < (sizeof(T) == 4 ? T(1e-3) : T(1e-6)), "%s: off by %g", what, double(off));
    check_counts(f, what);
}

template <class T> void bounds() {
    for (const Damping damping : {Damping::trust_region, Damping::levenberg}) {
        NewtonOptions<T> o;
        o.damping = damping;
        NewtonWork<T> w;
        fence<T>(w, 2);
        Fenced<T> f(2);
        const Summary<T> s = newton<T>(f, o, w);
        check_fenced(f, w.x, s, "newton with bounds");
        CHECK_THAT(std::abs(s.lambda_min - T(200)) < T(0.01), "lambda_min %g", double(s.lambda_min));
        // f falls along x[0], beyond its bound.
        CHECK(w.g[0] < -T(0.9) && s.gradient < T(1e-2));
    }
    for (const Beta beta : {Beta::hz, Beta::pr_plus, Beta::fr, Beta::hs, Beta::dy}) {
        ConjugateGradientOptions<T> o;
        o.beta = beta;
        ConjugateGradientWork<T> w;
        fence<T>(w, 2);
        Fenced<T> f(2);
        const Summary<T> s = conjugate_gradient<T>(f, o, w);
        check_fenced(f, w.x, s, "conjugate_gradient with bounds");
        CHECK(w.g[0] < -T(0.9) && s.gradient < T(1e-2));
    }
    for (const StepRule rule : {StepRule::wolfe, StepRule::exact, StepRule::bb}) {
        SteepestDescentOptions<T> o;
        o.rule = rule;
        LineWork<T> w;
        fence<T>(w, 2);
        Fenced<T> f(2);
        check_fenced(f, w.x, steepest_descent<T>(f, o, w), "steepest_descent with bounds");
    }
    // Bounds that leave no room: nothing to do.
    NewtonWork<T> w;
    w.resize(2);
    w.x.setConstant(T(0.25));
    w.lower = w.upper = w.x;
    Fenced<T> f(2);
    const Summary<T> s = newton<T>(f, NewtonOptions<T>{}, w);
    CHECK(s.status == Status::gradient && s.nit == 0 && std::isinf(s.lambda_min));
    CHECK(w.x[0] == T(0.25) && w.x[1] == T(0.25));
}

// A function that fails at its k-th call ends the run there, for every k.
void failing_functions() {
    for (long limit = 1; limit < 60; ++limit) {
        Rosenbrock<double> f(3);
        f.limit = limit;
        NewtonWork<double> w;
        w.resize(3);
        start(w.x);
        const Summary<double> s = newton<double>(f, NewtonOptions<double>{}, w);
        CHECK_THAT(s.status == Status::aborted ? f.calls == limit : f.calls < limit, "call %ld of %ld", f.calls, limit);

        Decay<double> d;
        d.limit = limit;
        LevenbergMarquardtWork<double> l;
        l.resize(40, 3);
        l.x << 1, 1, 0;
        const Summary<double> t = levenberg_marquardt<double>(d, LevenbergMarquardtOptions<double>{}, l);
        CHECK_THAT(t.status == Status::aborted ? d.calls == limit : d.calls < limit, "call %ld of %ld", d.calls, limit);

        Rosenbrock<double> g(3);
        g.limit = limit;
        ConjugateGradientWork<double> c;
        c.resize(3);
        start(c.x);
        const Summary<double> u = conjugate_gradient<double>(g, ConjugateGradientOptions<double>{}, c);
        CHECK_THAT(u.status == Status::aborted ? g.calls == limit : g.calls < limit, "call %ld of %ld", g.calls, limit);
    }
}

struct System {
    Matrix<double> a;
    bool product(const double* v, double* av) {
        const auto n = a.rows();
        Eigen::Map<Vector<double>>(av, n).noalias() = a * Eigen::Map<const Vector<double>>(v, n);
        return true;
    }
    bool preconditioned() const { return false; }
    bool precondition(const double*, double*) { return true; }
};

Matrix<double> random_definite(int n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    Matrix<double> b(n, n);
    for (int i = 0; i < n * n; ++i) b.data()[i] = normal(random);
    return b * b.transpose() + double(n) * Matrix<double>::Identity(n, n);
}

void linear() {
    System system{random_definite(30, 1)};
    CgWork<double> w;
    w.resize(30);
    w.x.setZero();
    w.b.setOnes();
    const Summary<double> s = cg<double>(system, CgOptions<double>{}, w);
    CHECK(s.status == Status::gradient);
    CHECK((system.a * w.x - w.b).norm() <= 1e-7);
}

// The trust region's step solves (H + lambda I) p = -g with lambda >= max(0, -lambda_min), and has the reported length.
// Elements whose squares overflow or underflow.
template <class T> void norms() {
    using Limits = std::numeric_limits<T>;
    Vector<T> v(2);
    for (const T s : {Limits::max() / 8, Limits::min(), 16 * Limits::denorm_min(), T(1)}) {
        v << 3 * s, 4 * s;
        CHECK_THAT(std::abs(norm(v) - 5 * s) <= 4 * epsilon<T> * (5 * s), "5 times %g: %g", double(s), double(norm(v)));
    }
    v << Limits::infinity(), T(1);
    CHECK(norm(v) == Limits::infinity());
    v << Limits::infinity(), Limits::quiet_NaN();
    CHECK(std::isnan(norm(v)));
    v.setZero();
    CHECK(norm(v) == 0);
    CHECK(norm(Vector<T>()) == 0);
}

void trust_region() {
    std::mt19937 random(5);
    std::normal_distribution<double> normal;
    for (int n = 1; n <= 12; ++n) {
        for (int trial = 0; trial < 40; ++trial) {
            Matrix<double> h(n, n);
            for (int i = 0; i < n; ++i)
                for (int j = 0; j <= i; ++j) h(i, j) = h(j, i) = normal(random);
            Vector<double> g(n);
            for (int i = 0; i < n; ++i) g[i] = normal(random);
            Tridiagonal<double> t;
            t.resize(n);
            t.q = h;
            t.compute();
            const double lambda_min = t.smallest();
            Vector<double> u(n), p(n);
            t.eigenvector(lambda_min, u);
            t.from(u);
            CHECK_THAT((h * u - lambda_min * u).norm() < 1e-9, "n %d: %g", n, (h * u - lambda_min * u).norm());
            // The hard case: g is orthogonal to the eigenvector.
            if (trial % 2 == 0) g -= u * u.dot(g);
            const double radius = std::exp(2 * normal(random));
            TrustWork<double> work;
            work.resize(n);
            const TrustStep<double> step = trust_region_step(t, lambda_min, 0.0, g, radius, work, p);
            CHECK(step.ok);
            CHECK_THAT(p.norm() <= radius * 1.1000001, "n %d: %g over %g", n, p.norm(), radius);
            CHECK(step.shift >= std::max(0.0, -lambda_min) - 1e-9);
            const double model = g.dot(p) + 0.5 * p.dot(h * p);
            CHECK_THAT(std::abs(model + step.predicted) <= 1e-9 * (1 + std::abs(model)), "n %d", n);
            // No random step of that length is much better.
            for (int other = 0; other < 50; ++other) {
                Vector<double> q(n);
                for (int i = 0; i < n; ++i) q[i] = normal(random);
                q *= radius / q.norm();
                const double theirs = g.dot(q) + 0.5 * q.dot(h * q);
                CHECK_THAT(model <= theirs + 0.25 * std::abs(theirs), "n %d: %g against %g", n, model, theirs);
            }
        }
    }
}

// If H is numerically singular and g is orthogonal to its null space, so is the step.
void shortest_step() {
    std::mt19937 random(6);
    std::normal_distribution<double> normal;
    for (int n = 2; n <= 12; ++n) {
        Vector<double> null(n), g(n), p(n);
        for (int i = 0; i < n; ++i) {
            null[i] = normal(random);
            g[i] = normal(random);
        }
        null /= null.norm();
        // Twice, because of rounding.
        for (int k = 0; k < 2; ++k) g -= null * null.dot(g);
        const Matrix<double> projector = Matrix<double>::Identity(n, n) - null * null.transpose();
        const Matrix<double> h = projector * random_definite(n, std::uint32_t(n)) * projector;
        Tridiagonal<double> t;
        t.resize(n);
        t.q = h;
        t.compute();
        TrustWork<double> work;
        work.resize(n);
        const double level = 1e-14 * h.norm();
        const TrustStep<double> step = trust_region_step(t, t.smallest(), level, g, 1e6, work, p);
        CHECK(step.ok && step.shift == 0);
        CHECK_THAT(std::abs(null.dot(p)) <= 1e-9 * p.norm(), "n %d: %g of %g", n, null.dot(p), p.norm());
        CHECK_THAT((h * p + g).norm() <= 1e-9 * g.norm(), "n %d: %g", n, (h * p + g).norm());
    }
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    minimisers<double>();
    least_squares<double>();
    bounds<double>();
#if !defined(ADAPTK_ONE_TYPE)
    minimisers<float>();
    least_squares<float>();
    bounds<float>();
    norms<float>();
#endif
    failing_functions();
    linear();
    norms<double>();
    trust_region();
    shortest_step();
    return finish();
}
