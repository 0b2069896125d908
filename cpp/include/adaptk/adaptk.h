/* adaptk in C: fused update kernels of adaptive optimizers.
 *
 * Every rule in one pass over memory, for any number of tensors at once, with the same bits from every instruction set,
 * any number of threads and CUDA. Tensors are given as DLPack's DLTensor; no memory is copied or kept, and nothing is
 * printed. Functions that can fail return a status, and adaptk_last_error() has a sentence that names the argument. A
 * call that fails has written nothing.
 *
 *     const adaptk_hyper hyper[] = {{"lr", 1e-3}, {"weight_decay", 1e-2}};
 *     adaptk_plan* plan = NULL;
 *     if (adaptk_plan_create("adamw", hyper, 2, count, params, states, &plan) != ADAPTK_OK) puts(adaptk_last_error());
 *     adaptk_plan_init_states(plan);
 *     for (...) adaptk_plan_step(plan, count, grads, NULL);
 *     adaptk_plan_destroy(plan);
 *
 * All functions may be called from several threads. A plan belongs to one call at a time: a second one gets
 * ADAPTK_BUSY. Strings and descriptions that functions return belong to the library and stay, but for
 * adaptk_last_error()'s. */
#ifndef ADAPTK_ADAPTK_H
#define ADAPTK_ADAPTK_H

#include <stddef.h>
#include <stdint.h>

#define ADAPTK_VERSION "0.2.0"
#define ADAPTK_VERSION_MAJOR 0
#define ADAPTK_VERSION_MINOR 1
#define ADAPTK_VERSION_PATCH 0
/* Goes up when programs have to be compiled anew. It is in the name of the shared library. Until then functions are
 * added, and structs grow at their ends only: those that programs fill in begin with their size. */
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

/* DLPack's types where <dlpack/dlpack.h> was included before this header. Else the same structs by names of our own,
 * so that both headers can be included in either order; a DLTensor* is then passed by a cast. */
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
    uint8_t code; /* 2: float, 4: bfloat */
    uint8_t bits;
    uint16_t lanes; /* 1 */
} adaptk_dtype;

typedef struct adaptk_tensor {
    void* data;
    adaptk_device device;
    int32_t ndim;
    adaptk_dtype dtype;
    int64_t* shape;       /* ndim extents; NULL where ndim is 0 */
    int64_t* strides;     /* in elements; NULL: C order */
    uint64_t byte_offset; /* of the first element from `data` */
} adaptk_tensor;
#endif

/* DLPack's numbers of the devices whose memory is accepted. */
enum {
    ADAPTK_CPU = 1,
    ADAPTK_CUDA = 2,
    ADAPTK_CUDA_HOST = 3,    /* pinned memory: updated by the CPU */
    ADAPTK_ROCM_HOST = 11,   /* the same */
    ADAPTK_CUDA_MANAGED = 13 /* updated by the device */
};

/* The types of elements. Params and grads: any of them; a grad has the type of its param or one of lower precision.
 * States: float32, and float64 beside a float64 param. */
typedef enum adaptk_type {
    ADAPTK_FLOAT32 = 0,
    ADAPTK_FLOAT64 = 1,
    ADAPTK_BFLOAT16 = 2,
    ADAPTK_FLOAT16 = 3
} adaptk_type;

/* A tensor in C order in the CPU's memory: for CUDA set its `device`. The shape is not copied. */
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
    t.dtype.code = type == ADAPTK_BFLOAT16 ? 4 : 2;
    t.dtype.bits = type == ADAPTK_FLOAT32 ? 32 : type == ADAPTK_FLOAT64 ? 64 : 16;
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
    ADAPTK_INVALID_TYPE = 2,     /* a tensor of a type that is not accepted there */
    ADAPTK_UNKNOWN_NAME = 3,     /* of a rule, a hyperparameter or an instruction set */
    ADAPTK_BUSY = 4,             /* the plan is being used by another call */
    ADAPTK_UNSUPPORTED = 5,      /* by this build or this machine: CUDA, an instruction set, several threads */
    ADAPTK_OUT_OF_MEMORY = 6,
    ADAPTK_CUDA_ERROR = 7, /* a call of the CUDA runtime failed */
    ADAPTK_INTERNAL_ERROR = 8
} adaptk_status;

/* What was wrong in the calling thread's last call that can fail; "" after one that worked. It stays until that
 * thread's next call. */
ADAPTK_API const char* adaptk_last_error(void);

/* "ADAPTK_INVALID_ARGUMENT" */
ADAPTK_API const char* adaptk_status_name(adaptk_status status);

/* ---- The library and the machine -------------------------------------------------------------------------------- */

/* Those of the library that runs, where the macros are those of the header that a program was compiled with. */
ADAPTK_API const char* adaptk_version(void);
ADAPTK_API int adaptk_abi_version(void);

/* The environment variables ADAPTK_ISA and ADAPTK_NUM_THREADS are looked at once, by the first call of any function
 * that they matter to. This one says whether they could be followed; all others go on with the defaults. */
ADAPTK_API adaptk_status adaptk_initialize(void);

/* Threads that a large step runs on, in [1, 1024]. At first: what OpenMP would use, or the processors where the library
 * has threads of its own. A child of fork() has one. The results do not depend on it. */
ADAPTK_API int adaptk_get_num_threads(void);
ADAPTK_API adaptk_status adaptk_set_num_threads(int threads);

/* The instruction sets that this machine and this build have, slowest first: "portable", "x86-64-v2", ...; at first
 * the last one runs. The results do not depend on it. NULL where `index` is not below the count. */
ADAPTK_API size_t adaptk_isa_count(void);
ADAPTK_API const char* adaptk_isa_at(size_t index);
ADAPTK_API const char* adaptk_get_isa(void);
ADAPTK_API adaptk_status adaptk_set_isa(const char* name);

/* The date of the OpenMP specification that the library was built for (201511), or 0: it has threads of its own. */
ADAPTK_API int adaptk_openmp(void);

/* Whether tensors on CUDA devices can be updated: the library beside this one, a driver and a device. */
ADAPTK_API int adaptk_cuda_available(void);
/* The number of devices; ADAPTK_UNSUPPORTED, with the reason, where this build has no CUDA kernels. */
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
    double initial;           /* what its elements start as, ... */
    const char* initial_from; /* ... unless this is not NULL: then as the hyperparameter of this name */
} adaptk_state_info;

/* What another system (torch, keras, tf1, optax) has where the default differs: a hyperparameter, or a state and then
 * what it starts as. An empty name says that the system has the rule with the values above. */
typedef struct adaptk_preset {
    const char* convention;
    const char* name;
    double value;
} adaptk_preset;

/* NULL where `index` is not below the count or there is no rule of this name; adaptk_last_error() says so. */
ADAPTK_API size_t adaptk_rule_count(void);
ADAPTK_API const adaptk_rule* adaptk_rule_at(size_t index);
ADAPTK_API const adaptk_rule* adaptk_find_rule(const char* name);
ADAPTK_API const adaptk_hyper_info* adaptk_rule_hyper(const adaptk_rule* rule, size_t index);
ADAPTK_API const adaptk_state_info* adaptk_rule_state(const adaptk_rule* rule, size_t index);
ADAPTK_API size_t adaptk_rule_preset_count(const adaptk_rule* rule);
ADAPTK_API const adaptk_preset* adaptk_rule_preset(const adaptk_rule* rule, size_t index);

/* ---- Steps ------------------------------------------------------------------------------------------------------ */

/* A hyperparameter by its name. Those that are not given have their defaults. */
typedef struct adaptk_hyper {
    const char* name;
    double value;
} adaptk_hyper;

/* Start from ADAPTK_STEP_OPTIONS, which has the size that this header knows and no effect otherwise. */
typedef struct adaptk_step_options {
    size_t size;
    double grad_scale;  /* factor of all gradients, beside the hyperparameter of that name; finite */
    double clip_norm;   /* > 0: gradients whose norm is larger are scaled down to it; 0: no clipping */
    int skip_nonfinite; /* nothing is changed where a gradient holds inf or NaN */
    int want_norm;      /* report the norm even where nothing above needs it */
    void* stream;       /* CUDA: the cudaStream_t that the work is put on; NULL is the default stream */
} adaptk_step_options;
/* clang-format off */
#define ADAPTK_STEP_OPTIONS {sizeof(adaptk_step_options), 1.0, 0.0, 0, 0, NULL}
/* clang-format on */

/* Start from ADAPTK_STEP_REPORT, as above. */
typedef struct adaptk_step_report {
    size_t size;
    double grad_norm; /* of all gradients, scaled and not yet clipped */
    int has_norm;     /* clip_norm, skip_nonfinite or want_norm was set */
    int skipped;      /* by skip_nonfinite */
} adaptk_step_report;
/* clang-format off */
#define ADAPTK_STEP_REPORT {sizeof(adaptk_step_report), 0.0, 0, 0}
/* clang-format on */

/* One update of `count` tensors by a rule, as its step number `step`, counted from 1.
 *   params, grads   `count` tensors each. Params are dense: a block of memory whose axes may have any order.
 *   states          `count` times the rule's states: those of params[0] in the rule's order, then those of params[1].
 *                   NULL for a rule without states. Grads and states have the shape and the strides of their param.
 *   options         NULL: none.
 *   report          NULL, or filled in; on CUDA that waits for the step.
 * All tensors are on one device. What is written (params, states) overlaps nothing else. */
ADAPTK_API adaptk_status adaptk_step(const char* rule, const adaptk_hyper* hypers, size_t hyper_count, int64_t step,
                                     size_t count, const adaptk_tensor* const* params,
                                     const adaptk_tensor* const* grads, const adaptk_tensor* const* states,
                                     const adaptk_step_options* options, adaptk_step_report* report);

/* The Euclidean norm of `grad_scale` times all gradients together, the same bits for any number of threads and for the
 * same data cut into tensors in any way. On CUDA it waits for `stream`. */
ADAPTK_API adaptk_status adaptk_global_norm(size_t count, const adaptk_tensor* const* grads, double grad_scale,
                                            void* stream, double* norm);

/* ---- Plans ------------------------------------------------------------------------------------------------------ */

/* Params and states that are checked once and updated many times, in groups that have a rule and hyperparameters each.
 * A plan keeps the addresses of their memory, which has to stay where it is, and copies of everything else. It counts
 * the steps of each param: one that got no gradient is not counted on. */
typedef struct adaptk_plan adaptk_plan;

/* A plan with one group, number 0. */
ADAPTK_API adaptk_status adaptk_plan_create(const char* rule, const adaptk_hyper* hypers, size_t hyper_count,
                                            size_t count, const adaptk_tensor* const* params,
                                            const adaptk_tensor* const* states, adaptk_plan** plan);
/* One more group, numbered on; its params come behind those that are there. */
ADAPTK_API adaptk_status adaptk_plan_add_group(adaptk_plan* plan, const char* rule, const adaptk_hyper* hypers,
                                               size_t hyper_count, size_t count, const adaptk_tensor* const* params,
                                               const adaptk_tensor* const* states);
/* NULL does nothing. A plan that is in use is not destroyed: ADAPTK_BUSY. On CUDA the stream of the last step is there
 * still. */
ADAPTK_API adaptk_status adaptk_plan_destroy(adaptk_plan* plan);

/* Fills the states with what they start as. The CPU only: on CUDA ADAPTK_UNSUPPORTED. */
ADAPTK_API adaptk_status adaptk_plan_init_states(adaptk_plan* plan);

/* Params in all groups. */
ADAPTK_API adaptk_status adaptk_plan_size(const adaptk_plan* plan, size_t* size);

/* Hyperparameters of a group from the next step on: all that are given, or none. */
ADAPTK_API adaptk_status adaptk_plan_set_hypers(adaptk_plan* plan, size_t group, const adaptk_hyper* hypers,
                                                size_t hyper_count);
ADAPTK_API adaptk_status adaptk_plan_get_hyper(adaptk_plan* plan, size_t group, const char* name, double* value);

/* One step of all params: `count`, the plan's size, gradients in the order of the params. A NULL among them leaves its
 * param as it is. On CUDA the work is put on options->stream, and nothing waits for it. */
ADAPTK_API adaptk_status adaptk_plan_step(adaptk_plan* plan, size_t count, const adaptk_tensor* const* grads,
                                          const adaptk_step_options* options);
/* The outcome of the last step. On CUDA this waits for it where it had a norm. */
ADAPTK_API adaptk_status adaptk_plan_report(adaptk_plan* plan, adaptk_step_report* report);

/* The number of steps that each param has taken: saved and put back with the states, they continue a run. On CUDA,
 * after a step with skip_nonfinite, getting them waits for the device. */
ADAPTK_API adaptk_status adaptk_plan_get_steps(adaptk_plan* plan, size_t count, int64_t* steps);
ADAPTK_API adaptk_status adaptk_plan_set_steps(adaptk_plan* plan, size_t count, const int64_t* steps);

#ifdef __cplusplus
}
#endif

#endif
