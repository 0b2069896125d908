#include "device_state.hpp"

#include <utility>

namespace adaptk::detail {

bool Report::known() {
    const std::lock_guard locked(mutex_);
    return known_.has_value();
}

StepReport Report::read() {
    {
        const std::lock_guard locked(mutex_);
        if (known_) return *known_;
    }
    StepReport out;
    call_cuda([&](const CudaBackend& cuda, CudaError& error) {
        return cuda.read_report(*reports_->places(), index_, out, error);
    });
    if (out.has_norm && !captured_) {
        const std::lock_guard locked(mutex_);
        known_ = out;
    }
    return out;
}

Reports::Reports(int device) : owners_(count), kept_(count) {
    call_cuda(
        [&](const CudaBackend& cuda, CudaError& error) { return cuda.new_reports(device, count, places_, error); });
}

Reports::~Reports() { need_cuda().release(places_); }

std::shared_ptr<Report> Reports::next(bool captured) {
    const auto taken = [&](std::size_t i) {
        if (kept_[i]) return true;
        const std::shared_ptr<Report> owner = captured ? owners_[i].lock() : nullptr;
        return owner && !owner->known();
    };
    for (std::size_t tried = 0; taken(next_); next_ = (next_ + 1) % count)
        if (++tried == count) throw NoReportSlot{};
    const std::size_t index = next_;
    if (const std::shared_ptr<Report> owner = owners_[index].lock()) owner->read();
    auto report = std::make_shared<Report>(shared_from_this(), index, captured);
    owners_[index] = report;
    kept_[index] = captured;
    next_ = (index + 1) % count;
    return report;
}

DeviceState::~DeviceState() {
    forget_saved();
    if (workspace_ != nullptr) need_cuda().release_workspace(workspace_);
}

CudaWorkspace* DeviceState::workspace() {
    if (workspace_ == nullptr)
        call_cuda(
            [&](const CudaBackend& cuda, CudaError& error) { return cuda.new_workspace(device_, workspace_, error); });
    return workspace_;
}

bool DeviceState::capturing(void* stream) const {
    bool is = false;
    call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.capturing(device_, stream, is, error); });
    return is;
}

void DeviceState::count_here(std::span<const std::int64_t> steps) {
    CudaKept* fresh = nullptr;
    call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.new_counts(device_, steps, fresh, error); });
    counts_ = {fresh, need_cuda().release};
    count_size_ = steps.size();
}

std::vector<std::int64_t> DeviceState::read_counts() const {
    std::vector<std::int64_t> steps(count_size_);
    call_cuda([&, counts = counts_](const CudaBackend& cuda, CudaError& error) {
        return cuda.read_counts(*counts, steps, error);
    });
    return steps;
}

void DeviceState::rewrite_counts(std::span<const std::int64_t> steps) {
    call_cuda([&](const CudaBackend& cuda, CudaError& error) { return cuda.write_counts(*counts_, steps, error); });
}

void DeviceState::need_reports() {
    if (!reports_) reports_ = std::make_shared<Reports>(device_);
}

std::shared_ptr<Report> DeviceState::next_report(bool captured) {
    need_reports();
    return reports_->next(captured);
}

void DeviceState::save(void* stream, std::span<const CudaPiece> from) {
    std::vector<std::size_t> bytes;
    for (const CudaPiece& piece : from) bytes.push_back(piece.bytes);
    forget_saved();
    call_cuda(
        [&](const CudaBackend& cuda, CudaError& error) { return cuda.save(device_, stream, from, saved_, error); });
    saved_bytes_ = std::move(bytes);
}

void DeviceState::restore(void* stream, std::span<void* const> to) {
    std::vector<CudaPiece> pieces;
    for (std::size_t i = 0; i < to.size(); ++i) pieces.push_back({to[i], saved_bytes_[i]});
    call_cuda([&, saved = std::exchange(saved_, nullptr)](const CudaBackend& cuda, CudaError& error) {
        return cuda.restore(saved, stream, pieces, error);
    });
}

void DeviceState::forget_saved() {
    if (saved_ != nullptr) need_cuda().release(std::exchange(saved_, nullptr));
}

}  // namespace adaptk::detail
