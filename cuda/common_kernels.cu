// The kernels that no rule has a part in.
#include "kernels.hpp"
#include "norm_kernels.hpp"
#include "runtime.hpp"
#include "table_kernels.hpp"

namespace adaptk::cuda {

void launch_norm(const NormLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(norm_kernel, "norm_kernel", blocks, block_threads, stream, p);
}

const void* norm_symbol() { return reinterpret_cast<const void*>(norm_kernel); }

void launch_finish(const FinishLaunch& p, cudaStream_t stream) {
    launch(finish_kernel, "finish_kernel", 1, finish_threads, stream, p);
}

void launch_upload(const UploadLaunch& p, cudaStream_t stream) {
    launch(upload_kernel, "upload_kernel", (p.bytes / 16 + block_threads - 1) / block_threads, block_threads, stream,
           p);
}

void launch_gather(const GatherLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(gather_kernel, "gather_kernel", blocks, block_threads, stream, p);
}

}  // namespace adaptk::cuda
