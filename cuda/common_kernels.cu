// The kernels that no rule has a part in.
#include "kernels.hpp"
#include "norm_kernels.hpp"
#include "random_kernels.hpp"
#include "reduce_kernels.hpp"
#include "row_kernels.hpp"
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

void launch_finish_pass(const FinishPassLaunch& p, cudaStream_t stream) {
    launch(finish_pass_kernel, "finish_pass_kernel", p.part_count < small_grid ? p.part_count : small_grid,
           finish_threads, stream, p);
}

void launch_finish_scopes(const FinishLinesLaunch& p, cudaStream_t stream) {
    launch(finish_scopes_kernel, "finish_scopes_kernel",
           p.long_count < std::int64_t(small_grid) ? unsigned(p.long_count) : small_grid, finish_threads, stream, p);
}

void launch_finish_columns(const FinishLinesLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(finish_columns_kernel, "finish_columns_kernel", blocks, block_threads, stream, p);
}

void launch_upload(const UploadLaunch& p, cudaStream_t stream) {
    launch(upload_kernel, "upload_kernel", (p.bytes / 16 + block_threads - 1) / block_threads, block_threads, stream,
           p);
}

void launch_gather(const GatherLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(gather_kernel, "gather_kernel", blocks, block_threads, stream, p);
}

void launch_row_leaves(const RowsLaunch& p, std::size_t type, unsigned blocks, cudaStream_t stream) {
    launch(type == 0 ? row_leaves_kernel<float> : row_leaves_kernel<double>, "row_leaves_kernel", blocks, block_threads,
           stream, p);
}

void launch_long_rows(const RowsLaunch& p, std::size_t type, unsigned blocks, cudaStream_t stream) {
    launch(type == 0 ? long_rows_kernel<float> : long_rows_kernel<double>, "long_rows_kernel", blocks, block_threads,
           stream, p);
}

void launch_row_tables(const RowTablesLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(row_tables_kernel, "row_tables_kernel", blocks, block_threads, stream, p);
}

void launch_catch_up(const CatchUpLaunch& p, std::size_t type, unsigned blocks, cudaStream_t stream) {
    launch(type == 0 ? catch_up_kernel<float> : catch_up_kernel<double>, "catch_up_kernel", blocks, block_threads,
           stream, p);
}

void launch_stored_rows(const StoredRowsLaunch& p, unsigned blocks, cudaStream_t stream) {
    launch(stored_rows_kernel, "stored_rows_kernel", blocks, block_threads, stream, p);
}

namespace {

template <detail::Distributed Kind> void launch_random_of(const RandomLaunch& p, unsigned blocks, cudaStream_t stream) {
    if (p.format == detail::Format::float64) {
        launch(random_kernel<Kind, double>, "random_kernel", blocks, block_threads, stream, p);
    } else {
        launch(random_kernel<Kind, float>, "random_kernel", blocks, block_threads, stream, p);
    }
}

}  // namespace

void launch_random(const RandomLaunch& p, detail::Distributed kind, unsigned blocks, cudaStream_t stream) {
    using detail::Distributed;
    switch (kind) {
    case Distributed::uniform: return launch_random_of<Distributed::uniform>(p, blocks, stream);
    case Distributed::normal: return launch_random_of<Distributed::normal>(p, blocks, stream);
    case Distributed::truncated: return launch_random_of<Distributed::truncated>(p, blocks, stream);
    }
}

void launch_constant(const ConstantLaunch& p, std::size_t bytes, unsigned blocks, cudaStream_t stream) {
    if (bytes == 1) {
        launch(constant_kernel<unsigned char>, "constant_kernel", blocks, block_threads, stream, p);
    } else if (bytes == 2) {
        launch(constant_kernel<unsigned short>, "constant_kernel", blocks, block_threads, stream, p);
    } else if (bytes == 4) {
        launch(constant_kernel<unsigned>, "constant_kernel", blocks, block_threads, stream, p);
    } else {
        launch(constant_kernel<unsigned long long>, "constant_kernel", blocks, block_threads, stream, p);
    }
}

}  // namespace adaptk::cuda
