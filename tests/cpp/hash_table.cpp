// Prints a hash of every rule's results, for every storage type and combination of options: the bits that any machine
// and any instruction set must give.
//
//     hash_table ISA > hashes.txt
//
// name dtype options step-count hash, the hash being FNV-1a over the bytes of the parameter and the states.
#include "support.hpp"

#include <cinttypes>
#include <cstdio>

namespace adaptk::test {
namespace {

constexpr std::size_t size = 263;
constexpr int steps = 20;

class Fnv {
  public:
    void add(std::uint64_t word, std::size_t bytes) {
        for (std::size_t i = 0; i < bytes; ++i) {
            hash_ ^= (word >> (8 * i)) & 0xffu;
            hash_ *= 0x100000001b3u;
        }
    }
    std::uint64_t value() const { return hash_; }

  private:
    std::uint64_t hash_ = 0xcbf29ce484222325u;
};

// By value, least significant byte first, with one code for all NaNs.
void add_elements(Fnv& hash, Format type, const Bytes& bytes) {
    const std::size_t each = size_of(type);
    for (std::size_t i = 0; i < bytes.size(); i += each) {
        std::uint64_t word = 0;
        if (type == Format::float64) {
            std::memcpy(&word, &bytes[i], 8);
        } else if (type == Format::float32) {
            std::uint32_t u = 0;
            std::memcpy(&u, &bytes[i], 4);
            word = u;
        } else {
            std::uint16_t u = 0;
            std::memcpy(&u, &bytes[i], 2);
            word = u;
        }
        if (std::isnan(read_element<double>(type, &bytes[i]))) word = 0x7ff8;
        hash.add(word, each);
    }
}

// Small multiples of powers of two, which are exact in every type; some are zero, and magnitudes vary widely.
double number(Random& random) {
    const auto digits = double(std::int64_t(random.below(255)) - 127);
    return std::ldexp(digits, -4 - int(random.below(10)));
}

std::uint64_t hash_of(const RuleInfo& rule, Format type, const HyperValues& h) {
    const Format state = compute_format(type);
    Random random(2024);
    Bytes param(size * size_of(type));
    Bytes grad(size * size_of(type));
    for (std::size_t i = 0; i < size; ++i) write_element(type, number(random), &param[i * size_of(type)]);
    std::vector<Bytes> states(rule.states.size(), Bytes(size * size_of(state)));
    for (std::size_t s = 0; s < states.size(); ++s) {
        double initial = rule.states[s].initial;
        for (std::size_t j = 0; j < rule.own.size(); ++j)
            if (rule.states[s].from != nullptr && std::string(rule.states[s].from) == rule.own[j].name)
                initial = h.value[j];
        for (std::size_t i = 0; i < size; ++i) write_element(state, initial, &states[s][i * size_of(state)]);
    }
    ParamUpdate t = update_of({param.data(), grad.data()}, size, type, type);
    for (std::size_t s = 0; s < states.size(); ++s) t.buffer[2 + s] = states[s].data();
    for (int k = 1; k <= steps; ++k) {
        for (std::size_t i = 0; i < size; ++i) write_element(type, number(random), &grad[i * size_of(type)]);
        const Segment segment{&rule, h, k, 1};
        detail::run_step({&t, 1}, {&segment, 1}, {});
    }
    Fnv hash;
    add_elements(hash, type, param);
    for (const Bytes& s : states) add_elements(hash, state, s);
    return hash.value();
}

void print_table() {
    for (const RuleInfo& rule : detail::rules()) {
        for (const Format type : {Format::float32, Format::float64, Format::bfloat16, Format::float16}) {
            for (const bool other : {false, true}) {
                for (const Decay decay : all_decays) {
                    for (const bool maximize : {false, true}) {
                        HyperValues h = other ? other_hyper(rule) : default_hyper(rule);
                        set_options(rule, h, decay, maximize);
                        std::printf("%s %s %s,%s%s %d %016" PRIx64 "\n", rule.name, detail::name_of(type),
                                    other ? "other" : "default", name_of(decay), maximize ? ",maximize" : "", steps,
                                    hash_of(rule, type, h));
                    }
                }
            }
        }
    }
}

}  // namespace
}  // namespace adaptk::test

int main(int argc, char** argv) {
    using namespace adaptk;
    if (argc == 1) {
        for (const detail::Isa* isa : test::supported_isas()) std::printf("%s\n", isa->name);
        return 0;
    }
    if (const std::string error = detail::choose_isa(argv[1]); !error.empty()) {
        std::fprintf(stderr, "%s\n", error.c_str());
        return 2;
    }
    test::print_table();
    return 0;
}
