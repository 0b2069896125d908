// Helpers for tests of the CUDA part under emulation: lists of tensors with two copies, one for the CPU and one for the
// device.
#pragma once

#include "check.hpp"
#include "cuda_backend.hpp"
#include "emulated_runtime.hpp"
#include "reference.hpp"

#include <map>
#include <span>
#include <tuple>

namespace adaptk::test {

using cuda::emulation::runtime;
using detail::CudaError;
using detail::CudaStep;
using detail::StepOptions;
using detail::StepReport;

inline const detail::CudaBackend& backend = detail::cuda_backend();

struct Types {
    Format param, grad;
};
inline constexpr std::array all_types{
    Types{Format::float32, Format::float32}, Types{Format::float32, Format::bfloat16},
    Types{Format::float32, Format::float16}, Types{Format::float64, Format::float64},
    Types{Format::float64, Format::float32}, Types{Format::float64, Format::bfloat16},
    Types{Format::float64, Format::float16}, Types{Format::bfloat16, Format::bfloat16},
    Types{Format::float16, Format::float16}, Types{Format::float16, Format::bfloat16},
    Types{float8_e4m3fn, float8_e5m2},
};

inline bool same(double a, double b) { return std::memcmp(&a, &b, sizeof a) == 0 || (std::isnan(a) && std::isnan(b)); }

// Memory aligned to 16 bytes plus `offset`. AddressSanitizer checks accesses beyond its end.
class Exact {
  public:
    Exact(const std::byte* from, std::size_t bytes, std::size_t offset)
        : raw_(std::max<std::size_t>(offset + bytes + behind, 1), mark), offset_(offset), bytes_(bytes) {
        if (bytes > 0) std::memcpy(data(), from, bytes);
    }
    std::byte* data() { return raw_.data() + offset_; }
    const std::byte* data() const { return raw_.data() + offset_; }
    std::size_t size() const { return bytes_; }
    bool intact() const {
        const auto marked = [](std::byte b) { return b == mark; };
        return std::all_of(raw_.begin(), raw_.begin() + std::ptrdiff_t(offset_), marked) &&
               std::all_of(raw_.begin() + std::ptrdiff_t(offset_ + bytes_), raw_.end(), marked);
    }

  private:
    static constexpr std::byte mark{0xa5};
#if defined(__SANITIZE_ADDRESS__)
    static constexpr std::size_t behind = 0;
#else
    static constexpr std::size_t behind = 64;
#endif
    Bytes raw_;
    std::size_t offset_, bytes_;
};

// The offset of buffer b of a tensor, in elements after a multiple of 16 bytes.
inline std::size_t offset_of(std::size_t alignment, std::size_t b, Format type) {
    const std::size_t whole = 16 / size_of(type);
    switch (alignment % 5) {
    case 0: return 0;
    case 1: return 1 + (3 * b + alignment) % 7;
    case 2: return whole * b;
    case 3: return b == alignment / 5 % 3 ? 1 + alignment % 7 : 0;
    default: return whole / 2;
    }
}

// Numbers for the tensors, the same for every list.
inline const Data& numbers(Types types, Kind kind) {
    static std::map<std::tuple<Format, Format, Kind>, Data> made;
    const std::tuple key{types.param, types.grad, kind};
    auto found = made.find(key);
    if (found == made.end()) {
        const std::size_t size = quick() ? 9001 : 24001;
        found = made.emplace(key, make_data(types.param, types.grad, max_states, size, 2, kind, made.size() + 1)).first;
    }
    return found->second;
}

class Twins {
  public:
    explicit Twins(std::uint64_t seed) : random_(seed) {}

    void segment(const RuleInfo& rule, const HyperValues& h, std::int64_t step) {
        segments.push_back({&rule, h, step, 0});
    }

    void tensor(Types types, std::size_t size, std::size_t alignment = 0, Kind kind = Kind::plain) {
        Segment& s = segments.back();
        Item item{types, size, {}, {}};
        const Data& from = numbers(types, kind);
        for (std::size_t b = 0; b < 2 + s.rule->states.size(); ++b) {
            const Format type = from.type(b);
            const Bytes bytes = some(from, b, size);
            item.cpu.emplace_back(bytes.data(), bytes.size(), 0);
            item.device.emplace_back(bytes.data(), bytes.size(), offset_of(alignment, b, type) * size_of(type));
        }
        ++s.count;
        items_.push_back(std::move(item));
    }

    // Gradients for another step.
    void new_gradients() {
        for (Item& i : items_) {
            const Bytes bytes = some(numbers(i.types, Kind::plain), 1, i.size);
            if (i.size == 0) continue;
            std::memcpy(i.cpu[1].data(), bytes.data(), bytes.size());
            std::memcpy(i.device[1].data(), bytes.data(), bytes.size());
        }
    }

    // Element `at` of a buffer, the same on both sides.
    void set(std::size_t tensor, std::size_t b, std::size_t at, double x) {
        Item& i = items_[tensor];
        const Format type = b == 0 ? i.types.param : b == 1 ? i.types.grad : compute_format(i.types.param);
        write_element(type, x, i.cpu[b].data() + at * size_of(type));
        write_element(type, x, i.device[b].data() + at * size_of(type));
    }
    template <class F> void change_gradients(const F& f) {
        for (std::size_t t = 0; t < items_.size(); ++t)
            for (std::size_t k = 0; k < items_[t].size; ++k)
                set(t, 1, k,
                    f(read_element<double>(items_[t].types.grad,
                                           items_[t].cpu[1].data() + k * size_of(items_[t].types.grad))));
    }

    std::vector<ParamUpdate> cpu() { return list(&Item::cpu); }
    std::vector<ParamUpdate> device() { return list(&Item::device); }

    void check(const std::string& what) const {
        for (std::size_t t = 0; t < items_.size(); ++t) {
            const Item& i = items_[t];
            for (std::size_t b = 0; b < i.cpu.size(); ++b) {
                const Format type = b == 0 ? i.types.param : b == 1 ? i.types.grad : compute_format(i.types.param);
                const std::size_t at = first_difference(type, i.cpu[b].data(), i.device[b].data(), i.size);
                CHECK_THAT(at == no_difference && i.device[b].intact(),
                           "%s: tensor %zu, %s/%s, %zu elements, buffer %zu, element %zd: %g, expected %g",
                           what.c_str(), t, detail::name_of(i.types.param), detail::name_of(i.types.grad), i.size, b,
                           std::ptrdiff_t(at), at == no_difference ? 0.0 : value(type, i.device[b], at),
                           at == no_difference ? 0.0 : value(type, i.cpu[b], at));
            }
        }
    }

    std::vector<Segment> segments;

  private:
    struct Item {
        Types types;
        std::size_t size;
        std::vector<Exact> cpu, device;
    };

    static double value(Format type, const Exact& from, std::size_t at) {
        return read_element<double>(type, from.data() + at * size_of(type));
    }

    Bytes some(const Data& from, std::size_t b, std::size_t size) {
        const std::size_t element = size_of(from.type(b));
        const Bytes& all = from.bytes(b, 0);
        Bytes out(size * element);
        // Longer tensors repeat the numbers.
        for (std::size_t done = 0; done < size;) {
            const std::size_t first = random_.below(from.size);
            const std::size_t n = std::min(size - done, from.size - first);
            std::memcpy(out.data() + done * element, all.data() + first * element, n * element);
            done += n;
        }
        return out;
    }

    std::vector<ParamUpdate> list(std::vector<Exact> Item::* side) {
        std::vector<ParamUpdate> out;
        for (Item& i : items_) {
            ParamUpdate t(std::int64_t(i.size), i.types.param, i.types.grad);
            for (std::size_t b = 0; b < (i.*side).size(); ++b) t.buffer[b] = (i.*side)[b].data();
            out.push_back(t);
        }
        return out;
    }

    Random random_;
    std::vector<Item> items_;
};

inline CudaStep step_of(const std::vector<ParamUpdate>& tensors, const std::vector<Segment>& segments,
                        const StepOptions& options) {
    return {.device = runtime.current, .stream = nullptr, .tensors = tensors, .segments = segments, .options = options};
}

// Sets the step number of the segments in device memory; null unsets it.
inline void set_device_step(std::span<Segment> segments, const void* data, detail::ScalarType type) {
    for (Segment& g : segments) g.device_step = {data, type};
}

// Separate memory on the emulated device.
class DeviceMemory {
  public:
    DeviceMemory(int device, void* stream, std::size_t bytes)
        : device_(device), stream_(static_cast<cudaStream_t>(stream)), pool_{device} {
        on_device([&] { CHECK(cudaMallocFromPoolAsync(&memory_, bytes, &pool_, stream_) == cudaSuccess); });
    }
    ~DeviceMemory() {
        on_device([&] { CHECK(cudaFreeAsync(memory_, stream_) == cudaSuccess); });
    }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    void* data() const { return memory_; }

  private:
    void on_device(const auto& run) const {
        const int before = std::exchange(runtime.current, device_);
        run();
        runtime.current = before;
    }
    int device_;
    cudaStream_t stream_;
    CUmemPoolHandle_st pool_;
    void* memory_ = nullptr;
};

// Memory for one report.
class Reported {
  public:
    explicit Reported(int device) {
        CudaError error;
        CHECK_THAT(backend.new_reports(device, 3, kept_, error), "%s", error.text);
    }
    ~Reported() { backend.release(kept_); }
    Reported(const Reported&) = delete;
    Reported& operator=(const Reported&) = delete;
    void give(CudaStep& s) const {
        s.reports = kept_;
        s.report = 1;
    }
    StepReport read() const {
        StepReport r;
        CudaError error;
        CHECK_THAT(backend.read_report(*kept_, 1, r, error), "%s", error.text);
        return r;
    }

  private:
    detail::CudaKept* kept_ = nullptr;
};

inline bool wants_norm(const StepOptions& o) { return o.clip_norm >= 0.0 || o.skip_nonfinite || o.want_norm; }

inline void check_report(const StepReport& got, const StepReport& wanted, const std::string& what) {
    CHECK_THAT(got.has_norm && wanted.has_norm && same(got.grad_norm, wanted.grad_norm), "%s: norm %a, expected %a",
               what.c_str(), got.grad_norm, wanted.grad_norm);
    CHECK_THAT(got.skipped == wanted.skipped, "%s: skipped %d", what.c_str(), int(got.skipped));
}

// One step on both sides; compares all bits. `change` sets further options of the device's step.
template <class F>
StepReport step_twins(Twins& t, const StepOptions& options, const std::string& what, const F& change) {
    const auto cpu = t.cpu();
    const auto device = t.device();
    const StepReport wanted = detail::run_step(cpu, t.segments, options);
    CudaStep s = step_of(device, t.segments, options);
    change(s);
    const Reported reported(s.device);
    if (wants_norm(options)) reported.give(s);
    CudaError error;
    CHECK_THAT(backend.step(s, error), "%s: %s", what.c_str(), error.text);
    if (wants_norm(options)) check_report(reported.read(), wanted, what);
    t.check(what);
    return wanted;
}
inline StepReport step_twins(Twins& t, const StepOptions& options, const std::string& what) {
    return step_twins(t, options, what, [](CudaStep&) {});
}

inline void check_nothing_left() {
    CHECK_THAT(runtime.memory.empty(), "%zu pieces of memory were not freed", runtime.memory.size());
    CHECK_THAT(runtime.events == 0, "%ld events were not destroyed", runtime.events);
    CHECK(runtime.current == 0);
    CHECK(runtime.last == cudaSuccess);
}

}  // namespace adaptk::test
