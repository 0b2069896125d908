// The CUDA kernels under emulation, bit for bit against the CPU's.
#include "cuda_support.hpp"

#include "dispatch.hpp"
#include "kernels.hpp"
#include "rows.hpp"
#include "runtime.hpp"
#include "step_kernel.hpp"

namespace adaptk::test {
namespace {

constexpr std::array<std::size_t, 22> sizes{0,   1,   2,   7,   31,  32,  33,   63,   64,   65,   127,
                                            128, 255, 256, 257, 511, 513, 1000, 8191, 8192, 8193, 20011};

std::size_t most_elements() { return quick() ? 1000 : 20011; }

std::string text(const RuleInfo& rule, Types types, const std::string& more) {
    return std::string(rule.name) + " " + detail::name_of(types.param) + "/" + detail::name_of(types.grad) + " " + more;
}

// Every rule, pair of types and combination of options, with tensors of all sizes and alignments in one call. Only one
// case in seven has large tensors, which are nine tenths of the work and only repeat the loop.
void test_every_rule() {
    std::size_t round = 0;
    for (const RuleInfo& rule : detail::rules()) {
        for (const Types& types : all_types) {
            for (std::size_t variant = 0; variant < 12; ++variant) {
                if (++round; quick() && round % 11 != 0) continue;
                HyperValues h = variant < 6 ? default_hyper(rule) : other_hyper(rule);
                set_options(rule, h, all_decays[variant % 3], variant / 3 % 2 != 0);
                Twins t(round);
                const std::int64_t steps[] = {1, 2, 20};
                t.segment(rule, h, steps[round / 3 % 3]);
                const std::size_t most = round % 7 == 0 ? most_elements() : 1000;
                for (std::size_t i = 0; i < sizes.size(); ++i)
                    if (sizes[i] <= most)
                        t.tensor(types, sizes[i], i + round, (i + round) % 3 == 0 ? Kind::special : Kind::plain);
                step_twins(t, {}, text(rule, types, "variant " + std::to_string(variant)));
            }
            // Each hyperparameter that selects a branch of a formula.
            for (std::size_t i = 0; i < rule.own.size(); ++i) {
                if (rule.own[i].range != Range::flag || (quick() && (round + i) % 5 != 0)) continue;
                HyperValues h = default_hyper(rule);
                h.value[i] = 1.0 - h.value[i];
                Twins t(round + i);
                for (const std::int64_t step : {1, 2}) {
                    t.segment(rule, h, step);
                    t.tensor(types, 600, step);
                    t.tensor(types, 515, 1);
                }
                step_twins(t, {}, text(rule, types, rule.own[i].name));
            }
        }
    }
}

// A coupled decay that rounds to zero still applies: 0 * p is NaN if p is infinite.
void test_vanishing_decay() {
    const RuleInfo& rule = *detail::find_rule("momentum");
    for (const double decay : {1e-60, 1e-320}) {
        Twins t(1);
        HyperValues h = default_hyper(rule);
        h.value[rule.own.size()] = decay;
        t.segment(rule, h, 1);
        for (const Types& types : all_types) t.tensor(types, 2000, 0, Kind::special);
        step_twins(t, {}, "decay " + std::to_string(std::log10(decay)));
        step_twins(t, {1.0, 1e30, false, true}, "decay and clipping");
    }
}

// One tensor per call; then every offset of every buffer.
void test_sizes_and_offsets() {
    for (const char* name : {"sgd", "adam", "amsgrad", "adan"}) {
        const RuleInfo& rule = *detail::find_rule(name);
        const HyperValues h = default_hyper(rule);
        for (const Types& types : all_types) {
            for (const std::size_t size : sizes) {
                if (size > most_elements() || (quick() && size % 3 != 0)) continue;
                for (const std::size_t alignment : {0, 1}) {
                    Twins t(size);
                    t.segment(rule, h, 3);
                    t.tensor(types, size, alignment);
                    step_twins(t, {}, text(rule, types, "alone"));
                }
            }
            Twins t(7);
            t.segment(rule, h, 3);
            for (std::size_t alignment = 0; alignment < 35; ++alignment)
                t.tensor(types, 300 + alignment % 8, alignment);
            step_twins(t, {}, text(rule, types, "offsets"));
        }
    }
}

// Varying types and rules, several segments with their own hyperparameters; every third call with a report.
void fill_mixed(Twins& t, std::size_t count, std::size_t most, Random& random) {
    for (std::size_t i = 0; i < count; ++i) {
        if (i == 0 || random.below(std::min<std::size_t>(1 + count / 6, 40)) == 0) {
            const RuleInfo& rule = detail::rules()[random.below(count < 5 ? 3 : detail::rules().size())];
            HyperValues h = random.below(2) == 0 ? default_hyper(rule) : other_hyper(rule);
            set_options(rule, h, all_decays[random.below(3)], random.below(2) == 0);
            t.segment(rule, h, std::int64_t(1 + random.below(50)));
        }
        const std::size_t size = random.below(10) == 0 ? 0 : random.below(most) + 1;
        t.tensor(all_types[random.below(all_types.size())], size, random.below(3) == 0 ? random.below(40) : 0);
    }
}

void test_lists() {
    Random random(3);
    for (const std::size_t count : {1, 3, 49, 50, 51, 52, 125, 126, 127, 128, 400, 1500}) {
        if (quick() && count > 130) continue;
        for (int round = 0; round < (quick() ? 1 : 4); ++round) {
            // One rule; its tensors are passed as kernel parameters if they fit.
            Twins one(count);
            const RuleInfo& rule = *detail::find_rule(round % 2 == 0 ? "sgd" : "adam");
            one.segment(rule, default_hyper(rule), 5);
            for (std::size_t i = 0; i < count; ++i)
                one.tensor(all_types[round < 2 ? 0 : i % all_types.size()], 1 + random.below(300), i % 9 == 0 ? i : 0);
            Twins mixed(count + 1);
            fill_mixed(mixed, count, round == 0 ? 3000 : 300, random);
            for (Twins* t : {&one, &mixed}) {
                const std::string what = std::to_string(count) + " tensors";
                step_twins(*t, {}, what);
                t->new_gradients();
                step_twins(*t, {0.5, 0.25 * double(round), round == 3, true}, what + ", clipped");
            }
        }
    }
    // Segments without tensors, and no segments.
    Twins empty(1);
    step_twins(empty, {}, "nothing");
    step_twins(empty, {1.0, 1.0, true, true}, "the norm of nothing");
    const RuleInfo& adam = *detail::find_rule("adam");
    empty.segment(adam, default_hyper(adam), 1);
    empty.segment(adam, other_hyper(adam), 1);
    step_twins(empty, {1.0, 1.0, true, true}, "segments of nothing");
    empty.tensor(all_types[0], 0);
    step_twins(empty, {}, "a tensor of nothing");
    step_twins(empty, {1.0, 1.0, true, true}, "the norm of a tensor of nothing");
    empty.segment(adam, default_hyper(adam), 1);
    empty.segment(adam, default_hyper(adam), 1);
    empty.tensor(all_types[0], 1000);
    step_twins(empty, {1.0, 1.0, true, true}, "something in the last segment");
}

// Clipping, skipping and reports for norms of a step.
void test_norm_options() {
    const double inf = std::numeric_limits<double>::infinity();
    const double nan = std::numeric_limits<double>::quiet_NaN();
    Random random(4);
    std::uint64_t seed = 0;
    for (const double bad : {0.0, inf, -inf, nan}) {
        for (const double clip : {-1.0, 0.0, 1e-3, 1e30, inf}) {
            for (const bool skip : {false, true}) {
                for (const std::size_t count : {1, 5, 60}) {
                    if (++seed; quick() && seed % 5 != 0) continue;
                    Twins t(seed);
                    for (std::size_t i = 0; i < count; ++i) {
                        const RuleInfo& rule = detail::rules()[(seed * 7 + i) % detail::rules().size()];
                        if (i % 4 == 0) {
                            HyperValues h = default_hyper(rule);
                            set_options(rule, h, all_decays[seed % 3], seed % 2 != 0);
                            h.value[rule.own.size() + 3] = seed % 5 == 0 ? 1.0 + double(i) : 0.75;
                            t.segment(rule, h, 2);
                        }
                        t.tensor(all_types[(seed + i) % all_types.size()], 100 + random.below(400), i % 7);
                    }
                    t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 1e4 ? x : 0.25; });
                    if (bad != 0.0) t.set(count / 2, 1, 60, bad);
                    const StepReport r = step_twins(t, {seed % 2 != 0 ? 0.3 : 1.0, clip, skip, true},
                                                    "clip " + std::to_string(clip) + ", with " + std::to_string(bad));
                    CHECK(r.skipped == (skip && bad != 0.0));
                }
            }
        }
    }
    // A norm of zero.
    Twins zero(1);
    const RuleInfo& adam = *detail::find_rule("adam");
    zero.segment(adam, default_hyper(adam), 1);
    zero.tensor(all_types[0], 700);
    zero.tensor(all_types[3], 700);
    zero.change_gradients([](double) { return 0.0; });
    for (const double clip : {0.0, 1.0}) {
        const StepReport r = step_twins(zero, {1.0, clip, true, true}, "zero");
        CHECK(r.grad_norm == 0.0 && !r.skipped);
    }
}

bool check_norm(const std::vector<ParamUpdate>& tensors, double scale, const char* what) {
    const StepReport wanted = detail::global_norm(tensors, scale);
    StepReport got;
    CudaError error;
    CHECK_THAT(backend.global_norm(0, nullptr, tensors, scale, got, error), "%s: %s", what, error.text);
    check_report(got, wanted, what);
    return true;
}

// A list of gradients: the same numbers, partitioned and typed in many ways.
void test_norm_of_cuts() {
    Random random(5);
    for (int round = 0; round < (quick() ? 10 : 60); ++round) {
        const std::size_t total = std::array<std::size_t, 6>{1, 255, 8192, 8193, 36003, 90001}[std::size_t(round) % 6];
        const std::size_t most = std::array<std::size_t, 4>{40, 700, 3000, 100000}[std::size_t(round) % 4];
        const bool whole = round % 3 == 0;  // aligned tensors whose sizes are multiples of 8
        std::vector<Exact> memory;
        std::vector<ParamUpdate> tensors;
        for (std::size_t first = 0; first < total;) {
            std::size_t n = std::min(random.below(6) == 0 ? 0 : random.below(most + 1), total - first);
            if (whole && n != total - first) n = n / 8 * 8;
            const Types types = all_types[round % 5 == 0 ? 3 : random.below(all_types.size())];
            const std::size_t element = size_of(types.grad);
            const Data& from = numbers(types, Kind::plain);
            Bytes bytes(n * element);
            for (std::size_t i = 0; i < n; ++i) {
                const double x = std::ldexp(double(std::int64_t(random.below(256)) - 128), -int(random.below(25)));
                write_element(types.grad, from.size > 0 ? x : 0.0, &bytes[i * element]);
            }
            // Alignment with the tree of whole vectors depends on the position in the row.
            const std::size_t lined_up = first % (16 / element);
            memory.emplace_back(bytes.data(), bytes.size(),
                                (random.below(8) == 0 ? random.below(8) : lined_up) * element);
            tensors.push_back(update_of({nullptr, memory.back().data()}, n, compute_format(types.param), types.grad));
            first += n;
        }
        for (std::size_t i = 0; i < memory.size(); ++i) tensors[i].buffer[1] = memory[i].data();
        for (const double scale : {1.0, -0.1, 0.0}) check_norm(tensors, scale, "cuts");
        for (const Exact& m : memory) CHECK(m.intact());
    }
    check_norm({}, 1.0, "nothing");
}

// Every scope and term has the CPU's bits.
void test_reductions() {
    using detail::Scope;
    using detail::Term;
    Random random(8);
    std::vector<Exact> memory;
    std::vector<ParamUpdate> tensors;
    std::vector<std::int64_t> row_sizes;
    const struct {
        Format format;
        std::size_t size, row, offset;
    } shapes[] = {{Format::float32, 20000, 20000, 0}, {Format::float64, 6, 3, 8}, {Format::bfloat16, 12295, 2459, 2},
                  {Format::float16, 1000, 10, 0},     {Format::float32, 0, 1, 0}, {Format::float32, 8192, 4096, 4},
                  {Format::float64, 16386, 8193, 0},  {Format::float32, 77, 7, 0}};
    for (const auto& shape : shapes) {
        Bytes bytes(shape.size * size_of(shape.format));
        for (std::size_t i = 0; i < shape.size; ++i)
            write_element(shape.format, random.value<float>(), &bytes[i * size_of(shape.format)]);
        memory.emplace_back(bytes.data(), bytes.size(), shape.offset);
        tensors.emplace_back(std::int64_t(shape.size), compute_format(shape.format), shape.format);
        row_sizes.push_back(std::int64_t(shape.row));
    }
    for (std::size_t i = 0; i < memory.size(); ++i) tensors[i].buffer[1] = memory[i].data();
    const std::vector<std::size_t> groups{3, 0, 5};
    const std::vector<double> factors{1.0, 0.5, 3.0, -1.0, 2.0, 0.75, 1.0, 1.5};
    for (const Term term : {Term::square, Term::value}) {
        for (const Scope scope : {Scope::all, Scope::group, Scope::tensor, Scope::row}) {
            for (const bool with_factors : {false, true}) {
                if (quick() && with_factors != (term == Term::value)) continue;
                detail::Reduction what;
                what.term = term;
                what.scope = scope;
                what.scale = 0.75;
                what.groups = groups;
                what.row_sizes = row_sizes;
                if (with_factors) what.factors = factors;
                const std::vector<double> wanted = detail::reduce(tensors, what);
                const std::vector<detail::ReductionPart> parts = detail::reduction_parts(tensors, what);
                std::vector<double> got(parts.size());
                CudaError error;
                CHECK_THAT(backend.reduce(0, nullptr, tensors, what, parts, got, error), "%s", error.text);
                CHECK_THAT(got == wanted, "term %d, scope %d", int(term), int(scope));
            }
        }
    }
    for (const Exact& m : memory) CHECK(m.intact());
}

// A tensor with states in various formats, with two copies.
class StoredTwin {
  public:
    StoredTwin(const RuleInfo& rule, Types types, std::span<const Format> states, std::size_t size, std::size_t offset,
               std::uint32_t number, Kind kind, Random& random)
        : size_(size) {
        update_ = ParamUpdate(std::int64_t(size), types.param, types.grad);
        update_.number = number;
        for (std::size_t b = 0; b < 2 + rule.states.size(); ++b) {
            if (b >= 2) update_.format[b] = states[b - 2];
            const Format f = update_.format[b];
            const bool nonnegative = b >= 2 && rule.states[b - 2].nonnegative;
            std::vector<float> values(size);
            for (float& x : values) x = std::ldexp(random.value<float>(), -int(random.below(20)));
            if (nonnegative)
                for (float& x : values) x = std::fabs(x);
            if (kind == Kind::special && b < 2 && size > 0)
                for (const float x : {HUGE_VALF, -HUGE_VALF, NAN, 0.0f, 1e-42f}) values[random.below(size)] = x;
            Bytes bytes(detail::storage_bytes(f, update_.size));
            std::vector<float> scales(detail::has_side(f) ? detail::side_count(f, update_.size) : 0);
            if (detail::is_plain(f)) {
                for (std::size_t i = 0; i < size; ++i) write_element(f, values[i], &bytes[i * size_of(f)]);
            } else {
                detail::encode(values.data(), {bytes.data(), f, scales.data()}, update_.size, 99 + b);
            }
            const std::size_t at = offset * size_of(f);
            const auto* const scale_bytes = reinterpret_cast<const std::byte*>(scales.data());
            for (std::vector<Exact>* side : {&cpu_, &device_}) {
                side->emplace_back(bytes.data(), bytes.size(), at);
                side->emplace_back(scale_bytes, scales.size() * sizeof(float), 4 * offset);
            }
        }
    }

    ParamUpdate cpu() { return with(cpu_); }
    ParamUpdate device() { return with(device_); }

    void check(const std::string& what) const {
        for (std::size_t k = 0; k < cpu_.size(); ++k) {
            const Format f = k % 2 == 0 ? update_.format[k / 2] : Format::float32;
            const std::size_t n = k % 2 == 0 ? size_ : cpu_[k].size() / sizeof(float);
            // Codes are compared bit for bit, and so are numbers, but all NaNs are equal.
            const bool codes = detail::has_side(f);
            const Format of = detail::info_of(f).dtype;
            const bool equal = codes ? std::equal(cpu_[k].data(), cpu_[k].data() + cpu_[k].size(), device_[k].data())
                                     : first_difference(of, cpu_[k].data(), device_[k].data(), n) == no_difference;
            CHECK_THAT(equal && device_[k].intact(), "%s: %zu elements, %s of buffer %zu (%s)", what.c_str(), size_,
                       k % 2 == 0 ? "elements" : "scales", k / 2, detail::name_of(update_.format[k / 2]));
        }
    }

  private:
    ParamUpdate with(std::vector<Exact>& memory) {
        ParamUpdate t = update_;
        for (std::size_t k = 0; k < memory.size(); ++k) {
            if (k % 2 == 0) {
                t.buffer[k / 2] = memory[k].data();
            } else {
                t.side[k / 2] = reinterpret_cast<float*>(memory[k].data());
            }
        }
        return t;
    }

    std::size_t size_;
    ParamUpdate update_;
    std::vector<Exact> cpu_, device_;  // elements and scales of each buffer in turn
};

// States in every format, with params and gradients of several types, aligned and unaligned, full tiles and partial
// ones in one call; with the step number on the host and in device memory.
void test_states_in_every_format() {
    std::vector<Format> formats;
    for (const detail::FormatInfo& f : detail::formats())
        if (f.compute == Format::float32 && f.of_states) formats.push_back(f.id);
    Random random(13);
    std::size_t round = 0;
    for (const RuleInfo& rule : detail::rules()) {
        for (std::size_t first = 0; first < formats.size(); ++first) {
            if (++round; quick() && round % 4 != 0) continue;
            std::vector<Format> states;
            for (std::size_t i = 0; i < max_states; ++i)
                states.push_back(formats[(first + i * (1 + round % 3)) % formats.size()]);
            std::vector<StoredTwin> twins;
            std::uint32_t number = std::uint32_t(round);
            for (const std::size_t size : {0, 1, 15, 128, 129, 255, 256, 600, 256 * 5 + 41, 256 * 4}) {
                const Types types = size % 2 == 0 ? all_types[0] : all_types[(round + size) % 3];
                const Types of = round % 3 == 0 ? Types{Format::bfloat16, Format::bfloat16} : types;
                twins.emplace_back(rule, of, states, size, number % 4 == 3 ? 1 : 0, number,
                                   number % 3 == 0 ? Kind::special : Kind::plain, random);
                ++number;
            }
            for (std::int64_t step = 1; step <= 3; ++step) {
                std::vector<ParamUpdate> a, b;
                for (StoredTwin& t : twins) {
                    a.push_back(t.cpu());
                    b.push_back(t.device());
                }
                std::vector<Segment> segments{{&rule, default_hyper(rule), step, 4},
                                              {&rule, other_hyper(rule), step, 6}};
                segments[0].seed = 7;
                segments[1].seed = std::uint64_t{1} << 63;
                const StepOptions options = step == 2 ? StepOptions{1.0, 0.5, false, true} : StepOptions{};
                detail::run_step(a, segments, options);
                if (step == 3) set_device_step(segments, &step, detail::ScalarType::i64);
                CudaError error;
                CHECK_THAT(backend.step(step_of(b, segments, options), error), "%s", error.text);
                for (const StoredTwin& t : twins)
                    t.check(std::string(rule.name) + ", step " + std::to_string(step) + ", from format " +
                            detail::name_of(formats[first]));
            }
        }
    }
}

// A look-ahead adds a state in any format.
void test_adding_states() {
    Random random(14);
    const RuleInfo& rule = *detail::find_rule("momentum");
    for (const detail::FormatInfo& f : detail::formats()) {
        if (f.compute != Format::float32 || !f.of_states) continue;
        const std::vector<Format> states(max_states, f.id);
        StoredTwin twin(rule, all_types[0], states, 700, 0, 3, Kind::plain, random);
        const auto second = [](ParamUpdate t) {
            t.set(1, t.slot(2));
            return t;
        };
        const std::vector<ParamUpdate> a{second(twin.cpu())}, b{second(twin.device())};
        detail::add_scaled(a, -0.75);
        CudaError error;
        CHECK_THAT(backend.add_scaled(0, nullptr, b, -0.75, error), "%s", error.text);
        twin.check(std::string("adding ") + f.name);
    }
}

// The epilogues of a step against the CPU. Adam's states serve as copies and averages.
void test_epilogues() {
    Random random(31);
    const RuleInfo& rule = *detail::find_rule("sgd");
    const RuleInfo& adam = *detail::find_rule("adam");
    const Format narrow[] = {Format::float32, Format::bfloat16, Format::float16};
    const std::size_t sizes_of_list[] = {700, 0, 1, 255, 256 * 5 + 41, 256};
    for (const double decay : {0.999, 0.25}) {
        for (const bool finite : {true, false}) {
            for (const std::size_t count : {4, 60}) {
                std::vector<StoredTwin> twins;
                for (std::size_t i = 0; i < count; ++i) {
                    const Types types = all_types[i % std::size(all_types)];
                    const bool wide = compute_format(types.param) == Format::float64;
                    const Format states[] = {wide ? Format::float64 : narrow[i % 3],
                                             wide ? Format::float64 : narrow[i / 3 % 3]};
                    twins.emplace_back(adam, types, states, sizes_of_list[i % 6], i % 4 == 3 ? 1 : 0, std::uint32_t(i),
                                       finite ? Kind::plain : Kind::special, random);
                }
                std::vector<ParamUpdate> a, b;
                std::vector<detail::Epilogue> epilogues;
                detail::CudaEpilogues beside;
                for (StoredTwin& t : twins) {
                    a.push_back(t.cpu());
                    b.push_back(t.device());
                    epilogues.push_back({a.back().slot(2), a.back().slot(3)});
                    beside.add(b.back(), {b.back().slot(2), b.back().slot(3)});
                }
                const std::vector<Segment> segments{{&rule, default_hyper(rule), 1, count}};
                StepOptions options{1.0, 0.5, true, true};
                options.zero_grad = true;
                options.average_decay = decay;
                detail::CudaStep step = step_of(b, segments, options);
                step.copies = beside.copies;
                step.averages = beside.averages;
                options.epilogues = epilogues;
                CHECK(detail::run_step(a, segments, options).skipped == !finite);
                CudaError error;
                CHECK_THAT(backend.step(step, error), "%s", error.text);
                for (const StoredTwin& t : twins) t.check("epilogues");
            }
        }
    }
    for (const Types& types : all_types) {
        const Format states[] = {compute_format(types.param), compute_format(types.param)};
        StoredTwin twin(adam, types, states, 777, 1, 0, Kind::special, random);
        const ParamUpdate a = twin.cpu(), b = twin.device();
        detail::zero_grads({&a, 1});
        CudaError error;
        CHECK_THAT(backend.zero_grads(0, nullptr, {&b, 1}, error), "%s", error.text);
        twin.check("gradients that are set to zero");
    }
}

// Leaves inside a tensor, aligned and unaligned, and leaves across its ends: values whose sum depends on the order.
void test_norm_of_whole_leaves() {
    Random random(21);
    std::size_t round = 0;
    for (const Types& types : all_types) {
        const std::size_t element = size_of(types.grad);
        for (const std::size_t before : {0, 8, 8192, 8200, 3}) {
            for (const std::size_t offset : {0, 1}) {
                if (++round; quick() && round % 3 != 0) continue;
                const std::size_t sizes_of_list[] = {before, 3 * detail::reduction_leaf + 77};
                std::vector<Exact> memory;
                std::vector<ParamUpdate> tensors;
                for (const std::size_t n : sizes_of_list) {
                    Bytes bytes(n * element);
                    for (std::size_t i = 0; i < n; ++i) {
                        const double x = std::ldexp(1.0 + random.value<double>(), -int(random.below(12)));
                        write_element(types.grad, x, &bytes[i * element]);
                    }
                    const std::size_t lined_up = (memory.empty() ? 0 : before) % (16 / element);
                    memory.emplace_back(bytes.data(), bytes.size(), (lined_up + offset) * element);
                }
                for (std::size_t i = 0; i < 2; ++i)
                    tensors.push_back(update_of({nullptr, memory[i].data()}, sizes_of_list[i],
                                                compute_format(types.param), types.grad));
                check_norm(tensors, 0.75, "whole leaves");
            }
        }
    }
}

// Grids of any number of blocks give the same results and have the expected size.
void test_waves() {
    const RuleInfo& adam = *detail::find_rule("adam");
    struct Case {
        unsigned waves;
        unsigned blocks_of_steps, blocks_of_norms;
    };
    // Six blocks fit on the emulated device.

    const std::size_t n = 22 * detail::reduction_leaf + 600;
    const std::int64_t tiles = std::int64_t(n / cuda::tile + 1);
    for (const Case& c : {Case{1, 6, 6}, Case{2, 12, 6}, Case{0, unsigned((tiles + 3) / 4), 6}}) {
        Twins t(c.waves + 3);
        t.segment(adam, default_hyper(adam), 3);
        t.tensor(all_types[0], n);
        std::vector<unsigned> blocks;
        runtime.watch = [&](const cuda::emulation::Launch& l) {
            blocks.push_back(l.blocks);
            return true;
        };
        CHECK(backend.set_waves(c.waves) == cuda::waves);
        step_twins(t, {1.0, 1.0, false, true}, "waves");
        runtime.watch = nullptr;
        CHECK(backend.set_waves(cuda::waves) == c.waves);
        // The upload of the coefficients, the norm, its end, the step.
        CHECK_THAT(blocks.size() == 4 && blocks[1] == c.blocks_of_norms && blocks[3] == c.blocks_of_steps,
                   "%u waves: %zu launches, %u and %u blocks", c.waves, blocks.size(), blocks[1], blocks.back());
    }
    // Rounds are balanced: nine blocks of leaves are two rounds of five, not of six and three.
    Twins t(5);
    t.segment(adam, default_hyper(adam), 3);
    t.tensor(all_types[0], 35 * detail::reduction_leaf);
    unsigned of_norm = 0;
    runtime.watch = [&](const cuda::emulation::Launch& l) {
        if (l.bytes == sizeof(cuda::NormLaunch) && of_norm == 0) of_norm = l.blocks;
        return true;
    };
    CHECK(check_norm(t.device(), 1.0, "even turns") && of_norm == 5);
    runtime.watch = nullptr;
}

// Squares out of range are computed again from scaled values.
void test_norm_range() {
    const std::size_t size = quick() ? 601 : 6001;
    const RuleInfo& sgd = *detail::find_rule("sgd");
    for (const int exponent : {-1074, -1060, -1000, -540, -460, -440, 0, 440, 511, 512, 600, 1000, 1023}) {
        for (const bool mixed : {false, true}) {
            for (const bool factors : {false, true}) {
                Twins t(std::uint64_t(exponent + 2000));
                for (int i = 0; i < 3; ++i) {
                    HyperValues h = default_hyper(sgd);
                    if (factors) h.value[sgd.own.size() + 3] = std::array{1.0, 1e-200, 1e180}[std::size_t(i)];
                    t.segment(sgd, h, 1);
                    t.tensor(mixed && i == 1 ? all_types[1] : all_types[3], size, std::size_t(i));
                }
                t.change_gradients([&](double x) {
                    const double small = std::isfinite(x) && std::fabs(x) < 8.0 ? x : 0.5;
                    return std::ldexp(small, exponent);
                });
                check_norm(t.device(), 0.7, "range");
                step_twins(t, {0.9, 1e-3, true, true}, "gradients near 2^" + std::to_string(exponent));
            }
        }
    }
    // Different factors need a second pass, even without float64.
    for (const double factor : {1e-300, 1e200}) {
        Twins t(9);
        for (const double f : {factor, factor * 0.5}) {
            HyperValues h = default_hyper(sgd);
            h.value[sgd.own.size() + 3] = f;
            t.segment(sgd, h, 1);
            t.tensor(all_types[0], 9001);
            t.tensor(all_types[8], 101, 1);
        }
        t.change_gradients([](double x) { return std::isfinite(x) && std::fabs(x) < 8.0 ? x : 0.5; });
        step_twins(t, {1.0, 1.0, true, true}, "factors near " + std::to_string(std::log10(factor)));
    }
}

// From single leaves to more than two levels of subtrees, against a pairwise sum of neighbours.
void test_finish() {
    Random random(12);
    for (const std::size_t count : {1, 2, 3, 1023, 1024, 2047, 2048, 2049, 4097, 100003, 2048 * 2048 + 3}) {
        if (quick() && count > 5000) continue;
        std::vector<double> leaves(count);
        for (double& x : leaves) x = random.value<double>() + 4.0;
        std::vector<double> level = leaves;
        while (level.size() > 1) {
            std::vector<double> next;
            for (std::size_t i = 0; i < level.size(); i += 2)
                next.push_back(i + 1 < level.size() ? level[i] + level[i + 1] : level[i]);
            level.swap(next);
        }
        cuda::Control control;
        cuda::FinishLaunch launch = {};
        launch.leaves = leaves.data();
        launch.count = std::int64_t(count);
        launch.control = &control;
        launch.outer = 1.0;
        launch.clip_norm = -1.0;
        cuda::launch_finish(launch, nullptr);
        CHECK_THAT(same(control.norm, std::sqrt(level[0])) && control.clip == 1.0, "%zu leaves: %a", count,
                   control.norm);
    }
}

// Enough elements for two levels of subtrees.
void test_norm_of_many_leaves() {
    if (quick()) return;
    const std::size_t n = (std::size_t{2049} * 8192) + 4242;
    Bytes bytes(2 * n);
    Random random(6);
    for (std::size_t i = 0; i < n; ++i) {
        const auto h = std::uint16_t(0x3c00u + random.below(0x800) + (random.below(2) << 15));
        std::memcpy(&bytes[2 * i], &h, 2);
    }
    const ParamUpdate t = update_of({nullptr, bytes.data()}, n, Format::float16, Format::float16);
    check_norm({t}, 1.0, "2050 leaves");
}

// p + factor * x and the bandwidth streams, which are separate functions on CPU and device.
void test_other_updates() {
    const RuleInfo& momentum = *detail::find_rule("momentum");
    for (const std::size_t count : {1, 49, 50, 51, 200}) {
        if (quick() && count > 60) continue;
        for (const double factor : {0.5, -1e-3}) {
            Twins t(count);
            t.segment(momentum, default_hyper(momentum), 1);
            for (std::size_t i = 0; i < count; ++i) {
                const Types all[] = {{Format::float32, Format::float32},
                                     {Format::float64, Format::float64},
                                     {Format::bfloat16, Format::float32},
                                     {Format::float16, Format::float32}};
                t.tensor(all[i % 4], sizes[i % 18], i % 3 == 0 ? i : 0);
            }
            detail::add_scaled(t.cpu(), factor);
            CudaError error;
            CHECK_THAT(backend.add_scaled(0, nullptr, t.device(), factor, error), "%s", error.text);
            t.check("add_scaled");
        }
        for (std::size_t written = 1; written <= detail::max_written; ++written) {
            const RuleInfo& adan = *detail::find_rule("adan");
            Twins t(count);
            t.segment(adan, default_hyper(adan), 1);
            for (std::size_t i = 0; i < count; ++i) t.tensor(all_types[i % 2 * 3], sizes[i % 18], i % 3 == 0 ? i : 0);
            detail::run_bandwidth_probe(t.cpu(), written);
            CudaError error;
            CHECK_THAT(backend.bandwidth_probe(0, nullptr, t.device(), written, error), "%s", error.text);
            t.check("ceiling of " + std::to_string(written));
        }
    }
    std::vector<ParamUpdate> none;
    CudaError error;
    CHECK(backend.add_scaled(0, nullptr, none, 1.0, error) && backend.bandwidth_probe(0, nullptr, none, 1, error));
}

// A pointer whose element `first` is at p.
void* before(std::byte* p, std::int64_t first, std::size_t element) {
    return reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(p) - std::uintptr_t(first) * element);
}

// The last blocks of the largest grid, whose tiles are 2^41 elements into the list: only their memory exists.
void test_many_elements() {
    using cuda::Tensor;
    const RuleInfo& rule = *detail::find_rule("momentum");
    HyperValues h = default_hyper(rule);
    const std::int64_t blocks = 0x7fffffff;
    const std::int64_t tiles_before = (blocks - 2) * cuda::warps_per_block;
    // The tiles of the two last blocks except a part of the last: of the third tensor, which begins in them, or of the
    // second.
    for (const std::int64_t third : {tiles_before + 3, tiles_before - (std::int64_t{1} << 33) + 70000}) {
        const bool inside = third > tiles_before;
        Twins t(8);
        t.segment(rule, h, 1);
        const auto n = std::size_t(8 * cuda::tile - 100);
        const auto n1 = std::size_t(inside ? 3 * cuda::tile : 0);
        t.tensor(all_types[0], n1);
        t.tensor(all_types[0], n - n1);
        const auto device = t.device();
        const std::int64_t second = std::int64_t{1} << 31;
        cuda::StepLaunch launch = {};
        Tensor tensors[3] = {};
        const std::int64_t first_tiles[3] = {0, second, third};
        for (std::size_t i = 0; i < 3; ++i) {
            tensors[i].first_tile = first_tiles[i];
            tensors[i].aligned = 1;
            const std::int64_t behind = i < 2 ? first_tiles[i + 1] : tiles_before + 8;
            tensors[i].size = (behind - first_tiles[i]) * cuda::tile - (i == 2 ? 100 : 0);
            const ParamUpdate* from = i == 0 || (i == 1 && !inside) ? nullptr : &device[i - 1];
            for (std::size_t b = 0; from != nullptr && b < 3; ++b)
                tensors[i].buffer[b] =
                    before(static_cast<std::byte*>(from->buffer[b]),
                           std::max<std::int64_t>(tiles_before - first_tiles[i], 0) * cuda::tile, sizeof(float));
        }
        launch.tiles = tiles_before + 8;
        launch.count = 3;
        alignas(16) std::byte coefficients[detail::max_coefficients_bytes];
        detail::current_isa().coefficients->prepare[rule.index][0](h.value, 1.0, 1, coefficients, nullptr);
        launch.coefficients = coefficients;
        launch.tensors = tensors;
        cuda::KernelTable table;
        cuda::add_kernels<0>(table);
        cuda::add_kernels<1>(table);
        cuda::emulation::window = {unsigned(blocks - 2), 2};
        cuda::launch_symbol(table[rule.index].step[0][0], "step_kernel", unsigned(blocks), cuda::block_threads, nullptr,
                            launch);
        cuda::emulation::window = {};
        detail::run_step(t.cpu(), t.segments, {});
        t.check("2^41 elements");
    }
    // Leaves of a norm 2^43 elements on: four of each of a grid's two last blocks, the last one not full.
    const auto leaf = std::int64_t(detail::reduction_leaf);
    const std::int64_t norm_blocks = std::int64_t{1} << 28;
    const std::int64_t leaves_before = (norm_blocks - 2) * cuda::warps_per_block;
    const std::size_t n = 8 * detail::reduction_leaf - 77;
    Twins t(10);
    t.segment(rule, h, 1);
    t.tensor(all_types[0], n);
    std::vector<double> leaves(8, -1.0);
    auto* const gradient = static_cast<std::byte*>(t.device()[0].buffer[1]);
    cuda::NormLaunch launch = {};
    cuda::NormTensor tensors[2] = {};
    tensors[0] = {gradient, 0, 1.0, std::uint8_t(Format::float32), 1};
    tensors[1] = {before(gradient, leaves_before * leaf - 5, sizeof(float)), 5, 1.0, std::uint8_t(Format::float32), 1};
    std::memcpy(launch.inside, tensors, sizeof tensors);
    launch.leaves =
        static_cast<double*>(before(reinterpret_cast<std::byte*>(leaves.data()), leaves_before, sizeof(double)));
    launch.total = leaves_before * leaf + std::int64_t(n);
    launch.count = 2;
    cuda::emulation::window = {unsigned(norm_blocks - 2), 2};
    cuda::launch_norm(launch, unsigned(norm_blocks), nullptr);
    cuda::emulation::window = {};
    const double sum =
        ((leaves[0] + leaves[1]) + (leaves[2] + leaves[3])) + ((leaves[4] + leaves[5]) + (leaves[6] + leaves[7]));
    CHECK(same(std::sqrt(sum), detail::global_norm(t.device(), 1.0).grad_norm));
}

// A linear search.
void test_find_tensor() {
    Random random(11);
    for (int round = 0; round < 300; ++round) {
        std::vector<cuda::Tensor> tensors(1 + random.below(20));
        std::int64_t at = 0;
        for (cuda::Tensor& t : tensors) {
            t.first_tile = at;
            at += random.below(3) == 0 ? 0 : std::int64_t(random.below(std::size_t{1} << random.below(40)));
        }
        for (int k = 0; k < 50; ++k) {
            const auto wanted = std::int64_t(random.below(std::size_t(at) + 2));
            std::uint32_t last = 0;
            for (std::uint32_t i = 0; i < tensors.size(); ++i)
                if (tensors[i].first_tile <= wanted) last = i;
            const auto from = std::uint32_t(random.below(last + 1));
            CHECK(cuda::find_tensor(tensors.data(), std::uint32_t(tensors.size()), from, wanted) == last);
        }
    }
}

// Unsorted row indices with repetitions.
std::vector<std::int64_t> indices_of_rows(std::size_t count, std::int64_t rows, Random& random) {
    std::vector<std::int64_t> out;
    for (std::size_t i = 0; i < count; ++i)
        out.push_back(random.below(3) == 0 ? rows / 2 : std::int64_t(random.below(std::size_t(rows))));
    return out;
}

// The same tensors with sparse gradients.
std::vector<ParamUpdate> with_rows(std::vector<ParamUpdate> tensors, std::span<const detail::RowUpdate> rows) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
        tensors[i].rows = &rows[i];
        tensors[i].set(1, {nullptr, compute_format(tensors[i].param())});
    }
    return tensors;
}

// A step of these tensors on the device, after that of the CPU.
void check_step(const Twins& t, const std::vector<ParamUpdate>& device, const StepOptions& options,
                const StepReport& wanted, const std::string& what) {
    CudaStep s = step_of(device, t.segments, options);
    const Reported reported(0);
    if (wants_norm(options)) reported.give(s);
    CudaError error;
    CHECK_THAT(backend.step(s, error), "%s: %s", what.c_str(), error.text);
    if (wants_norm(options)) check_report(reported.read(), wanted, what);
    t.check(what);
}

// Rows of all lengths, with values of every type, sparse and as a dense gradient with zeros; together with a tensor
// with an ordinary gradient.
void test_rows() {
    Random random(15);
    std::size_t round = 0;
    for (const char* const name : {"sgd", "adam", "amsgrad", "adan", "nadam"}) {
        const RuleInfo& rule = *detail::find_rule(name);
        for (const Types& types : all_types) {
            for (const std::int64_t row_size : {1, 3, 16, 64, 256, 300}) {
                if (++round; quick() && round % 5 != 0) continue;
                constexpr std::int64_t most = 9000, rows = 21;
                HyperValues h = round % 2 == 0 ? default_hyper(rule) : other_hyper(rule);
                set_options(rule, h, all_decays[round % 3], round % 4 == 0);
                Twins t(round);
                t.segment(rule, h, 3);
                const std::size_t counts[] = {std::size_t(std::min<std::int64_t>(most / row_size, 700)), 0, 1};
                std::vector<std::vector<std::int64_t>> indices;
                std::vector<detail::RowUpdate> given(std::size(counts));
                for (std::size_t i = 0; i < given.size(); ++i) {
                    indices.push_back(indices_of_rows(counts[i], rows, random));
                    const Data& from = numbers(types, Kind::plain);
                    const detail::Slot values{const_cast<std::byte*>(from.bytes(1, 0).data()), from.type(1)};
                    const detail::RowIndex index{indices[i].data(), true, std::int64_t(counts[i])};
                    CHECK(!given[i].assign(index, values, rows, row_size));
                    given[i].mode = (round + i) % 3 == 0 ? detail::SparseMode::dense : detail::SparseMode::lazy;
                    t.tensor(types, std::size_t(rows * row_size), i == 0 ? round : 0);
                }
                t.tensor(types, 515, 1);
                const StepOptions all[] = {{}, {1.0, 0.5, false, true}, {-2.0, -1.0, true, false}};
                const StepOptions& options = all[round / 2 % 3];
                const StepReport wanted = detail::run_step(with_rows(t.cpu(), given), t.segments, options);
                const std::vector<ParamUpdate> device = with_rows(t.device(), given);
                const std::string what = text(rule, types, "rows of " + std::to_string(row_size));
                const std::int64_t step = 3;
                if (round % 7 == 0) set_device_step(t.segments, &step, detail::ScalarType::i64);
                check_step(t, device, options, wanted, what);
            }
        }
    }
}

// Missed steps of rows: before a sparse step, before a dense step, and outside of a step.
void test_catching_up() {
    Random random(17);
    constexpr std::int64_t rows = 21, row_size = 9;
    for (const RuleInfo& rule : detail::rules()) {
        if (rule.idle_steps == nullptr) continue;
        for (const Types& types : {all_types[0], all_types[3], all_types[9]}) {
            Twins t(random.below(100));
            t.segment(rule, default_hyper(rule), 1);
            t.tensor(types, rows * row_size);
            const Data& from = numbers(types, Kind::plain);
            std::vector<std::int64_t> last[2] = {std::vector<std::int64_t>(rows), std::vector<std::int64_t>(rows)};
            for (std::int64_t step = 1; step <= 5; ++step) {
                const std::vector<std::int64_t> indices = indices_of_rows(5, rows, random);
                std::vector<ParamUpdate> both[2] = {t.cpu(), t.device()};
                std::vector<detail::RowUpdate> given(2);
                for (std::size_t i = 0; i < 2; ++i) {
                    given[i].mode = detail::SparseMode::catch_up;
                    given[i].last_step = last[i].data();
                    given[i].whole = step >= 4;
                    if (given[i].whole) {
                        given[i].assign(rows, row_size);
                        both[i][0].rows = &given[i];
                        continue;
                    }
                    const detail::Slot values{const_cast<std::byte*>(from.bytes(1, 0).data()), from.type(1)};
                    CHECK(!given[i].assign({indices.data(), true, 5}, values, rows, row_size));
                    both[i] = with_rows(both[i], {&given[i], 1});
                }
                t.segments[0].step = step;
                CudaError error;
                if (step == 5) {
                    detail::catch_up_rows(t.segments[0], both[0][0], 7);
                    CHECK_THAT(backend.catch_up(0, nullptr, t.segments[0], both[1][0], 7, error), "%s", error.text);
                } else {
                    detail::run_step(both[0], t.segments, {});
                    CHECK_THAT(backend.step(step_of(both[1], t.segments, {}), error), "%s", error.text);
                }
                t.check(text(rule, types, "rows that catch up, step " + std::to_string(step)));
                CHECK(last[0] == last[1]);
            }
        }
    }
}

// Rows in storage formats, with scales, lost bits and random bits. Rows of whole blocks, and rows that begin in the
// middle of a draw.
void test_rows_in_every_format() {
    Random random(16);
    const RuleInfo& rule = *detail::find_rule("adam");
    constexpr std::int64_t rows = 6;
    std::size_t stochastic = 0;
    for (const detail::FormatInfo& f : detail::formats()) {
        if (f.compute != Format::float32 || !f.of_states) continue;
        for (const std::int64_t row_size : {256, 16, 33, 3}) {
            if (row_size % std::int64_t(f.block) != 0) continue;
            stochastic += f.stochastic ? 1 : 0;
            const std::vector<Format> states(max_states, f.id);
            StoredTwin twin(rule, all_types[0], states, std::size_t(rows * row_size), 0, 3, Kind::plain, random);
            const std::vector<std::int64_t> indices{4, 1, 4, 5};
            const Data& from = numbers(all_types[0], Kind::plain);
            std::vector<std::int64_t> last[2] = {std::vector<std::int64_t>(rows), std::vector<std::int64_t>(rows)};
            // In the last two steps rows catch up: first those with values, then all.
            for (const std::int64_t step : {1, 2, 5, 7}) {
                std::vector<detail::RowUpdate> given(2);
                const detail::Slot values{const_cast<std::byte*>(from.bytes(1, 0).data()), from.type(1)};
                std::vector<ParamUpdate> both[2] = {{twin.cpu()}, {twin.device()}};
                for (std::size_t i = 0; i < 2; ++i) {
                    if (step == 7) {
                        given[i].whole = true;
                        given[i].assign(rows, row_size);
                        both[i][0].rows = &given[i];
                    } else {
                        CHECK(!given[i].assign({indices.data(), true, 4}, values, rows, row_size));
                        both[i] = with_rows(both[i], {&given[i], 1});
                    }
                    if (step < 5) continue;
                    given[i].mode = detail::SparseMode::catch_up;
                    given[i].last_step = last[i].data();
                }
                HyperValues h = default_hyper(rule);
                set_options(rule, h, step < 5 ? Decay::none : Decay::decoupled, false);
                std::vector<Segment> segments{{&rule, h, step, 1}};
                segments[0].seed = 5;
                detail::run_step(both[0], segments, {});
                if (step == 2) set_device_step(segments, &step, detail::ScalarType::i64);
                CudaError error;
                CHECK_THAT(backend.step(step_of(both[1], segments, {}), error), "%s", error.text);
                twin.check(std::string("rows of ") + std::to_string(row_size) + " in " + f.name);
                CHECK(last[0] == last[1]);
            }
        }
    }
    CHECK(stochastic > 4);
}

// Sets the shape of a tensor for rules with one number per row.
std::vector<ParamUpdate> as_rows(const RuleInfo& rule, std::vector<ParamUpdate> tensors, std::int64_t row_size) {
    for (ParamUpdate& t : tensors) {
        const std::int64_t shape[] = {t.size / row_size, row_size};
        detail::set_shape(t, rule, 2, shape);
    }
    return tensors;
}

// Rules with one number per row: gradients of all, some and no rows; lazy, dense and catch-up modes.
void test_numbers_of_rows() {
    Random random(19);
    std::size_t round = 0;
    for (const RuleInfo& rule : detail::row_wise_rules()) {
        for (const Types& types : all_types) {
            for (const std::int64_t row_size : {1, 3, 16, 64, 256, 257, 300, 700}) {
                ++round;
                constexpr std::int64_t rows = 12;
                HyperValues h = round % 2 == 0 ? default_hyper(rule) : other_hyper(rule);
                const bool late = round % 4 == 3;
                set_options(rule, h, late ? Decay::decoupled : all_decays[round % 3], round % 4 == 0);
                Twins t(round);
                t.segment(rule, h, 4);
                for (std::size_t i = 0; i < 3; ++i) t.tensor(types, std::size_t(rows * row_size), i == 0 ? round : 0);
                std::vector<std::int64_t> last[2] = {std::vector<std::int64_t>(rows, 1),
                                                     std::vector<std::int64_t>(rows, 1)};
                const std::size_t counts[] = {70, 0};
                std::vector<std::vector<std::int64_t>> indices;
                std::vector<detail::RowUpdate> given[2] = {std::vector<detail::RowUpdate>(2),
                                                           std::vector<detail::RowUpdate>(2)};
                for (std::size_t i = 0; i < 2; ++i) {
                    indices.push_back(
                        indices_of_rows(std::min<std::size_t>(counts[i], 9000 / std::size_t(row_size)), rows, random));
                    const Data& from = numbers(types, Kind::plain);
                    const detail::Slot values{const_cast<std::byte*>(from.bytes(1, 0).data()), from.type(1)};
                    for (std::size_t side = 0; side < 2; ++side) {
                        detail::RowUpdate& r = given[side][i];
                        CHECK(!r.assign({indices[i].data(), true, std::int64_t(indices[i].size())}, values, rows,
                                        row_size));
                        r.mode = round % 3 == 0 ? detail::SparseMode::dense : detail::SparseMode::lazy;
                        if (!late) continue;
                        r.mode = detail::SparseMode::catch_up;
                        r.last_step = last[side].data();
                    }
                }
                const StepOptions all[] = {{}, {1.0, 0.5, false, true}, {-2.0, -1.0, true, false}};
                const StepOptions& options = all[late ? 0 : round / 2 % 3];
                const StepReport wanted =
                    detail::run_step(with_rows(as_rows(rule, t.cpu(), row_size), given[0]), t.segments, options);
                const std::vector<ParamUpdate> device = with_rows(as_rows(rule, t.device(), row_size), given[1]);
                const std::string what = text(rule, types, "numbers of rows of " + std::to_string(row_size));
                const std::int64_t step = 4;
                if (round % 5 == 0 && !late) set_device_step(t.segments, &step, detail::ScalarType::i64);
                check_step(t, device, options, wanted, what);
                CHECK(last[0] == last[1]);
            }
        }
    }
}

// The same with params and states in every format.
void test_numbers_of_rows_in_every_format() {
    Random random(20);
    const RuleInfo& rule = *detail::find_rule("rowwise_adam");
    for (const detail::FormatInfo& f : detail::formats()) {
        if (f.compute != Format::float32) continue;
        for (const std::int64_t row_size : {256, 300, 7}) {
            const bool param = f.block == 1;
            if (row_size % std::int64_t(f.block) != 0 || (!param && !f.of_states)) continue;
            std::vector<Format> states(max_states, Format::float32);
            if (f.of_states) states[0] = f.id;
            const Types types{param ? f.id : Format::float32, Format::bfloat16};
            StoredTwin twin(rule, types, states, std::size_t(5 * row_size), 0, 3, Kind::plain, random);
            HyperValues h = default_hyper(rule);
            set_options(rule, h, row_size == 7 ? Decay::none : Decay::coupled, false);
            std::vector<Segment> segments{{&rule, h, 2, 1}};
            segments[0].seed = 11;
            detail::run_step(as_rows(rule, {twin.cpu()}, row_size), segments, {});
            CudaError error;
            const std::vector<ParamUpdate> device = as_rows(rule, {twin.device()}, row_size);
            CHECK_THAT(backend.step(step_of(device, segments, {}), error), "%s", error.text);
            twin.check(std::string("numbers of rows, ") + f.name);
        }
    }
}

// The upper half of the random counter changes at element 2^33, which must not be within a row.
void test_rows_of_large_tensors() {
    const RuleInfo& rule = *detail::find_rule("rowwise_adam");
    constexpr std::int64_t row_size = 3;
    std::vector<ParamUpdate> one{
        ParamUpdate(((std::int64_t{1} << 32) / row_size + 1) * row_size, Format::float32, Format::float32)};
    for (const detail::FormatInfo& f : detail::formats())
        if (f.stochastic && f.of_states && f.block == 1) one[0].format[2] = f.id;
    const std::vector<Segment> segments{{&rule, default_hyper(rule), 1, 1}};
    const std::vector<ParamUpdate> device = as_rows(rule, one, row_size);
    CudaError error;
    CHECK(!backend.step(step_of(device, segments, {}), error));
    CHECK_THAT(std::string(error.text).find("of more than 2^32 elements") != std::string::npos, "%s", error.text);
}

// More rows than fit into the tables at once.
void test_numbers_of_many_rows() {
    const RuleInfo& rule = *detail::find_rule("rowwise_adagrad");
    constexpr std::size_t rows = (std::size_t{1} << 16) + 77;
    std::vector<float> buffers[2][3];
    std::vector<ParamUpdate> lists[2];
    for (std::size_t side = 0; side < 2; ++side) {
        ParamUpdate& t = lists[side].emplace_back(std::int64_t(rows), Format::float32, Format::float32);
        for (std::size_t b = 0; b < 3; ++b) {
            for (std::size_t i = 0; i < rows; ++i) buffers[side][b].push_back(float((i * (b + 3)) % 1000) + 1.0f);
            t.set(b, {buffers[side][b].data(), Format::float32});
        }
    }
    const std::vector<Segment> segments{{&rule, default_hyper(rule), 1, 1}};
    detail::run_step(as_rows(rule, lists[0], 1), segments, {});
    CudaError error;
    const std::vector<ParamUpdate> device = as_rows(rule, lists[1], 1);
    CHECK_THAT(backend.step(step_of(device, segments, {}), error), "%s", error.text);
    CHECK(buffers[0][0] == buffers[1][0] && buffers[0][2] == buffers[1][2]);
}

// Random numbers of every distribution and format, and constants, in one part and several.
void test_fills() {
    using detail::Distributed;
    const auto compare = [](Format format, std::int64_t size, const auto& cpu, const auto& device, const char* what) {
        const Bytes before(std::size_t(size) * size_of(format), std::byte{0x11});
        Exact wanted(before.data(), before.size(), 0), got(before.data(), before.size(), 3 * size_of(format));
        cpu(wanted.data());
        CudaError error;
        CHECK_THAT(device(got.data(), error), "%s", error.text);
        const bool same_bytes = before.empty() || std::memcmp(wanted.data(), got.data(), before.size()) == 0;
        CHECK_THAT(same_bytes && got.intact(), "%s, %s, %lld elements", what, detail::name_of(format),
                   static_cast<long long>(size));
    };
    for (const Format format : {Format::float32, Format::float64, Format::bfloat16, Format::float16}) {
        for (const std::int64_t size : {0, 1, 255, 1024, 1025, 5003}) {
            for (const Distributed kind : {Distributed::uniform, Distributed::normal, Distributed::truncated}) {
                for (const std::uint64_t offset :
                     {std::uint64_t{0}, std::uint64_t{1023}, (std::uint64_t{1} << 61) + 7}) {
                    detail::RandomFill fill{kind, 0xfedcba9876543210u, 5, offset, 0.25, 3.0, -0.5, 2.5};
                    compare(
                        format, size, [&](void* to) { detail::fill_random(fill, format, to, size); },
                        [&](void* to, CudaError& e) {
                            return backend.fill_random(0, nullptr, fill, format, to, size, e);
                        },
                        "numbers");
                }
            }
            for (const double value : {0.0, -0.0, 0.3, double(INFINITY)})
                compare(
                    format, size, [&](void* to) { detail::fill_constant(value, format, to, size); },
                    [&](void* to, CudaError& e) {
                        return backend.fill_constant(0, nullptr, value, format, to, size, e);
                    },
                    "a constant");
        }
    }
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
    timed("every rule", test_every_rule);
    timed("vanishing decay", test_vanishing_decay);
    timed("sizes and offsets", test_sizes_and_offsets);
    timed("lists", test_lists);
    timed("norm options", test_norm_options);
    timed("norm of cuts", test_norm_of_cuts);
    timed("norm of whole leaves", test_norm_of_whole_leaves);
    timed("reductions", test_reductions);
    timed("states in every format", test_states_in_every_format);
    timed("adding states", test_adding_states);
    timed("epilogues", test_epilogues);
    timed("norm range", test_norm_range);
    timed("waves", test_waves);
    timed("many leaves", test_norm_of_many_leaves);
    timed("finish", test_finish);
    timed("other updates", test_other_updates);
    timed("many elements", test_many_elements);
    timed("find_tensor", test_find_tensor);
    timed("rows", test_rows);
    timed("catching up", test_catching_up);
    timed("rows in every format", test_rows_in_every_format);
    timed("numbers of rows", test_numbers_of_rows);
    timed("numbers of rows in every format", test_numbers_of_rows_in_every_format);
    timed("numbers of many rows", test_numbers_of_many_rows);
    timed("rows of large tensors", test_rows_of_large_tensors);
    timed("fills", test_fills);
    check_nothing_left();
    return finish();
}
