/** W3C Trace Context: the header `traceparent` of a request -> the one that goes back. https://www.w3.org/TR/trace-context */
import { randomBytes } from 'node:crypto';

export interface TraceContext {
  readonly traceId: string;
  /** For the answer: the caller's trace, with this request as its span. */
  readonly traceparent: string;
}

/** Undefined where there is no header, or none that the recommendation allows. */
export function traceContext(header: string | string[] | undefined): TraceContext | undefined {
  if (typeof header !== 'string') return undefined;
  const [, version, traceId, parentId, flags, more] =
    /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/.exec(header.trim()) ?? [];
  if (traceId === undefined || version === 'ff' || (version === '00' && more !== undefined)) return undefined;
  if (/^0+$/.test(traceId) || /^0+$/.test(parentId!)) return undefined;
  return { traceId, traceparent: `00-${traceId}-${randomBytes(8).toString('hex')}-${flags}` };
}
