/* A step over tensors as ggml describes them: extents with the fastest axis first, strides in bytes, a type, and one
 * arena that all memory comes from. A few lines turn each of them into a tensor of adaptk; nothing is copied.
 *
 * A network learns the parity of four bits. Its weights are bfloat16, rounded stochastically, so that no master copies
 * are needed; its biases are float32. AdamW's states are float32, and lie in the arena too. */
#include <adaptk/adaptk.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Tensors in the manner of ggml ------------------------------------------------------------------------------ */

enum type { TYPE_F32, TYPE_BF16 };

struct tensor {
    enum type type;
    int64_t ne[4]; /* extents, the fastest first */
    size_t nb[4];  /* strides in bytes */
    void* data;
    struct tensor* grad; /* of the params */
};

struct arena {
    char* memory;
    size_t size, used;
};

static void* take(struct arena* a, size_t bytes) {
    void* const found = a->memory + a->used;
    a->used += (bytes + 31) / 32 * 32;
    if (a->used > a->size) {
        fprintf(stderr, "the arena is full\n");
        exit(1);
    }
    return memset(found, 0, bytes);
}

static struct tensor* new_tensor(struct arena* a, enum type type, int64_t ne0, int64_t ne1) {
    struct tensor* const t = take(a, sizeof(struct tensor));
    int i;
    t->type = type;
    t->ne[0] = ne0;
    t->ne[1] = ne1;
    t->ne[2] = t->ne[3] = 1;
    t->nb[0] = type == TYPE_F32 ? 4 : 2;
    for (i = 1; i < 4; ++i) t->nb[i] = t->nb[i - 1] * (size_t)t->ne[i - 1];
    t->data = take(a, t->nb[3] * (size_t)t->ne[3]);
    return t;
}

static struct tensor* new_param(struct arena* a, enum type type, int64_t ne0, int64_t ne1) {
    struct tensor* const t = new_tensor(a, type, ne0, ne1);
    t->grad = new_tensor(a, TYPE_F32, ne0, ne1);
    return t;
}

static float get(const struct tensor* t, int64_t i0, int64_t i1) {
    const char* const at = (const char*)t->data + (size_t)i0 * t->nb[0] + (size_t)i1 * t->nb[1];
    uint32_t bits = 0;
    uint16_t half;
    float value;
    if (t->type == TYPE_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(&half, at, sizeof half);
    bits = (uint32_t)half << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void set(struct tensor* t, int64_t i0, int64_t i1, float value) {
    char* const at = (char*)t->data + (size_t)i0 * t->nb[0] + (size_t)i1 * t->nb[1];
    uint32_t bits;
    uint16_t half;
    if (t->type == TYPE_F32) {
        memcpy(at, &value, sizeof value);
        return;
    }
    memcpy(&bits, &value, sizeof bits);
    half = (uint16_t)(bits >> 16);
    memcpy(at, &half, sizeof half);
}

static void add(struct tensor* t, int64_t i0, int64_t i1, float value) { set(t, i0, i1, get(t, i0, i1) + value); }

/* ---- The same for adaptk ---------------------------------------------------------------------------------------- */

/* A tensor of adaptk, and the extents that it points to: the slowest axis first, strides in elements. */
struct described {
    adaptk_tensor tensor;
    int64_t shape[4], strides[4];
};

static const adaptk_tensor* describe(struct arena* a, const struct tensor* t) {
    struct described* const d = take(a, sizeof(struct described));
    int i;
    for (i = 0; i < 4; ++i) {
        d->shape[i] = t->ne[3 - i];
        d->strides[i] = (int64_t)(t->nb[3 - i] / t->nb[0]);
    }
    d->tensor = adaptk_make_tensor(t->data, t->type == TYPE_F32 ? ADAPTK_FLOAT32 : ADAPTK_BFLOAT16, 4, d->shape);
    d->tensor.strides = d->strides;
    return &d->tensor;
}

/* ---- The network ------------------------------------------------------------------------------------------------ */

enum { INPUTS = 4, CASES = 16, HIDDEN = 32, STEPS = 1500, PARAMS = 4 };
enum { W1, B1, W2, B2 };

static float uniform(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (float)(state >> 40) / 8388608.0f - 1.0f;
}

/* The mean loss over all cases, its gradients, and how many cases are on the right side. */
static float passes(struct tensor* const* p, int* right) {
    float loss = 0.0f;
    int c, i, j, k;
    *right = 0;
    for (k = 0; k < PARAMS; ++k) memset(p[k]->grad->data, 0, p[k]->grad->nb[3]);
    for (c = 0; c < CASES; ++c) {
        float x[INPUTS], h[HIDDEN], out = get(p[B2], 0, 0), label = 0.0f, d;
        for (i = 0; i < INPUTS; ++i) {
            x[i] = (c >> i) & 1 ? 1.0f : -1.0f;
            label += x[i] > 0.0f ? 1.0f : 0.0f;
        }
        label = fmodf(label, 2.0f);
        for (j = 0; j < HIDDEN; ++j) {
            h[j] = get(p[B1], j, 0);
            for (i = 0; i < INPUTS; ++i) h[j] += get(p[W1], i, j) * x[i];
            h[j] = tanhf(h[j]);
            out += get(p[W2], j, 0) * h[j];
        }
        loss += logf(1.0f + expf(label > 0.5f ? -out : out)) / CASES;
        *right += (out > 0.0f) == (label > 0.5f);
        d = (1.0f / (1.0f + expf(-out)) - label) / CASES;
        add(p[B2]->grad, 0, 0, d);
        for (j = 0; j < HIDDEN; ++j) {
            const float dh = d * get(p[W2], j, 0) * (1.0f - h[j] * h[j]);
            add(p[W2]->grad, j, 0, d * h[j]);
            add(p[B1]->grad, j, 0, dh);
            for (i = 0; i < INPUTS; ++i) add(p[W1]->grad, i, j, dh * x[i]);
        }
    }
    return loss;
}

static int failed(const char* what) {
    fprintf(stderr, "%s: %s\n", what, adaptk_last_error());
    return 1;
}

int main(void) {
    struct arena a = {malloc(1 << 16), 1 << 16, 0};
    struct tensor* p[PARAMS];
    const adaptk_tensor *params[PARAMS], *grads[PARAMS], *states[2 * PARAMS];
    const adaptk_hyper hyper[] = {{"lr", 0.01}, {"weight_decay", 0.0}};
    adaptk_step_options options = ADAPTK_STEP_OPTIONS;
    adaptk_plan* plan = NULL;
    int64_t i, j;
    int k, t, right = 0;
    float loss = 0.0f;

    if (a.memory == NULL) return 1;
    p[W1] = new_param(&a, TYPE_BF16, INPUTS, HIDDEN);
    p[B1] = new_param(&a, TYPE_F32, HIDDEN, 1);
    p[W2] = new_param(&a, TYPE_BF16, HIDDEN, 1);
    p[B2] = new_param(&a, TYPE_F32, 1, 1);
    for (k = 0; k < PARAMS; ++k) {
        if (k != B2)
            for (j = 0; j < p[k]->ne[1]; ++j)
                for (i = 0; i < p[k]->ne[0]; ++i) set(p[k], i, j, uniform());
        params[k] = describe(&a, p[k]);
        grads[k] = describe(&a, p[k]->grad);
        for (i = 0; i < 2; ++i) states[2 * k + i] = describe(&a, new_tensor(&a, TYPE_F32, p[k]->ne[0], p[k]->ne[1]));
    }

    if (adaptk_plan_create("adamw", hyper, 2, PARAMS, params, states, &plan) != ADAPTK_OK) return failed("plan");
    if (adaptk_plan_init_states(plan) != ADAPTK_OK) return failed("states");
    options.param_format = "sr";
    for (t = 0; t < STEPS; ++t) {
        loss = passes(p, &right);
        if (adaptk_plan_step(plan, PARAMS, grads, &options) != ADAPTK_OK) return failed("step");
        if (t % 250 == 0) printf("step %4d: loss %.4f\n", t, (double)loss);
    }
    loss = passes(p, &right);
    printf("loss %.4f, %d of %d cases right, %zu bytes of the arena\n", (double)loss, right, CASES, a.used);
    if (adaptk_plan_destroy(plan) != ADAPTK_OK) return failed("destroy");
    free(a.memory);
    return right == CASES ? 0 : 1;
}
