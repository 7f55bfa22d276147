/** /health, /livez, /readyz and /version: for probes and people, never behind a key. */
import type { FastifyInstance } from 'fastify';
import type { ServerContext } from '../context.ts';

export function registerHealth(app: FastifyInstance, context: ServerContext): void {
  const { lifecycle } = context;

  /** Whether a request could be served, and if not why, with the progress of loading. */
  app.get('/health', async (_request, reply) => {
    const reason = lifecycle.notReady();
    if (reason === undefined) return { status: 'ok' };
    const { progress } = lifecycle;
    return reply.code(503).send({ status: lifecycle.phase, reason, ...(progress ? { progress } : {}) });
  });

  app.get('/readyz', async (_request, reply) => {
    const reason = lifecycle.notReady();
    return reason === undefined ? { status: 'ok' } : reply.code(503).send({ status: 'not ready', reason });
  });

  /** That this answers shows that the event loop turns; only a dead engine needs a restart. */
  app.get('/livez', async (_request, reply) => {
    const failure = lifecycle.failure();
    return failure === undefined
      ? { status: 'ok' }
      : reply.code(503).send({ status: 'failed', reason: failure.message });
  });

  app.get('/version', async () => ({
    name: 'sluice',
    version: context.version,
    node: process.version,
    ...lifecycle.loaded?.details,
  }));
}
