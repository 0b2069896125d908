#include "run_time.hpp"

#include "code_cache.hpp"
#include "embedded_headers.hpp"
#include "rule_source.hpp"
#include "runtime.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

namespace adaptk::cuda {
namespace {

// ---- NVRTC, which is looked for when it is needed. Its functions are declared here, since its header need not be
// where this is built.

struct Nvrtc {
    using Program = void*;
    int (*version)(int* major, int* minor);
    int (*architecture_count)(int* count);
    int (*architectures)(int* list);
    int (*create)(Program* out, const char* source, const char* name, int headers, const char* const* texts,
                  const char* const* names);
    int (*destroy)(Program* program);
    int (*compile)(Program program, int options, const char* const* option);
    int (*log_size)(Program program, std::size_t* bytes);
    int (*log)(Program program, char* out);
    int (*ptx_size)(Program program, std::size_t* bytes);
    int (*ptx)(Program program, char* out);
    int (*cubin_size)(Program program, std::size_t* bytes);
    int (*cubin)(Program program, char* out);
    const char* (*error_text)(int code);
    int major = 0, minor = 0;
};

// The folder of the wheel nvidia-cuda-nvrtc, if it is beside this package: from .../adaptk/lib/libadaptk_cuda.so.
std::string site_packages() {
    Dl_info here;
    if (dladdr(reinterpret_cast<const void*>(&site_packages), &here) == 0 || here.dli_fname == nullptr) return {};
    std::string path = here.dli_fname;
    for (int i = 0; i < 3; ++i) {
        const std::size_t end = path.rfind('/');
        if (end == path.npos) return {};
        path.resize(end);
    }
    return path;
}

void* open_nvrtc() {
    if (const char* const named = std::getenv("ADAPTK_NVRTC"); named != nullptr && *named != '\0') {
        void* const found = dlopen(named, RTLD_NOW | RTLD_LOCAL);
        if (found == nullptr) throw CompilationError(std::string("ADAPTK_NVRTC: ") + dlerror());
        return found;
    }
    std::vector<std::string> names{"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};
    if (const std::string packages = site_packages(); !packages.empty()) {
        names.push_back(packages + "/nvidia/cu13/lib/libnvrtc.so.13");
        names.push_back(packages + "/nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
    }
    for (const std::string& name : names)
        if (void* const found = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL); found != nullptr) return found;
    throw CompilationError("NVRTC, which compiles rules that are made at run time, was not found: pip install "
                           "nvidia-cuda-nvrtc, or name its library by ADAPTK_NVRTC");
}

Nvrtc load_nvrtc() {
    void* const library = open_nvrtc();
    Nvrtc n;
    const auto find = [&](auto& function, const char* name) {
        void* const address = dlsym(library, name);
        if (address == nullptr)
            throw CompilationError(std::string("NVRTC: it has no ") + name + "; install a newer one");
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
    };
    find(n.version, "nvrtcVersion");
    find(n.architecture_count, "nvrtcGetNumSupportedArchs");
    find(n.architectures, "nvrtcGetSupportedArchs");
    find(n.create, "nvrtcCreateProgram");
    find(n.destroy, "nvrtcDestroyProgram");
    find(n.compile, "nvrtcCompileProgram");
    find(n.log_size, "nvrtcGetProgramLogSize");
    find(n.log, "nvrtcGetProgramLog");
    find(n.ptx_size, "nvrtcGetPTXSize");
    find(n.ptx, "nvrtcGetPTX");
    find(n.cubin_size, "nvrtcGetCUBINSize");
    find(n.cubin, "nvrtcGetCUBIN");
    find(n.error_text, "nvrtcGetErrorString");
    if (n.version(&n.major, &n.minor) != 0) throw CompilationError("NVRTC: it does not say its version");
    return n;
}

const Nvrtc& nvrtc() {
    static std::mutex lock;
    static const Nvrtc* found = nullptr;
    const std::lock_guard guard(lock);
    if (found == nullptr) found = new Nvrtc(load_nvrtc());
    return *found;
}

void check_nvrtc(int code, const char* call) {
    if (code != 0) throw CompilationError(std::string(call) + ": " + nvrtc().error_text(code));
}

// The newest architecture that NVRTC knows and code for which the device runs. Real: machine code of the device itself.
struct Architecture {
    int number;
    bool real;
    std::string option() const { return (real ? "-arch=sm_" : "-arch=compute_") + std::to_string(number); }
};

Architecture architecture_of(int device) {
    int major = 0, minor = 0, count = 0;
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
    const int own = 10 * major + minor;
    check_nvrtc(nvrtc().architecture_count(&count), "nvrtcGetNumSupportedArchs");
    std::vector<int> known(std::size_t(std::max(count, 1)));
    check_nvrtc(nvrtc().architectures(known.data()), "nvrtcGetSupportedArchs");
    int best = 0;
    for (int i = 0; i < count; ++i)
        if (known[std::size_t(i)] <= own) best = std::max(best, known[std::size_t(i)]);
    if (best == 0)
        throw CompilationError("NVRTC " + std::to_string(nvrtc().major) + "." + std::to_string(nvrtc().minor) +
                               " does not compile for a device of compute capability " + std::to_string(major) + "." +
                               std::to_string(minor));
    return {best, best == own};
}

// ---- what is compiled

struct Compiled {
    std::string machine_code;  // empty: PTX alone
    std::string ptx;
};

Compiled compile(const std::string& source, const Architecture& architecture, const char* rule) {
    const Nvrtc& n = nvrtc();
    std::vector<const char*> texts, names;
    for (std::size_t i = 0; i < embedded_header_count; ++i) {
        names.push_back(embedded_headers[i].name);
        texts.push_back(embedded_headers[i].text);
    }
    Nvrtc::Program program = nullptr;
    check_nvrtc(n.create(&program, source.c_str(), rule, int(names.size()), texts.data(), names.data()),
                "nvrtcCreateProgram");
    struct Destroyed {
        Nvrtc::Program program;
        ~Destroyed() { nvrtc().destroy(&program); }
    } const destroyed{program};
    const std::string arch = architecture.option();
    // The arithmetic of the other kernels: nothing contracted; roots and divisions are correctly rounded unless told.
    const char* const options[] = {arch.c_str(), "--std=c++20", "--fmad=false", "-default-device"};
    if (n.compile(program, int(std::size(options)), options) != 0) {
        std::size_t bytes = 0;
        n.log_size(program, &bytes);
        std::string log(bytes, '\0');
        n.log(program, log.data());
        throw CompilationError(std::string("NVRTC could not compile ") + rule + ": " + log);
    }
    Compiled out;
    const auto get = [&](std::string& text, auto size, auto data) {
        std::size_t bytes = 0;
        if (size(program, &bytes) != 0 || bytes == 0) return;
        text.resize(bytes);
        if (data(program, text.data()) != 0) text.clear();
    };
    if (architecture.real) get(out.machine_code, n.cubin_size, n.cubin);
    get(out.ptx, n.ptx_size, n.ptx);
    return out;
}

// As one string for a file, and back.
std::string joined(const Compiled& c) { return std::to_string(c.machine_code.size()) + "\n" + c.machine_code + c.ptx; }
Compiled parted(const std::string& s) {
    const std::size_t end = s.find('\n');
    if (end == s.npos) return {};
    const std::size_t bytes = std::strtoull(s.c_str(), nullptr, 10);
    if (bytes > s.size() - end - 1) return {};
    return {s.substr(end + 1, bytes), s.substr(end + 1 + bytes)};
}

std::uint64_t digest_of_headers() {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (std::size_t i = 0; i < embedded_header_count; ++i)
        for (const char* c = embedded_headers[i].text; *c != '\0'; ++c) h = (h ^ std::uint8_t(*c)) * 0x100000001b3u;
    return h;
}

Compiled compiled_before_or_now(const std::string& source, const Architecture& architecture, const char* rule) {
    const std::string key = "adaptk kernel\n" + std::to_string(digest_of_headers()) + "\nNVRTC " +
                            std::to_string(nvrtc().major) + "." + std::to_string(nvrtc().minor) + " " +
                            architecture.option() + "\n" + source;
    Compiled found = parted(detail::cached_code(key));
    if (!found.machine_code.empty() || !found.ptx.empty()) return found;
    found = compile(source, architecture, rule);
    detail::store_code(key, joined(found));
    return found;
}

// Loading is no work of a stream, and allowed while one is captured, if this thread says so.
class DuringCapture {
  public:
    DuringCapture() { check(cudaThreadExchangeStreamCaptureMode(&mode_), "cudaThreadExchangeStreamCaptureMode"); }
    ~DuringCapture() { ignore(cudaThreadExchangeStreamCaptureMode(&mode_)); }
    DuringCapture(const DuringCapture&) = delete;
    DuringCapture& operator=(const DuringCapture&) = delete;

  private:
    cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

const char* const kernel_name = "adaptk_kernel";

const void* load(const Compiled& compiled) {
#if CUDART_VERSION >= 12080
    const DuringCapture allowed;
    cudaError_t failed = cudaErrorInvalidKernelImage;
    // Machine code first; PTX is for drivers that refuse it, and devices that NVRTC does not know.
    for (const std::string* code : {&compiled.machine_code, &compiled.ptx}) {
        if (code->empty()) continue;
        cudaLibrary_t library = nullptr;
        cudaKernel_t kernel = nullptr;
        failed = cudaLibraryLoadData(&library, code->data(), nullptr, nullptr, 0, nullptr, nullptr, 0);
        if (failed == cudaSuccess) {
            check(cudaLibraryGetKernel(&kernel, library, kernel_name), "cudaLibraryGetKernel");
            return reinterpret_cast<const void*>(kernel);
        }
        ignore(failed);
    }
    throw RuntimeError(failed, "cudaLibraryLoadData");
#else
    (void)compiled;
    throw CompilationError("rules that are made at run time need a build of adaptk with CUDA 12.8 or newer");
#endif
}

// ---- what is kept

// A rule, a device, which kernel, of which type and which pass.
using Key = std::tuple<const detail::RuleInfo*, int, KernelKind, std::size_t, std::size_t>;

struct Kept {
    std::mutex lock;
    std::map<Key, const void*> kernels;
};

// Never destroyed: steps may be under way while the process ends.
Kept& kept() {
    static Kept& all = *new Kept;
    return all;
}

}  // namespace

void check_compiler() { nvrtc(); }

std::string source_of_kernel(const detail::RuleInfo& rule, KernelKind kind, std::size_t type, std::size_t pass) {
    const bool measures = rule.measures;
    const std::string own = "Rule, Number", of_pass = "ProgramPass" + std::to_string(pass) + ", Number, ";
    std::string bound = "common_resident_blocks", launch, body;
    switch (kind) {
    case KernelKind::step:
        bound = "resident_blocks(sizeof(Number), state_count<Rule>)";
        launch = "StepLaunch";
        body = "step_tiles<" + own + ">";
        break;
    case KernelKind::stored_step:
        bound = "stored_resident_blocks(sizeof(Number), state_count<Rule>)";
        launch = "StepLaunch";
        body = "step_stored_tiles<" + own + ">";
        break;
    case KernelKind::prepare:
        launch = measures ? "ScalarsLaunch" : "PrepareLaunch";
        body = std::string(measures ? "compute_scalars<" : "prepare<") + own + ">";
        break;
    case KernelKind::measure:
    case KernelKind::stored_measure:
        bound = "measure_resident_blocks";
        launch = "MeasureLaunch";
        body = "measure<" + of_pass + (kind == KernelKind::stored_measure ? "true>" : "false>");
        break;
    case KernelKind::lines:
        launch = "LinesLaunch";
        body = "step_lines<" + own + ">";
        break;
    }
    std::string s;
    for (const char* const header :
         {"adaptk/logarithm.hpp", "adaptk/math.hpp", "prepare_kernel.hpp", "step_kernel.hpp"})
        s += std::string("#include \"") + header + "\"\n";
    if (measures) s += "#include \"measure_kernel.hpp\"\n";
    s += detail::source_of_struct(rule, "Program");
    s += "namespace adaptk::cuda {\nusing Number = " + std::string(type == 1 ? "double" : "float") + ";\n";
    s += "struct Rule : Program {\n    static constexpr std::array<int, " + std::to_string(rule.own.size()) +
         "> hyperparameters{};\n};\n";
    s += "extern \"C\" __global__ void __launch_bounds__(block_threads, " + bound + ")\n    " + kernel_name +
         "(const __grid_constant__ " + launch + " launch) {\n    " + body +
         "(launch);\n}\n}  // namespace adaptk::cuda\n";
    return s;
}

const void* kernel_of_program(const detail::RuleInfo& rule, int device, KernelKind kind, std::size_t type,
                              std::size_t pass) {
    Kept& all = kept();
    const std::lock_guard guard(all.lock);
    const void*& kernel = all.kernels[{&rule, device, kind, type, pass}];
    if (kernel == nullptr)
        kernel =
            load(compiled_before_or_now(source_of_kernel(rule, kind, type, pass), architecture_of(device), rule.name));
    return kernel;
}

}  // namespace adaptk::cuda
