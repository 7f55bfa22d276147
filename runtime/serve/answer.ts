/**
 * One generating request from its validated parts to its whole or streamed answer: the client's disconnection, the
 * server's shutdown and errors before and after the first byte are handled here, the same for every route.
 */
import type { FastifyReply, FastifyRequest } from 'fastify';
import { SluiceError } from '../errors.ts';
import type { GenerationRequest } from '../generation.ts';
import type { Backend } from './backend.ts';
import type { ServerContext } from './context.ts';
import { errorBody, userError } from './error-body.ts';
import { type RunListener, runGeneration, type Usage } from './generation-run.ts';
import type { BodyKind, PreparedBodies } from './prepare/prepare.ts';
import { EventStream } from './sse.ts';

export type Send = (chunk: unknown) => Promise<void>;

/**
 * The backend for a request that may be long. Throws SluiceError `unavailable`, or `overloaded` when too many wait: asked
 * before the body is received, and again when the prompt is about to be read.
 */
export function backendFor({ config, lifecycle }: ServerContext): Backend {
  const backend = lifecycle.backend();
  // The engine says so too, but only after the prompt has been tokenised.
  const waiting = backend.load().requestsWaiting;
  if (waiting >= config.maxQueueSize)
    throw new SluiceError(
      'overloaded',
      `${waiting} requests are waiting and at most ${config.maxQueueSize} may: try again later`,
    );
  return backend;
}

/** A field that nobody knows is logged once; so many are remembered. */
const mostReported = 1000;
const reported = new Set<string>();

/** The request's body as its route needs it. Throws SluiceError: what is wrong with it. */
export async function prepareBody<K extends BodyKind>(
  { servedNames }: ServerContext,
  backend: Backend,
  kind: K,
  request: FastifyRequest,
): Promise<PreparedBodies[K]> {
  const { maxLength, longestTokenBytes, vocabulary, samplingDefaults } = backend;
  const model = { servedNames, maxLength, longestTokenBytes, vocabulary, samplingDefaults };
  const bytes = request.body as Buffer | undefined;
  const { account } = request;
  const { value, unknownFields } = await backend.intake
    .prepare(kind, bytes, model, account.signal)
    .finally(account.bodyRead);
  for (const field of unknownFields) {
    if (reported.has(field) || reported.size >= mostReported) continue;
    reported.add(field);
    request.log.warn({ field }, 'unknown field ignored');
  }
  return value;
}

/** A stream on which nothing has been said for so long says that it lives: proxies close silent connections. */
const keepAliveMs = 15_000;

export interface StreamForm {
  /** Called with the first event of any choice, before anything else is sent. */
  readonly listener: (send: Send) => RunListener;
  /** Chunks after the last choice. */
  readonly ending: (usage: Usage) => readonly unknown[];
}

/**
 * Streams an answer as server-sent events. Until the first event, or the first sign of life, nothing is sent, so
 * an early error still has its status; a later one is an event of its own.
 */
export async function streamAnswer(
  context: ServerContext,
  backend: Backend,
  request: FastifyRequest,
  reply: FastifyReply,
  requests: readonly GenerationRequest[],
  form: StreamForm,
): Promise<void> {
  const { signal, usage } = request.account;
  let stream: EventStream | undefined;
  const open = (): EventStream => {
    if (stream === undefined) {
      reply.hijack();
      const headers = Object.entries(reply.getHeaders()).map(
        ([name, value]) => [name, String(value)] as const,
      );
      stream = new EventStream(reply.raw, Object.fromEntries(headers));
    }
    return stream;
  };
  const keepAlive = setInterval(() => open().keepAlive(), keepAliveMs);
  const listener = form.listener((chunk) => {
    keepAlive.refresh();
    return open().send(chunk);
  });
  try {
    await runGeneration(backend, requests, context.metrics, signal, listener, usage);
    for (const chunk of form.ending(usage)) await open().send(chunk);
    await open().send('[DONE]');
    stream?.end();
  } catch (error) {
    if (stream === undefined) throw error;
    const known = userError(error);
    if (known === undefined) request.log.error({ err: error }, 'request failed');
    else request.log.info({ reason: known.message }, 'stream ended early');
    await stream.send(errorBody(known));
    stream.end();
  } finally {
    clearInterval(keepAlive);
  }
}
