// The step driver and every kernel, bit for bit against the reference: rules, types, decay, sizes, alignments, numbers
// of threads, partitions, special values, and the caller's floating-point mode.
#include "check.hpp"
#include "reference.hpp"

#include <cinttypes>
#include <csignal>

namespace adaptk::test {
namespace {

constexpr std::array<std::int64_t, 3> steps{1, 2, 20};
constexpr int max_threads = 6;

struct Types {
    Format param, grad;
};
constexpr std::array all_types{
    Types{Format::float32, Format::float32}, Types{Format::float32, Format::bfloat16},
    Types{Format::float32, Format::float16}, Types{Format::float64, Format::float64},
    Types{Format::float64, Format::float32}, Types{Format::float64, Format::bfloat16},
    Types{Format::float64, Format::float16}, Types{Format::bfloat16, Format::bfloat16},
    Types{Format::float16, Format::float16}, Types{Format::float16, Format::bfloat16},
    Types{float8_e4m3fn, float8_e5m2},
};

constexpr std::array<std::size_t, 22> sizes{0,  1,  3,  7,  8,   15,  16,   17,   31,   32,   33,
                                            63, 64, 65, 96, 127, 255, 1023, 1024, 1025, 2049, 4097};
constexpr std::size_t largest = 4097;

// Several threads if the build has them.
int use_threads(int n) {
    if (!detail::set_num_threads(n).empty()) CHECK(detail::set_num_threads(1).empty());
    return detail::num_threads();
}

std::string describe(const RuleInfo& rule, const Data& d) {
    return std::string(rule.name) + " " + detail::name_of(d.param) + "/" + detail::name_of(d.grad) + " on " +
           detail::current_isa().name;
}

// Part of a data set as a separate tensor.
class Slice {
  public:
    Slice(const Data& d, std::size_t first, std::size_t size, std::size_t alignment) : first_(first), size_(size) {
        tensor_ = ParamUpdate(std::int64_t(size), d.param, d.grad);
        for (std::size_t b = 0; b < d.buffers(); ++b) {
            const std::size_t element = size_of(d.type(b));
            // Fully aligned, aligned only for the type, and (every other buffer) unaligned.
            const std::size_t offset = alignment == 0 ? 0 : alignment == 1 ? (b + 1) * element : (b + first) % 2;
            const std::size_t copies = b == 1 ? d.grads.size() : 1;
            for (std::size_t k = 0; k < copies; ++k) {
                const std::byte* from = d.bytes(b, k).data() + first * element;
                (b == 1 ? grads_ : written_).emplace_back(from, size * element, offset);
            }
        }
    }

    ParamUpdate at_step(std::size_t k) {
        for (std::size_t w = 0; w < written_.size(); ++w) tensor_.buffer[w == 0 ? 0 : w + 1] = written_[w].data();
        tensor_.buffer[1] = grads_[k].data();
        return tensor_;
    }

    void check(const Data& expected, const std::string& what) const {
        for (std::size_t w = 0; w < written_.size(); ++w) {
            const std::size_t b = w == 0 ? 0 : w + 1;
            const Format type = expected.type(b);
            const std::byte* wanted = expected.bytes(b, 0).data() + first_ * size_of(type);
            const std::size_t i = first_difference(type, wanted, written_[w].data(), size_);
            CHECK_THAT(i == no_difference, "%s: buffer %zu differs at %zu of %zu", what.c_str(), b, i, size_);
            CHECK_THAT(written_[w].intact(), "%s: buffer %zu of %zu elements", what.c_str(), b, size_);
        }
        for (std::size_t k = 0; k < grads_.size(); ++k) {
            const std::byte* wanted = expected.grads[k].data() + first_ * size_of(expected.grad);
            CHECK_THAT(grads_[k].intact() &&
                           (size_ == 0 || std::memcmp(wanted, grads_[k].data(), grads_[k].bytes()) == 0),
                       "%s: the gradient was written to", what.c_str());
        }
    }

  private:
    ParamUpdate tensor_;
    std::vector<Buffer> written_, grads_;
    std::size_t first_, size_;
};

void take_steps(const RuleInfo& rule, const HyperValues& h, std::vector<Slice>& slices) {
    std::vector<ParamUpdate> work(slices.size());
    for (std::size_t k = 0; k < steps.size(); ++k) {
        for (std::size_t i = 0; i < slices.size(); ++i) work[i] = slices[i].at_step(k);
        const Segment segment{&rule, h, steps[k], work.size()};
        const auto report = detail::run_step(work, {&segment, 1}, {});
        CHECK(!report.skipped && !report.has_norm);
    }
}

void test_every_rule() {
    use_threads(1);
    std::uint64_t seed = 1;
    for (const RuleInfo& rule : detail::rules()) {
        for (const Types& types : all_types) {
            for (const Kind kind : {Kind::plain, Kind::special}) {
                if (++seed; quick() && (seed / 2 + seed / 20) % 3 != 0) continue;
                const Data fresh =
                    make_data(types.param, types.grad, rule.states.size(), largest, steps.size(), kind, seed);
                // Every combination of options in the compute types; a third of them in each other type.
                const bool plain_types = types.param == types.grad && types.param == compute_format(types.param);
                const std::uint64_t stride = quick() ? 6 : plain_types ? 1 : 3;
                for (int variant = 0; variant < 12; ++variant) {
                    if ((seed + std::uint64_t(variant)) % stride != 0) continue;
                    HyperValues h = variant < 6 ? default_hyper(rule) : other_hyper(rule);
                    set_options(rule, h, all_decays[std::size_t(variant) % 3], variant / 3 % 2 != 0);
                    CHECK(rule.invalid(h) == nullptr);
                    Data expected = fresh;
                    reference_steps(rule, expected, h, steps);
                    for (const Isa* isa : supported_isas()) {
                        CHECK(detail::choose_isa(isa->name).empty());
                        std::vector<Slice> slices;
                        for (std::size_t s = 0; s < sizes.size(); ++s) {
                            const std::size_t first = (s * 37 + std::size_t(variant)) % (largest - sizes[s] + 1);
                            slices.emplace_back(fresh, first, sizes[s], (s + std::size_t(variant)) % 3);
                        }
                        slices.emplace_back(fresh, 0, largest, (std::size_t(variant) + 1) % 3);
                        take_steps(rule, h, slices);
                        const std::string what = describe(rule, fresh) + " variant " + std::to_string(variant);
                        for (const Slice& s : slices) s.check(expected, what);
                    }
                }
            }
        }
    }
}

// One call for one tensor.
void test_single_tensors() {
    use_threads(max_threads);
    std::uint64_t seed = 1000;
    for (const RuleInfo& rule : detail::rules()) {
        for (const Types& types : all_types) {
            const Data fresh =
                make_data(types.param, types.grad, rule.states.size(), largest, steps.size(), Kind::plain, ++seed);
            const HyperValues h = default_hyper(rule);
            Data expected = fresh;
            reference_steps(rule, expected, h, steps);
            for (const Isa* isa : supported_isas()) {
                CHECK(detail::choose_isa(isa->name).empty());
                for (const std::size_t size : sizes) {
                    std::vector<Slice> one;
                    one.emplace_back(fresh, largest - size, size, size % 3);
                    take_steps(rule, h, one);
                    one[0].check(expected, describe(rule, fresh));
                }
            }
        }
    }
}

// A data set with one buffer each, to be split into tensors in any way.
class Whole {
  public:
    explicit Whole(const Data& d) : data_(d) {}

    void take(const RuleInfo& rule, const HyperValues& h, const std::vector<std::size_t>& cuts,
              const std::vector<std::size_t>& segment_counts) {
        for (std::size_t k = 0; k < steps.size(); ++k) {
            std::vector<ParamUpdate> tensors;
            std::size_t first = 0;
            for (const std::size_t size : cuts) {
                ParamUpdate t(std::int64_t(size), data_.param, data_.grad);
                for (std::size_t b = 0; b < data_.buffers(); ++b)
                    t.buffer[b] = data_.bytes(b, k).data() + first * size_of(data_.type(b));
                tensors.push_back(t);
                first += size;
            }
            CHECK(first == data_.size);
            std::vector<Segment> segments;
            for (const std::size_t count : segment_counts) segments.push_back({&rule, h, steps[k], count});
            detail::run_step(tensors, segments, {});
        }
    }

    void check(const Data& expected, const std::string& what) const {
        for (std::size_t b = 0; b < data_.buffers(); ++b) {
            if (b == 1) continue;
            const std::size_t i =
                first_difference(data_.type(b), expected.bytes(b, 0).data(), data_.bytes(b, 0).data(), data_.size);
            CHECK_THAT(i == no_difference, "%s: buffer %zu differs at %zu", what.c_str(), b, i);
        }
        for (std::size_t k = 0; k < data_.grads.size(); ++k)
            CHECK(std::memcmp(data_.grads[k].data(), expected.grads[k].data(), data_.grads[k].size()) == 0);
    }

  private:
    Data data_;
};

// Sizes that add up to total, some of them 0, none above most.
std::vector<std::size_t> random_cuts(std::size_t total, std::size_t most, Random& random) {
    std::vector<std::size_t> cuts;
    while (total > 0) {
        const std::size_t n = std::min(random.below(8) == 0 ? 0 : random.below(most + 1), total);
        cuts.push_back(n);
        total -= n;
    }
    cuts.push_back(0);
    return cuts;
}

void test_threads_and_partitions() {
    std::uint64_t seed = 2000;
    const std::size_t many = quick() ? 35003 : 100003;
    for (const RuleInfo& rule : detail::rules()) {
        for (const Types& types : all_types) {
            if (types.grad != types.param || types.param == Format::float16) continue;
            const Decay decay = all_decays[++seed % 3];
            if (quick() && (seed % 2 == 0 || types.param == Format::bfloat16)) continue;
            const Data fresh =
                make_data(types.param, types.grad, rule.states.size(), many, steps.size(), Kind::plain, seed);
            HyperValues h = seed % 4 < 2 ? default_hyper(rule) : other_hyper(rule);
            set_options(rule, h, decay, false);
            Data expected = fresh;
            reference_steps(rule, expected, h, steps);
            for (const Isa* isa : supported_isas()) {
                CHECK(detail::choose_isa(isa->name).empty());
                Random random(seed);
                for (const int threads : {1, 3, max_threads}) {
                    const int used = use_threads(threads);
                    const std::string what = describe(rule, fresh) + " on " + std::to_string(used) + " threads";
                    Whole one(fresh);
                    one.take(rule, h, {many}, {1});
                    one.check(expected, what);
                    if (threads == 3) continue;
                    for (const std::size_t most : {std::size_t{60}, std::size_t{5000}, std::size_t{70000}}) {
                        const auto cuts = random_cuts(many, most, random);
                        // The same rule as several segments, one of them empty.
                        const std::size_t third = cuts.size() / 3;
                        Whole parts(fresh);
                        parts.take(rule, h, cuts, {third, 0, third, cuts.size() - 2 * third});
                        parts.check(expected, what + " in " + std::to_string(cuts.size()) + " tensors");
                    }
                }
            }
        }
    }
}

// Every rule and every type in one list of thousands of small tensors.
void test_mixed_list() {
    const auto rules = detail::rules();
    const std::size_t each = quick() ? 60 : 250;
    Random random(77);
    std::vector<Data> fresh;
    std::vector<Segment> plan;
    for (std::size_t r = 0; r < rules.size(); ++r) {
        HyperValues h = r % 2 == 0 ? default_hyper(rules[r]) : other_hyper(rules[r]);
        set_options(rules[r], h, all_decays[r % 3], r % 4 == 0);
        plan.push_back({&rules[r], h, 1, each});
        for (std::size_t i = 0; i < each; ++i) {
            const Types types = all_types[random.below(all_types.size())];
            const std::size_t size = random.below(10) == 0 ? 0 : random.below(i % 50 == 0 ? 3000 : 120);
            fresh.push_back(make_data(types.param, types.grad, rules[r].states.size(), size, steps.size(), Kind::plain,
                                      random.bits()));
        }
    }
    std::vector<Data> expected = fresh;
    for (std::size_t i = 0; i < expected.size(); ++i)
        reference_steps(*plan[i / each].rule, expected[i], plan[i / each].hyper, steps);
    for (const Isa* isa : supported_isas()) {
        CHECK(detail::choose_isa(isa->name).empty());
        for (const int threads : {1, max_threads}) {
            use_threads(threads);
            std::vector<Slice> slices;
            for (std::size_t i = 0; i < fresh.size(); ++i) slices.emplace_back(fresh[i], 0, fresh[i].size, i % 3);
            std::vector<ParamUpdate> work(slices.size());
            std::vector<Segment> segments = plan;
            for (std::size_t k = 0; k < steps.size(); ++k) {
                for (std::size_t i = 0; i < slices.size(); ++i) work[i] = slices[i].at_step(k);
                for (Segment& s : segments) s.step = steps[k];
                detail::run_step(work, segments, {});
            }
            for (std::size_t i = 0; i < slices.size(); ++i)
                slices[i].check(expected[i], describe(*plan[i / each].rule, fresh[i]) + " in a mixed list");
        }
    }
    const auto report = detail::run_step({}, {}, {});
    CHECK(!report.skipped);
}

// Scaling and clipping act as one factor; a step that is skipped changes nothing.
void test_options() {
    use_threads(max_threads);
    const RuleInfo& rule = *detail::find_rule("adam");
    const std::size_t size = 40000;
    for (const Types& types : all_types) {
        if (quick() && types.param != types.grad) continue;
        const Data fresh = make_data(types.param, types.grad, rule.states.size(), size, 1, Kind::plain, 5);
        Data finite = fresh;
        for (Bytes& g : finite.grads) {
            for (std::size_t i = 0; i < size; ++i) {
                std::byte* at = &g[i * size_of(types.grad)];
                const auto x = read_element<double>(types.grad, at);
                if (!(std::fabs(x) < 1e4)) write_element(types.grad, 0.25, at);
            }
        }
        for (const Isa* isa : supported_isas()) {
            CHECK(detail::choose_isa(isa->name).empty());
            for (const double own : {1.0, 0.3}) {
                for (const detail::StepOptions& options :
                     {detail::StepOptions{1.0, -1.0, false, true}, detail::StepOptions{0.7, 0.1, true, false},
                      detail::StepOptions{-0.7, 1e9, false, false}, detail::StepOptions{3.0, 0.0, false, false}}) {
                    HyperValues h = default_hyper(rule);
                    h.value[rule.own.size() + 3] = own;
                    std::vector<Slice> one;
                    one.emplace_back(finite, 0, size, 1);
                    ParamUpdate work = one[0].at_step(0);
                    const Segment segment{&rule, h, 1, 1};
                    const double norm = detail::global_norm({&work, 1}, options.grad_scale * own).grad_norm;
                    const auto report = detail::run_step({&work, 1}, {&segment, 1}, options);
                    CHECK(report.has_norm && !report.skipped && report.grad_norm == norm && norm > 0.0);
                    const bool clips = options.clip_norm >= 0.0 && norm > options.clip_norm;
                    Data expected = finite;
                    reference_step(rule, expected, h,
                                   own * options.grad_scale * (clips ? options.clip_norm / norm : 1.0), 1,
                                   expected.grads[0]);
                    one[0].check(expected, describe(rule, finite) + " with options");
                }
            }
            std::vector<Slice> one;
            one.emplace_back(fresh, 0, size, 1);
            ParamUpdate work = one[0].at_step(0);
            const Segment segment{&rule, default_hyper(rule), 1, 1};
            const auto report = detail::run_step({&work, 1}, {&segment, 1}, {1.0, -1.0, true, false});
            CHECK(report.skipped && report.has_norm && !std::isfinite(report.grad_norm));
            one[0].check(fresh, "a skipped step");
        }
    }
}

void on_trap(int) {
    constexpr char text[] = "an operation outside the guarded part trapped\n";
    std::fwrite(text, 1, sizeof text - 1, stdout);
    std::fflush(stdout);
    std::_Exit(1);
}

// The caller's rounding mode, flushing and traps have no effect and are restored.
void test_caller_modes() {
    std::signal(SIGFPE, on_trap);
    std::uint64_t seed = 3000;
    const ModeBits before = get_mode();
    for (const RuleInfo& rule : detail::rules()) {
        for (const Types& types : {Types{Format::float32, Format::float32}, Types{Format::float64, Format::float64},
                                   Types{Format::float16, Format::bfloat16}}) {
            for (const Kind kind : {Kind::plain, Kind::special}) {
                const std::size_t size = kind == Kind::plain ? 33000 : largest;
                if (quick() && (kind == Kind::plain || types.param != Format::float32)) continue;
                const Data fresh =
                    make_data(types.param, types.grad, rule.states.size(), size, steps.size(), kind, ++seed);
                HyperValues h = default_hyper(rule);
                set_options(rule, h, all_decays[seed % 3], false);
                Data expected = fresh;
                reference_steps(rule, expected, h, steps);
                for (const Isa* isa : supported_isas()) {
                    CHECK(detail::choose_isa(isa->name).empty());
                    if (quick() && isa != supported_isas().back()) continue;
                    for (const int threads : {1, 2}) {
                        use_threads(threads);
                        for (const NamedMode& mode : caller_modes) {
                            Whole one(fresh);
                            set_mode(mode.bits);
                            one.take(rule, h, {size}, {1});
                            const ModeBits after = get_mode();
                            set_mode(before);
                            CHECK_THAT(control_bits(after) == control_bits(mode.bits), "%s", mode.name);
                            one.check(expected, describe(rule, fresh) + " called with " + mode.name);
                        }
                    }
                }
            }
        }
    }
}

// The host's computations for clipping follow the arithmetic contract too.
void test_caller_modes_with_clipping() {
    const RuleInfo& rule = *detail::find_rule("adam");
    const HyperValues h = default_hyper(rule);
    const ModeBits before = get_mode();
    use_threads(1);
    for (const Format type : {Format::float32, Format::float64}) {
        for (std::uint64_t seed = 0; seed < 20; ++seed) {
            const Data fresh = make_data(type, type, rule.states.size(), 1000, 1, Kind::plain, 4000 + seed);
            Data finite = fresh;
            for (std::size_t i = 0; i < finite.size; ++i) {
                std::byte* at = &finite.grads[0][i * size_of(type)];
                if (!(std::fabs(read_element<double>(type, at)) < 1e4)) write_element(type, 0.25, at);
            }
            const detail::StepOptions options{0.1, 0.3 + double(seed), false, false};
            Whole wanted(finite);
            double norm = 0.0;
            for (const NamedMode& mode : caller_modes) {
                Data d = finite;
                ParamUpdate t(std::int64_t(d.size), type, type);
                for (std::size_t b = 0; b < d.buffers(); ++b) t.buffer[b] = d.bytes(b, 0).data();
                const Segment segment{&rule, h, 1, 1};
                set_mode(mode.bits);
                const auto report = detail::run_step({&t, 1}, {&segment, 1}, options);
                const ModeBits after = get_mode();
                set_mode(before);
                CHECK_THAT(control_bits(after) == control_bits(mode.bits), "%s", mode.name);
                if (&mode == &caller_modes.front()) {
                    norm = report.grad_norm;
                    wanted = Whole(d);
                }
                CHECK_THAT(report.grad_norm == norm, "called with %s: %a, expected %a", mode.name, report.grad_norm,
                           norm);
                wanted.check(d, std::string("a clipped step called with ") + mode.name);
            }
        }
    }
}

// The coefficients of late steps: no power, product or difference overflows or becomes NaN.
void test_late_steps() {
    use_threads(1);
    for (const RuleInfo& rule : detail::rules()) {
        for (const Format type : {Format::float32, Format::float64}) {
            for (const std::int64_t t : {std::int64_t{3}, std::int64_t{1000}, std::int64_t{1000000},
                                         std::int64_t{1} << 53, std::numeric_limits<std::int64_t>::max()}) {
                for (const bool other : {false, true}) {
                    HyperValues h = other ? other_hyper(rule) : default_hyper(rule);
                    std::array<double, 4> doubles[max_buffers];
                    std::array<float, 4> floats[max_buffers];
                    ParamUpdate tensor(4, type, type);
                    for (std::size_t b = 0; b < 2 + rule.states.size(); ++b) {
                        doubles[b] = {0.5, 0.25, 0.125, 1.0};
                        floats[b] = {0.5f, 0.25f, 0.125f, 1.0f};
                        tensor.buffer[b] =
                            type == Format::float64 ? static_cast<void*>(doubles[b].data()) : floats[b].data();
                    }
                    const Segment segment{&rule, h, t, 1};
                    detail::run_step({&tensor, 1}, {&segment, 1}, {});
                    for (std::size_t b = 0; b < 2 + rule.states.size(); ++b) {
                        for (std::size_t i = 0; i < 4; ++i) {
                            const double x = type == Format::float64 ? doubles[b][i] : double(floats[b][i]);
                            CHECK_THAT(std::isfinite(x), "%s at step %" PRId64 ": buffer %zu", rule.name, t, b);
                        }
                    }
                }
            }
        }
    }
}

// The streams for measuring bandwidth, and p + factor * x.
void test_sums() {
    use_threads(max_threads);
    for (const Isa* isa : supported_isas()) {
        CHECK(detail::choose_isa(isa->name).empty());
        for (const Format type : {Format::float32, Format::float64}) {
            for (std::size_t written = 1; written <= detail::max_written; ++written) {
                const Data fresh = make_data(type, type, written - 1, 40001, 1, Kind::plain, 6);
                Slice slice(fresh, 0, fresh.size, written % 2);
                const ParamUpdate t = slice.at_step(0);
                detail::run_bandwidth_probe({&t, 1}, written);
                Data expected = fresh;
                for (std::size_t b = 0; b < expected.buffers(); ++b) {
                    for (std::size_t i = 0; i < fresh.size && b != 1; ++i) {
                        std::byte* at = &expected.bytes(b, 0)[i * size_of(type)];
                        const std::byte* g = &expected.grads[0][i * size_of(type)];
                        if (type == Format::float64) {
                            write_element(type, read_element<double>(type, at) + read_element<double>(type, g), at);
                        } else {
                            write_element(type, read_element<float>(type, at) + read_element<float>(type, g), at);
                        }
                    }
                }
                slice.check(expected, std::string("ceiling of ") + std::to_string(written));
            }
        }
        for (const Types& types : all_types) {
            const Data fresh = make_data(types.param, compute_format(types.param), 0, 40001, 1, Kind::plain, 7);
            Slice slice(fresh, 0, fresh.size, 1);
            const ParamUpdate t = slice.at_step(0);
            detail::add_scaled({&t, 1}, 0.3);
            Data expected = fresh;
            for (std::size_t i = 0; i < fresh.size; ++i) {
                std::byte* at = &expected.values[i * size_of(types.param)];
                const std::byte* x = &expected.grads[0][i * size_of(fresh.grad)];
                if (types.param == Format::float64) {
                    write_element(types.param,
                                  read_element<double>(types.param, at) + 0.3 * read_element<double>(fresh.grad, x),
                                  at);
                } else {
                    write_element(types.param,
                                  read_element<float>(types.param, at) + 0.3f * read_element<float>(fresh.grad, x), at);
                }
            }
            slice.check(expected, "p + factor * x");
        }
    }
}

}  // namespace
}  // namespace adaptk::test

// All tests, or those whose names contain the argument.
int main(int argc, char** argv) {
    using namespace adaptk::test;
    const struct {
        const char* name;
        void (*run)();
    } tests[] = {
        {"every rule", test_every_rule},
        {"single tensors", test_single_tensors},
        {"threads and partitions", test_threads_and_partitions},
        {"mixed list", test_mixed_list},
        {"options", test_options},
        {"late steps", test_late_steps},
        {"sums", test_sums},
        {"caller's modes", test_caller_modes},
        {"caller's modes with clipping", test_caller_modes_with_clipping},
    };
    for (const auto& test : tests) {
        if (argc > 1 && std::string(test.name).find(argv[1]) == std::string::npos) continue;
        std::printf("%s\n", test.name);
        std::fflush(stdout);
        test.run();
    }
    return finish();
}
