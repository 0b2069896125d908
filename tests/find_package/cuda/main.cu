// A program's own kernel around a rule, and the library's kernels on the same tensors: the CPU's bits from both. Ends
// with 77 where there is no device to run on.
#include <adaptk/adaptk.hpp>
#include <adaptk/rules.hpp>
#include <adaptk/run.hpp>

#include <cstdio>
#include <cstring>
#include <vector>

namespace {

using Coefficients = adaptk::StepCoefficients<adaptk::Adam, float>;

// The gradient is made where it is used, which no library call could do.
__global__ void pull_to_zero(Coefficients c, int n, float* p, float* m, float* v) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) adaptk::update<adaptk::Adam>(c, p[i], 0.5f * p[i], m[i], v[i]);
}

bool ok(cudaError_t error) {
    if (error != cudaSuccess) std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    return error == cudaSuccess;
}

struct Buffer {
    float* data = nullptr;
    std::size_t size;
    explicit Buffer(const std::vector<float>& from) : size(from.size()) {
        ok(cudaMalloc(&data, size * sizeof(float)));
        ok(cudaMemcpy(data, from.data(), size * sizeof(float), cudaMemcpyHostToDevice));
    }
    ~Buffer() { cudaFree(data); }
    bool holds(const std::vector<float>& want) const {
        std::vector<float> got(size);
        return ok(cudaMemcpy(got.data(), data, size * sizeof(float), cudaMemcpyDeviceToHost)) &&
               std::memcmp(got.data(), want.data(), size * sizeof(float)) == 0;
    }
    adaptk::Tensor tensor() const { return adaptk::Tensor::on_device(0, data, size, ADAPTK_FLOAT32); }
};

}  // namespace

int main() {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) return 77;
    const int n = 10007;
    std::vector<float> p(n), g(n), m(n), v(n);
    for (int i = 0; i < n; ++i) p[i] = float(i % 101) / 7.0f - 5.0f;
    Buffer dp(p), dm(m), dv(v), lp(p), lm(m), lv(v);
    const auto hyper = adaptk::defaults<adaptk::Adam>();
    for (int t = 1; t <= 3; ++t) {
        for (int i = 0; i < n; ++i) g[i] = 0.5f * p[i];
        const Buffer dg(g);
        adaptk::run<adaptk::Adam>(hyper, t, p, g, m, v);
        pull_to_zero<<<(n + 255) / 256, 256>>>(adaptk::coefficients<adaptk::Adam, float>(hyper, t), n, dp.data, dm.data,
                                               dv.data);
        if (adaptk_cuda_available() != 0)
            adaptk::step("adam", {}, t, lp.tensor(), dg.tensor(), {lm.tensor(), lv.tensor()});
        if (!ok(cudaDeviceSynchronize())) return 1;
    }
    if (!dp.holds(p) || !dm.holds(m) || !dv.holds(v)) {
        std::fprintf(stderr, "the program's kernel differs\n");
        return 1;
    }
    if (adaptk_cuda_available() != 0 && (!lp.holds(p) || !lm.holds(m) || !lv.holds(v))) {
        std::fprintf(stderr, "the library's kernel differs\n");
        return 1;
    }
    std::printf("%s\n", adaptk_cuda_available() != 0 ? "both kernels" : "the program's kernel");
    return 0;
}
