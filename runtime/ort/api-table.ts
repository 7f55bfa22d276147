/**
 * The functions of OrtApi that we call: position in the table and C signature. The order of the table never changes
 * (onnxruntime_c_api.h appends), so a position is as good as a symbol. Pure data; must not load anything.
 */

/** Version of the table that is asked for; every function below is older. */
export const ortApiVersion = 22;

/** The release of the library that the package pins; a test compares it with what the library says. */
export const ortVersion = '1.30.0';

/**
 * `[position, result, arguments]`. `status` is an OrtStatus pointer, null for success; `pointer` is a void pointer:
 * a bigint address, or a typed array whose memory it points to.
 */
export const ortFunctions = {
  CreateStatus: [0, 'pointer', ['int', 'string']],
  GetErrorMessage: [2, 'string', ['pointer']],
  CreateEnv: [3, 'status', ['int', 'string', 'pointer']],
  CreateSession: [7, 'status', ['pointer', 'path', 'pointer', 'pointer']],
  CreateSessionFromArray: [8, 'status', ['pointer', 'pointer', 'size', 'pointer', 'pointer']],
  Run: [9, 'status', ['pointer', 'pointer', 'pointer', 'pointer', 'size', 'pointer', 'size', 'pointer']],
  CreateSessionOptions: [10, 'status', ['pointer']],
  EnableProfiling: [14, 'status', ['pointer', 'path']],
  DisableMemPattern: [17, 'status', ['pointer']],
  DisableCpuMemArena: [19, 'status', ['pointer']],
  SetSessionLogSeverityLevel: [22, 'status', ['pointer', 'int']],
  SetSessionGraphOptimizationLevel: [23, 'status', ['pointer', 'int']],
  SetIntraOpNumThreads: [24, 'status', ['pointer', 'int']],
  SetInterOpNumThreads: [25, 'status', ['pointer', 'int']],
  CreateCustomOpDomain: [26, 'status', ['string', 'pointer']],
  CustomOpDomain_Add: [27, 'status', ['pointer', 'pointer']],
  AddCustomOpDomain: [28, 'status', ['pointer', 'pointer']],
  SessionGetInputCount: [30, 'status', ['pointer', 'pointer']],
  SessionGetOutputCount: [31, 'status', ['pointer', 'pointer']],
  SessionGetInputName: [36, 'status', ['pointer', 'size', 'pointer', 'pointer']],
  SessionGetOutputName: [37, 'status', ['pointer', 'size', 'pointer', 'pointer']],
  CreateRunOptions: [39, 'status', ['pointer']],
  RunOptionsSetTerminate: [46, 'status', ['pointer']],
  RunOptionsUnsetTerminate: [47, 'status', ['pointer']],
  CreateTensorWithDataAsOrtValue: [
    49,
    'status',
    ['pointer', 'pointer', 'size', 'pointer', 'size', 'int', 'pointer'],
  ],
  GetTensorMutableData: [51, 'status', ['pointer', 'pointer']],
  GetTensorElementType: [60, 'status', ['pointer', 'pointer']],
  GetDimensionsCount: [61, 'status', ['pointer', 'pointer']],
  GetDimensions: [62, 'status', ['pointer', 'pointer', 'size']],
  GetTensorTypeAndShape: [65, 'status', ['pointer', 'pointer']],
  CreateCpuMemoryInfo: [69, 'status', ['int', 'int', 'pointer']],
  AllocatorFree: [76, 'status', ['pointer', 'pointer']],
  GetAllocatorWithDefaultOptions: [78, 'status', ['pointer']],
  KernelInfoGetAttribute_float: [85, 'status', ['pointer', 'string', 'pointer']],
  KernelInfoGetAttribute_int64: [86, 'status', ['pointer', 'string', 'pointer']],
  KernelInfoGetAttribute_string: [87, 'status', ['pointer', 'string', 'pointer', 'pointer']],
  KernelContext_GetInputCount: [88, 'status', ['pointer', 'pointer']],
  KernelContext_GetOutputCount: [89, 'status', ['pointer', 'pointer']],
  KernelContext_GetInput: [90, 'status', ['pointer', 'size', 'pointer']],
  KernelContext_GetOutput: [91, 'status', ['pointer', 'size', 'pointer', 'size', 'pointer']],
  ReleaseStatus: [93, 'void', ['pointer']],
  ReleaseSession: [95, 'void', ['pointer']],
  ReleaseValue: [96, 'void', ['pointer']],
  ReleaseRunOptions: [97, 'void', ['pointer']],
  ReleaseTensorTypeAndShapeInfo: [99, 'void', ['pointer']],
  ReleaseSessionOptions: [100, 'void', ['pointer']],
  ReleaseCustomOpDomain: [101, 'void', ['pointer']],
  SessionEndProfiling: [110, 'status', ['pointer', 'pointer', 'pointer']],
  AddSessionConfigEntry: [130, 'status', ['pointer', 'string', 'string']],
  RunWithBinding: [133, 'status', ['pointer', 'pointer', 'pointer']],
  CreateIoBinding: [134, 'status', ['pointer', 'pointer']],
  ReleaseIoBinding: [135, 'void', ['pointer']],
  BindInput: [136, 'status', ['pointer', 'string', 'pointer']],
  BindOutput: [137, 'status', ['pointer', 'string', 'pointer']],
  ClearBoundInputs: [141, 'void', ['pointer']],
  ClearBoundOutputs: [142, 'void', ['pointer']],
  AddInitializer: [150, 'status', ['pointer', 'string', 'pointer']],
  AddExternalInitializers: [210, 'status', ['pointer', 'pointer', 'pointer', 'size']],
} as const satisfies Record<string, readonly [number, ResultKind, readonly ArgumentKind[]]>;

export type OrtFunctionName = keyof typeof ortFunctions;
export type ResultKind = 'status' | 'pointer' | 'string' | 'void';
/** `path` is ORTCHAR_T: UTF-16 on Windows, UTF-8 elsewhere. */
export type ArgumentKind = 'pointer' | 'string' | 'path' | 'size' | 'int';
