/* A program in C that finds the installed package: momentum against the formula, and an error. */
#include <adaptk/adaptk.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FAIL(text) return fprintf(stderr, "%s: %s\n", text, adaptk_last_error()), 1

int main(void) {
    double w[3] = {1.0, -2.0, 3.0}, v[3], g[3];
    double want[3] = {1.0, -2.0, 3.0}, velocity[3] = {0.0, 0.0, 0.0};
    int64_t shape[1] = {3};
    const adaptk_tensor wt = adaptk_make_tensor(w, ADAPTK_FLOAT64, 1, shape);
    const adaptk_tensor vt = adaptk_make_tensor(v, ADAPTK_FLOAT64, 1, shape);
    const adaptk_tensor gt = adaptk_make_tensor(g, ADAPTK_FLOAT64, 1, shape);
    const adaptk_tensor* params[] = {&wt};
    const adaptk_tensor* states[] = {&vt};
    const adaptk_tensor* grads[] = {&gt};
    const adaptk_hyper hyper[] = {{"lr", 0.125}, {"momentum", 0.5}};
    adaptk_step_options options = ADAPTK_STEP_OPTIONS;
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    adaptk_plan* plan = NULL;
    int i, t;

    if (strcmp(adaptk_version(), ADAPTK_VERSION) != 0) FAIL("another version than the header's");
    if (adaptk_initialize() != ADAPTK_OK) FAIL("the environment");
    if (adaptk_plan_create("momentum", hyper, 2, 1, params, states, &plan) != ADAPTK_OK) FAIL("create");
    if (adaptk_plan_init_states(plan) != ADAPTK_OK) FAIL("states");
    options.want_norm = 1;
    for (t = 0; t < 5; ++t) {
        double squares = 0.0;
        for (i = 0; i < 3; ++i) {
            g[i] = 2.0 * w[i];
            squares += g[i] * g[i];
            velocity[i] = 0.5 * velocity[i] - 0.125 * g[i];
            want[i] += velocity[i];
        }
        if (adaptk_plan_step(plan, 1, grads, &options) != ADAPTK_OK) FAIL("step");
        if (adaptk_plan_report(plan, &report) != ADAPTK_OK) FAIL("report");
        if (fabs(report.grad_norm - sqrt(squares)) > 1e-15 * report.grad_norm) FAIL("norm");
    }
    for (i = 0; i < 3; ++i)
        if (w[i] != want[i]) FAIL("another result than the formula's");
    if (adaptk_plan_step(plan, 2, grads, NULL) != ADAPTK_INVALID_ARGUMENT) FAIL("a wrong count was accepted");
    if (strstr(adaptk_last_error(), "count") == NULL) FAIL("the error names no argument");
    if (adaptk_plan_destroy(plan) != ADAPTK_OK) FAIL("destroy");
    printf("%s, %s, %d threads, CUDA: %d\n", adaptk_version(), adaptk_get_isa(), adaptk_get_num_threads(),
           adaptk_cuda_available());
    return 0;
}
