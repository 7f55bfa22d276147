/**
 * One API request from its arrival until its answer has been handed to the system or its client has gone: what may end it
 * early, and what it used, for the log. It counts as in flight for as long, so that ending in order waits for its answer.
 */
import type { FastifyReply } from 'fastify';
import { SluiceError } from '../errors.ts';
import type { ServerContext } from './context.ts';
import { emptyUsage, type Usage } from './generation-run.ts';

declare module 'fastify' {
  interface FastifyRequest {
    /** Of API routes. */
    account: RequestAccount;
  }
}

export interface RequestAccount {
  /** Fires when nobody waits for the answer any more: the client, its time, or the server's. */
  readonly signal: AbortSignal;
  readonly usage: Usage;
  /** Its prompt has been read: the body's memory is free for others. */
  bodyRead(): void;
}

export function openAccount(
  { config, lifecycle }: ServerContext,
  reply: FastifyReply,
  bodyRead: () => void,
): RequestAccount {
  const controller = lifecycle.enter();
  const { requestTimeout: seconds } = config;
  const timer =
    seconds === undefined
      ? undefined
      : setTimeout(() => {
          const message = `the request has taken longer than the ${seconds} s of --request-timeout`;
          controller.abort(new SluiceError('timed_out', message));
        }, seconds * 1000);
  reply.raw.once('close', () => {
    clearTimeout(timer);
    bodyRead();
    if (!reply.raw.writableFinished) controller.abort();
    lifecycle.leave(controller);
  });
  return { signal: controller.signal, usage: emptyUsage(performance.now() - reply.elapsedTime), bodyRead };
}
