// CUDA's keywords, intrinsics and launches for a host compiler, so that it can compile the kernels and their driver.
// The threads of a block are fibers on one host thread, one block at a time. Whenever one waits, the next one is chosen
// at random, so that a missing barrier shows. Shared memory is filled with garbage when a block begins, and kernels get
// copies of their parameters.
#pragma once

#include "emulated_runtime.hpp"
#include "threads.hpp"

#include <csetjmp>
#include <cstring>
#include <memory>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// In a separate section, whose bounds the linker defines.
#define __shared__ __attribute__((section("emulated_shared"))) static
#define __syncthreads() adaptk::cuda::emulation::block.wait(__LINE__)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct alignas(8) uint2 {
    unsigned x, y;
};

struct EmulatedIndex {
    unsigned x;
};
inline EmulatedIndex threadIdx, blockIdx, blockDim, gridDim;

extern "C" {
extern std::byte __start_emulated_shared[] __attribute__((weak));
extern std::byte __stop_emulated_shared[] __attribute__((weak));
}

namespace adaptk::cuda::emulation {

inline constexpr unsigned warp_size = 32;
inline constexpr unsigned most_threads = 1024;  // of a block
// Enough for the largest arguments of a kernel, 32 KB, in an unoptimized build.
inline constexpr std::size_t stack_bytes = std::size_t{3} << 15;

inline std::uint64_t chance = 1;  // may be set to repeat a run
inline std::size_t below(std::size_t n) {
    chance = chance * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
    return std::size_t((chance >> 33) % n);
}

// A fiber, or the host thread. The context starts it; switches are jumps, which need no system call.
struct Fiber {
    ucontext_t context;
#if defined(__SANITIZE_ADDRESS__)
    void* jump[5];
#else
    std::jmp_buf jump;
#endif
    bool started = false;
    void* stack = nullptr;
    std::size_t bytes = 0;
    void* fake_stack = nullptr;  // of AddressSanitizer
};

// Thread indices. Builds with sanitizers are not optimised, so the code of each switch avoids std::vector.
template <unsigned Most> struct Threads {
    unsigned at[Most];
    unsigned size = 0;

    void add(unsigned i) { at[size++] = i; }
    template <unsigned N> void move_from(Threads<N>& other) {
        std::memcpy(at + size, other.at, other.size * sizeof *at);
        size += other.size;
        other.size = 0;
    }
};

class Block {
  public:
    Block() { host_.started = true; }

    // Runs the kernel in every thread of a block.
    void run(unsigned threads, const Action& kernel) {
        fill_shared();
        kernel_ = &kernel;
        if (threads > most_threads) give_up("a block of %u threads", threads);
        while (fibers_ < threads) add_fiber();
        for (unsigned i = 0; i < threads / warp_size; ++i) warps_[i].begin();
        for (unsigned i = 0; i < threads; ++i) ready_.add(i);
        running_ = threads;
        at_barrier_.size = 0;
        while (running_ > 0) {
            // Threads that have returned count as arrived at the barrier.
            if (ready_.size == 0 && at_barrier_.size == running_) ready_.move_from(at_barrier_);
            if (ready_.size == 0)
                give_up("block %u: %u threads are left, %u of them at a barrier, the others at shuffles that not all "
                        "of their warp come to",
                        blockIdx.x, running_, at_barrier_.size);
            move(host_, next());
        }
    }

    void wait(int line) {
        if (at_barrier_.size > 0 && line != barrier_line_)
            give_up("threads of a block wait at different barriers, lines %d and %d", barrier_line_, line);
        barrier_line_ = line;
        at_barrier_.add(threadIdx.x);
        if (at_barrier_.size == running_) ready_.move_from(at_barrier_);
        pause();
    }

    // A shuffle: every lane contributes a value and receives that of another.
    template <class T> T shuffle(unsigned mask, T value, unsigned from, int kind) {
        static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
        if (mask != ~0u) give_up("a shuffle of less than a warp");
        const unsigned lane = threadIdx.x % warp_size;
        Warp& w = warps_[threadIdx.x / warp_size];
        // At most two rounds are active: no lane can reach the second next round before all have reached the next.
        Round& r = w.rounds[w.shuffles[lane]++ % 2];
        if (r.waiting.size == 0) r.kind = kind;
        if (r.kind != kind) give_up("lanes of a warp take part in different shuffles");
        std::memcpy(&r.values[lane], &value, sizeof value);
        r.waiting.add(threadIdx.x);
        if (r.waiting.size == warp_size) ready_.move_from(r.waiting);
        pause();
        std::memcpy(&value, &r.values[from < warp_size ? from : lane], sizeof value);
        return value;
    }

  private:
    struct Round {
        std::uint64_t values[warp_size];
        Threads<warp_size> waiting;
        int kind;
    };
    struct Warp {
        Round rounds[2];
        unsigned shuffles[warp_size];

        void begin() {
            std::memset(shuffles, 0, sizeof shuffles);
            rounds[0].waiting.size = rounds[1].waiting.size = 0;
        }
    };

    // Switches to another thread until this one is scheduled again.
    void pause() {
        const unsigned self = threadIdx.x;
        Fiber& to = ready_.size == 0 ? host_ : next();
        if (&to != &fiber_[self]) move(fiber_[self], to);
        threadIdx.x = self;
    }

    Fiber& next() {
        unsigned& chosen = ready_.at[below(ready_.size)];
        const unsigned i = chosen;
        chosen = ready_.at[--ready_.size];
        threadIdx.x = i;
        return fiber_[i];
    }

#if defined(__SANITIZE_ADDRESS__)
    // AddressSanitizer intercepts the C library's jumps and swapcontext(), and clears the shadow of the whole stack at
    // each.
    __attribute__((noinline, no_sanitize("address"))) static void leave(Fiber& to) { __builtin_longjmp(to.jump, 1); }
    __attribute__((noinline, no_sanitize("address")))
#else
    __attribute__((noinline))
#endif
    void move(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
        from_ = &from;
        __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.bytes);
        if (__builtin_setjmp(from.jump) == 0) {
            if (to.started) leave(to);
            to.started = true;
            setcontext(&to.context);
        }
        arrived(from.fake_stack);
#else
        if (_setjmp(from.jump) != 0) return;
        if (to.started) _longjmp(to.jump, 1);
        to.started = true;
        setcontext(&to.context);
#endif
    }

    // AddressSanitizer reports the bounds of the previous stack, the only source for the host's own.
    void arrived([[maybe_unused]] void* fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
        const void* stack = nullptr;
        __sanitizer_finish_switch_fiber(fake_stack, &stack, &from_->bytes);
        from_->stack = const_cast<void*>(stack);
#endif
    }

    // The loop of a fiber: it runs a thread of one block after the other.
    static void live();

    void add_fiber() {
        Fiber& f = fiber_[fibers_++];
        f.bytes = stack_bytes;
        f.stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (f.stack == MAP_FAILED || mprotect(f.stack, 4096, PROT_NONE) != 0) give_up("no memory for stacks");
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack;
        f.context.uc_stack.ss_size = stack_bytes;
        makecontext(&f.context, live, 0);
    }

    static void fill_shared() {
        if (__start_emulated_shared != nullptr)
            std::memset(__start_emulated_shared, 0xff, std::size_t(__stop_emulated_shared - __start_emulated_shared));
    }

    Fiber fiber_[most_threads];
    unsigned fibers_ = 0;
    Fiber host_;
    [[maybe_unused]] Fiber* from_ = nullptr;
    const Action* kernel_ = nullptr;
    Threads<most_threads> ready_, at_barrier_;
    Warp warps_[most_threads / warp_size];
    unsigned running_ = 0;
    int barrier_line_ = 0;
};
inline Block block;

inline void Block::live() {
    block.arrived(nullptr);
    for (;;) {
        const unsigned self = threadIdx.x;
        (*block.kernel_)();
        --block.running_;
        Fiber& to = block.ready_.size == 0 ? block.host_ : block.next();
        block.move(block.fiber_[self], to);
    }
}

// The blocks of a grid to run: a test may choose a few of very many.
struct Window {
    unsigned first = 0;
    unsigned count = ~0u;
};
inline Window window;

inline void run_grid(unsigned blocks, unsigned threads, const Action& kernel) {
    const detail::FloatingPointMode mode;
    const Access access;
    gridDim.x = blocks;
    blockDim.x = threads;
    std::vector<unsigned> order;
    for (unsigned i = window.first; i < blocks && i - window.first < window.count; ++i) order.push_back(i);
    for (std::size_t n = order.size(); n > 0; --n) {
        std::swap(order[below(n)], order[n - 1]);
        blockIdx.x = order[n - 1];
        block.run(threads, kernel);
    }
}

template <class P>
cudaError_t launch(void (*kernel)(P), unsigned blocks, unsigned threads, cudaStream_t stream, const P& parameters) {
    if (const cudaError_t failed = called("launch", stream); failed != cudaSuccess) return failed;
    if (blocks == 0 || threads == 0 || threads > 1024) return runtime.last = cudaErrorInvalidConfiguration;
    static_assert(std::is_trivially_copyable_v<P> && sizeof(P) <= 32764);
    const auto copy = std::make_shared<const P>(parameters);
    CUstream_st& s = stream_of(stream);
    // The addresses at the beginning of the parameters. Later members may be unset.
    for (std::size_t i = 0; i + sizeof(void*) <= std::min<std::size_t>(sizeof(P), 40); i += sizeof(void*)) {
        const void* address = nullptr;
        std::memcpy(&address, reinterpret_cast<const std::byte*>(copy.get()) + i, sizeof address);
        use(s, address);
    }
    const bool runs = !runtime.watch ||
                      runtime.watch({reinterpret_cast<const void*>(kernel), copy.get(), sizeof(P), blocks, threads});
    put(s, [=] {
        if (runs) run_grid(blocks, threads, [&] { kernel(*copy); });
    });
    return cudaSuccess;
}

// Vectors must be aligned to their size.
inline void check_address(const void* p, std::size_t size) {
    if (reinterpret_cast<std::uintptr_t>(p) % size != 0)
        give_up("%zu bytes at %p, which is no multiple of it", size, p);
}

}  // namespace adaptk::cuda::emulation

template <class T> T __ldcg(const T* p) {
    adaptk::cuda::emulation::check_address(p, sizeof(T));
    return *p;
}
template <class T> void __stcg(T* p, T x) {
    adaptk::cuda::emulation::check_address(p, sizeof(T));
    *p = x;
}

template <class T> T __shfl_xor_sync(unsigned mask, T x, int bits) {
    return adaptk::cuda::emulation::block.shuffle(mask, x, threadIdx.x % 32 ^ unsigned(bits), bits);
}
template <class T> T __shfl_down_sync(unsigned mask, T x, unsigned by) {
    return adaptk::cuda::emulation::block.shuffle(mask, x, threadIdx.x % 32 + by, -int(by));
}

template <class T> T __shfl_sync(unsigned mask, T x, int from) {
    return adaptk::cuda::emulation::block.shuffle(mask, x, unsigned(from), 64);
}

inline int __all_sync(unsigned mask, int x) {
    bool all = true;
    for (int from = 0; from < 32; ++from) {
        const bool theirs = __shfl_sync(mask, int(x != 0), from) != 0;
        all = all && theirs;
    }
    return int(all);
}

// The bytes of both words are numbered 0 to 7, from the lowest of x; each digit of `which` chooses one.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned which) {
    const std::uint64_t both = std::uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(both >> (8 * (which >> (4 * i) & 7u)) & 0xffu) << (8 * i);
    return result;
}

inline unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }

inline double __hiloint2double(int high, int low) {
    const std::uint64_t bits = std::uint64_t(std::uint32_t(high)) << 32 | std::uint32_t(low);
    double x = 0.0;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline int __double2loint(double x) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    return int(std::uint32_t(bits));
}
inline int __double2hiint(double x) {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    return int(std::uint32_t(bits >> 32));
}
