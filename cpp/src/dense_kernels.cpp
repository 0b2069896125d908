// The inner loops of the Cholesky factorisation. Compiled once for each instruction set, as kernels.cpp is: all but one
// function are internal, so that no symbol of this object can stand in for another one's. Written with the compiler's
// vectors and not with Eigen, whose templates would be the same symbols in each object.
#include "dense_kernels.hpp"

#include "adaptk/config.hpp"

#include <cmath>

#define ADAPTK_CONCAT2(a, b) a##b
#define ADAPTK_CONCAT(a, b) ADAPTK_CONCAT2(a, b)

namespace adaptk::detail {
namespace {

// Vector bytes, vectors in a column of the micro-tile, its columns. Accumulators fill the registers but for one column
// of a and one broadcast element of b.
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
// c[high x wide] -= a b' over `depth`, from packed operands: a by columns of `high`, b by columns of `wide`.
template <class T> ADAPTK_HD void micro(const T* a, const T* b, int depth, T* c, std::int64_t ld) {
    using V = typename Packed<T>::Vector;
    using Loose = typename Packed<T>::Loose;
    V sum[wide][tall] = {};
    for (int k = 0; k < depth; ++k, a += high<T>, b += wide) {
        V column[tall];
        ADAPTK_UNROLL
        for (int i = 0; i < tall; ++i) column[i] = *reinterpret_cast<const V*>(a + i * lanes<T>);
        ADAPTK_UNROLL
        for (int j = 0; j < wide; ++j) {
            ADAPTK_UNROLL
            for (int i = 0; i < tall; ++i) sum[j][i] += column[i] * b[j];
        }
    }
    ADAPTK_UNROLL
    for (int j = 0; j < wide; ++j) {
        ADAPTK_UNROLL
        for (int i = 0; i < tall; ++i) {
            auto* at = reinterpret_cast<Loose*>(c + j * ld + i * lanes<T>);
            *at = *at - Loose(sum[j][i]);
        }
    }
}
#else
template <class T> void micro(const T* a, const T* b, int depth, T* c, std::int64_t ld) {
    T sum[wide][high<T>] = {};
    for (int k = 0; k < depth; ++k, a += high<T>, b += wide)
        for (int j = 0; j < wide; ++j)
            for (int i = 0; i < high<T>; ++i) sum[j][i] += a[i] * b[j];
    for (int j = 0; j < wide; ++j)
        for (int i = 0; i < high<T>; ++i) c[j * ld + i] -= sum[j][i];
}
#endif

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

template <class T> void update(const T* a, const T* b, std::int64_t ld, int rows, int columns, int depth, T* c) {
    alignas(64) T packed_a[(dense_tile + high<T>)*dense_depth];
    alignas(64) T packed_b[(dense_tile + wide) * dense_depth];
    pack<high<T>>(a, ld, rows, depth, packed_a);
    pack<wide>(b, ld, columns, depth, packed_b);
    for (int j = 0; j < columns; j += wide) {
        const T* right = packed_b + std::int64_t(j) * depth;
        for (int i = 0; i < rows; i += high<T>) {
            const T* left = packed_a + std::int64_t(i) * depth;
            T* at = c + j * ld + i;
            if (i + high<T> <= rows && j + wide <= columns) {
                micro(left, right, depth, at, ld);
                continue;
            }
            alignas(64) T edge[high<T> * wide] = {};
            micro(left, right, depth, edge, high<T>);
            for (int q = 0; q < wide && j + q < columns; ++q)
                for (int p = 0; p < high<T> && i + p < rows; ++p) at[q * ld + p] += edge[q * high<T> + p];
        }
    }
}

template <class T> bool factor(T* a, std::int64_t ld, int n) {
    for (int k = 0; k < n; ++k) {
        T* column = a + k * ld;
        const T pivot = column[k];
        // Also false for NaN.
        if (!(pivot > 0)) return false;
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
    return true;
}

template <class T> void solve_rows(const T* l, std::int64_t ld, int n, T* x, int rows) {
    for (int k = 0; k < n; ++k) {
        T* column = x + k * ld;
        const T inverse = T(1) / l[k * ld + k];
        for (int i = 0; i < rows; ++i) column[i] *= inverse;
        for (int j = k + 1; j < n; ++j) {
            const T scale = l[k * ld + j];
            T* other = x + j * ld;
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
        // Sums side by side: one running sum would wait for itself.
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

template <class T> constexpr DenseKernels<T> kernels{update<T>, factor<T>, solve_rows<T>, forward<T>, backward<T>};
constexpr DenseTable table{kernels<float>, kernels<double>};

}  // namespace

const DenseTable& ADAPTK_CONCAT(dense_, ADAPTK_TARGET)() { return table; }

}  // namespace adaptk::detail
