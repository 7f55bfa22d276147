/**
 * One generating request from its validated parts to its whole or streamed answer: the client's disconnection, the
 * server's shutdown and errors before and after the first byte are handled here, the same for every route.
 */
import type { FastifyReply, FastifyRequest } from 'fastify';
import type { GenerationRequest } from '../generation.ts';
import type { Backend } from './backend.ts';
import type { ServerContext } from './context.ts';
import { errorBody, userError } from './error-body.ts';
import { type RunListener, runGeneration, type Usage } from './generation-run.ts';
import { EventStream } from './sse.ts';

export type Send = (chunk: unknown) => Promise<void>;

/** Aborts when the client goes away; `leave` ends the request's account. */
export function enterRequest(
  context: ServerContext,
  reply: FastifyReply,
): { signal: AbortSignal; leave(): void } {
  const controller = context.lifecycle.enter();
  const onClose = () => {
    if (!reply.raw.writableFinished) controller.abort();
  };
  reply.raw.on('close', onClose);
  return {
    signal: controller.signal,
    leave: () => {
      reply.raw.off('close', onClose);
      context.lifecycle.leave(controller);
    },
  };
}

export interface StreamForm {
  /** Called with the first event of any choice, before anything else is sent. */
  readonly listener: (send: Send) => RunListener;
  /** Chunks after the last choice. */
  readonly ending: (usage: Usage) => readonly unknown[];
}

/**
 * Streams an answer as server-sent events. Until the first event nothing is sent, so an early error still has its
 * status; a later one is an event of its own.
 */
export async function streamAnswer(
  context: ServerContext,
  backend: Backend,
  request: FastifyRequest,
  reply: FastifyReply,
  requests: readonly GenerationRequest[],
  signal: AbortSignal,
  form: StreamForm,
): Promise<void> {
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
  const listener = form.listener((chunk) => open().send(chunk));
  try {
    const usage = await runGeneration(backend, requests, context.metrics, signal, listener);
    for (const chunk of form.ending(usage)) await open().send(chunk);
    await open().send('[DONE]');
    stream?.end();
    logEnd(request, usage);
  } catch (error) {
    if (stream === undefined) throw error;
    const known = userError(error);
    if (known === undefined) request.log.error({ err: error }, 'request failed');
    else request.log.info({ reason: known.message }, 'stream ended early');
    await stream.send(errorBody(known));
    stream.end();
  }
}

export function logEnd(request: FastifyRequest, usage: Usage): void {
  request.log.debug({ ...usage }, 'answered');
}
