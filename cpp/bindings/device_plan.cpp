#include "device_plan.hpp"

#include <utility>

namespace adaptk::bindings {
namespace {

template <class Run> void call(const Run& run) {
    const detail::CudaBackend& part = need_cuda_part();
    detail::CudaError error;
    bool done = false;
    {
        const py::gil_scoped_release released;
        done = run(part, error);
    }
    if (!done) fail_cuda(error);
}

}  // namespace

detail::StepReport Report::read() {
    {
        const std::lock_guard locked(mutex_);
        if (known_) return *known_;
    }
    detail::StepReport out;
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.read_report(reports_->device(), stream_, reports_->place(index_), out, error);
    });
    if (!replayed_) {
        const std::lock_guard locked(mutex_);
        known_ = out;
    }
    return out;
}

Reports::Reports(int device, void* stream) : device_(device), stream_(stream), owners_(count), kept_(count) {
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.new_reports(device, stream, count, memory_, error);
    });
}

Reports::~Reports() { need_cuda_part().release(device_, stream_, memory_); }

void* Reports::place(std::size_t index) const { return need_cuda_part().report_at(memory_, index); }

std::shared_ptr<Report> Reports::next(void* stream, bool replayed) {
    std::size_t tried = 0;
    while (kept_[next_]) {
        next_ = (next_ + 1) % count;
        if (++tried == count) fail(PyExc_RuntimeError, "more than 256 captured steps of one optimizer have outcomes");
    }
    const std::size_t index = next_;
    if (const std::shared_ptr<Report> owner = owners_[index].lock()) owner->read();
    auto report = std::make_shared<Report>(shared_from_this(), index, stream, replayed);
    owners_[index] = report;
    kept_[index] = replayed;
    next_ = (index + 1) % count;
    return report;
}

DevicePlan::~DevicePlan() {
    const detail::CudaBackend& part = need_cuda_part();
    forget_saved();
    if (counts_ != nullptr) part.release(device_, counts_stream_, counts_);
    part.release_workspace(workspace_);
}

detail::CudaWorkspace* DevicePlan::workspace() {
    if (workspace_ == nullptr)
        call([&](const detail::CudaBackend& part, detail::CudaError& error) {
            return part.new_workspace(device_, workspace_, error);
        });
    return workspace_;
}

void DevicePlan::count_here(void* stream, std::span<const std::int64_t> steps) {
    void* fresh = nullptr;
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.new_counts(device_, stream, steps, fresh, error);
    });
    if (counts_ != nullptr) need_cuda_part().release(device_, counts_stream_, counts_);
    counts_ = fresh;
    count_size_ = steps.size();
    counts_stream_ = stream;
}

std::vector<std::int64_t> DevicePlan::read_counts() const {
    std::vector<std::int64_t> steps(count_size_);
    // A step of another thread may set the stream meanwhile.
    call([&, stream = counts_stream_, counts = counts_](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.read_counts(device_, stream, counts, steps, error);
    });
    return steps;
}

void DevicePlan::rewrite_counts(std::span<const std::int64_t> steps) {
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.write_counts(device_, counts_stream_, counts_, steps, error);
    });
}

void DevicePlan::forget_counts() {
    if (counts_ != nullptr) need_cuda_part().release(device_, counts_stream_, counts_);
    counts_ = nullptr;
}

void DevicePlan::need_reports(void* stream) {
    if (!reports_) reports_ = std::make_shared<Reports>(device_, stream);
}

std::shared_ptr<Report> DevicePlan::next_report(void* stream, bool replayed) {
    need_reports(stream);
    return reports_->next(stream, replayed);
}

void DevicePlan::save(void* stream, const View& view) {
    const std::size_t bytes = view.end() - view.begin();
    Saved saved{nullptr, bytes, stream};
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        if (!part.allocate(device_, stream, bytes, saved.memory, error)) return false;
        if (bytes == 0 || part.copy(device_, stream, saved.memory, view.data, bytes, error)) return true;
        part.release(device_, stream, saved.memory);
        return false;
    });
    saved_.push_back(saved);
}

void DevicePlan::restore(void* stream, std::size_t index, const View& view) {
    saved_[index].stream = stream;
    if (saved_[index].bytes == 0) return;
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.copy(device_, stream, view.data, saved_[index].memory, saved_[index].bytes, error);
    });
}

void DevicePlan::forget_saved() {
    for (const Saved& s : std::exchange(saved_, {})) need_cuda_part().release(device_, s.stream, s.memory);
}

}  // namespace adaptk::bindings
