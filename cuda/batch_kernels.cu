// Batches of small fits: a thread takes one fit after the other, and keeps it in registers. Rows of its Jacobian, a
// block at a time, are in shared memory, the points in device memory, both with neighbouring threads at neighbouring
// addresses. A warp's threads are at the same place of the loop, whichever trial point each of them is at.
#include "adaptk/solve/batch.hpp"
#include "fits.hpp"
#include "runtime.hpp"

namespace adaptk::cuda {

using detail::BatchModel;

// Elements that are `step` apart, as those of one thread among `step`.
template <class T, int step> struct Interleaved {
    T* at;
    ADAPTK_DEVICE T& operator[](std::int64_t i) const { return at[i * step]; }
    ADAPTK_DEVICE Interleaved operator+(std::int64_t i) const { return {at + i * step}; }
    ADAPTK_DEVICE void operator+=(std::int64_t i) { at += i * step; }
};

template <class T, int columns, int step> struct InterleavedRows {
    T* at;
    ADAPTK_DEVICE Interleaved<T, step> operator[](int i) const { return {at + i * columns * step}; }
};

template <class T, int columns, int threads> struct ThreadMemory {
    using Points = Interleaved<T, threads>;
    static constexpr bool row_by_row = true;
    Points points;
    InterleavedRows<T, columns, threads> rows;
};

// Fits `next`, `next` + `step`, ... of `count`.
struct ThreadFeed {
    std::int64_t next, step, count;
    ADAPTK_DEVICE bool take(std::int64_t& begin, std::int64_t& end) {
        if (next >= count) return false;
        begin = next;
        end = next + 1;
        next += step;
        return true;
    }
    ADAPTK_DEVICE bool goes_on() const { return true; }
};

constexpr int block_rows = 32;  // of the solver
// As many as have their rows in 48 KiB, which every block may have; whole warps, of 64 threads at most.
template <class Model, class T>
inline constexpr int fit_threads = block_rows * (Model::size + 1) * sizeof(T) * 64 <= 48 * 1024 ? 64 : 32;

template <class Model, class T>
__global__ void __launch_bounds__(fit_threads<Model, T>) fit_kernel(const __grid_constant__ FitLaunch<T> launch) {
    constexpr int n = Model::size, threads = fit_threads<Model, T>;
    static_assert(block_rows * (n + 1) * sizeof(T) * threads <= 48 * 1024);
    __shared__ T rows[block_rows * (n + 1) * threads];
    using Memory = ThreadMemory<T, n + 1, threads>;
    using Rows = solve::ModelRows<Model, T>;
    const std::int64_t first = std::int64_t(blockIdx.x) * threads;
    const Memory memory{
        {launch.points +
         first * launch.problem.points * solve::BatchLanes<T, n, Rows, Memory>::stride(launch.problem, Model::inputs) +
         threadIdx.x},
        {rows + threadIdx.x}};
    ThreadFeed feed{first + threadIdx.x, std::int64_t(gridDim.x) * threads, launch.problem.count};
    const Rows model{};
    solve::BatchLanes<T, n, Rows, Memory>(model, launch.problem, launch.options, Model::inputs, memory).run(feed);
}

template <class T> ADAPTK_DEVICE bool is_finite_and_at_least(T x, T least) {
    return x >= least && x < solve::infinity<T>;
}

template <class T>
__global__ void __launch_bounds__(warp) check_fits_kernel(const __grid_constant__ FitCheckLaunch<T> launch) {
    const solve::BatchProblem<T>& f = launch.problem;
    unsigned faults = 0;
    const auto has_own = [&](std::int64_t k, std::int64_t stride) { return k == 0 || stride != 0; };
    const auto step = std::int64_t(gridDim.x) * warp;
    for (std::int64_t k = std::int64_t(blockIdx.x) * warp + threadIdx.x; k < f.count; k += step) {
        if (f.weights != nullptr && has_own(k, f.weights_stride)) {
            for (int i = 0; i < f.points; ++i)
                if (!is_finite_and_at_least<T>(f.weights[k * f.weights_stride + i], 0)) faults |= fault_weights;
        }
        if (f.lower != nullptr && (has_own(k, f.bounds_stride) || f.start_stride != 0)) {
            for (int j = 0; j < launch.size; ++j) {
                const T low = f.lower[k * f.bounds_stride + j], high = f.upper[k * f.bounds_stride + j];
                const T x = f.start[k * f.start_stride + j];
                if (!(low < high)) faults |= fault_bounds;
                if (x < low || x > high) faults |= fault_outside;
            }
        }
        if (f.loss_scale != nullptr && has_own(k, f.loss_scale_stride)) {
            const T scale = f.loss_scale[k * f.loss_scale_stride];
            if (!(scale > 0) || !is_finite_and_at_least<T>(scale, 0)) faults |= fault_scale;
        }
        if (launch.counts) {
            for (int i = 0; i < f.points; ++i) {
                const bool counts = f.weights == nullptr || f.weights[k * f.weights_stride + i] > 0;
                if (counts && f.data[k * f.points + i] < 0) faults |= fault_counts;
            }
        }
    }
    for (int bits = int(warp) / 2; bits > 0; bits /= 2) faults |= __shfl_xor_sync(~0u, faults, bits);
    if (threadIdx.x == 0) launch.faults[blockIdx.x] = faults;
}

template <class Model, class T> FitKernel kernel_of() {
    return {reinterpret_cast<const void*>(fit_kernel<Model, T>), unsigned(fit_threads<Model, T>)};
}

template <class T> FitKernel kernel_of_fits(BatchModel model) {
    using namespace solve;
    switch (model) {
    case BatchModel::gaussian: return kernel_of<Gaussian, T>();
    case BatchModel::gaussian_2d: return kernel_of<Gaussian2d, T>();
    case BatchModel::gaussian_2d_elliptic: return kernel_of<Gaussian2dElliptic, T>();
    case BatchModel::gaussian_2d_rotated: return kernel_of<Gaussian2dRotated, T>();
    case BatchModel::lorentz: return kernel_of<Lorentz, T>();
    case BatchModel::exponential: return kernel_of<Exponentials<1>, T>();
    case BatchModel::double_exponential: return kernel_of<Exponentials<2>, T>();
    case BatchModel::triple_exponential: return kernel_of<Exponentials<3>, T>();
    case BatchModel::polynomial:
    case BatchModel::rational:
    case BatchModel::program: break;
    }
    return {};
}
template FitKernel kernel_of_fits<float>(BatchModel model);

template <class T> void launch_fit_check(const FitCheckLaunch<T>& p, unsigned blocks, cudaStream_t stream) {
    launch(check_fits_kernel<T>, "check_fits_kernel", blocks, warp, stream, p);
}
template void launch_fit_check(const FitCheckLaunch<float>& p, unsigned blocks, cudaStream_t stream);

}  // namespace adaptk::cuda
