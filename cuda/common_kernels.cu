// The kernels that no rule has a part in.
#include "kernels.hpp"
#include "norm_kernels.hpp"
#include "reduce_kernels.hpp"
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

void launch_reduce(const ReduceLaunch& p, detail::Term term, unsigned blocks, cudaStream_t stream) {
    if (p.leaf_count > 0) {
        if (term == detail::Term::square) {
            launch(reduce_kernel<SquareTerm>, "reduce_kernel", blocks, block_threads, stream, p);
        } else {
            launch(reduce_kernel<ValueTerm>, "reduce_kernel", blocks, block_threads, stream, p);
        }
    }
    launch(sum_parts_kernel, "sum_parts_kernel", p.part_count < small_grid ? p.part_count : small_grid, finish_threads,
           stream, p);
}

void launch_upload(const UploadLaunch& p, cudaStream_t stream) {
    launch(upload_kernel, "upload_kernel", (p.bytes / 16 + block_threads - 1) / block_threads, block_threads, stream,
           p);
}

void launch_gather(const GatherLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(gather_kernel, "gather_kernel", blocks, block_threads, stream, p);
}

}  // namespace adaptk::cuda
