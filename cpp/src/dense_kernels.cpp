// The inner loops of dense factorisations. Like kernels.cpp, this file is compiled once for each instruction set: all
// functions but one are internal, so that objects share no symbols. They are written with the compiler's vectors and
// not with Eigen, whose templates would be the same symbols in each object.
#include "dense_kernels.hpp"

#include "adaptk/config.hpp"
#include "compiler.hpp"

#include <cmath>
#include <cstddef>
#include <utility>

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

// Bytes of a vector, vectors in a column of the micro-tile, and its columns. Accumulators fill all registers except
// those for one column of a and one broadcast element of b.
#if defined(__AVX512F__)
constexpr int bytes = 64, tall = 3, wide = 8;
#elif defined(__AVX__)
constexpr int bytes = 32, tall = 3, wide = 4;
#elif defined(__aarch64__)
constexpr int bytes = 16, tall = 4, wide = 4;
#else
constexpr int bytes = 16, tall = 2, wide = 4;
#endif

#if defined(ADAPTK_GNU)
template <class T> struct Packed {
    typedef T Vector __attribute__((vector_size(bytes), aligned(bytes)));
    typedef T Loose __attribute__((vector_size(bytes), aligned(sizeof(T)), may_alias));
};
#endif

template <class T> constexpr int lanes = bytes / int(sizeof(T));
template <class T> constexpr int high = tall * lanes<T>;

#if defined(ADAPTK_GNU)
// c[some vectors x wide] += or -= a b' over `depth`, from packed operands: a by columns of `high`, b by columns of
// `step`.
template <bool add, int step, int count, class T>
ADAPTK_HD void micro(const T* a, const T* b, int depth, T* c, std::int64_t ld) {
    using V = typename Packed<T>::Vector;
    using Loose = typename Packed<T>::Loose;
    V sum[wide][count] = {};
    for (int k = 0; k < depth; ++k, a += high<T>, b += step) {
        V column[count];
        ADAPTK_UNROLL
        for (int i = 0; i < count; ++i) column[i] = *reinterpret_cast<const V*>(a + i * lanes<T>);
        ADAPTK_UNROLL
        for (int j = 0; j < wide; ++j) {
            ADAPTK_UNROLL
            for (int i = 0; i < count; ++i) sum[j][i] += column[i] * b[j];
        }
    }
    ADAPTK_UNROLL
    for (int j = 0; j < wide; ++j) {
        ADAPTK_UNROLL
        for (int i = 0; i < count; ++i) {
            auto* at = reinterpret_cast<Loose*>(c + j * ld + i * lanes<T>);
            *at = add ? *at + Loose(sum[j][i]) : *at - Loose(sum[j][i]);
        }
    }
}
#else
template <bool add, int step, int count, class T> void micro(const T* a, const T* b, int depth, T* c, std::int64_t ld) {
    constexpr int rows = count * lanes<T>;
    T sum[wide][rows] = {};
    for (int k = 0; k < depth; ++k, a += high<T>, b += step)
        for (int j = 0; j < wide; ++j)
            for (int i = 0; i < rows; ++i) sum[j][i] += a[i] * b[j];
    for (int j = 0; j < wide; ++j)
        for (int i = 0; i < rows; ++i) c[j * ld + i] += add ? sum[j][i] : -sum[j][i];
}
#endif

// The same for as many vectors as there are.
template <bool add, int step, class T, int most = tall>
void micro_of(int count, const T* a, const T* b, int depth, T* c, std::int64_t ld) {
    if constexpr (most > 1)
        if (count < most) return micro_of<add, step, T, most - 1>(count, a, b, depth, c, ld);
    micro<add, step, most>(a, b, depth, c, ld);
}

// rows x depth into panels of `height` rows, column after column, padded with zeros.
template <int height, class T> void pack(const T* a, std::int64_t ld, int rows, int depth, T* out) {
    for (int r = 0; r < rows; r += height) {
        const int n = rows - r < height ? rows - r : height;
        for (int k = 0; k < depth; ++k, out += height) {
            const T* column = a + k * ld + r;
            if (n == height) {
                for (int i = 0; i < height; ++i) out[i] = column[i];
            } else {
                for (int i = 0; i < height; ++i) out[i] = i < n ? column[i] : T(0);
            }
        }
    }
}

#if defined(ADAPTK_GNU) && defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ADAPTK_SHUFFLES
#endif
#endif

#if defined(ADAPTK_SHUFFLES)
// Transposes a square of vectors: elements whose index has the bit `step` are exchanged with their mirror images.
template <class T, int step, std::size_t... i>
ADAPTK_HD void exchange(typename Packed<T>::Vector& a, typename Packed<T>::Vector& b, std::index_sequence<i...>) {
    const auto low = __builtin_shufflevector(a, b, (int(i) & step ? int(i) - step + lanes<T> : int(i))...);
    b = __builtin_shufflevector(a, b, (int(i) & step ? int(i) + lanes<T> : int(i) + step)...);
    a = low;
}
template <class T, int step = lanes<T> / 2> ADAPTK_HD void transpose(typename Packed<T>::Vector* v) {
    ADAPTK_UNROLL
    for (int i = 0; i < lanes<T>; ++i)
        if ((i & step) == 0) exchange<T, step>(v[i], v[i + step], std::make_index_sequence<lanes<T>>());
    if constexpr (step > 1) transpose<T, step / 2>(v);
}
#endif

// The same for a transposed operand: depth x rows, with panels of `height` of its columns.
template <int height, class T> void pack_transposed(const T* a, std::int64_t ld, int rows, int depth, T* out) {
    for (int r = 0; r < rows; r += height, out += std::int64_t(height) * depth) {
        int whole = 0;  // number of columns that are packed in squares
#if defined(ADAPTK_SHUFFLES)
        if constexpr (height % lanes<T> == 0) {
            using Loose = typename Packed<T>::Loose;
            for (; whole + lanes<T> <= height && r + whole + lanes<T> <= rows && depth % lanes<T> == 0;
                 whole += lanes<T>) {
                const T* const square = a + (r + whole) * ld;
                for (int i = 0; i < lanes<T>; ++i)
                    prefetch<CacheLevel::first>(square + i * ld, std::size_t(depth) * sizeof(T),
                                                std::size_t(depth) * sizeof(T));
                for (int k = 0; k < depth; k += lanes<T>) {
                    typename Packed<T>::Vector v[lanes<T>];
                    ADAPTK_UNROLL
                    for (int i = 0; i < lanes<T>; ++i) v[i] = *reinterpret_cast<const Loose*>(square + i * ld + k);
                    transpose<T>(v);
                    ADAPTK_UNROLL
                    for (int i = 0; i < lanes<T>; ++i) *reinterpret_cast<Loose*>(out + (k + i) * height + whole) = v[i];
                }
            }
        }
#endif
        for (int i = whole; i < height; ++i) {
            const T* column = a + (r + i) * ld;
            if (r + i < rows) {
                // Prefetches the next call's part. Hardware prefetchers are too late if each column is in its own page.
                prefetch<CacheLevel::first>(column, std::size_t(depth) * sizeof(T), std::size_t(depth) * sizeof(T));
                for (int k = 0; k < depth; ++k) out[k * height + i] = column[k];
            } else {
                for (int k = 0; k < depth; ++k) out[k * height + i] = T(0);
            }
        }
    }
}

// The same for rows that are much longer than a panel is wide: each is read in the order of memory.
template <int height, class T> void pack_along(const T* a, std::int64_t ld, int rows, int depth, T* out) {
    const int whole = rows / height * height;
    for (int k = 0; k < depth; ++k, a += ld) {
        T* to = out + std::int64_t(k) * height;
        for (int r = 0; r < whole; r += height, to += std::int64_t(height) * depth) {
#if defined(ADAPTK_GNU)
            static_assert(height % lanes<T> == 0);
            using Loose = typename Packed<T>::Loose;
            ADAPTK_UNROLL
            for (int i = 0; i < height; i += lanes<T>)
                *reinterpret_cast<Loose*>(to + i) = *reinterpret_cast<const Loose*>(a + r + i);
#else
            for (int i = 0; i < height; ++i) to[i] = a[r + i];
#endif
        }
        if (whole < rows)
            for (int i = 0; i < height; ++i) to[i] = whole + i < rows ? a[whole + i] : T(0);
    }
}

// c += or -= a b' from packed operands, b in panels of `step`. Whole vectors of c above the diagonal or beyond its rows
// are left out.
template <bool add, int step, class T>
void multiply(const T* packed_a, const T* packed_b, int rows, int columns, int depth, T* c, std::int64_t ld,
              bool lower) {
    static_assert(step % wide == 0);
    // The larger panel stays in L1 while the others are read.
    for (int i = 0; i < rows; i += high<T>) {
        const int left = rows - i < high<T> ? rows - i : high<T>, used = (left + lanes<T> - 1) / lanes<T>;
        for (int j = 0; j < columns && !(lower && i + left <= j); j += wide) {
            const int above = lower && j > i ? (j - i) / lanes<T> : 0, count = used - above, first = above * lanes<T>;
            const T* const a = packed_a + std::int64_t(i) * depth + first;
            const T* const b = packed_b + std::int64_t(j / step * step) * depth + j % step;
            T* const at = c + j * ld + i + first;
            if (left % lanes<T> == 0 && j + wide <= columns) {
                micro_of<add, step>(count, a, b, depth, at, ld);
                continue;
            }
            alignas(64) T edge[high<T> * wide] = {};
            micro_of<add, step>(count, a, b, depth, edge, high<T>);
            for (int q = 0; q < wide && j + q < columns; ++q)
                for (int p = 0; p < left - first; ++p) at[q * ld + p] += edge[q * high<T> + p];
        }
    }
}

template <class T>
void update(const T* a, std::int64_t lda, const T* b, std::int64_t ldb, int rows, int columns, int depth, T* c,
            std::int64_t ldc, bool lower) {
    alignas(64) T packed_a[(dense_tile + high<T>)*dense_depth];
    alignas(64) T packed_b[(dense_tile + wide) * dense_depth];
    pack<high<T>>(a, lda, rows, depth, packed_a);
    pack<wide>(b, ldb, columns, depth, packed_b);
    multiply<false, wide>(packed_a, packed_b, rows, columns, depth, c, ldc, lower);
}

template <class T>
void gram(const T* a, const T* b, std::int64_t ld, int rows, int columns, int depth, T* c, std::int64_t ldc,
          bool lower) {
    alignas(64) T packed_a[(gram_tile + high<T>)*dense_depth];
    alignas(64) T packed_b[(gram_tile + wide) * dense_depth];
    for (int k = 0; k < depth; k += dense_depth) {
        const int part = depth - k < dense_depth ? depth - k : dense_depth;
        pack_transposed<high<T>>(a + k, ld, rows, part, packed_a);
        pack_transposed<wide>(b + k, ld, columns, part, packed_b);
        multiply<true, wide>(packed_a, packed_b, rows, columns, part, c, ldc, lower);
    }
}

template <class T>
void gram_rows(const T* a, const T* b, std::int64_t ld, int rows, int columns, int depth, T* c, std::int64_t ldc,
               bool lower) {
    alignas(64) T packed_a[(gram_tile + high<T>)*dense_depth];
    alignas(64) T packed_b[(gram_tile + high<T>)*dense_depth];
    for (int k = 0; k < depth; k += dense_depth) {
        const int part = depth - k < dense_depth ? depth - k : dense_depth;
        pack_along<high<T>>(a + k * ld, ld, rows, part, packed_a);
        if (a != b) pack_along<high<T>>(b + k * ld, ld, columns, part, packed_b);
        multiply<true, high<T>>(packed_a, a == b ? packed_a : packed_b, rows, columns, part, c, ldc, lower);
    }
}

template <class T> void project(const T* a, std::int64_t ld, int depth, int columns, const T* x, T* out) {
    constexpr int many = 4 * lanes<T>;
    for (int j = 0; j < columns; ++j) {
        const T* column = a + j * ld;
        T sum[many] = {};
        int i = 0;
        for (; i + many <= depth; i += many)
            for (int q = 0; q < many; ++q) sum[q] += column[i + q] * x[i + q];
        T total = 0;
        for (; i < depth; ++i) total += column[i] * x[i];
        for (int q = 0; q < many; ++q) total += sum[q];
        out[j] = total;
    }
}

template <class T> void project_rows(const T* a, std::int64_t ld, int depth, int columns, const T* x, T* out) {
    int k = 0;
    for (; k + 4 <= depth; k += 4, a += 4 * ld) {
        const T *r0 = a, *r1 = a + ld, *r2 = a + 2 * ld, *r3 = a + 3 * ld;
        const T x0 = x[k], x1 = x[k + 1], x2 = x[k + 2], x3 = x[k + 3];
        for (int j = 0; j < columns; ++j) out[j] += (x0 * r0[j] + x1 * r1[j]) + (x2 * r2[j] + x3 * r3[j]);
    }
    for (; k < depth; ++k, a += ld)
        for (int j = 0; j < columns; ++j) out[j] += x[k] * a[j];
}

template <class T> int factor(T* a, std::int64_t ld, int n) {
    for (int k = 0; k < n; ++k) {
        T* column = a + k * ld;
        const T pivot = column[k];
        // Also false for NaN.
        if (!(pivot > 0)) return k + 1;
        const T root = std::sqrt(pivot);
        column[k] = root;
        const T inverse = T(1) / root;
        for (int i = k + 1; i < n; ++i) column[i] *= inverse;
        for (int j = k + 1; j < n; ++j) {
            const T scale = column[j];
            T* other = a + j * ld;
            for (int i = j; i < n; ++i) other[i] -= scale * column[i];
        }
    }
    return 0;
}

template <class T> void solve_rows(const T* l, std::int64_t ldl, int n, T* x, std::int64_t ldx, int rows) {
    for (int k = 0; k < n; ++k) {
        T* column = x + k * ldx;
        const T inverse = T(1) / l[k * ldl + k];
        for (int i = 0; i < rows; ++i) column[i] *= inverse;
        for (int j = k + 1; j < n; ++j) {
            const T scale = l[k * ldl + j];
            T* other = x + j * ldx;
            for (int i = 0; i < rows; ++i) other[i] -= scale * column[i];
        }
    }
}

template <class T> void forward(const T* l, std::int64_t ld, int n, T* b) {
    for (int k = 0; k < n; ++k) {
        const T* column = l + k * ld;
        const T value = b[k] / column[k];
        b[k] = value;
        for (int i = k + 1; i < n; ++i) b[i] -= value * column[i];
    }
}

template <class T> void backward(const T* l, std::int64_t ld, int n, T* b) {
    constexpr int many = 4 * lanes<T>;
    for (int k = n - 1; k >= 0; --k) {
        const T* column = l + k * ld;
        // Several sums at once: with a single one, each addition would wait for the one before.
        T sum[many] = {};
        int i = k + 1;
        for (; i + many <= n; i += many)
            for (int q = 0; q < many; ++q) sum[q] += column[i + q] * b[i + q];
        T total = b[k];
        for (; i < n; ++i) total -= column[i] * b[i];
        for (int q = 0; q < many; ++q) total -= sum[q];
        b[k] = total / column[k];
    }
}

template <class T>
constexpr DenseKernels<T> kernels{update<T>, gram<T>,       gram_rows<T>, project<T>, project_rows<T>,
                                  factor<T>, solve_rows<T>, forward<T>,   backward<T>};
constexpr DenseTable table{kernels<float>, kernels<double>};

}  // namespace

const DenseTable& ADAPTK_CONCAT(dense_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
