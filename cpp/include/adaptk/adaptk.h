/* adaptk in C: fused update kernels of adaptive optimizers.
 *
 * Every rule is one pass over memory, for any number of tensors at once. Results are bitwise identical for every
 * instruction set and number of threads, and on CUDA, but for the sign and the payload of a NaN. Tensors are described
 * by DLPack's DLTensor; no memory is copied, no pointer is kept unless the function says so, and nothing is printed.
 * Functions that can fail return a status, and adaptk_last_error() returns a message that names the argument. A call
 * that fails modifies nothing.
 *
 *     const adaptk_hyper hyper[] = {{"lr", 1e-3}, {"weight_decay", 1e-2}};
 *     adaptk_plan* plan = NULL;
 *     if (adaptk_plan_create("adamw", hyper, 2, count, params, states, &plan) != ADAPTK_OK) puts(adaptk_last_error());
 *     adaptk_plan_init_states(plan);
 *     for (...) adaptk_plan_step(plan, count, grads, NULL);
 *     adaptk_plan_destroy(plan);
 *
 * All functions may be called from several threads. A plan can be used by one call at a time: a second call returns
 * ADAPTK_BUSY. Returned strings and descriptions belong to the library and stay valid, except that of
 * adaptk_last_error(). */
#ifndef ADAPTK_ADAPTK_H
#define ADAPTK_ADAPTK_H

#include <stddef.h>
#include <stdint.h>

#define ADAPTK_VERSION "0.2.0"
#define ADAPTK_VERSION_MAJOR 0
#define ADAPTK_VERSION_MINOR 2
#define ADAPTK_VERSION_PATCH 0
/* Increases when programs must be recompiled; it is part of the shared library's name. Otherwise functions are only
 * added, and structs only grow at their ends: those that programs fill in begin with their size. */
#define ADAPTK_ABI_VERSION 0

#if defined(_WIN32) && defined(ADAPTK_BUILDING)
#define ADAPTK_API __declspec(dllexport)
#elif defined(_WIN32) && defined(ADAPTK_SHARED)
#define ADAPTK_API __declspec(dllimport)
#elif defined(__GNUC__)
#define ADAPTK_API __attribute__((visibility("default")))
#else
#define ADAPTK_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Tensors ---------------------------------------------------------------------------------------------------- */

/* DLPack's types if <dlpack/dlpack.h> was included before this header. Otherwise the same structs under other names, so
 * that both headers can be included in either order; cast a DLTensor* then. */
#if defined(DLPACK_MAJOR_VERSION) || defined(DLPACK_VERSION) || defined(DLPACK_DLPACK_H_)
typedef DLDevice adaptk_device;
typedef DLDataType adaptk_dtype;
typedef DLTensor adaptk_tensor;
#else
typedef struct adaptk_device {
    int32_t device_type; /* ADAPTK_CPU, ADAPTK_CUDA, ... */
    int32_t device_id;
} adaptk_device;

typedef struct adaptk_dtype {
    uint8_t code; /* 0: int, 1: uint, 2: float, 4: bfloat */
    uint8_t bits;
    uint16_t lanes; /* 1 */
} adaptk_dtype;

typedef struct adaptk_tensor {
    void* data;
    adaptk_device device;
    int32_t ndim;
    adaptk_dtype dtype;
    int64_t* shape;       /* ndim extents; NULL if ndim is 0 */
    int64_t* strides;     /* in elements; NULL: C order */
    uint64_t byte_offset; /* of the first element from `data` */
} adaptk_tensor;
#endif

/* DLPack's device types that are accepted. */
enum {
    ADAPTK_CPU = 1,
    ADAPTK_CUDA = 2,
    ADAPTK_CUDA_HOST = 3,    /* pinned memory: updated by the CPU */
    ADAPTK_ROCM_HOST = 11,   /* the same */
    ADAPTK_CUDA_MANAGED = 13 /* updated by the device */
};

/* Element types. Params and grads may be any of the floats, a grad another than its param.
 * States are float64 for a float64 param, else float32, bfloat16 or float16: steps compute in float32. Integers are
 * the codes of states with a storage format (adaptk_stored). */
typedef enum adaptk_type {
    ADAPTK_FLOAT32 = 0,
    ADAPTK_FLOAT64 = 1,
    ADAPTK_BFLOAT16 = 2,
    ADAPTK_FLOAT16 = 3,
    ADAPTK_INT8 = 4,
    ADAPTK_UINT8 = 5,
    ADAPTK_INT16 = 6,
    ADAPTK_INT32 = 7, /* of indices alone, as the next one */
    ADAPTK_INT64 = 8,
    ADAPTK_FLOAT8_E4M3FN = 9, /* params and grads alone, as the next one */
    ADAPTK_FLOAT8_E5M2 = 10
} adaptk_type;

/* A tensor in C order in CPU memory; for CUDA set its `device`. The shape is not copied. */
static inline adaptk_tensor adaptk_make_tensor(void* data, adaptk_type type, int32_t ndim, int64_t* shape) {
    adaptk_tensor t;
    t.data = data;
#if defined(DLPACK_MAJOR_VERSION) || defined(DLPACK_VERSION) || defined(DLPACK_DLPACK_H_)
    t.device.device_type = kDLCPU;
#else
    t.device.device_type = ADAPTK_CPU;
#endif
    t.device.device_id = 0;
    t.ndim = ndim;
    t.dtype.code = type == ADAPTK_BFLOAT16                                                                       ? 4
                   : type == ADAPTK_INT8 || type == ADAPTK_INT16 || type == ADAPTK_INT32 || type == ADAPTK_INT64 ? 0
                   : type == ADAPTK_UINT8                                                                        ? 1
                   : type == ADAPTK_FLOAT8_E4M3FN                                                                ? 10
                   : type == ADAPTK_FLOAT8_E5M2                                                                  ? 12
                                                                                                                 : 2;
    t.dtype.bits = type == ADAPTK_FLOAT32 || type == ADAPTK_INT32               ? 32
                   : type == ADAPTK_FLOAT64 || type == ADAPTK_INT64             ? 64
                   : type == ADAPTK_INT8 || type == ADAPTK_UINT8                ? 8
                   : type == ADAPTK_FLOAT8_E4M3FN || type == ADAPTK_FLOAT8_E5M2 ? 8
                                                                                : 16;
    t.dtype.lanes = 1;
    t.shape = shape;
    t.strides = NULL;
    t.byte_offset = 0;
    return t;
}

/* ---- Errors ----------------------------------------------------------------------------------------------------- */

typedef enum adaptk_status {
    ADAPTK_OK = 0,
    ADAPTK_INVALID_ARGUMENT = 1, /* NULL, shapes, strides, values out of range, overlapping memory, ... */
    ADAPTK_INVALID_TYPE = 2,     /* a tensor has an unsupported element type */
    ADAPTK_UNKNOWN_NAME = 3,     /* of a rule, a hyperparameter, a format or an instruction set */
    ADAPTK_BUSY = 4,             /* another call is using the plan */
    ADAPTK_UNSUPPORTED = 5,      /* by this build or this machine: CUDA, an instruction set, several threads */
    ADAPTK_OUT_OF_MEMORY = 6,
    ADAPTK_CUDA_ERROR = 7, /* a call of the CUDA runtime failed */
    ADAPTK_INTERNAL_ERROR = 8
} adaptk_status;

/* The error message of the calling thread's last call that can fail; "" if it succeeded. Valid until that thread's next
 * call. */
ADAPTK_API const char* adaptk_last_error(void);

/* "ADAPTK_INVALID_ARGUMENT" */
ADAPTK_API const char* adaptk_status_name(adaptk_status status);

/* ---- The library and the machine -------------------------------------------------------------------------------- */

/* The version of the library at run time; the macros give the version of the header at compile time. */
ADAPTK_API const char* adaptk_version(void);
ADAPTK_API int adaptk_abi_version(void);

/* The environment variables ADAPTK_ISA and ADAPTK_NUM_THREADS are read once, by the first call that depends on them.
 * This function returns an error if they are invalid; all others use the defaults then. */
ADAPTK_API adaptk_status adaptk_initialize(void);

/* The number of threads of a large step, in [1, 1024]. Initially OpenMP's default, or the number of cores if the
 * library uses its own threads. A child of fork() uses one. Results do not depend on it. */
ADAPTK_API int adaptk_get_num_threads(void);
ADAPTK_API adaptk_status adaptk_set_num_threads(int threads);

/* The instruction sets that this machine and this build support, slowest first: "portable", "x86-64-v2", ...; the last
 * one is the default. Results do not depend on it. NULL if `index` is out of range. */
ADAPTK_API size_t adaptk_isa_count(void);
ADAPTK_API const char* adaptk_isa_at(size_t index);
ADAPTK_API const char* adaptk_get_isa(void);
ADAPTK_API adaptk_status adaptk_set_isa(const char* name);

/* The date of the OpenMP specification that the library was built for (201511), or 0 if it uses its own threads. */
ADAPTK_API int adaptk_openmp(void);

/* Whether tensors on CUDA devices can be updated: the library beside this one, a driver and a device. */
ADAPTK_API int adaptk_cuda_available(void);
/* The number of devices; ADAPTK_UNSUPPORTED, with the reason, if this build has no CUDA kernels. */
ADAPTK_API adaptk_status adaptk_cuda_device_count(int* count);

/* ---- The rules -------------------------------------------------------------------------------------------------- */

typedef struct adaptk_rule {
    const char* name;    /* "adam" */
    const char* summary; /* one line */
    const char* formula; /* the update as text */
    const char* source;  /* the paper */
    size_t hyper_count;  /* the rule's own, then four that every rule has */
    size_t state_count;
} adaptk_rule;

typedef struct adaptk_hyper_info {
    const char* name;  /* "beta1" */
    double value;      /* the default */
    const char* range; /* "[0, 1)"; "bool" for 0 or 1 */
    const char* meaning;
} adaptk_hyper_info;

typedef struct adaptk_state_info {
    const char* name;         /* "exp_avg" */
    double initial;           /* its initial value, ... */
    const char* initial_from; /* ... unless this is not NULL: then that of the hyperparameter with this name */
} adaptk_state_info;

/* A default of another system (torch, keras, tf1, optax) that differs: of a hyperparameter, or the initial value of a
 * state. An empty name means that the system has the rule with the defaults above. */
typedef struct adaptk_preset {
    const char* convention;
    const char* name;
    double value;
} adaptk_preset;

/* NULL if `index` is out of range or there is no rule with this name; adaptk_last_error() says which. */
ADAPTK_API size_t adaptk_rule_count(void);
ADAPTK_API const adaptk_rule* adaptk_rule_at(size_t index);
ADAPTK_API const adaptk_rule* adaptk_find_rule(const char* name);
/* A rule that adaptk.rule has made in Python: of the bytes that its to_bytes() returns. They are checked, and hold no
 * code of the machine's. The rule's `name` is what functions take as a rule: its own with a number, as "my_adam@0".
 * It stays as long as the library does; the same bytes give the same rule. On a CUDA device it needs NVRTC. */
ADAPTK_API const adaptk_rule* adaptk_rule_load(const void* bytes, size_t size);
ADAPTK_API const adaptk_hyper_info* adaptk_rule_hyper(const adaptk_rule* rule, size_t index);
ADAPTK_API const adaptk_state_info* adaptk_rule_state(const adaptk_rule* rule, size_t index);
/* What a state has one number for, and the shape of its tensor, which is in C order: beside a param of shape
 * (a, ..., m, n) it has that of the comment. For ADAPTK_PER_ROW and ADAPTK_PER_COLUMN a param without axes has a state
 * without axes, and a vector of n numbers, whose one row it is, (1,) and (n,). Params beside states that are not
 * for each element are in C order, and these states have the type that is computed in. */
typedef enum adaptk_per {
    ADAPTK_PER_ELEMENT = 0, /* the param's shape */
    ADAPTK_PER_TENSOR = 1,  /* no axes */
    ADAPTK_PER_ROW = 2,     /* (a, ..., m, 1) */
    ADAPTK_PER_COLUMN = 3,  /* (a, ..., 1, n) */
    ADAPTK_PER_SLICE = 4    /* (a,): of what the first axis counts */
} adaptk_per;
/* ADAPTK_PER_ELEMENT if there is no such state; adaptk_last_error() says so then. Rules with a number for each slice
 * ("rowwise_adagrad", "rowwise_adam") are not among those that adaptk_rule_at() lists. */
ADAPTK_API adaptk_per adaptk_rule_state_per(const adaptk_rule* rule, size_t index);
/* 1 if that is ADAPTK_PER_SLICE. */
ADAPTK_API int adaptk_rule_state_per_row(const adaptk_rule* rule, size_t index);
ADAPTK_API size_t adaptk_rule_preset_count(const adaptk_rule* rule);
ADAPTK_API const adaptk_preset* adaptk_rule_preset(const adaptk_rule* rule, size_t index);

/* ---- Storage formats of states ---------------------------------------------------------------------------------- */

/* How a state, or a param, is stored between steps. A step decodes it, computes in float32 (float64 beside a float64
 * param) and encodes it, in one pass over memory. */
typedef struct adaptk_format {
    const char* name;   /* "uint8" */
    adaptk_dtype dtype; /* of the elements */
    size_t bytes;       /* of an element */
    size_t block;       /* elements that share a float32 scale, from the first one on; 1: there are no scales */
    int stochastic;     /* rounding needs random bits, and so a seed */
    size_t packed;      /* elements in each that is stored, of `bytes`: 2 for those of 4 bits, else 1 */
} adaptk_format;

/* float32, float64, bfloat16, float16; bfloat16_sr, rounded stochastically; int8; uint8, for states that are never
 * negative; uint8_nearest, the same rounded to nearest; fp8_e4m3; dynamic_signed; dynamic_unsigned, for states that are
 * never negative; float16_sr; for params alone bfloat16_remainder16, bfloat16_remainder8 and bfloat16_kahan, see
 * adaptk_step_options; 4bit_signed; 4bit_unsigned, for states that are never negative. NULL if `index` is out of range
 * or there is no such name. */
ADAPTK_API size_t adaptk_format_count(void);
ADAPTK_API const adaptk_format* adaptk_format_at(size_t index);
ADAPTK_API const adaptk_format* adaptk_find_format(const char* name);

/* The format that a name stands for, for one of a rule's states: "8bit" is uint8 if the state is never negative, else
 * int8; "8bit_nearest" is uint8_nearest or int8, "8bit_dynamic" dynamic_unsigned or dynamic_signed, "4bit"
 * 4bit_unsigned or 4bit_signed. Any other name is that of a format. NULL on error. */
ADAPTK_API const adaptk_format* adaptk_state_format(const adaptk_rule* rule, size_t state, const char* name);

/* The number of scales beside so many elements; 0 if the format has none. */
ADAPTK_API size_t adaptk_scale_count(const adaptk_format* format, size_t elements);

/* A state in any format, or a param with what lies beside it as `scales`. Make it with adaptk_make_stored(), which sets
 * the size. */
typedef struct adaptk_stored {
    size_t size;
    const adaptk_tensor* data;   /* the elements, in the shape and the strides of the param; packed ones in a row */
    const adaptk_tensor* scales; /* float32, adaptk_scale_count() in a row; NULL for a format without scales */
    const char* format;          /* its name; NULL: the dtype's, where int8 and uint8 are those formats */
} adaptk_stored;

/* The tensors and the name are not copied. */
static inline adaptk_stored adaptk_make_stored(const adaptk_tensor* data, const adaptk_tensor* scales,
                                               const char* format) {
    adaptk_stored s;
    s.size = sizeof(adaptk_stored);
    s.data = data;
    s.scales = scales;
    s.format = format;
    return s;
}

/* Encodes float32 `values`, and decodes to them: tensors in C order on the CPU, of the shape of the data. Random bits
 * depend on `seed`, `step` (from 1) and the element. */
ADAPTK_API adaptk_status adaptk_quantize(const adaptk_tensor* values, const adaptk_stored* stored, uint64_t seed,
                                         int64_t step);
ADAPTK_API adaptk_status adaptk_dequantize(const adaptk_stored* stored, const adaptk_tensor* values);

/* ---- Steps ------------------------------------------------------------------------------------------------------ */

/* A hyperparameter by name. Those that are not given have their defaults. */
typedef struct adaptk_hyper {
    const char* name;
    double value;
} adaptk_hyper;

/* Initialise with ADAPTK_STEP_OPTIONS, which sets the size and the defaults.
 *
 * copy_out and ema are written in the same pass over memory, once a part of a param has been updated. Their buffers
 * must not overlap any other tensor. They have `count` tensors each, where NULL leaves a param out. The average is a +
 * w*(p - a) if w < 0.5, else p - (p - a)*(1 - w), where w is 1 - ema_decay.
 *
 * grad_norm: >= 0, inf or NaN is the norm of the unscaled gradients, from adaptk_accumulate() for the same tensors in
 * the same order, and they are not read for it.
 *
 * param_format is how params of 16 bits are stored: NULL, rounded to nearest; "sr", bfloat16 and float16 rounded
 * stochastically; bfloat16 with "remainder16", "remainder8" or "kahan", with a tensor beside each param that has its
 * shape and strides and keeps what rounding loses, from zero on: int16, int8 or bfloat16. With the first one a param
 * and its remainder are a float32, whose bits are (param << 16) + remainder. Other params are stored as they are. */
typedef struct adaptk_step_options {
    size_t size;
    double grad_scale;     /* factor of all gradients, times the hyperparameter of that name; finite */
    double clip_norm;      /* > 0: gradients whose norm is larger are scaled down to it; 0: no clipping */
    int skip_nonfinite;    /* change nothing if a gradient contains inf or NaN */
    int want_norm;         /* report the norm even if nothing above needs it */
    void* stream;          /* CUDA: the cudaStream_t to enqueue on; NULL is the default stream */
    int stochastic_params; /* the same as "sr" for param_format */
    const adaptk_tensor* const* copy_out;    /* get the new params, rounded, in any dtype of a state; NULL: none */
    const adaptk_tensor* const* ema;         /* averages of the params, in any dtype of a state; NULL: none */
    double ema_decay;                        /* in [0, 1] */
    double grad_norm;                        /* of the unscaled gradients, if it is known; < 0: it is not */
    int zero_grad;                           /* gradients are set to zero, also by a step that is skipped */
    const char* param_format;                /* how params of 16 bits are stored; NULL: rounded to nearest */
    const adaptk_tensor* const* param_sides; /* beside the params: `count` tensors, NULL where there is none */
} adaptk_step_options;
/* clang-format off */
#define ADAPTK_STEP_OPTIONS {sizeof(adaptk_step_options), 1.0, 0.0, 0, 0, NULL, 0, NULL, NULL, 0.0, -1.0, 0, NULL, NULL}
/* clang-format on */

/* Initialise with ADAPTK_STEP_REPORT. */
typedef struct adaptk_step_report {
    size_t size;
    double grad_norm; /* of all gradients, scaled and not yet clipped */
    int has_norm;     /* clip_norm, skip_nonfinite or want_norm was set */
    int skipped;      /* by skip_nonfinite */
} adaptk_step_report;
/* clang-format off */
#define ADAPTK_STEP_REPORT {sizeof(adaptk_step_report), 0.0, 0, 0}
/* clang-format on */

/* One update of `count` tensors by a rule; `step` is the step number, counted from 1.
 *   params, grads   `count` tensors each. Params are dense: a block of memory whose axes may have any order.
 *   states          `count` times the rule's states: those of params[0] in the rule's order, then those of params[1].
 *                   NULL for a rule without states. Grads and states have the shape and the strides of their param,
 *                   but for states that adaptk_rule_state_per() says otherwise of.
 *   options         NULL: none.
 *   report          NULL, or filled in; on CUDA that waits for the step.
 * All tensors must be on one device. Written memory (params, states) must not overlap any other tensor. */
ADAPTK_API adaptk_status adaptk_step(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step,
                                     size_t count, const adaptk_tensor* const* params,
                                     const adaptk_tensor* const* grads, const adaptk_tensor* const* states,
                                     const adaptk_step_options* options, adaptk_step_report* report);

/* The same with states in any format, each a pointer to an adaptk_stored. The random bits of formats that are rounded
 * stochastically depend on `seed`, `step`, the places of the tensor and the state in the lists, and the element: a run
 * can be repeated bit for bit, with any number of threads. */
ADAPTK_API adaptk_status adaptk_step_stored(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                            int64_t step, uint64_t seed, size_t count,
                                            const adaptk_tensor* const* params, const adaptk_tensor* const* grads,
                                            const adaptk_stored* const* states, const adaptk_step_options* options,
                                            adaptk_step_report* report);

/* A gradient that has values for some rows of a param alone; a row is what the param's first axis counts. Make it with
 * adaptk_make_rows(), which sets the size. Indices may be in any order. Values of one row are summed first: leaves of
 * 32 in their order, then the leaves. */
typedef struct adaptk_rows {
    size_t size;
    const adaptk_tensor* indices; /* int32 or int64, one axis; each in [0, rows of the param) */
    const adaptk_tensor* values;  /* in C order, a row for each index; in any dtype of a grad */
    int64_t* last_step;           /* ADAPTK_CATCH_UP: the last step that each row has taken, first 0; else NULL */
} adaptk_rows;

/* The tensors are not copied. */
static inline adaptk_rows adaptk_make_rows(const adaptk_tensor* indices, const adaptk_tensor* values) {
    adaptk_rows r;
    r.size = sizeof(adaptk_rows);
    r.indices = indices;
    r.values = values;
    r.last_step = NULL;
    return r;
}

/* What becomes of rows without values. */
typedef enum adaptk_sparse_mode {
    ADAPTK_LAZY = 0,    /* they stay as they are, and so do their states */
    ADAPTK_DENSE = 1,   /* what a gradient of 0 does, bit for bit */
    ADAPTK_CATCH_UP = 2 /* as ADAPTK_LAZY; but a row takes first the steps that it has missed, in a closed form */
} adaptk_sparse_mode;

/* adaptk_step_stored() with gradients of rows. Params are in C order. Values are where the param is; indices on the CPU
 * or there, from where they are read: the call waits for what the stream holds before it, which may not be captured in
 * a graph. On a device params and states of ADAPTK_CATCH_UP are float32 or float64; `last_step` is in memory of the
 * CPU. `states` may be NULL for a rule without states. `zero_grad` is not an option. ADAPTK_CATCH_UP is for rules that
 * have a closed form of steps with a gradient of 0, without coupled weight decay; it takes the hyperparameters of this
 * step for those that were missed. */
ADAPTK_API adaptk_status adaptk_step_rows(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                          int64_t step, uint64_t seed, size_t count, const adaptk_tensor* const* params,
                                          const adaptk_rows* const* grads, const adaptk_stored* const* states,
                                          adaptk_sparse_mode mode, const adaptk_step_options* options,
                                          adaptk_step_report* report);

/* The Euclidean norm of `grad_scale` times all gradients together; bitwise identical for any number of threads and any
 * division of the same data into tensors. On CUDA it waits for `stream`. */
ADAPTK_API adaptk_status adaptk_global_norm(size_t count, const adaptk_tensor* const* grads, double grad_scale,
                                            void* stream, double* norm);

/* into += scale * grads, in place; `norm`, unless it is NULL, gets the norm of `into` as it is then, with the bits that
 * adaptk_global_norm() and a step have. `into` is float32 or float64; grads have the shape and the strides of theirs.
 * On CUDA this waits for `stream` if there is a norm. */
ADAPTK_API adaptk_status adaptk_accumulate(size_t count, const adaptk_tensor* const* into,
                                           const adaptk_tensor* const* grads, double scale, void* stream, double* norm);

/* ---- Plans ------------------------------------------------------------------------------------------------------ */

/* Params and states that are checked once and updated many times, in groups that each have a rule and hyperparameters.
 * A plan keeps the addresses of their memory, which must stay valid, and copies of everything else. It counts the steps
 * of each param; a param without a gradient is not counted. */
typedef struct adaptk_plan adaptk_plan;

/* A plan with one group, number 0. */
ADAPTK_API adaptk_status adaptk_plan_create(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                            size_t count, const adaptk_tensor* const* params,
                                            const adaptk_tensor* const* states, adaptk_plan** plan);
/* Appends a group; its params follow the existing ones. */
ADAPTK_API adaptk_status adaptk_plan_add_group(adaptk_plan* plan, const char* rule, const adaptk_hyper* hypers,
                                               size_t hyper_count, size_t count, const adaptk_tensor* const* params,
                                               const adaptk_tensor* const* states);
/* The same with states in any format. A plan keeps the addresses of codes and scales. */
ADAPTK_API adaptk_status adaptk_plan_create_stored(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                                   size_t count, const adaptk_tensor* const* params,
                                                   const adaptk_stored* const* states, adaptk_plan** plan);
ADAPTK_API adaptk_status adaptk_plan_add_group_stored(adaptk_plan* plan, const char* rule, const adaptk_hyper* hypers,
                                                      size_t hyper_count, size_t count,
                                                      const adaptk_tensor* const* params,
                                                      const adaptk_stored* const* states);
/* NULL does nothing. A plan that is in use is not destroyed: ADAPTK_BUSY. If it is destroyed, the message of an earlier
 * call that failed stays. On CUDA, the streams of its steps need not exist any more. */
ADAPTK_API adaptk_status adaptk_plan_destroy(adaptk_plan* plan);

/* Fills the states with their initial values. CPU only; ADAPTK_UNSUPPORTED on CUDA. */
ADAPTK_API adaptk_status adaptk_plan_init_states(adaptk_plan* plan);

/* The number of params in all groups. */
ADAPTK_API adaptk_status adaptk_plan_size(const adaptk_plan* plan, size_t* size);

/* Sets hyperparameters of a group from the next step on: all that are given, or none on error. */
ADAPTK_API adaptk_status adaptk_plan_set_hypers(adaptk_plan* plan, size_t group, const adaptk_hyper* hypers,
                                                size_t hyper_count);
ADAPTK_API adaptk_status adaptk_plan_get_hyper(adaptk_plan* plan, size_t group, const char* name, double* value);

/* The seed of a group's stochastic rounding, 0 unless it is set. A step's random bits depend on it, the number of the
 * step, the place of the param in the plan, the state and the element: save it with the counts of steps. */
ADAPTK_API adaptk_status adaptk_plan_set_seed(adaptk_plan* plan, size_t group, uint64_t seed);
ADAPTK_API adaptk_status adaptk_plan_get_seed(adaptk_plan* plan, size_t group, uint64_t* seed);

/* One step of all params: `count`, the plan's size, gradients in the order of the params. A NULL gradient leaves its
 * param unchanged. On CUDA the step is enqueued asynchronously on options->stream. */
ADAPTK_API adaptk_status adaptk_plan_step(adaptk_plan* plan, size_t count, const adaptk_tensor* const* grads,
                                          const adaptk_step_options* options);
/* The outcome of the last step. On CUDA this waits for the step if it computed a norm. */
ADAPTK_API adaptk_status adaptk_plan_report(adaptk_plan* plan, adaptk_step_report* report);

/* The number of steps that each param has taken; save and restore them with the states to resume a run. On CUDA, after
 * a step with skip_nonfinite, getting them waits for the device. */
ADAPTK_API adaptk_status adaptk_plan_get_steps(adaptk_plan* plan, size_t count, int64_t* steps);
ADAPTK_API adaptk_status adaptk_plan_set_steps(adaptk_plan* plan, size_t count, const int64_t* steps);

#ifdef __cplusplus
}
#endif

#endif
