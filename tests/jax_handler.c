/* Calls a handler as XLA does: what tests of handlers for devices that this build of XLA does not have are made with.
 */
#include <xla/ffi/api/c_api.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    int32_t type;  /* XLA_FFI_AttrType */
    int32_t dtype; /* of arrays and scalars */
    const char* name;
    size_t size; /* elements, or characters */
    void* data;
} Attribute;

typedef struct {
    int32_t dtype;
    int32_t rank;
    void* data;
    int64_t* dims;
} Array;

struct XLA_FFI_Error {
    int code;
};

static char message[1024];
static struct XLA_FFI_Error error;
static void* current_stream;

static XLA_FFI_Error* create_error(XLA_FFI_Error_Create_Args* args) {
    snprintf(message, sizeof message, "%s", args->message);
    error.code = (int)args->errc;
    return &error;
}

static XLA_FFI_Error* get_stream(XLA_FFI_Stream_Get_Args* args) {
    args->stream = current_stream;
    return NULL;
}

static void** pointers_to(const Array* arrays, int64_t count) {
    void** const all = calloc((size_t)count + 1, sizeof(void*));
    XLA_FFI_Buffer* const buffers = calloc((size_t)count + 1, sizeof(XLA_FFI_Buffer));
    for (int64_t i = 0; i < count; ++i) {
        buffers[i] = (XLA_FFI_Buffer){XLA_FFI_Buffer_STRUCT_SIZE,
                                      NULL,
                                      (XLA_FFI_DataType)arrays[i].dtype,
                                      arrays[i].data,
                                      arrays[i].rank,
                                      arrays[i].dims};
        all[i] = &buffers[i];
    }
    all[count] = buffers;
    return all;
}

/* 0, or the code of the error, whose text is last_message() then. Attributes are in the order of their names. */
int call_handler(XLA_FFI_Handler* handler, void* stream, const Array* args, int64_t arg_count, const Array* rets,
                 int64_t ret_count, const Attribute* given, int64_t attr_count) {
    XLA_FFI_Api api = {.struct_size = XLA_FFI_Api_STRUCT_SIZE};
    api.api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
    api.api_version.major_version = XLA_FFI_API_MAJOR;
    api.api_version.minor_version = XLA_FFI_API_MINOR;
    api.XLA_FFI_Error_Create = create_error;
    api.XLA_FFI_Stream_Get = get_stream;
    current_stream = stream;

    const size_t n = (size_t)attr_count + 1;
    XLA_FFI_AttrType* const types = calloc(n, sizeof *types);
    XLA_FFI_ByteSpan* const texts = calloc(2 * n, sizeof *texts);
    XLA_FFI_Scalar* const scalars = calloc(n, sizeof *scalars);
    XLA_FFI_Array* const arrays = calloc(n, sizeof *arrays);
    XLA_FFI_ByteSpan** const names = calloc(n, sizeof *names);
    void** const attrs = calloc(n, sizeof *attrs);
    for (int64_t i = 0; i < attr_count; ++i) {
        const Attribute a = given[i];
        types[i] = (XLA_FFI_AttrType)a.type;
        texts[i].ptr = a.name;
        for (texts[i].len = 0; a.name[texts[i].len] != '\0'; ++texts[i].len) {
        }
        names[i] = &texts[i];
        scalars[i] = (XLA_FFI_Scalar){(XLA_FFI_DataType)a.dtype, a.data};
        arrays[i] = (XLA_FFI_Array){(XLA_FFI_DataType)a.dtype, a.size, a.data};
        texts[n + (size_t)i] = (XLA_FFI_ByteSpan){a.data, a.size};
        attrs[i] = types[i] == XLA_FFI_AttrType_SCALAR  ? (void*)&scalars[i]
                   : types[i] == XLA_FFI_AttrType_ARRAY ? (void*)&arrays[i]
                                                        : (void*)&texts[n + (size_t)i];
    }
    XLA_FFI_ArgType* const arg_types = calloc((size_t)arg_count + 1, sizeof *arg_types);
    XLA_FFI_RetType* const ret_types = calloc((size_t)ret_count + 1, sizeof *ret_types);
    for (int64_t i = 0; i < arg_count; ++i) arg_types[i] = XLA_FFI_ArgType_BUFFER;
    for (int64_t i = 0; i < ret_count; ++i) ret_types[i] = XLA_FFI_RetType_BUFFER;

    XLA_FFI_CallFrame frame = {.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE};
    frame.api = &api;
    frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
    frame.args = (XLA_FFI_Args){XLA_FFI_Args_STRUCT_SIZE, NULL, arg_count, arg_types, pointers_to(args, arg_count)};
    frame.rets = (XLA_FFI_Rets){XLA_FFI_Rets_STRUCT_SIZE, NULL, ret_count, ret_types, pointers_to(rets, ret_count)};
    frame.attrs = (XLA_FFI_Attrs){XLA_FFI_Attrs_STRUCT_SIZE, NULL, attr_count, types, names, attrs};
    error.code = 0;
    const XLA_FFI_Error* const outcome = handler(&frame);

    free(frame.args.args[arg_count]);
    free(frame.args.args);
    free(frame.rets.rets[ret_count]);
    free(frame.rets.rets);
    free(arg_types);
    free(ret_types);
    free(types);
    free(texts);
    free(scalars);
    free(arrays);
    free(names);
    free(attrs);
    return outcome == NULL ? 0 : error.code;
}

const char* last_message(void) { return message; }
