/** The API server's Status object as a KubeError. Must not know how it was received. */
import { KubeError } from './client.ts';

interface Status {
  readonly kind?: unknown;
  readonly code?: unknown;
  readonly reason?: unknown;
  readonly message?: unknown;
  readonly details?: { readonly retryAfterSeconds?: unknown };
}

/** Of a parsed Status object (anything else gives a general message); `code` is the HTTP code, for one without its own. */
export function statusError(value: unknown, code: number, retryAfterSeconds?: number): KubeError {
  const status: Status = typeof value === 'object' && value !== null ? value : {};
  const number = typeof status.code === 'number' && status.code > 0 ? status.code : code;
  const reason = typeof status.reason === 'string' && status.reason !== '' ? status.reason : reasonOf(number);
  const message = typeof status.message === 'string' ? status.message : `the API server answered ${number}`;
  const fromDetails = status.details?.retryAfterSeconds;
  const retryAfter = retryAfterSeconds ?? (typeof fromDetails === 'number' ? fromDetails : undefined);
  return new KubeError(
    number,
    reason,
    message,
    retryAfter === undefined ? {} : { retryAfterSeconds: retryAfter },
  );
}

/** Of a body that may be a Status object, some other JSON or text, as from a proxy in between. */
export function answerError(code: number, body: string, retryAfterSeconds?: number): KubeError {
  let value: unknown;
  try {
    value = JSON.parse(body);
  } catch {
    value = undefined;
  }
  if ((value as Status | undefined)?.kind === 'Status') return statusError(value, code, retryAfterSeconds);
  const text = body.trim().slice(0, 300);
  return statusError(
    { message: `the API server answered ${code}${text === '' ? '' : `: ${text}`}` },
    code,
    retryAfterSeconds,
  );
}

/** For answers that are no Status objects. */
function reasonOf(code: number): string {
  switch (code) {
    case 400:
      return 'BadRequest';
    case 401:
      return 'Unauthorized';
    case 403:
      return 'Forbidden';
    case 404:
      return 'NotFound';
    case 409:
      return 'Conflict';
    case 410:
      return 'Expired';
    case 415:
      return 'UnsupportedMediaType';
    case 422:
      return 'Invalid';
    case 429:
      return 'TooManyRequests';
    case 503:
      return 'ServiceUnavailable';
    case 504:
      return 'Timeout';
    default:
      return code >= 500 ? 'InternalError' : 'Unknown';
  }
}
