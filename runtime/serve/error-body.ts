/** Any error -> the status and body that OpenAI's clients expect. Must not know routes. */
import { type ErrorCode, SluiceError } from '../errors.ts';

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: string;
    readonly param: string | null;
    readonly code: string | null;
  };
}

/** OpenAI's own words, where clients look at them. */
const openAiCodes: Partial<Record<ErrorCode, string>> = {
  request_invalid: 'invalid_value',
  context_exceeded: 'context_length_exceeded',
  unauthorized: 'invalid_api_key',
  overloaded: 'rate_limit_exceeded',
};

/** Errors of fastify's own that a client caused. */
const fastifyErrors: Readonly<Record<string, ErrorCode>> = {
  FST_ERR_CTP_BODY_TOO_LARGE: 'body_too_large',
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: 'request_invalid',
  FST_ERR_CTP_EMPTY_JSON_BODY: 'request_invalid',
  FST_ERR_BAD_URL: 'request_invalid',
};

/** A user's error as it is, a known one of the framework's in our form, undefined for a bug of ours. */
export function userError(error: unknown): SluiceError | undefined {
  if (error instanceof SluiceError) return error;
  if (!(error instanceof Error)) return undefined;
  const code = fastifyErrors[(error as Error & { code?: string }).code ?? ''];
  return code === undefined ? undefined : new SluiceError(code, error.message, { cause: error });
}

export function errorBody(error: SluiceError | undefined): ErrorBody {
  if (error === undefined)
    return {
      error: { message: 'internal error; the log tells more', type: 'server_error', param: null, code: null },
    };
  return {
    error: {
      message: error.message,
      type: error.type,
      param: error.param,
      code: openAiCodes[error.code] ?? error.code,
    },
  };
}
