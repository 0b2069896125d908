// The C interface: the library, the machine and the rules. Steps are in c_steps.cpp.
#include "c_api.hpp"

#include "cuda_library.hpp"
#include "dispatch.hpp"
#include "environment.hpp"
#include "registry.hpp"
#include "rule_program.hpp"
#include "threads.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <mutex>
#include <string_view>
#include <vector>

namespace adaptk::detail {
namespace {

static_assert(std::string_view(ADAPTK_VERSION) == ADAPTK_PROJECT_VERSION, "adaptk.h and CMakeLists.txt differ");
static_assert(ADAPTK_ABI_VERSION == ADAPTK_PROJECT_ABI, "adaptk.h and CMakeLists.txt differ");

// Thread-local memory without a destructor, because threads may end after the library is finalised.
thread_local char last_error[2048] = "";

// One rule in C types, whose addresses stay valid.
struct RuleEntry {
    const RuleInfo* info;
    adaptk_rule rule;
    std::vector<adaptk_hyper_info> hypers;
    std::vector<adaptk_state_info> states;
    std::vector<adaptk_preset> presets;
};

RuleEntry make_entry(const RuleInfo& r) {
    RuleEntry e{};
    e.info = &r;
    e.rule = {r.key, r.summary, r.formula, r.source, r.hyper_count(), r.states.size()};
    for (std::size_t i = 0; i < r.hyper_count(); ++i) {
        const Hyperparameter h = r.hyper(i);
        e.hypers.push_back({h.name, h.value, range_text(h.range), h.meaning});
    }
    for (const State& s : r.states) e.states.push_back({s.name, s.initial, s.from});
    for (const Preset& p : r.conventions) e.presets.push_back({p.convention, p.name, p.value});
    return e;
}

const std::vector<RuleEntry>& entries() {
    static const auto& all = *[] {
        auto* made = new std::vector<RuleEntry>;
        for (const RuleInfo& r : rules()) made->push_back(make_entry(r));
        return made;
    }();
    return all;
}

// The entries of loaded rules.
struct LoadedEntries {
    std::mutex lock;
    std::deque<RuleEntry> all;
};
LoadedEntries& loaded_entries() {
    static auto& loaded = *new LoadedEntries;
    return loaded;
}
const adaptk_rule* loaded_entry(const RuleInfo& info) {
    LoadedEntries& loaded = loaded_entries();
    const std::lock_guard guard(loaded.lock);
    for (const RuleEntry& e : loaded.all)
        if (e.info == &info) return &e.rule;
    return &loaded.all.emplace_back(make_entry(info)).rule;
}

const RuleEntry& entry_of(const adaptk_rule* rule) {
    need(rule, "rule");
    for (const RuleEntry& e : entries())
        if (&e.rule == rule) return e;
    LoadedEntries& loaded = loaded_entries();
    const std::lock_guard guard(loaded.lock);
    for (const RuleEntry& e : loaded.all)
        if (&e.rule == rule) return e;
    refuse("rule: not one of the library's");
}

}  // namespace

const RuleInfo& info_of(const adaptk_rule* rule) { return *entry_of(rule).info; }

adaptk_status keep_error(adaptk_status status, const char* text) noexcept {
    const std::size_t length = std::min(std::strlen(text), sizeof last_error - 1);
    std::memcpy(last_error, text, length);
    last_error[length] = '\0';
    return status;
}

}  // namespace adaptk::detail

using namespace adaptk::detail;

extern "C" {

const char* adaptk_last_error(void) { return last_error; }

const char* adaptk_status_name(adaptk_status status) {
    switch (status) {
    case ADAPTK_OK: return "ADAPTK_OK";
    case ADAPTK_INVALID_ARGUMENT: return "ADAPTK_INVALID_ARGUMENT";
    case ADAPTK_INVALID_TYPE: return "ADAPTK_INVALID_TYPE";
    case ADAPTK_UNKNOWN_NAME: return "ADAPTK_UNKNOWN_NAME";
    case ADAPTK_BUSY: return "ADAPTK_BUSY";
    case ADAPTK_UNSUPPORTED: return "ADAPTK_UNSUPPORTED";
    case ADAPTK_OUT_OF_MEMORY: return "ADAPTK_OUT_OF_MEMORY";
    case ADAPTK_CUDA_ERROR: return "ADAPTK_CUDA_ERROR";
    case ADAPTK_INTERNAL_ERROR: return "ADAPTK_INTERNAL_ERROR";
    }
    return "an unknown status";
}

const char* adaptk_version(void) { return ADAPTK_VERSION; }

int adaptk_abi_version(void) { return ADAPTK_ABI_VERSION; }

adaptk_status adaptk_initialize(void) {
    return guarded([] {
        if (const std::string& error = apply_environment(); !error.empty()) refuse(error);
    });
}

int adaptk_get_num_threads(void) {
    int n = 1;
    guarded([&] {
        apply_environment();
        n = num_threads();
    });
    return n;
}

adaptk_status adaptk_set_num_threads(int threads) {
    return guarded([&] {
        apply_environment();
        const std::string error = set_num_threads(threads);
        if (error.empty()) return;
        const bool possible = threads >= 1 && threads <= max_threads;
        refuse(possible ? ADAPTK_UNSUPPORTED : ADAPTK_INVALID_ARGUMENT, "threads: " + error);
    });
}

size_t adaptk_isa_count(void) {
    std::size_t n = 0;
    for (const Isa& isa : built_isas()) n += isa.supported ? 1 : 0;
    return n;
}

const char* adaptk_isa_at(size_t index) {
    return found([&]() -> const char* {
        std::size_t n = 0;
        for (const Isa& isa : built_isas())
            if (isa.supported && n++ == index) return isa.name;
        refuse("index: " + std::to_string(index) + ", expected less than " + std::to_string(n));
    });
}

const char* adaptk_get_isa(void) {
    return found([]() -> const char* {
        apply_environment();
        return current_isa().name;
    });
}

adaptk_status adaptk_set_isa(const char* name) {
    return guarded([&] {
        need(name, "name");
        apply_environment();
        const std::string error = choose_isa(name);
        if (error.empty()) return;
        bool built = false;
        for (const Isa& isa : built_isas()) built = built || std::string_view(name) == isa.name;
        refuse(built ? ADAPTK_UNSUPPORTED : ADAPTK_UNKNOWN_NAME, "name: " + error);
    });
}

int adaptk_openmp(void) { return openmp_date(); }

int adaptk_cuda_available(void) {
    int n = 0;
    return adaptk_cuda_device_count(&n) == ADAPTK_OK && n > 0 ? 1 : 0;
}

adaptk_status adaptk_cuda_device_count(int* count) {
    return guarded([&] {
        need(count, "count");
        *count = 0;
        call_cuda([&](const CudaBackend& part, CudaError& error) { return part.device_count(*count, error); });
    });
}

size_t adaptk_rule_count(void) { return rules().size(); }

const adaptk_rule* adaptk_rule_at(size_t index) {
    return found([&] { return &element(entries(), index)->rule; });
}

const adaptk_rule* adaptk_find_rule(const char* name) {
    return found([&]() -> const adaptk_rule* {
        need(name, "name");
        const RuleInfo* const rule = find_rule(name);
        if (rule == nullptr) refuse(ADAPTK_UNKNOWN_NAME, "name: " + unknown_rule(name));
        return rule->index == RuleInfo::nowhere ? loaded_entry(*rule) : &entries()[rule->index].rule;
    });
}

const adaptk_rule* adaptk_rule_load(const void* bytes, size_t size) {
    return found([&] {
        need(bytes, "bytes");
        std::string error;
        const RuleInfo* const rule = load_rule({static_cast<const std::byte*>(bytes), size}, error);
        if (rule == nullptr) refuse("bytes: " + error);
        return loaded_entry(*rule);
    });
}

const adaptk_hyper_info* adaptk_rule_hyper(const adaptk_rule* rule, size_t index) {
    return found([&] { return element(entry_of(rule).hypers, index); });
}

const adaptk_state_info* adaptk_rule_state(const adaptk_rule* rule, size_t index) {
    return found([&] { return element(entry_of(rule).states, index); });
}

adaptk_per adaptk_rule_state_per(const adaptk_rule* rule, size_t index) {
    auto per = adaptk::Per::element;
    guarded([&] {
        const RuleEntry& entry = entry_of(rule);
        element(entry.states, index);
        per = entry.info->states[index].per;
    });
    return adaptk_per(per);
}
static_assert(int(adaptk::Per::tensor) == ADAPTK_PER_TENSOR && int(adaptk::Per::row) == ADAPTK_PER_ROW &&
              int(adaptk::Per::column) == ADAPTK_PER_COLUMN && int(adaptk::Per::slice) == ADAPTK_PER_SLICE);

int adaptk_rule_state_per_row(const adaptk_rule* rule, size_t index) {
    return adaptk_rule_state_per(rule, index) == ADAPTK_PER_SLICE ? 1 : 0;
}

size_t adaptk_rule_preset_count(const adaptk_rule* rule) {
    std::size_t n = 0;
    guarded([&] { n = entry_of(rule).presets.size(); });
    return n;
}

const adaptk_preset* adaptk_rule_preset(const adaptk_rule* rule, size_t index) {
    return found([&] { return element(entry_of(rule).presets, index); });
}

}  // extern "C"
