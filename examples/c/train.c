/* A small network trained in C, the way llm.c goes about it: all parameters in one block of memory, all gradients in
 * another, the passes written out, and AdamW after each backward pass. Here the update is adaptk's.
 *
 * Two spirals, a hidden layer, two classes. Weights decay and biases do not, which makes two groups; the learning rate
 * follows a cosine; gradients are clipped by their global norm inside the step. */
#include <adaptk/adaptk.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { POINTS = 400, HIDDEN = 64, STEPS = 400 };

/* Where the tensors are in the block: two weights, then two biases. */
enum { W1, W2, B1, B2, TENSORS };
static const int64_t SIZE[TENSORS] = {HIDDEN * 2, 2 * HIDDEN, HIDDEN, 2};

static float uniform(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) / 8388608.0f - 1.0f;
}

static void make_spirals(float (*x)[2], int* label) {
    int i;
    for (i = 0; i < POINTS; ++i) {
        const float turn = (float)(i / 2) / (POINTS / 2);
        const float angle = 7.0f * turn + 3.14159265f * (float)(i % 2);
        x[i][0] = (0.1f + turn) * cosf(angle) + 0.01f * uniform();
        x[i][1] = (0.1f + turn) * sinf(angle) + 0.01f * uniform();
        label[i] = i % 2;
    }
}

/* The mean loss over all points, its gradient in `g`, and how many points are on the right side. */
static float passes(float* const* p, float* const* g, float (*x)[2], const int* label, int* right) {
    float loss = 0.0f;
    int i, j, k;
    *right = 0;
    for (k = 0; k < TENSORS; ++k)
        for (i = 0; i < SIZE[k]; ++i) g[k][i] = 0.0f;
    for (i = 0; i < POINTS; ++i) {
        float h[HIDDEN], dh[HIDDEN] = {0}, out[2], largest, sum;
        for (j = 0; j < HIDDEN; ++j) h[j] = tanhf(p[W1][2 * j] * x[i][0] + p[W1][2 * j + 1] * x[i][1] + p[B1][j]);
        for (k = 0; k < 2; ++k) {
            out[k] = p[B2][k];
            for (j = 0; j < HIDDEN; ++j) out[k] += p[W2][k * HIDDEN + j] * h[j];
        }
        largest = out[0] > out[1] ? out[0] : out[1];
        sum = expf(out[0] - largest) + expf(out[1] - largest);
        loss += logf(sum) + largest - out[label[i]];
        *right += (out[1] > out[0]) == label[i];
        for (k = 0; k < 2; ++k) {
            const float d = (expf(out[k] - largest) / sum - (float)(k == label[i])) / POINTS;
            g[B2][k] += d;
            for (j = 0; j < HIDDEN; ++j) {
                g[W2][k * HIDDEN + j] += d * h[j];
                dh[j] += d * p[W2][k * HIDDEN + j];
            }
        }
        for (j = 0; j < HIDDEN; ++j) {
            const float d = dh[j] * (1.0f - h[j] * h[j]);
            g[B1][j] += d;
            g[W1][2 * j] += d * x[i][0];
            g[W1][2 * j + 1] += d * x[i][1];
        }
    }
    return loss / POINTS;
}

static int failed(const char* what) {
    fprintf(stderr, "%s: %s\n", what, adaptk_last_error());
    return 1;
}

int main(void) {
    static float points[POINTS][2];
    static int label[POINTS];
    const size_t total = (size_t)(SIZE[W1] + SIZE[W2] + SIZE[B1] + SIZE[B2]);
    /* Parameters, gradients, and AdamW's two states beside each parameter. */
    float* const memory = malloc(4 * total * sizeof(float));
    float *p[TENSORS], *g[TENSORS];
    int64_t shape[TENSORS][1];
    adaptk_tensor tensor[4][TENSORS];
    const adaptk_tensor *params[TENSORS], *grads[TENSORS], *states[2 * TENSORS];
    const adaptk_hyper decay[] = {{"weight_decay", 0.01}}, no_decay[] = {{"weight_decay", 0.0}};
    adaptk_step_options options = ADAPTK_STEP_OPTIONS;
    adaptk_step_report report = ADAPTK_STEP_REPORT;
    adaptk_plan* plan = NULL;
    size_t at = 0;
    int i, k, t, right = 0;
    float loss = 0.0f;

    if (memory == NULL) return 1;
    for (k = 0; k < TENSORS; ++k) {
        shape[k][0] = SIZE[k];
        for (i = 0; i < 4; ++i)
            tensor[i][k] = adaptk_make_tensor(memory + (size_t)i * total + at, ADAPTK_FLOAT32, 1, shape[k]);
        p[k] = memory + at;
        g[k] = memory + total + at;
        params[k] = &tensor[0][k];
        grads[k] = &tensor[1][k];
        states[2 * k] = &tensor[2][k];
        states[2 * k + 1] = &tensor[3][k];
        at += (size_t)SIZE[k];
    }
    for (i = 0; i < SIZE[W1]; ++i) p[W1][i] = 2.0f * uniform();
    for (i = 0; i < SIZE[W2]; ++i) p[W2][i] = uniform() / 8.0f;
    for (i = 0; i < SIZE[B1]; ++i) p[B1][i] = uniform();
    for (i = 0; i < SIZE[B2]; ++i) p[B2][i] = 0.0f;
    make_spirals(points, label);

    if (adaptk_initialize() != ADAPTK_OK) return failed("environment");
    if (adaptk_plan_create("adamw", decay, 1, 2, params, states, &plan) != ADAPTK_OK) return failed("weights");
    if (adaptk_plan_add_group(plan, "adamw", no_decay, 1, 2, params + 2, states + 4) != ADAPTK_OK)
        return failed("biases");
    if (adaptk_plan_init_states(plan) != ADAPTK_OK) return failed("states");
    options.clip_norm = 1.0;
    for (t = 0; t < STEPS; ++t) {
        const adaptk_hyper rate[] = {{"lr", 0.03 * (1.0 + cos(3.14159265 * t / STEPS)) / 2.0}};
        loss = passes(p, g, points, label, &right);
        for (k = 0; k < 2; ++k)
            if (adaptk_plan_set_hypers(plan, (size_t)k, rate, 1) != ADAPTK_OK) return failed("learning rate");
        if (adaptk_plan_step(plan, TENSORS, grads, &options) != ADAPTK_OK) return failed("step");
        if (adaptk_plan_report(plan, &report) != ADAPTK_OK) return failed("report");
        if (t % 50 == 0) printf("step %3d: loss %.4f, gradient %.3f\n", t, (double)loss, report.grad_norm);
    }
    loss = passes(p, g, points, label, &right);
    printf("loss %.4f, %d of %d points right, on %s\n", (double)loss, right, POINTS, adaptk_get_isa());
    if (adaptk_plan_destroy(plan) != ADAPTK_OK) return failed("destroy");
    free(memory);
    return right == POINTS ? 0 : 1;
}
