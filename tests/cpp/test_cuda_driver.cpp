// The driver of the CUDA kernels under emulation: numbers in device memory, reuse of memory, streams, graphs, devices,
// and failing calls.
#include "cuda_support.hpp"

#include "kernels.hpp"
#include "rows.hpp"

#include <memory>

namespace adaptk::test {
namespace {

using cuda::emulation::new_stream;
using detail::DeviceHyper;
using detail::ScalarType;

constexpr std::array scalar_types{ScalarType::f32, ScalarType::f64, ScalarType::i32, ScalarType::i64};

const cuda::KernelTable& kernels() {
    static const cuda::KernelTable table = [] {
        cuda::KernelTable t{};
        cuda::add_kernels<0>(t);
        cuda::add_kernels<1>(t);
        cuda::add_kernels<2>(t);
        cuda::add_kernels<3>(t);
        return t;
    }();
    return table;
}

double as_stored(double x, ScalarType type) {
    return type == ScalarType::f32 ? double(float(x)) : type == ScalarType::f64 ? x : std::floor(x);
}

// A number in device memory.
class DeviceNumber {
  public:
    DeviceNumber(int device, void* stream, double x, ScalarType type)
        : memory_(device, stream, type == ScalarType::f64 || type == ScalarType::i64 ? 8 : 4), type_(type) {
        set(x);
    }
    void set(double x) {
        const cuda::emulation::Access access;
        const auto write = [&](auto v) { std::memcpy(memory_.data(), &v, sizeof v); };
        switch (type_) {
        case ScalarType::f32: return write(float(x));
        case ScalarType::f64: return write(x);
        case ScalarType::i32: return write(std::int32_t(x));
        case ScalarType::i64: return write(std::int64_t(x));
        }
    }
    const void* data() const { return memory_.data(); }

  private:
    DeviceMemory memory_;
    ScalarType type_;
};

class Workspace {
  public:
    explicit Workspace(int device = 0) {
        CudaError error;
        CHECK_THAT(backend.new_workspace(device, workspace_, error), "%s", error.text);
    }
    ~Workspace() { backend.release_workspace(workspace_); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
    detail::CudaWorkspace* get() { return workspace_; }

  private:
    detail::CudaWorkspace* workspace_ = nullptr;
};

// Step counts in device memory, in their own order.
class Counts {
  public:
    explicit Counts(const std::vector<std::int64_t>& steps) {
        const std::size_t n = steps.size();
        for (std::size_t i = 0; i < n; ++i) places_.push_back(std::uint32_t((i + n / 2) % n));
        CudaError error;
        CHECK_THAT(backend.new_counts(0, placed(steps), kept_, error), "%s", error.text);
    }
    ~Counts() { backend.release(kept_); }
    Counts(const Counts&) = delete;
    Counts& operator=(const Counts&) = delete;
    void give(CudaStep& s) const {
        s.counts = kept_;
        s.count_of = places_;
    }
    std::vector<std::int64_t> read() const {
        std::vector<std::int64_t> all(places_.size()), out;
        CudaError error;
        CHECK_THAT(backend.read_counts(*kept_, all, error), "%s", error.text);
        for (const std::uint32_t p : places_) out.push_back(all[p]);
        return out;
    }
    void write(const std::vector<std::int64_t>& steps) {
        CudaError error;
        CHECK_THAT(backend.write_counts(*kept_, placed(steps), error), "%s", error.text);
    }

  private:
    std::vector<std::int64_t> placed(const std::vector<std::int64_t>& steps) const {
        std::vector<std::int64_t> out(steps.size());
        for (std::size_t i = 0; i < steps.size(); ++i) out[places_[i]] = steps[i];
        return out;
    }
    std::vector<std::uint32_t> places_;
    detail::CudaKept* kept_ = nullptr;
};

// Steps counted by the device, of tensors with separate counts; some steps are skipped.
void test_counts() {
    std::size_t round = 0;
    for (const RuleInfo& rule : detail::rules()) {
        for (const bool with_norm : {false, true}) {
            if (++round; quick() && round % 4 != 0) continue;
            Workspace workspace;
            Twins t(round);
            std::vector<std::int64_t> steps{0, 1, 0, 41, 7, 0, 3, 1};
            for (std::size_t i = 0; i < steps.size(); ++i) {
                HyperValues h = i % 2 == 0 ? default_hyper(rule) : other_hyper(rule);
                if (!with_norm) h.value[rule.own.size() + 3] = 0.75;
                t.segment(rule, h, 0);
                t.tensor(all_types[i % 2 == 0 ? 0 : 3 + i], i == 3 ? 0 : 100 * i + 3, i);
            }
            t.segment(*detail::find_rule("adam"), default_hyper(*detail::find_rule("adam")), 0);
            t.tensor(all_types[0], 99);
            steps.push_back(5);
            t.change_gradients([](double x) { return std::isfinite(x) ? x : 1.0; });
            const Counts counts(steps);
            for (int k = 0; k < 6; ++k) {
                const bool bad = with_norm && k % 3 == 1;
                t.new_gradients();
                t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
                if (bad) t.set(2, 1, 100, std::numeric_limits<double>::infinity());
                for (std::size_t i = 0; i < steps.size(); ++i) t.segments[i].step = steps[i] + 1;
                const StepOptions options =
                    with_norm ? StepOptions{0.5, k % 2 == 0 ? 0.01 : -1.0, true, false} : StepOptions{};
                const StepReport r = step_twins(t, options, std::string(rule.name) + " counted", [&](CudaStep& s) {
                    counts.give(s);
                    if (k > 2) s.workspace = workspace.get();
                });
                CHECK(r.skipped == bad);
                for (std::int64_t& n : steps) n += r.skipped ? 0 : 1;
                CHECK(counts.read() == steps);
            }
        }
    }
}

// A schedule updated from step to step equals one computed from scratch, also for large steps.
void test_memo() {
    const RuleInfo& rule = *detail::find_rule("nadam");
    for (const double psi : {4e-3, 0.0, 1.0}) {
        for (const std::int64_t first : {0, 500, 123456}) {
            Twins t(std::uint64_t(first) + 1);
            HyperValues h = default_hyper(rule);
            h.value[4] = psi;
            for (const std::size_t type : {0, 3}) {
                t.segment(rule, h, 0);
                t.tensor(all_types[type], 3);
            }
            std::vector<std::int64_t> steps{first, first + 3};
            const Counts counts(steps);
            Workspace workspace;
            for (int k = 0; k < (quick() ? 40 : 600); ++k) {
                // The schedule restarts if the decay of the moment changes.
                if (k == 30)
                    for (Segment& s : t.segments) s.hyper.value[1] = 0.95;
                for (std::size_t i = 0; i < 2; ++i) t.segments[i].step = ++steps[i];
                step_twins(t, {}, "step " + std::to_string(steps[0]), [&](CudaStep& s) {
                    counts.give(s);
                    s.workspace = workspace.get();
                });
                if (k % 16 == 0) t.new_gradients();
            }
            CHECK(counts.read() == steps);
        }
    }
}

// The step's number and hyperparameters in device memory.
void test_device_numbers() {
    std::size_t round = 0;
    for (const RuleInfo& rule : detail::rules()) {
        for (const ScalarType type : scalar_types) {
            for (const bool with_step : {false, true}) {
                if (++round; quick() && round % 7 != 0) continue;
                Workspace workspace;
                DeviceNumber step(0, nullptr, 1, type);
                Twins t(round);
                for (const std::size_t count : {1, 3, round % 16 == 0 ? 400 : 2}) {
                    t.segment(rule, default_hyper(rule), 5);
                    for (std::size_t i = 0; i < count; ++i)
                        t.tensor(all_types[(i + round) % 10], 10 + 97 * (i % 7), i % 3);
                }
                // Every hyperparameter that may be in device memory, in the first and the last segment.
                std::vector<std::unique_ptr<DeviceNumber>> values;
                std::vector<DeviceHyper> hypers;
                for (const std::uint32_t segment : {0u, 2u}) {
                    for (std::uint32_t i = 0; i < rule.hyper_count() - 1; ++i) {
                        if (rule.hyper(i).range == Range::flag) continue;
                        const bool integral = type == ScalarType::i32 || type == ScalarType::i64;
                        if (integral && i != 0 && rule.hyper(i).range != Range::nonnegative) continue;
                        const double x = integral ? double(1 + i % 2) : other_value(rule.hyper(i));
                        values.push_back(std::make_unique<DeviceNumber>(0, nullptr, x, type));
                        hypers.push_back({segment, i, values.back()->data(), type});
                        t.segments[segment].hyper.value[i] = as_stored(x, type);
                    }
                }
                // The same tables twice, because kernels write to them.
                for (const std::int64_t n : {1, 2, 2, 300}) {
                    for (Segment& s : t.segments) s.step = n;
                    step.set(double(n));
                    const std::vector<Segment> right = t.segments;
                    const StepOptions options = n == 2 ? StepOptions{0.5, 0.125, false, false} : StepOptions{};
                    step_twins(t, options, std::string(rule.name) + " with numbers on the device", [&](CudaStep& s) {
                        if (with_step) {
                            set_device_step(t.segments, step.data(), type);
                            // The host's value is then ignored.
                            for (Segment& g : t.segments) g.step = 77;
                        }
                        for (const DeviceHyper& d : hypers) t.segments[d.segment].hyper.value[d.index] = 1e9;
                        s.segments = t.segments;
                        s.hypers = hypers;
                        if (n != 1) s.workspace = workspace.get();
                    });
                    t.segments = right;
                }
                const cuda::emulation::Access access;
                if (type == ScalarType::i64) CHECK(*static_cast<const std::int64_t*>(step.data()) == 300);
            }
        }
    }
}

// Lists of several lengths whose tables and sums share memory, on several streams.
void test_workspace() {
    Random random(1);
    for (int round = 0; round < (quick() ? 2 : 12); ++round) {
        Workspace workspace;
        CUstream_st streams[2] = {new_stream(0), new_stream(0)};
        std::vector<Twins> lists;
        for (const std::size_t count : {0, 1, 40, 51, 170, 300, 500, 900}) {
            if (quick() && count > 400) continue;
            Twins& t = lists.emplace_back(count);
            const RuleInfo& rule = *detail::find_rule(round % 2 == 0 ? "adam" : "nadam");
            for (std::size_t i = 0; i < std::max<std::size_t>(count, 1); ++i) {
                if (i % 100 == 0) t.segment(rule, default_hyper(rule), 1);
                // The first list has no elements.
                t.tensor(all_types[i % 3 == 0 ? 3 : 0], count == 0 ? 0 : 1 + (i * 7) % 30, i % 5);
            }
            t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
        }
        for (int k = 0; k < (quick() ? 25 : 80); ++k) {
            Twins& t = lists[random.below(lists.size())];
            CUstream_st& stream = streams[random.below(4) == 0 ? 1 : 0];
            const StepOptions options =
                random.below(2) == 0 ? StepOptions{} : StepOptions{0.5, random.below(2) == 0 ? 0.01 : 1e9, true, true};
            DeviceNumber step(0, &stream, 9, ScalarType::i64);
            for (Segment& s : t.segments) s.step = 9;
            const bool on_device = random.below(2) == 0;
            const bool bad = wants_norm(options) && random.below(3) == 0 && t.device()[0].size > 0;
            if (bad) t.set(0, 1, 0, std::numeric_limits<double>::quiet_NaN());
            step_twins(t, options, "workspace, turn " + std::to_string(k), [&](CudaStep& s) {
                s.stream = &stream;
                s.workspace = workspace.get();
                set_device_step(t.segments, on_device ? step.data() : nullptr, ScalarType::i64);
                s.segments = t.segments;
            });
            if (bad) t.set(0, 1, 0, 0.5);
        }
    }
}

// Data after a step's shorter tables must not be mistaken for longer ones.
void test_workspace_overwritten() {
    const RuleInfo& rule = *detail::find_rule("adam");
    for (const std::size_t shorter : {0, 20, 100, 170}) {
        Twins a(1), b(2);
        a.segment(rule, default_hyper(rule), 3);
        b.segment(rule, default_hyper(rule), 3);
        for (int i = 0; i < 500; ++i) a.tensor(all_types[0], 9);
        for (std::size_t i = 0; i < std::max<std::size_t>(shorter, 1); ++i)
            b.tensor(all_types[0], shorter == 0 ? 0 : 9);
        DeviceNumber step(0, nullptr, 3, ScalarType::i64);
        for (int modes = 0; modes < 16; ++modes) {
            if (quick() && modes % 5 != int(shorter) % 5 && modes != 8) continue;
            Workspace workspace;
            for (int turn = 0; turn < 4; ++turn) {
                const int mode = turn % 2 == 0 ? modes % 4 : modes / 4;
                step_twins(turn % 2 == 0 ? a : b, mode % 2 != 0 ? StepOptions{1.0, 0.5, true, true} : StepOptions{},
                           "overwritten", [&](CudaStep& s) {
                               s.workspace = workspace.get();
                               auto& segments = (turn % 2 == 0 ? a : b).segments;
                               set_device_step(segments, mode / 2 != 0 ? step.data() : nullptr, ScalarType::i64);
                               s.segments = segments;
                           });
            }
        }
    }
}

// A stream may be destroyed, and its handle reused, before memory used on it is reused, read, changed or released.
void test_streams_that_are_gone() {
    const RuleInfo& rule = *detail::find_rule("adam");
    for (const bool used_again : {false, true}) {
        Twins t(1);
        t.segment(rule, default_hyper(rule), 1);
        const std::size_t count = 60;
        for (std::size_t i = 0; i < count; ++i) t.tensor(all_types[0], 9);
        t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
        Workspace workspace;
        Counts counts(std::vector<std::int64_t>(count, 0));
        const Reported reported(0);
        for (int k = 0; k < 3; ++k) {
            const auto stream = std::make_unique<CUstream_st>(new_stream(0));
            const std::vector<std::int64_t> steps(count, k);
            if (used_again) counts.write(steps);
            t.segments[0].step = k + 1;
            const auto cpu = t.cpu();
            const auto device = t.device();
            const StepOptions options{1.0, 0.5, true, true};
            CudaStep s = step_of(device, t.segments, options);
            s.stream = stream.get();
            s.workspace = workspace.get();
            counts.give(s);
            reported.give(s);
            CudaError error;
            CHECK_THAT(backend.step(s, error), "%s", error.text);
            stream->gone = true;
            const StepReport wanted = detail::run_step(cpu, t.segments, options);
            if (!used_again) continue;
            check_report(reported.read(), wanted, "streams that are gone");
            CHECK(counts.read() == std::vector<std::int64_t>(count, k + 1));
        }
        t.check("streams that are gone");
    }
}

// Saved copies are restored to the current address, on another stream, or not at all.
void test_saved() {
    CudaError error;
    for (const bool captured : {false, true}) {
        CUstream_st streams[2] = {new_stream(0), new_stream(0)};
        CUstream_st& first = streams[0];
        CUstream_st& second = captured ? streams[0] : streams[1];
        DeviceMemory from(0, &first, 100), to(0, &first, 100);
        const auto bytes = [](const DeviceMemory& m) {
            const cuda::emulation::Access access;
            return std::vector<std::byte>(static_cast<std::byte*>(m.data()), static_cast<std::byte*>(m.data()) + 100);
        };
        const auto part = [](const DeviceMemory& m, std::size_t at, std::size_t n) {
            return detail::CudaPiece{static_cast<std::byte*>(m.data()) + at, n};
        };
        {
            const cuda::emulation::Access access;
            for (int i = 0; i < 100; ++i) static_cast<std::byte*>(from.data())[i] = std::byte(i);
            std::memset(to.data(), 0xee, 100);
        }
        detail::CudaKept* saved = nullptr;
        const std::vector<detail::CudaPiece> pieces{
            part(from, 3, 20), {nullptr, 0}, part(from, 40, 31), part(from, 90, 10)};
        if (captured) cuda::emulation::begin_capture(first);
        CHECK_THAT(backend.save(0, &first, pieces, saved, error), "%s", error.text);
        if (!captured) CHECK(backend.order(0, &first, &second, error));
        const std::vector<detail::CudaPiece> back{part(to, 0, 20), {nullptr, 0}, {nullptr, 31}, part(to, 90, 10)};
        CHECK_THAT(backend.restore(saved, &second, back, error), "%s", error.text);
        if (captured) {
            cuda::emulation::end_capture(first);
            cuda::emulation::replay(first);
        }
        const auto got = bytes(to);
        for (int i = 0; i < 100; ++i) CHECK(got[std::size_t(i)] == std::byte(i < 20 ? 3 + i : i >= 90 ? i : 0xee));
        if (captured) cuda::emulation::forget_graph(first);
        // Copies that are never restored are released, even if their stream no longer exists.
        const auto third = std::make_unique<CUstream_st>(new_stream(0));
        third->seen = second.seen;
        CHECK_THAT(backend.save(0, third.get(), pieces, saved, error), "%s", error.text);
        third->gone = true;
        backend.release(saved);
        CHECK(runtime.memory.size() == 2);
        CHECK(backend.order(0, &second, &first, error));
        cuda::emulation::see(first.seen, third->seen);
    }
}

// A step waits for the last use of a slot on any stream, and memory comes from a pool that keeps it.
void test_pool_and_places() {
    const auto of_device = [](cudaMemPool_t pool) { return pool->device == 0; };
    const auto pool = std::find_if(runtime.pools.begin(), runtime.pools.end(), of_device);
    CHECK(pool != runtime.pools.end() && (*pool)->release_threshold == cuda::pool_keeps);
    const RuleInfo& rule = *detail::find_rule("sgd");
    Twins t(3);
    t.segment(rule, default_hyper(rule), 1);
    t.tensor(all_types[0], 300);
    t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
    const Reported reported(0);
    CUstream_st streams[2] = {new_stream(0), new_stream(0)};
    const auto device = t.device();
    for (CUstream_st& stream : streams) {
        CudaStep s = step_of(device, t.segments, {1.0, 0.5, false, true});
        s.stream = &stream;
        reported.give(s);
        CudaError error;
        CHECK_THAT(backend.step(s, error), "%s", error.text);
        detail::run_step(t.cpu(), t.segments, {1.0, 0.5, false, true});
    }
    t.check("one place, two streams");
}

// A captured step can be replayed, even if the workspace and the host's tables have changed.
void test_capture() {
    CudaError error;
    for (const RuleInfo& rule : detail::rules()) {
        for (const std::size_t count : {4, 120}) {
            if (quick() && (count > 4 || rule.index % 3 != 0)) continue;
            CUstream_st stream = new_stream(0);
            auto workspace = std::make_unique<Workspace>();
            Twins t(rule.index), other(7);
            t.segment(rule, default_hyper(rule), 1);
            for (std::size_t i = 0; i < count; ++i) t.tensor(all_types[i % all_types.size()], 5 + 61 * (i % 9), i % 4);
            other.segment(rule, default_hyper(rule), 1);
            for (int i = 0; i < 700; ++i) other.tensor(all_types[0], 1);
            const Reported reported(0);
            const Counts counts(std::vector<std::int64_t>(count, 3));
            DeviceNumber lr(0, &stream, 0.5, ScalarType::f32);
            const std::vector<DeviceHyper> hypers{{0, 0, lr.data(), ScalarType::f32}};
            const auto use_workspace = [&](CudaStep& s) {
                s.stream = &stream;
                s.workspace = workspace->get();
            };
            step_twins(t, {}, "before capture", use_workspace);

            bool capturing = true;
            CHECK(backend.capturing(0, &stream, capturing, error) && !capturing);
            cuda::emulation::begin_capture(stream);
            CHECK(backend.capturing(0, &stream, capturing, error) && capturing);
            {
                const auto device = t.device();
                const std::vector<Segment> segments = t.segments;
                CudaStep s = step_of(device, segments, {1.0, 0.25, true, false});
                use_workspace(s);
                counts.give(s);
                s.hypers = hypers;
                reported.give(s);
                CHECK_THAT(backend.step(s, error), "%s", error.text);
            }
            t.check("nothing runs under capture");
            cuda::emulation::end_capture(stream);
            CHECK(!reported.read().has_norm);
            CUstream_st others[2] = {new_stream(0), new_stream(0)};
            others[0].seen = stream.seen;
            step_twins(other, {}, "a larger workspace", use_workspace);
            for (int k = 0; k < 4; ++k) {
                if (k == 1) workspace.reset();
                t.new_gradients();
                t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
                if (k == 2) t.set(0, 1, 0, std::numeric_limits<double>::quiet_NaN());
                lr.set(0.5 + k);
                t.segments[0].hyper.value[0] = 0.5 + k;
                t.segments[0].step = 4 + (k > 2 ? k - 1 : k);
                const StepReport wanted = detail::run_step(t.cpu(), t.segments, {1.0, 0.25, true, false});
                CHECK(wanted.skipped == (k == 2));
                // A reader waits for the replay, and another stream for the host.
                cuda::emulation::replay(stream, others[k % 2]);
                check_report(reported.read(), wanted, "replayed");
                t.check(std::string(rule.name) + " replayed, turn " + std::to_string(k));
            }
            CHECK(counts.read() == std::vector<std::int64_t>(count, 6));
            cuda::emulation::forget_graph(stream);
        }
    }
    // Waiting for a stream under capture is an error, not a crash.
    CUstream_st stream = new_stream(0);
    cuda::emulation::begin_capture(stream);
    StepReport r;
    CHECK(!backend.global_norm(0, &stream, {}, 1.0, r, error));
    CHECK_THAT(std::string(error.text).starts_with("cudaMemcpyAsync: "), "%s", error.text);
    cuda::emulation::end_capture(stream);
    cuda::emulation::forget_graph(stream);
}

// Rules with one number per row can also be captured with dense gradients: nothing comes from the host.
// The host determines which rows have values, so sparse gradients are refused.
void test_capture_of_rows() {
    CudaError error;
    constexpr std::int64_t rows = 12, row_size = 70;
    const auto as_rows = [&](const RuleInfo& rule, std::vector<ParamUpdate> tensors) {
        constexpr std::int64_t shape[] = {rows, row_size};
        for (ParamUpdate& t : tensors) detail::set_shape(t, rule, 2, shape);
        return tensors;
    };
    for (const RuleInfo& rule : detail::row_wise_rules()) {
        CUstream_st stream = new_stream(0);
        Twins t(3);
        t.segment(rule, default_hyper(rule), 1);
        for (std::size_t i = 0; i < 3; ++i) t.tensor(all_types[i], std::size_t(rows * row_size), i);
        const Reported reported(0);
        const Counts counts(std::vector<std::int64_t>(3, 3));
        cuda::emulation::begin_capture(stream);
        {
            const std::vector<ParamUpdate> device = as_rows(rule, t.device());
            CudaStep s = step_of(device, t.segments, {1.0, 0.25, false, false});
            s.stream = &stream;
            counts.give(s);
            reported.give(s);
            CHECK_THAT(backend.step(s, error), "%s", error.text);
            std::vector<ParamUpdate> sparse = device;
            detail::RowUpdate given;
            const std::int64_t index = 2;
            CHECK(!given.assign({&index, true, 1}, sparse[0].slot(1), rows, row_size));
            sparse[0].rows = &given;
            s = step_of(sparse, t.segments, {});
            s.stream = &stream;
            CHECK(!backend.step(s, error));
            CHECK_THAT(std::string(error.text).find("a gradient of rows while its stream is captured") !=
                           std::string::npos,
                       "%s", error.text);
        }
        cuda::emulation::end_capture(stream);
        t.check("nothing runs under capture");
        CUstream_st other = new_stream(0);
        other.seen = stream.seen;
        for (int k = 0; k < 3; ++k) {
            t.new_gradients();
            t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
            t.segments[0].step = 4 + k;
            const StepReport wanted = detail::run_step(as_rows(rule, t.cpu()), t.segments, {1.0, 0.25, false, false});
            cuda::emulation::replay(stream, other);
            check_report(reported.read(), wanted, "replayed");
            t.check(std::string(rule.name) + " replayed");
        }
        CHECK(counts.read() == std::vector<std::int64_t>(3, 6));
        cuda::emulation::forget_graph(stream);
    }
}

// The caller's rounding mode and flushing have no effect and are restored.
void test_caller_modes() {
    const ModeBits before = get_mode();
    for (const RuleInfo& rule : detail::rules()) {
        if (quick() && rule.index % 11 != 0) continue;
        for (const NamedMode& mode : caller_modes) {
            HyperValues h = other_hyper(rule);
            set_options(rule, h, Decay::decoupled, false);
            Twins t(1);
            t.segment(rule, h, 3);
            t.tensor(all_types[0], 300);
            t.tensor(all_types[3], 300);
            for (Segment& s : t.segments) s.hyper.value[rule.own.size() + 3] = 0.1;
            const auto cpu = t.cpu();
            const auto device = t.device();
            const Reported reported(0);
            CudaError error;
            for (const bool on_device : {false, true}) {
                DeviceNumber step(0, nullptr, 3, ScalarType::i32);
                const StepOptions options{0.7, 0.01, false, true};
                CudaStep s = step_of(device, t.segments, options);
                reported.give(s);
                set_device_step(t.segments, on_device ? step.data() : nullptr, ScalarType::i32);
                StepReport norm;
                set_mode(mode.bits);
                const bool done = backend.step(s, error) && backend.add_scaled(0, nullptr, device, 0.1, error) &&
                                  backend.global_norm(0, nullptr, device, 0.1, norm, error);
                const ModeBits after = get_mode();
                set_mode(before);
                CHECK_THAT(done && control_bits(after) == control_bits(mode.bits), "%s: %s", mode.name, error.text);
                const StepReport wanted = detail::run_step(cpu, t.segments, options);
                detail::add_scaled(cpu, 0.1);
                const std::string what = std::string(rule.name) + ", called with " + mode.name;
                check_report(reported.read(), wanted, what);
                check_report(norm, detail::global_norm(cpu, 0.1), what);
                t.check(what);
            }
        }
    }
}

// Launches are on the requested device; the caller's device is current before and afterwards.
void test_devices() {
    runtime.devices = 70;  // more than are remembered
    CudaError error;
    int count = 0;
    CHECK(backend.device_count(count, error) && count == 70);
    for (const int device : {0, 1, 69}) {
        detail::CudaDevice d{};
        CHECK(backend.describe(device, d, error));
        CHECK(std::string(d.name) == "Emulated device" && d.major == 9 && d.multiprocessors > 0 && d.memory > 0);
        CUstream_st stream = new_stream(device);
        Workspace workspace(device);
        const RuleInfo& rule = *detail::find_rule("adam");
        for (int k = 0; k < 3; ++k) {
            Twins t(1);
            t.segment(rule, default_hyper(rule), 1);
            for (int i = 0; i < 60; ++i) t.tensor(all_types[0], 300);
            runtime.calls.clear();
            bool right = true;
            unsigned blocks = 0;
            runtime.watch = [&](const cuda::emulation::Launch& l) {
                right = right && runtime.current == device;
                blocks = std::max(blocks, l.blocks);
                return true;
            };
            step_twins(t, {1.0, 0.5, true, true}, "device", [&](CudaStep& s) {
                s.device = device;
                s.stream = &stream;
                s.workspace = workspace.get();
            });
            runtime.watch = nullptr;
            CHECK(right && blocks > 1);
            CHECK(runtime.current == 0);
            // Except for work that waits for the host, on the library's own stream.
            for (const auto& call : runtime.calls)
                if (call.stream != nullptr && call.name == "launch") CHECK(call.stream == &stream);
        }
        const DeviceMemory memory(device, &stream, 16);
        std::int32_t found = -1;
        CHECK(backend.device_of(memory.data(), found, error) && found == device);
    }
    int on_host = 0;
    std::int32_t found = -1;
    CHECK(!backend.device_of(&on_host, found, error));
    detail::CudaDevice d{};
    CHECK(!backend.describe(70, d, error) && error.code == int(cudaErrorInvalidDevice) && !error.out_of_memory);
    // A stream of another device.
    CUstream_st stream = new_stream(1);
    Twins t(1);
    t.segment(*detail::find_rule("sgd"), default_hyper(*detail::find_rule("sgd")), 1);
    t.tensor(all_types[0], 300);
    const auto device = t.device();
    CudaStep s = step_of(device, t.segments, {});
    s.stream = &stream;
    CHECK(!backend.step(s, error));
    CHECK_THAT(std::string(error.text) == "step_kernel: another error (cudaErrorOther)", "%s", error.text);
    t.check("nothing written");
    runtime.devices = 2;
}

void test_memory_and_order() {
    CudaError error;
    CUstream_st streams[2] = {new_stream(1), new_stream(1)};
    std::array<double, 100> numbers;
    for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = double(i);
    {
        const DeviceMemory from(1, &streams[0], sizeof numbers), to(1, &streams[0], sizeof numbers);
        {
            const cuda::emulation::Access access;
            std::memcpy(from.data(), numbers.data(), sizeof numbers);
        }
        // Without the wait, the emulation would end the program.
        CHECK(backend.order(1, &streams[0], &streams[1], error));
        CHECK(backend.copy(1, &streams[1], to.data(), from.data(), sizeof numbers, error));
        CHECK(backend.order(1, &streams[1], &streams[0], error));
        const cuda::emulation::Access access;
        CHECK(std::memcmp(to.data(), numbers.data(), sizeof numbers) == 0);
    }
    detail::CudaKept* counts = nullptr;
    CHECK(backend.new_counts(1, {}, counts, error));
    CHECK(backend.read_counts(*counts, {}, error));
    backend.release(counts);
    backend.release(nullptr);
    backend.release_workspace(nullptr);
    CHECK(backend.version == detail::cuda_backend_version && backend.sizes == detail::sizes_that_cross());
    CHECK(backend.runtime == CUDART_VERSION);
}

// Work lists larger than any memory: only the parameters of launches are checked.
void test_huge_tables() {
    const RuleInfo& rule = *detail::find_rule("sgd");
    const std::int64_t big = std::int64_t{1} << 40;
    const std::int64_t small = std::int64_t{1} << 36;
    std::vector<ParamUpdate> tensors;
    for (const std::int64_t size : {big + 1, std::int64_t{5}, 3 * big}) {
        auto* const far = reinterpret_cast<void*>(std::uintptr_t{1} << 46);
        tensors.push_back(update_of({far, far}, size, Format::bfloat16, Format::bfloat16));
    }
    const std::vector<Segment> segments{{&rule, default_hyper(rule), 1, 3}};
    const void* const step_kernel = kernels()[rule.index].step[0][1];
    cuda::StepLaunch step;
    cuda::NormLaunch norm;
    unsigned blocks = 0;
    runtime.watch = [&](const cuda::emulation::Launch& l) {
        if (l.kernel == step_kernel) {
            std::memcpy(&step, l.parameters, sizeof step);
            blocks = l.blocks;
        } else if (l.bytes == sizeof norm) {
            std::memcpy(&norm, l.parameters, sizeof norm);
        }
        return false;
    };
    CudaError error;
    CHECK_THAT(backend.step(step_of(tensors, segments, {}), error), "%s", error.text);
    const std::int64_t tiles = big / cuda::tile;
    CHECK(step.tiles == 4 * tiles + 2 && step.count == 3 && blocks == 6);
    const auto* t = reinterpret_cast<const cuda::Tensor*>(step.inside + step.tensors_at);
    CHECK(t[0].first_tile == 0 && t[1].first_tile == tiles + 1 && t[2].first_tile == tiles + 2);
    CHECK(t[0].size == big + 1 && t[2].size == 3 * big);
    // A norm needs memory for its leaves.
    tensors[0].size = small + 1;
    tensors[2].size = 3 * small;
    CHECK_THAT(backend.step(step_of(tensors, segments, {1.0, -1.0, false, true}), error), "%s", error.text);
    const auto* n = reinterpret_cast<const cuda::NormTensor*>(norm.inside);
    CHECK(norm.total == 4 * small + 6 && norm.count == 3 && n[1].first == small + 1 && n[2].first == small + 6);
    runtime.watch = nullptr;
}

// Every call of the runtime fails once. The operation reports it, changes nothing and leaks nothing, and works the next
// time.
struct Operation {
    const char* name;
    std::function<bool(CudaError&)> run;
    std::function<void()> before = [] {};
    std::function<void(bool done)> after = [](bool) {};
    bool silent = false;  // cannot report an error
};

void check_failures(const Operation& o) {
    constexpr std::string_view names[] = {
        "cudaGetDeviceCount",
        "cudaGetDevice",
        "cudaSetDevice",
        "cudaGetDeviceProperties",
        "cudaDeviceGetAttribute",
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
        "cudaPointerGetAttributes",
        "cudaMemPoolCreate",
        "cudaMemPoolSetAttribute",
        "cudaMallocFromPoolAsync",
        "cudaFreeAsync",
        "cudaMemcpyAsync",
        "cudaMemsetAsync",
        "cudaStreamCreateWithFlags",
        "cudaStreamSynchronize",
        "cudaStreamIsCapturing",
        "cudaEventRecord",
        "cudaEventRecordWithFlags",
        "cudaEventSynchronize",
        "cudaStreamWaitEvent",
        "cudaEventCreateWithFlags",
        "cudaEventDestroy",
        "launch",
    };
    for (const std::string_view name : names) {
        for (int n = 1;; ++n) {
            o.before();
            runtime.failing = name;
            runtime.fails_in = n;
            CudaError error;
            const bool done = o.run(error);
            const bool happened = runtime.fails_in <= 0;
            runtime.failing = {};
            // The second call restores the caller's device, which then fails.
            const bool restoring = name == "cudaSetDevice" && n % 2 == 0;
            if (happened && restoring) runtime.current = 0;
            CHECK_THAT(runtime.current == 0, "%s, %s %d: the device is another one", o.name, name.data(), n);
            CHECK_THAT(runtime.last == cudaSuccess, "%s, %s %d: leaves the error behind", o.name, name.data(), n);
            runtime.last = cudaSuccess;
            if (!happened) CHECK_THAT(done, "%s: %s", o.name, error.text);
            if (happened && done)
                CHECK_THAT(restoring || o.silent || name == "cudaFreeAsync" || name == "cudaEventRecord" ||
                               name == "cudaEventRecordWithFlags" || name == "cudaMemPoolSetAttribute" ||
                               name == "cudaEventDestroy",
                           "%s, %s %d: not noticed", o.name, name.data(), n);
            if (!done) {
                const std::string text = error.text;
                CHECK_THAT(text.starts_with(name) || (name == "launch" && text.find("_kernel: ") != std::string::npos),
                           "%s, %s %d: %s", o.name, name.data(), n, error.text);
                CHECK_THAT(text.ends_with(": out of memory (cudaErrorMemoryAllocation)"), "%s", error.text);
                CHECK(error.out_of_memory && error.code == int(cudaErrorMemoryAllocation));
            }
            o.after(done);
            if (!happened) break;
        }
    }
}

CudaError error_of_tests;
constexpr int far_device = 69;  // not cached, so that every step queries it

struct FailingStep {
    const char* name;
    std::size_t count;
    bool clipped, on_device;
};

void check_failing_step(const FailingStep& step, bool with_workspace) {
    const RuleInfo& rule = *detail::find_rule("adam");
    const StepOptions options = step.clipped ? StepOptions{1.0, 0.5, true, true} : StepOptions{};
    CUstream_st streams[2] = {new_stream(far_device), new_stream(far_device)};
    Twins t(1), other(2);
    for (Twins* list : {&t, &other}) {
        list->segment(rule, default_hyper(rule), 3);
        const std::size_t longer = quick() ? 200 : 500;
        const std::size_t count = list == &t ? step.count : step.count < 100 ? longer : 60;
        for (std::size_t i = 0; i < count; ++i) list->tensor(all_types[0], 10 + i % 7);
        list->change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.5; });
    }
    std::unique_ptr<Workspace> workspace;
    std::unique_ptr<DeviceNumber> number;
    std::unique_ptr<Reported> reported;
    const auto step_other = [&](void* stream) {
        step_twins(other, {}, "before", [&](CudaStep& s) {
            s.device = far_device;
            s.stream = stream;
            s.workspace = workspace->get();
        });
    };
    std::vector<ParamUpdate> device;
    const auto make_step = [&] {
        device = t.device();
        CudaStep s = step_of(device, t.segments, options);
        s.device = far_device;
        s.stream = &streams[0];
        if (step.clipped) reported->give(s);
        set_device_step(t.segments, step.on_device ? number->data() : nullptr, ScalarType::i64);
        if (workspace) s.workspace = workspace->get();
        return s;
    };
    check_failures({step.name, [&](CudaError& error) { return backend.step(make_step(), error); },
                    [&] {
                        number = std::make_unique<DeviceNumber>(far_device, &streams[0], 3, ScalarType::i64);
                        reported = std::make_unique<Reported>(far_device);
                        if (!with_workspace) return;
                        workspace = std::make_unique<Workspace>(far_device);
                        step_other(&streams[1]);
                    },
                    [&](bool done) {
                        if (done) detail::run_step(t.cpu(), t.segments, options);
                        t.check(step.name);
                        if (workspace) step_other(&streams[0]);
                        CudaError error;
                        CHECK_THAT(backend.step(make_step(), error), "%s, again: %s", step.name, error.text);
                        detail::run_step(t.cpu(), t.segments, options);
                        t.check(std::string(step.name) + ", again");
                        workspace.reset();
                        number.reset();
                        reported.reset();
                        CHECK_THAT(runtime.memory.empty() && runtime.events == 0, "%s", step.name);
                    }});
}

void test_failures() {
    runtime.devices = far_device + 1;
    const std::size_t many_tensors = quick() ? 180 : 450;  // more than fit into the parameters of a launch
    const FailingStep steps[] = {{"a short step", 3, false, false},
                                 {"a long step", many_tensors, false, false},
                                 {"a short clipped step", 3, true, false},
                                 {"a long clipped step", many_tensors, true, false},
                                 {"a step with its number on the device", 20, true, true}};
    for (const bool with_workspace : {false, true})
        for (const FailingStep& step : steps)
            if (!quick() || (with_workspace ? step.count > 3 : step.on_device))
                check_failing_step(step, with_workspace);

    CUstream_st stream = new_stream(far_device);
    CUstream_st second = new_stream(far_device);
    const RuleInfo& rule = *detail::find_rule("sgd");
    Twins few(1), many(2);
    for (Twins* t : {&few, &many}) {
        t->segment(rule, default_hyper(rule), 1);
        for (int i = 0; i < (t == &few ? 3 : 130); ++i) t->tensor(all_types[3], 9);
    }
    for (Twins* t : {&few, &many}) {
        const auto tensors = t->device();
        StepReport report;
        const auto updated = [t](const auto& on_cpu) {
            return [t, on_cpu](bool done) {
                if (done) on_cpu(t->cpu());
                t->check("a failing update");
                CHECK(runtime.memory.empty());
            };
        };
        check_failures({"global_norm",
                        [&](CudaError& e) { return backend.global_norm(far_device, &stream, tensors, 1.0, report, e); },
                        [] {}, updated([](const auto&) {})});
        check_failures({"add_scaled",
                        [&](CudaError& e) { return backend.add_scaled(far_device, &stream, tensors, 0.5, e); }, [] {},
                        updated([](const auto& cpu) { detail::add_scaled(cpu, 0.5); })});
        check_failures({"bandwidth_probe",
                        [&](CudaError& e) { return backend.bandwidth_probe(far_device, &stream, tensors, 1, e); },
                        [] {}, updated([](const auto& cpu) { detail::run_bandwidth_probe(cpu, 1); })});
    }
    detail::CudaKept* kept = nullptr;
    const auto released = [&](bool done) {
        if (done) backend.release(kept);
        CHECK_THAT(runtime.memory.empty() && runtime.events == 0, "%zu, %ld", runtime.memory.size(), runtime.events);
    };
    const std::array<std::int64_t, 3> numbers{1, 2, 3};
    // An unused device for each call, whose pool and stream are created.
    check_failures({"new_counts", [&](CudaError& e) { return backend.new_counts(far_device, numbers, kept, e); }, [] {},
                    released});
    check_failures(
        {"new_reports", [&](CudaError& e) { return backend.new_reports(far_device, 3, kept, e); }, [] {}, released});
    int fresh = 2;
    check_failures({"new_counts on a fresh device",
                    [&](CudaError& e) { return backend.new_counts(fresh, numbers, kept, e); }, [&] { ++fresh; },
                    [&](bool done) {
                        released(done);
                        CHECK(backend.new_counts(fresh, numbers, kept, error_of_tests));
                        released(true);
                    }});
    std::array<std::int64_t, 3> read{};
    StepReport report;
    bool flag = false;
    std::int32_t device = 0;
    int count = 0;
    detail::CudaDevice properties;
    const auto counted = [&] { CHECK(backend.new_counts(far_device, numbers, kept, error_of_tests)); };
    const auto counts_are_there = [&](bool) {
        CHECK(backend.read_counts(*kept, read, error_of_tests));
        released(true);
    };
    check_failures(
        {"read_counts", [&](CudaError& e) { return backend.read_counts(*kept, read, e); }, counted, counts_are_there});
    check_failures({"write_counts", [&](CudaError& e) { return backend.write_counts(*kept, numbers, e); }, counted,
                    counts_are_there});
    check_failures({"read_report", [&](CudaError& e) { return backend.read_report(*kept, 1, report, e); },
                    [&] { CHECK(backend.new_reports(far_device, 2, kept, error_of_tests)); },
                    [&](bool) { released(true); }});
    {
        const DeviceMemory memory(far_device, &stream, 1000);
        const auto half = [&] { return static_cast<std::byte*>(memory.data()) + 500; };
        const std::vector<detail::CudaPiece> pieces{{memory.data(), 100}, {half(), 100}};
        const auto alone = [&] { CHECK(runtime.memory.size() == 1 && runtime.events == 0); };
        check_failures(
            {"copy", [&](CudaError& e) { return backend.copy(far_device, &stream, half(), memory.data(), 100, e); }});
        const std::byte bytes[100] = {};
        check_failures(
            {"write", [&](CudaError& e) { return backend.write(far_device, &stream, memory.data(), bytes, 100, e); }});
        const detail::RandomFill fill{detail::Distributed::normal};
        check_failures({"fill_random", [&](CudaError& e) {
                            return backend.fill_random(far_device, &stream, fill, Format::float32, memory.data(), 9, e);
                        }});
        check_failures({"fill_constant", [&](CudaError& e) {
                            return backend.fill_constant(far_device, &stream, 1.0, Format::float32, memory.data(), 9,
                                                         e);
                        }});
        check_failures({"device_of", [&](CudaError& e) { return backend.device_of(memory.data(), device, e); }});
        check_failures({"save", [&](CudaError& e) { return backend.save(far_device, &stream, pieces, kept, e); }, [] {},
                        [&](bool done) {
                            if (done) CHECK(backend.restore(kept, &stream, pieces, error_of_tests));
                            alone();
                        }});
        check_failures({"restore", [&](CudaError& e) { return backend.restore(kept, &stream, pieces, e); },
                        [&] { CHECK(backend.save(far_device, &stream, pieces, kept, error_of_tests)); },
                        [&](bool) { alone(); }});
    }
    check_failures({"order", [&](CudaError& e) { return backend.order(far_device, &stream, &second, e); }, [] {},
                    [](bool) { CHECK(runtime.events == 0); }});
    check_failures({"capturing", [&](CudaError& e) { return backend.capturing(far_device, &stream, flag, e); }});
    check_failures({"device_count", [&](CudaError& e) { return backend.device_count(count, e); }});
    check_failures({"describe", [&](CudaError& e) { return backend.describe(far_device, properties, e); }});
    detail::CudaWorkspace* workspace = nullptr;
    check_failures({"new_workspace", [&](CudaError& e) { return backend.new_workspace(far_device, workspace, e); },
                    [] {},
                    [&](bool done) {
                        if (done) backend.release_workspace(workspace);
                        CHECK(runtime.events == 0);
                    }});
    runtime.devices = 2;

    // An earlier error of another library is not the driver's.
    runtime.last = cudaErrorInvalidValue;
    Twins t(3);
    t.segment(rule, default_hyper(rule), 1);
    t.tensor(all_types[0], 300);
    step_twins(t, {}, "after another's error");
    runtime.last = cudaSuccess;
}

}  // namespace
}  // namespace adaptk::test

int main() {
    using namespace adaptk::test;
    CHECK(adaptk::detail::set_num_threads(1).empty());
    const auto timed = [](const char* name, void (*test)()) {
        test();
        std::printf("%s: %ld checks so far\n", name, checks.load());
        std::fflush(stdout);
    };
    timed("counts", test_counts);
    timed("memo", test_memo);
    timed("device numbers", test_device_numbers);
    timed("workspace", test_workspace);
    timed("workspace overwritten", test_workspace_overwritten);
    timed("capture", test_capture);
    timed("capture of rows", test_capture_of_rows);
    timed("caller's modes", test_caller_modes);
    timed("devices", test_devices);
    timed("memory and order", test_memory_and_order);
    timed("huge tables", test_huge_tables);
    timed("failures", test_failures);
    timed("streams that are gone", test_streams_that_are_gone);
    timed("saved", test_saved);
    timed("pool and places", test_pool_and_places);
    check_nothing_left();
    return finish();
}
