#include "work.hpp"

#include "arguments.hpp"
#include "buffers.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <new>
#include <utility>

namespace adaptk::bindings {
namespace {

std::string said(const char* what, int code) { return std::string(what) + ": the device said " + std::to_string(code); }

// into <- into + grad, with the norm of that; or the norm of grad alone.
class Sum {
  public:
    Sum(const py::object& into, const py::object& grad) {
        WorkStream stream;
        View::take(grad, {"grad"}, views_[1], stream);
        update_.size = views_[1].size;
        update_.set(1, {views_[1].data, views_[1].dtype});
        if (views_[1].device.cuda) fail(PyExc_ValueError, "grad: on a device, expected the CPU");
        if (into.is_none()) return;
        View::take(into, {"into"}, views_[0], stream);
        check_param(views_[0], {"into"});
        check_grad(views_[1], {"grad"}, views_[0]);
        if (compute_format(views_[0].dtype) != views_[0].dtype)
            fail(PyExc_TypeError,
                 "into: dtype " + std::string(name_of(views_[0].dtype)) + ", expected float32 or float64");
        update_.set(0, {views_[0].data, views_[0].dtype});
        adds_ = true;
    }
    void start(const py::object& queue, std::uintptr_t event) {
        task_.start(queue, transfer_of(event, py::none()), [this] {
            return adds_ ? detail::accumulate({&update_, 1}, 1.0) : detail::global_norm({&update_, 1}, 1.0);
        });
    }
    Task& task() { return task_; }

  private:
    View views_[2];
    ParamUpdate update_;
    bool adds_ = false;
    Task task_;  // ends first
};

}  // namespace

Transfer transfer_of(std::uintptr_t event, const py::object& send) {
    Transfer t;
    t.event = reinterpret_cast<void*>(event);
    if (send.is_none()) return t;
    const auto [to, from, bytes, stream] =
        send.cast<std::tuple<std::uint64_t, std::uintptr_t, std::size_t, std::uintptr_t>>();
    t.to = to;
    t.from = reinterpret_cast<const void*>(from);
    t.bytes = bytes;
    t.stream = reinterpret_cast<void*>(stream);
    return t;
}

TaskQueue::TaskQueue(int threads, const std::map<std::string, std::uintptr_t>& calls) : queue_(threads) {
    if (threads < 1 || threads > detail::max_threads)
        fail(PyExc_ValueError, "threads: the number of threads must be in [1, " + std::to_string(detail::max_threads) +
                                   "], got " + std::to_string(threads));
    if (calls.empty()) return;
    const auto set = [&](const char* name, auto& member) {
        const auto found = calls.find(name);
        if (found == calls.end() || found->second == 0) fail(PyExc_ValueError, std::string("calls: has no ") + name);
        member = reinterpret_cast<std::remove_reference_t<decltype(member)>>(found->second);
    };
    set("enter", calls_.enter);
    set("wait", calls_.wait);
    set("send", calls_.send);
    set("context", calls_.context);
}

TaskQueue::~TaskQueue() {
    const py::gil_scoped_release released;
    queue_.wait();
}

void Task::start(py::object queue, const Transfer& transfer, std::function<detail::StepReport()> what) {
    if (started()) fail(PyExc_RuntimeError, "this work has been started already");
    auto& tasks = queue.cast<TaskQueue&>();
    if ((transfer.event != nullptr || transfer.bytes > 0) && tasks.calls().wait == nullptr)
        fail(PyExc_ValueError, "calls: this queue has none for a device");
    queue_ = std::move(queue);
    // In a forked child it is done right here.
    const py::gil_scoped_release released;
    tasks.queue().push([this, calls = tasks.calls(), transfer, what = std::move(what)] {
        const auto check = [&](const char* at, int code) {
            if (code != 0 && error_.empty()) error_ = said(at, code);
            return code == 0;
        };
        try {
            const bool on_device = transfer.event != nullptr || transfer.bytes > 0;
            if ((!on_device || check("the context", calls.enter(calls.context))) &&
                (transfer.event == nullptr || check("waiting for a gradient", calls.wait(transfer.event)))) {
                report_ = what();
                succeeded_ = true;
                if (transfer.bytes > 0)
                    check("sending a param", calls.send(transfer.to, transfer.from, transfer.bytes, transfer.stream));
            }
        } catch (const std::bad_alloc&) {
            error_ = "out of memory";
        }
        done_.store(true, std::memory_order_release);
    });
}

void Task::wait() {
    if (!started() || is_done()) return;
    auto& tasks = queue_.cast<TaskQueue&>();
    const py::gil_scoped_release released;
    tasks.queue().wait();
}

void register_work(py::module_& m) {
    py::class_<TaskQueue>(m, "TaskQueue")
        .def(py::init<int, std::map<std::string, std::uintptr_t>>(), py::arg("threads"), py::arg("calls"))
        .def_property_readonly("threads", [](TaskQueue& q) { return q.queue().threads(); })
        .def("wait", [](TaskQueue& q) { q.queue().wait(); }, py::call_guard<py::gil_scoped_release>());
    py::class_<Sum>(m, "GradSum")
        .def(py::init<py::object, py::object>(), py::arg("into"), py::arg("grad"))
        .def("start", &Sum::start, py::arg("queue"), py::arg("event") = 0)
        .def("wait", [](Sum& s) { s.task().wait(); })
        .def_property_readonly("succeeded", [](Sum& s) { return s.task().succeeded(); })
        .def_property_readonly("error", [](Sum& s) { return s.task().error(); })
        .def_property_readonly("norm", [](Sum& s) { return s.task().report().grad_norm; })
        .def_property_readonly("finite", [](Sum& s) { return s.task().report().finite; });
}

}  // namespace adaptk::bindings
