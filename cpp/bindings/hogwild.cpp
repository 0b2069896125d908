// Training of linear models and matrix factorisations. Arguments have been checked in Python.
#include "hogwild_module.hpp"

#include "buffers.hpp"
#include "hogwild.hpp"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

namespace adaptk::bindings {
namespace {

using Int64s = py::array_t<std::int64_t, py::array::c_style>;
using Float64s = py::array_t<double, py::array::c_style>;

template <class A> auto data_or_null(const std::optional<A>& a) { return a ? a->data() : nullptr; }

bool eight_bytes(const py::handle& array) { return py::reinterpret_borrow<py::array>(array).itemsize() == 8; }
const void* data_of(const py::handle& array) { return py::reinterpret_borrow<py::array>(array).data(); }

// (data, indices, starts or None, rows, columns)
detail::Rows rows_from(const py::tuple& x) {
    detail::Rows r;
    r.data = data_of(x[0]);
    r.indices = data_of(x[1]);
    r.doubles = eight_bytes(x[0]);
    r.wide_indices = eight_bytes(x[1]);
    if (!x[2].is_none()) {
        r.starts = data_of(x[2]);
        r.wide_starts = eight_bytes(x[2]);
    }
    r.rows = x[3].cast<std::int64_t>();
    r.columns = x[4].cast<std::int64_t>();
    return r;
}

py::tuple hogwild_check(const py::tuple& x, std::optional<Int64s> counts) {
    const detail::Rows rows = rows_from(x);
    const auto stored = std::int64_t(py::reinterpret_borrow<py::array>(x[0]).size());
    std::int64_t* const out = counts ? counts->mutable_data() : nullptr;
    detail::RowsReport r;
    {
        const py::gil_scoped_release released;
        r = detail::check_rows(rows, stored, out);
    }
    return py::make_tuple(r.decreasing, r.out_of_range, r.not_finite, r.not_canonical, r.stored, r.longest);
}

detail::SparseRule rule_named(const std::string& name) {
    using detail::SparseRule;
    return name == "sgd"       ? SparseRule::sgd
           : name == "adagrad" ? SparseRule::adagrad
           : name == "adam"    ? SparseRule::adam
                               : SparseRule::ftrl;
}

detail::TrainingMode mode_named(const std::string& name) {
    using detail::TrainingMode;
    return name == "hogwild"  ? TrainingMode::hogwild
           : name == "locked" ? TrainingMode::locked
                              : TrainingMode::deterministic;
}

detail::LinearLoss loss_named(const std::string& name) {
    using detail::LinearLoss;
    return name == "log_loss"        ? LinearLoss::log_loss
           : name == "hinge"         ? LinearLoss::hinge
           : name == "squared_hinge" ? LinearLoss::squared_hinge
           : name == "squared_error" ? LinearLoss::squared_error
                                     : LinearLoss::huber;
}

template <class T> void set(const py::dict& from, const char* name, T& to) {
    if (from.contains(name)) to = from[name].cast<T>();
}

// Lets Ctrl-C end the training, without the GIL between its looks.
class SignalWatch {
  public:
    detail::StopCheck stop_check() { return {look, this}; }

  private:
    using Clock = std::chrono::steady_clock;
    static bool look(void* context) {
        auto& self = *static_cast<SignalWatch*>(context);
        const Clock::time_point now = Clock::now();
        if (now - self.looked_ < std::chrono::milliseconds(50)) return true;
        self.looked_ = now;
        const py::gil_scoped_acquire held;
        return PyErr_CheckSignals() == 0;
    }
    Clock::time_point looked_ = Clock::now();
};

py::tuple hogwild_train(const py::tuple& x, const std::optional<Int64s>& subset, std::int64_t examples,
                        const Float64s& targets, std::int64_t classes, const std::optional<Float64s>& row_weights,
                        const std::optional<Float64s>& class_weights, py::array weights,
                        const std::optional<Float64s>& rarity, const std::optional<Int64s>& counts,
                        const py::dict& options) {
    detail::LinearTask t;
    t.rows = rows_from(x);
    t.subset = data_or_null(subset);
    t.examples = examples;
    t.targets = targets.data();
    t.classes = classes;
    t.row_weights = data_or_null(row_weights);
    t.class_weights = data_or_null(class_weights);
    t.weights = weights.mutable_data();
    t.rarity = data_or_null(rarity);
    t.counts = data_or_null(counts);
    set(options, "counted_rows", t.counted_rows);
    set(options, "longest", t.longest);
    set(options, "stored", t.stored);

    detail::LinearOptions o;
    o.loss = loss_named(options["loss"].cast<std::string>());
    o.rule = rule_named(options["rule"].cast<std::string>());
    o.mode = mode_named(options["mode"].cast<std::string>());
    const auto schedule = options["schedule"].cast<std::string>();
    o.schedule = schedule == "constant"     ? detail::StepSchedule::constant
                 : schedule == "invscaling" ? detail::StepSchedule::invscaling
                                            : detail::StepSchedule::optimal;
    set(options, "epsilon", o.epsilon);
    set(options, "eta", o.eta);
    set(options, "power_t", o.power_t);
    set(options, "optimal_scale", o.optimal_scale);
    set(options, "optimal_t0", o.optimal_t0);
    set(options, "l1", o.l1);
    set(options, "l2", o.l2);
    set(options, "beta1", o.beta1);
    set(options, "beta2", o.beta2);
    set(options, "eps", o.eps);
    set(options, "intercept", o.intercept);
    set(options, "shuffle", o.shuffle);
    set(options, "threads", o.threads);
    set(options, "publish_every", o.publish_every);
    set(options, "seed", o.seed);
    set(options, "epoch", o.epoch);
    set(options, "steps_before", o.steps_before);

    Float64s losses(py::ssize_t(classes > 1 ? classes : 1));
    double* const out = losses.mutable_data();
    SignalWatch watch;
    int threads = 0;
    {
        const py::gil_scoped_release released;
        threads = detail::train_linear(t, o, out, watch.stop_check());
    }
    if (threads == 0) throw py::error_already_set();
    return py::make_tuple(threads, losses);
}

Float64s hogwild_scores(const py::tuple& x, const Float64s& coefficients, const Float64s& intercepts, int threads) {
    const detail::Rows rows = rows_from(x);
    const auto outputs = std::int64_t(intercepts.size());
    Float64s scores({py::ssize_t(rows.rows), py::ssize_t(outputs)});
    double* const out = scores.mutable_data();
    const double* const c = coefficients.data();
    const double* const b = intercepts.data();
    const py::gil_scoped_release released;
    detail::linear_scores(rows, c, b, outputs, out, threads);
    return scores;
}

detail::FactorTask factor_task(const py::array& rows, const py::array& columns) {
    detail::FactorTask t;
    t.rows = rows.data();
    t.columns = columns.data();
    t.wide_indices = rows.itemsize() == 8;
    t.examples = std::int64_t(rows.size());
    return t;
}

py::tuple hogwild_factor_blocks(const py::array& rows, const py::array& columns) {
    const detail::FactorTask t = factor_task(rows, columns);
    Int64s order{py::ssize_t(t.examples)}, starts(detail::factor_groups * detail::factor_groups + 1);
    std::int64_t* const o = order.mutable_data();
    std::int64_t* const s = starts.mutable_data();
    {
        const py::gil_scoped_release released;
        detail::factor_blocks(t, o, s);
    }
    return py::make_tuple(order, starts);
}

py::tuple hogwild_factors(const py::array& rows, const py::array& columns, const py::array& values,
                          py::array row_factors, py::array column_factors, std::optional<py::array> row_squares,
                          std::optional<py::array> column_squares, std::int64_t rank, double mean,
                          const std::optional<std::pair<Int64s, Int64s>>& blocks, const py::dict& options) {
    detail::FactorTask t = factor_task(rows, columns);
    t.values = values.data();
    t.doubles = values.itemsize() == 8;
    t.rank = rank;
    t.mean = mean;
    t.row_factors = row_factors.mutable_data();
    t.column_factors = column_factors.mutable_data();
    t.row_count = std::int64_t(row_factors.shape(0));
    t.column_count = std::int64_t(column_factors.shape(0));
    if (row_squares) t.row_squares = row_squares->mutable_data();
    if (column_squares) t.column_squares = column_squares->mutable_data();
    if (blocks) {
        t.order = blocks->first.data();
        t.block_starts = blocks->second.data();
    }
    detail::FactorOptions o;
    o.rule = rule_named(options["rule"].cast<std::string>());
    o.mode = mode_named(options["mode"].cast<std::string>());
    set(options, "eta", o.eta);
    set(options, "alpha", o.alpha);
    set(options, "eps", o.eps);
    set(options, "bias", o.bias);
    set(options, "shuffle", o.shuffle);
    set(options, "threads", o.threads);
    set(options, "seed", o.seed);
    set(options, "epoch", o.epoch);
    SignalWatch watch;
    double loss = 0;
    int threads = 0;
    {
        const py::gil_scoped_release released;
        threads = detail::train_factors(t, o, &loss, watch.stop_check());
    }
    if (threads == 0) throw py::error_already_set();
    return py::make_tuple(threads, loss);
}

}  // namespace

void register_hogwild(py::module_& m) {
    m.def("hogwild_check", hogwild_check, py::arg("x"), py::arg("counts"));
    m.def("hogwild_train", hogwild_train, py::arg("x"), py::arg("subset"), py::arg("examples"), py::arg("targets"),
          py::arg("classes"), py::arg("row_weights"), py::arg("class_weights"), py::arg("weights"), py::arg("rarity"),
          py::arg("counts"), py::arg("options"));
    m.def("hogwild_scores", hogwild_scores, py::arg("x"), py::arg("coefficients"), py::arg("intercepts"),
          py::arg("threads"));
    m.def(
        "hogwild_fields", [](const std::string& rule) { return detail::fields_of(rule_named(rule)); }, py::arg("rule"));
    m.def("hogwild_factor_stride", detail::factor_stride, py::arg("rank"));
    m.def("hogwild_factor_blocks", hogwild_factor_blocks, py::arg("rows"), py::arg("columns"));
    m.def("hogwild_factors", hogwild_factors, py::arg("rows"), py::arg("columns"), py::arg("values"),
          py::arg("row_factors"), py::arg("column_factors"), py::arg("row_squares"), py::arg("column_squares"),
          py::arg("rank"), py::arg("mean"), py::arg("blocks"), py::arg("options"));
}

}  // namespace adaptk::bindings
