/* A substitute for onnxruntime's C header, for tests on machines without it: the few functions that examples/cpp/classify.cpp
   calls, and nothing else. Wheels of onnxruntime hold the library but no header.

   onnxruntime's C API is a table of functions that only grows at its end, and its first 102 entries are version 1
   (https://onnxruntime.ai/docs/api/c/struct_ort_api.html). The numbers below are places in this table. */
#ifndef ONNXRUNTIME_SUBSET
#define ONNXRUNTIME_SUBSET

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 1

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtValue OrtValue;
typedef enum { ORT_LOGGING_LEVEL_ERROR = 3 } OrtLoggingLevel;
typedef enum { OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1 } ONNXTensorElementDataType;

typedef struct OrtApi {
    void *before_error_message[2];
    const char *(*GetErrorMessage)(const OrtStatus *status); /* 2 */
    OrtStatus *(*CreateEnv)(OrtLoggingLevel level, const char *name, OrtEnv **env); /* 3 */
    void *before_telemetry[2];
    OrtStatus *(*DisableTelemetryEvents)(const OrtEnv *env); /* 6 */
    void *before_session[1];
    OrtStatus *(*CreateSessionFromArray)(const OrtEnv *env, const void *graph, size_t bytes,
                                         const OrtSessionOptions *options, OrtSession **session); /* 8 */
    OrtStatus *(*Run)(OrtSession *session, const OrtRunOptions *options, const char *const *input_names,
                      const OrtValue *const *inputs, size_t input_count, const char *const *output_names,
                      size_t output_count, OrtValue **outputs); /* 9 */
    OrtStatus *(*CreateSessionOptions)(OrtSessionOptions **options); /* 10 */
    void *before_tensor[38];
    OrtStatus *(*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo *memory, void *data, size_t bytes,
                                                 const int64_t *shape, size_t axes, ONNXTensorElementDataType type,
                                                 OrtValue **value); /* 49 */
    void *before_memory[19];
    OrtStatus *(*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo **memory); /* 69 */
} OrtApi;

typedef struct OrtApiBase {
    const OrtApi *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} OrtApiBase;

#ifdef __cplusplus
extern "C"
#endif
const OrtApiBase *OrtGetApiBase(void);

#endif
