/**
 * Every error a user can meet, in one table: a code, the HTTP status, the exit code. Every room may import it.
 * A message gives what failed, the value received, the form expected and an example.
 */

interface ErrorKind {
  /** Status of the HTTP answer when a request caused it. */
  readonly httpStatus: number;
  /** Exit code of the program when it ends because of it. */
  readonly exitCode: number;
  /** OpenAI's `error.type`. */
  readonly type: string;
}

export const errorTable = {
  /** A flag, environment variable or configuration file is wrong. */
  config_invalid: { httpStatus: 400, exitCode: 2, type: 'invalid_request_error' },
  /** A checkpoint cannot be read or is not what it claims to be. */
  checkpoint_invalid: { httpStatus: 500, exitCode: 2, type: 'server_error' },
  /** The checkpoint is sound, but this build or this split of it is not supported. */
  checkpoint_unsupported: { httpStatus: 500, exitCode: 2, type: 'server_error' },
  /** A device was asked for that cannot be used. */
  device_unavailable: { httpStatus: 500, exitCode: 2, type: 'server_error' },
  /** Not enough memory for the weights or a minimal KV cache. */
  memory_insufficient: { httpStatus: 500, exitCode: 2, type: 'server_error' },
  /** The hub refused: no such repository, revision or file, or no right to it. */
  hub_refused: { httpStatus: 502, exitCode: 2, type: 'server_error' },
  /** The hub or the way to it failed; the same call may work later. */
  hub_failed: { httpStatus: 502, exitCode: 1, type: 'server_error' },
  /** No room on the disk for what has to be written. */
  storage_full: { httpStatus: 507, exitCode: 1, type: 'server_error' },
  /** A request is malformed or asks for what is not supported. */
  request_invalid: { httpStatus: 400, exitCode: 1, type: 'invalid_request_error' },
  /** The prompt and what it asks for do not fit the context or the KV cache. */
  context_exceeded: { httpStatus: 400, exitCode: 1, type: 'invalid_request_error' },
  model_not_found: { httpStatus: 404, exitCode: 1, type: 'invalid_request_error' },
  unauthorized: { httpStatus: 401, exitCode: 1, type: 'invalid_request_error' },
  body_too_large: { httpStatus: 413, exitCode: 1, type: 'invalid_request_error' },
  /** The queue is full; Retry-After says when to come back. */
  overloaded: { httpStatus: 429, exitCode: 1, type: 'rate_limit_error' },
  /** The request took longer than the server allows. */
  timed_out: { httpStatus: 504, exitCode: 1, type: 'server_error' },
  /** Loading, draining or failed: this pod cannot take the request. */
  unavailable: { httpStatus: 503, exitCode: 1, type: 'server_error' },
  /** A thread of the engine died or ONNX Runtime failed. */
  engine_failed: { httpStatus: 500, exitCode: 1, type: 'server_error' },
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof errorTable;

/** An error meant for a user. Anything else that is thrown is a bug of ours. */
export class SluiceError extends Error {
  readonly code: ErrorCode;
  /** The request's field or the flag at fault, when there is one: OpenAI's `error.param`. */
  readonly param: string | null;

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; param?: string } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'SluiceError';
    this.code = code;
    this.param = options.param ?? null;
  }

  get httpStatus(): number {
    return errorTable[this.code].httpStatus;
  }

  get exitCode(): number {
    return errorTable[this.code].exitCode;
  }

  get type(): string {
    return errorTable[this.code].type;
  }
}
