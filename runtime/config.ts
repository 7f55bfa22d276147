/**
 * The one schema of the runtime's options: its flags, environment variables, YAML keys, `spec.runtime` of the CRD, the
 * container args that the operator writes and docs/reference/runtime.md all come from this table.
 * Enters: argv, env. Leaves: an immutable RuntimeConfig, or SluiceError in one line. Must not know what acts on it.
 */
import { availableParallelism, homedir } from 'node:os';
import path from 'node:path';
import { z } from 'zod';
import { type HubSettings, hubSettings } from './config/hub.ts';
import { envPrefix, type Option, type OptionValues, readOptions } from './config/options.ts';
import { SluiceError } from './errors.ts';

/** How weights may be stored; the CRD's `quantization` is the same list. */
export const quantizationEncodings = [
  'float32',
  'bfloat16',
  'float16',
  'gptq',
  'awq',
  'q4_0',
  'q4_1',
  'q5_0',
  'q5_1',
  'q8_0',
  'q4_k',
  'q5_k',
  'q6_k',
  'int8',
  'int4',
] as const;

export type QuantizationEncoding = (typeof quantizationEncodings)[number];

export const quantizedComputes = ['int8', 'float32'] as const;

export const cpuKernels = ['auto', 'avx512', 'avx2', 'portable'] as const;

export const kvCacheDTypes = ['float32', 'bfloat16', 'int8'] as const;

export const prefillWeightForms = ['auto', 'int8', 'none'] as const;

export const logLevels = ['debug', 'info', 'warn', 'error'] as const;

/** `auto`, or one rank for each CPU index given. */
export type DeviceSelection =
  | { readonly kind: 'auto' }
  | { readonly kind: 'cpu'; readonly indices: readonly number[] };

const maxDevices = 256;

const devices = z
  .string()
  .max(2048)
  .transform((text, context): DeviceSelection => {
    const refuse = (message: string) => {
      context.addIssue({ code: 'custom', message });
      return z.NEVER;
    };
    if (text === 'auto') return { kind: 'auto' };
    const old = /^(gpu|cpu)-?\d*([,:](gpu|cpu)-\d+)*$/.test(text) && !/^(gpu|cpu):/.test(text);
    if (old) {
      const kind = text.slice(0, 3);
      const numbers = text.match(/\d+/g) ?? ['0'];
      return refuse(`the form is ${kind}:<index>[,<index>...], for example ${kind}:${numbers.join(',')}`);
    }
    const [, kind, list] = /^(cpu|gpu):(\d+(?:,\d+)*)$/.exec(text) ?? [];
    if (kind === undefined || list === undefined)
      return refuse('the form is auto or cpu:<index>[,<index>...], one rank for each index');
    if (kind === 'gpu')
      return refuse('this build has no GPU execution; the form is auto or cpu:<index>[,<index>...]');
    const indices = list.split(',').map(Number);
    if (new Set(indices).size !== indices.length)
      return refuse('an index is given twice; each makes one rank');
    if (indices.length > maxDevices) return refuse(`at most ${maxDevices} indices`);
    return { kind: 'cpu', indices };
  });

const integer = (minimum: number, maximum: number) => z.int().min(minimum).max(maximum);
const text = (maximum: number) => z.string().min(1).max(maximum);

/** Adds what every option has by its name; keeps the literal types for RuntimeConfig. */
function option<const O extends Omit<Option, 'env'>>(fields: O): O & { readonly env: string } {
  return { ...fields, env: envPrefix + fields.flag.toUpperCase().replaceAll('-', '_') };
}

export const runtimeOptions = {
  modelPath: option({
    flag: 'model-path',
    kind: 'string',
    schema: text(4096),
    group: 'Model',
    description:
      'The checkpoint: a folder with config.json, tokenizer.json and *.safetensors, a GGUF file, or a repository of the hub, which is downloaded.',
    form: 'a path to a folder or a GGUF file, or org/name',
    example: '/models/llama',
    defaultText: 'the small demo model that comes with Sluice',
  }),
  huggingfaceRevision: option({
    flag: 'huggingface-revision',
    kind: 'string',
    schema: text(256),
    group: 'Model',
    description: 'Branch, tag or commit of the hub repository in --model-path.',
    form: 'a branch, a tag or a commit',
    example: 'v1.0',
    defaultText: 'main',
  }),
  weightPath: option({
    flag: 'weight-path',
    kind: 'list',
    schema: z.array(text(4096)).min(1).max(256),
    group: 'Model',
    description:
      'A safetensors or GGUF file to take the weights from instead of those in --model-path: a path, or org/name/file of the hub. Repeatable. A GGUF file alone is enough.',
    form: 'a path to a .safetensors or .gguf file, or org/name/file',
    example: '/models/llama/model-Q4_K_M.gguf',
    defaultText: "the checkpoint's own files",
  }),
  servedModelName: option({
    flag: 'served-model-name',
    kind: 'list',
    schema: z.array(text(256)).min(1).max(16),
    group: 'Model',
    description:
      'The name under which clients ask for the model. Repeatable, or separated by commas; the first is the one in answers.',
    form: 'a name, or several separated by commas',
    example: 'chat',
    defaultText: "the model path's last part, and the path itself",
  }),
  quantizationEncoding: option({
    flag: 'quantization-encoding',
    kind: 'string',
    schema: z.enum(quantizationEncodings),
    group: 'Model',
    description:
      'How the weights are stored; a checkpoint that cannot give it is refused. int8 and int4 quantize plain weights as they are loaded.',
    form: `one of ${quantizationEncodings.join(', ')}`,
    example: 'float32',
    defaultText: 'as the checkpoint has them',
  }),
  quantizationBlockSize: option({
    flag: 'quantization-block-size',
    kind: 'integer',
    schema: z
      .int()
      .min(16)
      .max(256)
      .refine((value) => (value & (value - 1)) === 0, 'the form is a power of two from 16 to 256'),
    group: 'Model',
    description: 'How many weights share a scale, with --quantization-encoding int8 or int4.',
    form: 'a power of two from 16 to 256',
    example: '128',
    defaultText: '32',
    spec: 'quantizationBlockSize',
  }),
  quantizedCompute: option({
    flag: 'quantized-compute',
    kind: 'string',
    schema: z.enum(quantizedComputes),
    group: 'Model',
    description:
      'How products with quantized weights are computed: int8 quantizes the activations too, block by block, and is faster; float32 keeps them.',
    form: `one of ${quantizedComputes.join(', ')}`,
    example: 'float32',
    default: 'int8',
    spec: 'quantizedCompute',
  }),
  prefillWeights: option({
    flag: 'prefill-weights',
    kind: 'string',
    schema: z.enum(prefillWeightForms),
    group: 'Model',
    description:
      'A copy of the weights in int8 for steps of six rows and more, prefill above all: faster and less exact (some per cent of perplexity). none makes no copy; auto makes it for quantized weights computed in int8 with portable kernels (the others are as fast without), where it takes at most a quarter of the free memory; int8 makes it always.',
    form: `one of ${prefillWeightForms.join(', ')}`,
    example: 'auto',
    default: 'none',
    spec: 'prefillWeights',
  }),
  devices: option({
    flag: 'devices',
    kind: 'string',
    schema: devices,
    group: 'Execution',
    description:
      'What to run on: cpu:0,1 makes two tensor-parallel ranks; auto takes as many as --threads and the model allow.',
    form: 'auto or cpu:<index>[,<index>...]',
    example: 'cpu:0,1',
    default: { kind: 'auto' },
    defaultText: 'auto',
  }),
  cpuKernels: option({
    flag: 'cpu-kernels',
    kind: 'string',
    schema: z.enum(cpuKernels),
    group: 'Execution',
    description:
      'What multiplies quantized weights and attends: machine code for AVX-512 (with VNNI) or AVX2, made when the model is loaded, or what runs on every processor. auto takes the best that the processor has.',
    form: `one of ${cpuKernels.join(', ')}`,
    example: 'portable',
    default: 'auto',
  }),
  threads: option({
    flag: 'threads',
    kind: 'integer',
    schema: integer(1, 1024),
    group: 'Execution',
    description: 'Threads that compute.',
    form: 'an integer from 1 to 1024',
    example: '4',
    default: defaultThreads(availableParallelism()),
    defaultText: 'the cores allowed, less one when there are more than two',
    spec: 'threads',
  }),
  maxBatchSize: option({
    flag: 'max-batch-size',
    kind: 'integer',
    schema: integer(1, 4096),
    group: 'Execution',
    description: 'Most sequences that run at once; others wait.',
    form: 'an integer from 1 to 4096',
    example: '32',
    default: 32,
    spec: 'maxBatchSize',
  }),
  maxLength: option({
    flag: 'max-length',
    kind: 'integer',
    schema: integer(1, 16_777_216),
    group: 'Execution',
    description: 'Longest sequence in tokens, prompt and answer together.',
    form: 'an integer from 1, at most what the model allows',
    example: '8192',
    defaultText: "the model's own limit",
    spec: 'maxLength',
  }),
  maxBatchInputTokens: option({
    flag: 'max-batch-input-tokens',
    kind: 'integer',
    schema: integer(1, 1_048_576),
    group: 'Execution',
    description: 'Most tokens in one step; longer prompts are run in pieces of it.',
    form: 'an integer from 1 to 1048576',
    example: '512',
    default: 512,
    spec: 'maxBatchInputTokens',
  }),
  kvCachePageSize: option({
    flag: 'kv-cache-page-size',
    kind: 'integer',
    schema: z
      .int()
      .min(8)
      .max(256)
      .refine((value) => (value & (value - 1)) === 0, 'the form is a power of two from 8 to 256'),
    group: 'Execution',
    description: 'Tokens in one block of the KV cache.',
    form: 'a power of two from 8 to 256',
    example: '32',
    default: 32,
    spec: 'kvCachePageSize',
  }),
  kvCacheMemory: option({
    flag: 'kv-cache-memory',
    kind: 'bytes',
    schema: integer(65_536, 2 ** 50),
    group: 'Execution',
    description: 'Size of the KV cache.',
    form: 'a number of bytes from 64KiB, with KiB, MiB or GiB if wanted',
    example: '2GiB',
    defaultText: 'what --max-batch-size sequences of --max-length take, as far as the memory left allows',
    spec: 'kvCacheMemoryBytes',
  }),
  kvCacheDType: option({
    flag: 'kv-cache-dtype',
    kind: 'string',
    schema: z.enum(kvCacheDTypes),
    group: 'Execution',
    description:
      'How keys and values are kept: bfloat16 takes half of the memory of float32, int8 (with a scale for each token and head) about a quarter; both change answers a little. Quantized models multiply them in bfloat16 on processors that can, and then bfloat16 changes nothing.',
    form: `one of ${kvCacheDTypes.join(', ')}`,
    example: 'int8',
    defaultText: 'bfloat16 where they are multiplied in bfloat16 anyhow, else float32',
    spec: 'kvCacheDtype',
  }),
  enablePrefixCaching: option({
    flag: 'enable-prefix-caching',
    kind: 'boolean',
    schema: z.boolean(),
    group: 'Scheduling',
    description:
      'Prompts that begin like earlier ones take the keys and values of what they share from the cache.',
    form: 'true or false',
    example: 'false',
    default: true,
    spec: 'enablePrefixCaching',
  }),
  enablePrefixAwareScheduling: option({
    flag: 'enable-prefix-aware-scheduling',
    kind: 'boolean',
    schema: z.boolean(),
    group: 'Scheduling',
    description:
      'Requests that share a prefix wait for the first of them to run it, then go together; those that are largely cached go ahead of those that are not.',
    form: 'true or false',
    example: 'false',
    default: true,
    spec: 'enablePrefixAwareScheduling',
  }),
  enableInFlightBatch: option({
    flag: 'enable-in-flight-batch',
    kind: 'boolean',
    schema: z.boolean(),
    group: 'Scheduling',
    description: 'Prompts run in the same steps as answers; otherwise the two alternate.',
    form: 'true or false',
    example: 'false',
    default: true,
    spec: 'enableInFlightBatch',
  }),
  enableChunkedPrefill: option({
    flag: 'enable-chunked-prefill',
    kind: 'boolean',
    schema: z.boolean(),
    group: 'Scheduling',
    description:
      'A prompt may be split over several steps beside answers; otherwise answers wait until it has run.',
    form: 'true or false',
    example: 'false',
    default: true,
    spec: 'enableChunkedPrefill',
  }),
  maxNumSteps: option({
    flag: 'max-num-steps',
    kind: 'integer',
    schema: integer(1, 1024),
    group: 'Scheduling',
    description:
      'Decode steps between two visits to the scheduler; requests that arrive meanwhile wait for the rest.',
    form: 'an integer from 1 to 1024',
    example: '8',
    default: 1,
    spec: 'maxNumSteps',
  }),
  maxQueueSize: option({
    flag: 'max-queue-size',
    kind: 'integer',
    schema: integer(1, 1_048_576),
    group: 'Scheduling',
    description:
      'Most sequences that wait for their turn; further requests are answered 429 with Retry-After.',
    form: 'an integer from 1 to 1048576',
    example: '64',
    default: 1024,
    spec: 'maxQueueSize',
  }),
  cacheDir: option({
    flag: 'cache-dir',
    kind: 'string',
    schema: text(4096),
    group: 'Execution',
    description: 'A folder for what is made from checkpoints and can be made again.',
    form: 'a path to a folder',
    example: '/var/cache/sluice',
    defaultText: '$XDG_CACHE_HOME/sluice, or ~/.cache/sluice',
    spec: 'cacheDir',
  }),
  host: option({
    flag: 'host',
    kind: 'string',
    schema: text(253),
    group: 'Server',
    description: 'The address to listen on.',
    form: 'an IP address or a host name',
    example: '127.0.0.1',
    default: '0.0.0.0',
  }),
  port: option({
    flag: 'port',
    kind: 'integer',
    schema: integer(0, 65535),
    group: 'Server',
    description: 'The port of the API; 0 picks a free one and prints it.',
    form: 'an integer from 0 to 65535',
    example: '8000',
    default: 8000,
  }),
  metricsPort: option({
    flag: 'metrics-port',
    kind: 'integer',
    schema: integer(0, 65535),
    group: 'Server',
    description: 'A port for /metrics alone; it is then not on the port of the API.',
    form: 'an integer from 0 to 65535',
    example: '9090',
    defaultText: '/metrics is on --port',
  }),
  apiKeyFile: option({
    flag: 'api-key-file',
    kind: 'string',
    schema: text(4096),
    group: 'Server',
    description:
      'A file of API keys, one a line; requests to /v1, /tokenize and /detokenize then need one as a bearer token. Read again when it changes.',
    form: 'a path to a file with one key a line',
    example: '/etc/sluice/keys',
    defaultText: 'no key is needed',
  }),
  maxBodyBytes: option({
    flag: 'max-body-bytes',
    kind: 'bytes',
    schema: integer(1024, 1_073_741_824),
    group: 'Server',
    description: 'Longest request body.',
    form: 'a number of bytes from 1024 to 1GiB, with KiB, MiB or GiB if wanted',
    example: '16MiB',
    default: 16_777_216,
    spec: 'maxBodyBytes',
  }),
  requestTimeout: option({
    flag: 'request-timeout',
    kind: 'seconds',
    schema: integer(1, 86_400),
    group: 'Server',
    description:
      'How long a request may take from its arrival to its last token; then it is ended with status 504.',
    form: 'an integer number of seconds from 1 to 86400',
    example: '600',
    defaultText: 'as long as it takes',
    spec: 'requestTimeoutSeconds',
  }),
  shutdownDelay: option({
    flag: 'shutdown-delay',
    kind: 'seconds',
    schema: integer(0, 3600),
    group: 'Server',
    description:
      'After SIGTERM, how long requests are still taken while readiness already fails, so that no proxy sends to a closed door.',
    form: 'an integer number of seconds from 0 to 3600',
    example: '5',
    default: 5,
    spec: 'shutdownDelaySeconds',
  }),
  shutdownGrace: option({
    flag: 'shutdown-grace',
    kind: 'seconds',
    schema: integer(0, 86_400),
    group: 'Server',
    description: 'After the delay, how long running requests may take to finish.',
    form: 'an integer number of seconds from 0 to 86400',
    example: '20',
    default: 20,
    spec: 'shutdownGraceSeconds',
  }),
  logLevel: option({
    flag: 'log-level',
    kind: 'string',
    schema: z.enum(logLevels),
    group: 'General',
    description: 'The least important messages that are logged.',
    form: `one of ${logLevels.join(', ')}`,
    example: 'info',
    default: 'info',
    spec: 'logLevel',
  }),
};

export type RuntimeOptions = typeof runtimeOptions;
export type RuntimeOptionName = keyof RuntimeOptions;
/** What the commands are given: every option's value, `cacheDir` filled in, and the hub's settings. */
export type RuntimeConfig = Omit<OptionValues<RuntimeOptions>, 'cacheDir'> & {
  readonly cacheDir: string;
  readonly hub: HubSettings;
};

/** Variables of other programs of this package, which a runtime may inherit. */
const foreignEnvPrefixes = ['OPERATOR_', 'LOCAL_', 'TEST_', 'BENCH_'].map((prefix) => envPrefix + prefix);

export interface ConfigSources {
  readonly argv: readonly string[];
  readonly env: Readonly<Record<string, string | undefined>>;
}

/**
 * The configuration of one run and, with `extra`, a command's own options. `argv` is what follows the command.
 * Throws SluiceError `config_invalid`, or `device_unavailable` where `auto` would have to pass over a GPU.
 */
export function loadConfig<T extends Readonly<Record<string, Option>> = Record<never, Option>>(
  { argv, env }: ConfigSources = { argv: [], env: process.env },
  extra?: T,
  omit: readonly RuntimeOptionName[] = [],
): RuntimeConfig & OptionValues<T> {
  const own = Object.fromEntries(
    Object.entries(runtimeOptions).filter(([key]) => !omit.includes(key as RuntimeOptionName)),
  );
  const values = {
    ...Object.fromEntries(omit.map((key) => [key, (runtimeOptions[key] as Option).default])),
    ...readOptions({ ...own, ...extra }, { argv, env, others: runtimeOptions, foreignEnvPrefixes }),
  } as RuntimeConfig & OptionValues<T>;
  if (values.devices.kind === 'auto' && !omit.includes('devices'))
    refuseHiddenGpu(env.NVIDIA_VISIBLE_DEVICES);
  return Object.freeze({
    ...values,
    cacheDir: values.cacheDir ?? defaultCacheDir(env),
    hub: hubSettings(env, homedir()),
  }) as typeof values;
}

/** `auto` means what the container was given; running on the CPU instead of a GPU must be asked for. */
function refuseHiddenGpu(given: string | undefined): void {
  if (given === undefined || ['', 'none', 'void'].includes(given)) return;
  throw new SluiceError(
    'device_unavailable',
    `--devices "auto": the container was given GPUs (NVIDIA_VISIBLE_DEVICES=${JSON.stringify(given)}) and this build has no GPU execution; to run on the CPU say so, for example --devices cpu:0`,
  );
}

function defaultThreads(cores: number): number {
  return cores > 2 ? cores - 1 : cores;
}

function defaultCacheDir(env: ConfigSources['env']): string {
  return path.join(env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'sluice');
}

type SpecShape = {
  [K in RuntimeOptionName as RuntimeOptions[K] extends { readonly spec: infer S extends string }
    ? S
    : never]: z.ZodExactOptional<RuntimeOptions[K]['schema']>;
};

const specOptions = Object.values(runtimeOptions).filter(
  (each): each is typeof each & { spec: string } => 'spec' in each,
);

/** `spec.runtime` of an InferenceService: the options that its author may set; no defaults, all optional. */
export const runtimeSpecSchema = z.strictObject(
  Object.fromEntries(
    specOptions.map((each) => [
      each.spec,
      (each.schema as z.ZodType).exactOptional().describe(specDescription(each)),
    ]),
  ) as SpecShape,
);
export type RuntimeSpec = z.output<typeof runtimeSpecSchema>;

/** The container args for what the author set, and nothing else: a new default must change no pod. */
export function runtimeSpecArgs(runtime: RuntimeSpec): string[] {
  const values = runtime as Readonly<Record<string, unknown>>;
  return specOptions.flatMap((each) => {
    const value = values[each.spec];
    return value === undefined
      ? []
      : [`--${each.flag}=${Array.isArray(value) ? value.join(',') : String(value)}`];
  });
}

function specDescription(each: Option): string {
  return `${each.description} (--${each.flag}; without it: ${defaultText(each)})`;
}

/** What an option is when it is not given, for people. */
export function defaultText(each: Option): string {
  return each.defaultText ?? (each.default === undefined ? 'none' : String(each.default));
}
