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

bool Report::known() {
    const std::lock_guard locked(mutex_);
    return known_.has_value();
}

detail::StepReport Report::read() {
    {
        const std::lock_guard locked(mutex_);
        if (known_) return *known_;
    }
    detail::StepReport out;
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.read_report(*reports_->places(), index_, out, error);
    });
    if (!out.has_norm)
        fail(PyExc_RuntimeError, "the step was captured in a graph that has not been replayed: it has no outcome yet");
    if (!captured_) {
        const std::lock_guard locked(mutex_);
        known_ = out;
    }
    return out;
}

Reports::Reports(int device) : owners_(count), kept_(count) {
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.new_reports(device, count, places_, error);
    });
}

Reports::~Reports() { need_cuda_part().release(places_); }

std::shared_ptr<Report> Reports::next(bool captured) {
    const auto taken = [&](std::size_t i) {
        if (kept_[i]) return true;
        const std::shared_ptr<Report> owner = captured ? owners_[i].lock() : nullptr;
        return owner && !owner->known();
    };
    for (std::size_t tried = 0; taken(next_); next_ = (next_ + 1) % count)
        if (++tried == count)
            fail(PyExc_RuntimeError, "there are places for the outcomes of 256 steps, and all are taken: by steps that "
                                     "were captured in graphs, or under capture by outcomes that nobody has looked "
                                     "at; look at those before the capture, or drop them");
    const std::size_t index = next_;
    if (const std::shared_ptr<Report> owner = owners_[index].lock()) owner->read();
    auto report = std::make_shared<Report>(shared_from_this(), index, captured);
    owners_[index] = report;
    kept_[index] = captured;
    next_ = (index + 1) % count;
    return report;
}

DevicePlan::~DevicePlan() {
    const detail::CudaBackend& part = need_cuda_part();
    forget_saved();
    part.release_workspace(workspace_);
}

detail::CudaWorkspace* DevicePlan::workspace() {
    if (workspace_ == nullptr)
        call([&](const detail::CudaBackend& part, detail::CudaError& error) {
            return part.new_workspace(device_, workspace_, error);
        });
    return workspace_;
}

void DevicePlan::count_here(std::span<const std::int64_t> steps) {
    detail::CudaKept* fresh = nullptr;
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.new_counts(device_, steps, fresh, error);
    });
    counts_ = {fresh, need_cuda_part().release};
    count_size_ = steps.size();
}

std::vector<std::int64_t> DevicePlan::read_counts() const {
    std::vector<std::int64_t> steps(count_size_);
    call([&, counts = counts_](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.read_counts(*counts, steps, error);
    });
    return steps;
}

void DevicePlan::rewrite_counts(std::span<const std::int64_t> steps) {
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.write_counts(*counts_, steps, error);
    });
}

void DevicePlan::forget_counts() { counts_.reset(); }

void DevicePlan::need_reports() {
    if (!reports_) reports_ = std::make_shared<Reports>(device_);
}

std::shared_ptr<Report> DevicePlan::next_report(bool captured) {
    need_reports();
    return reports_->next(captured);
}

void DevicePlan::save(void* stream, std::span<const View* const> from) {
    std::vector<detail::CudaPiece> pieces;
    std::vector<std::size_t> bytes;
    for (const View* v : from) {
        bytes.push_back(v->end() - v->begin());
        pieces.push_back({v->data, bytes.back()});
    }
    call([&](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.save(device_, stream, pieces, saved_, error);
    });
    saved_bytes_ = std::move(bytes);
}

void DevicePlan::restore(void* stream, std::span<const View* const> to) {
    std::vector<detail::CudaPiece> pieces;
    for (std::size_t i = 0; i < to.size(); ++i)
        pieces.push_back({to[i] == nullptr ? nullptr : to[i]->data, saved_bytes_[i]});
    call([&, saved = std::exchange(saved_, nullptr)](const detail::CudaBackend& part, detail::CudaError& error) {
        return part.restore(saved, stream, pieces, error);
    });
}

void DevicePlan::forget_saved() { need_cuda_part().release(std::exchange(saved_, nullptr)); }

}  // namespace adaptk::bindings
