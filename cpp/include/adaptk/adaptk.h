/* adaptk in C: fused update kernels of adaptive optimizers.
 *
 * Every rule is one pass over memory, for any number of tensors at once. Results are bitwise identical for every
 * instruction set and number of threads, and on CUDA, except for the sign and the payload of a NaN. Tensors are
 * described by DLPack's DLTensor; no memory is copied, no pointer is kept unless the function says so, and nothing is
 * printed. Functions that can fail return a status, and adaptk_last_error() returns a message that names the argument.
 * A call that fails modifies nothing.
 *
 *     const adaptk_hyper hyper[] = {{"lr", 1e-3}, {"weight_decay", 1e-2}};
 *     adaptk_plan* plan = NULL;
 *     if (adaptk_plan_create("adamw", hyper, 2, count, params, states, &plan) != ADAPTK_OK) puts(adaptk_last_error());
 *     adaptk_plan_init_states(plan);
 *     for (...) adaptk_plan_step(plan, count, grads, NULL);
 *     adaptk_plan_destroy(plan);
 *
 * All functions may be called from several threads. A plan can be used by one call at a time: a second call returns
 * ADAPTK_BUSY. Returned strings and structs belong to the library and stay valid, except the string of
 * adaptk_last_error(). */
#ifndef ADAPTK_ADAPTK_H
#define ADAPTK_ADAPTK_H

#include <stddef.h>
#include <stdint.h>

#define ADAPTK_VERSION "0.2.0"
#define ADAPTK_VERSION_MAJOR 0
#define ADAPTK_VERSION_MINOR 2
#define ADAPTK_VERSION_PATCH 0
/* Increases when programs must be recompiled; it is part of the shared library's name. Without an increase, functions
 * are only added, and structs only grow at their ends. Structs that programs fill in begin with their size. */
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
 * that both headers can be included in either order; in that case, cast a DLTensor*. */
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

/* The accepted device types of DLPack. */
enum {
    ADAPTK_CPU = 1,
    ADAPTK_CUDA = 2,
    ADAPTK_CUDA_HOST = 3,    /* pinned memory: updated by the CPU */
    ADAPTK_ROCM_HOST = 11,   /* the same */
    ADAPTK_CUDA_MANAGED = 13 /* updated by the device */
};

/* Element types. Params and grads may have any float type, and a grad may have another type than its param. States of a
 * float64 param are float64. All other states are float32, bfloat16 or float16, and their steps compute in float32.
 * Integers are the codes of states with a storage format (adaptk_stored). */
typedef enum adaptk_type {
    ADAPTK_FLOAT32 = 0,
    ADAPTK_FLOAT64 = 1,
    ADAPTK_BFLOAT16 = 2,
    ADAPTK_FLOAT16 = 3,
    ADAPTK_INT8 = 4,
    ADAPTK_UINT8 = 5,
    ADAPTK_INT16 = 6,
    ADAPTK_INT32 = 7, /* only indices, like the next one */
    ADAPTK_INT64 = 8,
    ADAPTK_FLOAT8_E4M3FN = 9, /* only params and grads, like the next one */
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
 * If they are invalid, this function returns an error, and all others use the defaults. */
ADAPTK_API adaptk_status adaptk_initialize(void);

/* The number of threads for a large step, in [1, 1024]. Initially OpenMP's default, or the number of cores if the
 * library uses its own threads. A child of fork() uses one thread. Results do not depend on the number. */
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

/* Whether tensors on CUDA devices can be updated: needs the CUDA library next to this one, a driver and a device. */
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
    double initial;           /* the initial value if initial_from is NULL */
    const char* initial_from; /* NULL, or the hyperparameter whose value is the initial value */
} adaptk_state_info;

/* A default of another system (torch, keras, tf1, optax) that differs from the defaults above. `name` is a
 * hyperparameter, or a state for its initial value. An empty name means that the system has the rule with the defaults
 * above. */
typedef struct adaptk_preset {
    const char* convention;
    const char* name;
    double value;
} adaptk_preset;

/* NULL if `index` is out of range or there is no rule with this name; adaptk_last_error() says which. */
ADAPTK_API size_t adaptk_rule_count(void);
ADAPTK_API const adaptk_rule* adaptk_rule_at(size_t index);
ADAPTK_API const adaptk_rule* adaptk_find_rule(const char* name);
/* Loads a rule that was made by adaptk.rule in Python, from the bytes that its to_bytes() returned. The bytes are
 * checked, and contain no machine code. Pass the `name` of the result to functions that take a rule: it is the rule's
 * own name with a number, such as "my_adam@0". The rule stays valid as long as the library is loaded; the same bytes
 * give the same rule. On a CUDA device it needs NVRTC. */
ADAPTK_API const adaptk_rule* adaptk_rule_load(const void* bytes, size_t size);
ADAPTK_API const adaptk_hyper_info* adaptk_rule_hyper(const adaptk_rule* rule, size_t index);
ADAPTK_API const adaptk_state_info* adaptk_rule_state(const adaptk_rule* rule, size_t index);
/* What a state has one number for. The comments give the shape of its tensor, which is in C order, for a param of shape
 * (a, ..., m, n). For ADAPTK_PER_ROW and ADAPTK_PER_COLUMN, a vector of n numbers counts as one row, so its states have
 * the shapes (1,) and (n,); the states of a param without axes have no axes. If a rule has a state that is not per
 * element, its params must be in C order, and this state has the type that the step computes in. */
typedef enum adaptk_per {
    ADAPTK_PER_ELEMENT = 0, /* the param's shape */
    ADAPTK_PER_TENSOR = 1,  /* no axes */
    ADAPTK_PER_ROW = 2,     /* (a, ..., m, 1) */
    ADAPTK_PER_COLUMN = 3,  /* (a, ..., 1, n) */
    ADAPTK_PER_SLICE = 4    /* (a,): one for each index of the first axis */
} adaptk_per;
/* If there is no such state, returns ADAPTK_PER_ELEMENT and sets adaptk_last_error(). adaptk_rule_at() does not list
 * the rules with a number for each slice ("rowwise_adagrad", "rowwise_adam"). */
ADAPTK_API adaptk_per adaptk_rule_state_per(const adaptk_rule* rule, size_t index);
/* 1 if adaptk_rule_state_per() returns ADAPTK_PER_SLICE. */
ADAPTK_API int adaptk_rule_state_per_row(const adaptk_rule* rule, size_t index);
ADAPTK_API size_t adaptk_rule_preset_count(const adaptk_rule* rule);
ADAPTK_API const adaptk_preset* adaptk_rule_preset(const adaptk_rule* rule, size_t index);

/* ---- Storage formats of states ---------------------------------------------------------------------------------- */

/* How a state, or a param, is stored between steps. A step decodes it, computes in float32 (float64 for a float64
 * param) and encodes it, in one pass over memory. */
typedef struct adaptk_format {
    const char* name;   /* "uint8" */
    adaptk_dtype dtype; /* of the elements */
    size_t bytes;       /* of an element */
    size_t block;       /* consecutive elements that share a float32 scale; 1: there are no scales */
    int stochastic;     /* rounding needs random bits, and so a seed */
    size_t packed;      /* elements in each stored unit of `bytes`: 2 for 4-bit formats, else 1 */
} adaptk_format;

/* float32, float64, bfloat16, float16; bfloat16_sr, rounded stochastically; int8; uint8, for states that are never
 * negative; uint8_nearest, the same rounded to nearest; fp8_e4m3; dynamic_signed; dynamic_unsigned, for states that are
 * never negative; float16_sr; only for params: bfloat16_remainder16, bfloat16_remainder8 and bfloat16_kahan (see
 * adaptk_step_options); 4bit_signed; 4bit_unsigned, for states that are never negative. NULL if `index` is out of range
 * or there is no such name. */
ADAPTK_API size_t adaptk_format_count(void);
ADAPTK_API const adaptk_format* adaptk_format_at(size_t index);
ADAPTK_API const adaptk_format* adaptk_find_format(const char* name);

/* The format that `name` stands for if it is used for this state of the rule: "8bit" is uint8 if the state is never
 * negative, else int8; "8bit_nearest" is uint8_nearest or int8, "8bit_dynamic" dynamic_unsigned or dynamic_signed,
 * "4bit" 4bit_unsigned or 4bit_signed. Any other name must be the name of a format. NULL on error. */
ADAPTK_API const adaptk_format* adaptk_state_format(const adaptk_rule* rule, size_t state, const char* name);

/* The number of scales for this number of elements; 0 if the format has none. */
ADAPTK_API size_t adaptk_scale_count(const adaptk_format* format, size_t elements);

/* A state in any format, or a param of a format that needs a second tensor, which is then `scales`. Make it with
 * adaptk_make_stored(), which sets the size. */
typedef struct adaptk_stored {
    size_t size;
    const adaptk_tensor* data;   /* the elements, with shape and strides of the param; 1-D if packed */
    const adaptk_tensor* scales; /* float32, 1-D, adaptk_scale_count() elements; NULL: no scales */
    const char* format;          /* its name; NULL: the format with the name of the dtype */
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

/* Encodes float32 `values`, and decodes to float32 `values`. All tensors are on the CPU in C order, and `values` has
 * the shape of the data. Random bits depend on `seed`, `step` (from 1) and the element. */
ADAPTK_API adaptk_status adaptk_quantize(const adaptk_tensor* values, const adaptk_stored* stored, uint64_t seed,
                                         int64_t step);
ADAPTK_API adaptk_status adaptk_dequantize(const adaptk_stored* stored, const adaptk_tensor* values);

/* ---- Steps ------------------------------------------------------------------------------------------------------ */

/* A hyperparameter by name. Hyperparameters that are not given have their defaults. */
typedef struct adaptk_hyper {
    const char* name;
    double value;
} adaptk_hyper;

/* Initialise with ADAPTK_STEP_OPTIONS, which sets the size and the defaults.
 *
 * copy_out and ema are arrays of `count` tensors each; NULL leaves a param out. They are written in the same pass over
 * memory as the params, and must not overlap any other tensor. With w = 1 - ema_decay, the average a of a param p
 * becomes a + w*(p - a) if w < 0.5, else p - (p - a)*(1 - w).
 *
 * grad_norm: if it is >= 0, inf or NaN, it is the norm of the unscaled gradients, and the step does not read them to
 * compute it. It must be the result of adaptk_accumulate() for the same tensors in the same order.
 *
 * param_format is how params of 16 bits are stored. NULL: rounded to nearest. "sr": bfloat16 and float16, rounded
 * stochastically. "remainder16", "remainder8" and "kahan": bfloat16, with a second tensor for each param in
 * param_sides, of type int16, int8 and bfloat16, which keeps what rounding loses. It has the shape and the strides of
 * the param and is initially zero. With "remainder16", a param and its remainder together are a float32, whose bits are
 * (param << 16) + remainder. Other params are stored as they are. */
typedef struct adaptk_step_options {
    size_t size;
    double grad_scale;     /* multiplies all gradients, like the hyperparameter of that name; finite */
    double clip_norm;      /* > 0: gradients whose norm is larger are scaled down to it; 0: no clipping */
    int skip_nonfinite;    /* change nothing if a gradient contains inf or NaN */
    int want_norm;         /* report the norm even if nothing above needs it */
    void* stream;          /* CUDA: the cudaStream_t to enqueue on; NULL is the default stream */
    int stochastic_params; /* the same as "sr" for param_format */
    const adaptk_tensor* const* copy_out;    /* receive the new params, rounded, in any dtype of a state; NULL: none */
    const adaptk_tensor* const* ema;         /* averages of the params, in any dtype of a state; NULL: none */
    double ema_decay;                        /* in [0, 1] */
    double grad_norm;                        /* of the unscaled gradients; < 0: not known */
    int zero_grad;                           /* set gradients to zero, even if the step is skipped */
    const char* param_format;                /* how params of 16 bits are stored; NULL: rounded to nearest */
    const adaptk_tensor* const* param_sides; /* second tensors of the params: `count`, NULL for a param without */
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
 *   states          all states of params[0] in the rule's order, then those of params[1], and so on. NULL for a rule
 *                   without states. Grads and states have the shape and the strides of their param, except states
 *                   that are not per element (adaptk_rule_state_per()).
 *   options         NULL: the defaults.
 *   report          filled in unless it is NULL; on CUDA that waits for the step.
 * All tensors must be on one device. Written memory (params, states) must not overlap any other tensor. */
ADAPTK_API adaptk_status adaptk_step(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step,
                                     size_t count, const adaptk_tensor* const* params,
                                     const adaptk_tensor* const* grads, const adaptk_tensor* const* states,
                                     const adaptk_step_options* options, adaptk_step_report* report);

/* The same with states in any format, each a pointer to an adaptk_stored. The random bits of stochastic rounding depend
 * on `seed`, `step`, the positions of the tensor and the state in the lists, and the element. So a run can be repeated
 * bit for bit, with any number of threads. */
ADAPTK_API adaptk_status adaptk_step_stored(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                            int64_t step, uint64_t seed, size_t count,
                                            const adaptk_tensor* const* params, const adaptk_tensor* const* grads,
                                            const adaptk_stored* const* states, const adaptk_step_options* options,
                                            adaptk_step_report* report);

/* A gradient with values for only some rows of a param; a row is one index of the param's first axis. Make it with
 * adaptk_make_rows(), which sets the size. Indices may be in any order. Values for the same row are summed first: in
 * groups of 32 in their order, then the sums of the groups. */
typedef struct adaptk_rows {
    size_t size;
    const adaptk_tensor* indices; /* int32 or int64, one axis; each in [0, rows of the param) */
    const adaptk_tensor* values;  /* in C order, a row for each index; in any dtype of a grad */
    int64_t* last_step;           /* ADAPTK_CATCH_UP: the last step of each row, initially 0; else NULL */
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

/* The treatment of rows without values. */
typedef enum adaptk_sparse_mode {
    ADAPTK_LAZY = 0,    /* they and their states do not change */
    ADAPTK_DENSE = 1,   /* the same as a gradient of 0, bit for bit */
    ADAPTK_CATCH_UP = 2 /* like ADAPTK_LAZY, but a row first applies its missed steps, in closed form */
} adaptk_sparse_mode;

/* adaptk_step_stored() with sparse gradients: each has values for some rows of its param. Params must be in C order,
 * and values on the device of the param. `states` may be NULL for a rule without states. The option `zero_grad` is not
 * supported.
 *
 * Indices may be on the CPU or on the device of the param. If they are on the device, the call synchronizes with the
 * stream to read them, so the stream must not be under capture.
 *
 * ADAPTK_CATCH_UP requires a rule with a closed form for steps with zero gradients, and no coupled weight decay. It
 * applies the hyperparameters of this step to the missed steps too. On a device, its params and states must be float32
 * or float64. `last_step` is always in CPU memory. */
ADAPTK_API adaptk_status adaptk_step_rows(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                          int64_t step, uint64_t seed, size_t count, const adaptk_tensor* const* params,
                                          const adaptk_rows* const* grads, const adaptk_stored* const* states,
                                          adaptk_sparse_mode mode, const adaptk_step_options* options,
                                          adaptk_step_report* report);

/* The Euclidean norm of `grad_scale` times all gradients together; bitwise identical for any number of threads and any
 * division of the same data into tensors. On CUDA it waits for `stream`. */
ADAPTK_API adaptk_status adaptk_global_norm(size_t count, const adaptk_tensor* const* grads, double grad_scale,
                                            void* stream, double* norm);

/* into += scale * grads, in place. Unless it is NULL, `norm` receives the norm of the new `into`, bitwise identical to
 * that of adaptk_global_norm() and of a step. `into` is float32 or float64; each grad has the shape and the strides of
 * its tensor in `into`. On CUDA this waits for `stream` if `norm` is not NULL. */
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
/* Destroys a plan; NULL does nothing. A plan that is in use is not destroyed, and ADAPTK_BUSY is returned. Success
 * keeps the error message of an earlier call. On CUDA, the streams of its steps need not exist any more. */
ADAPTK_API adaptk_status adaptk_plan_destroy(adaptk_plan* plan);

/* Fills the states with their initial values. CPU only; ADAPTK_UNSUPPORTED on CUDA. */
ADAPTK_API adaptk_status adaptk_plan_init_states(adaptk_plan* plan);

/* The number of params in all groups. */
ADAPTK_API adaptk_status adaptk_plan_size(const adaptk_plan* plan, size_t* size);

/* Sets hyperparameters of a group from the next step on: all that are given, or none on error. */
ADAPTK_API adaptk_status adaptk_plan_set_hypers(adaptk_plan* plan, size_t group, const adaptk_hyper* hypers,
                                                size_t hyper_count);
ADAPTK_API adaptk_status adaptk_plan_get_hyper(adaptk_plan* plan, size_t group, const char* name, double* value);

/* The seed of a group's stochastic rounding, initially 0. The random bits of a step depend on the seed, the step
 * number, the position of the param in the plan, the state and the element. Save the seed with the step counts. */
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
