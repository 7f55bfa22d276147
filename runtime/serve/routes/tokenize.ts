/** POST /tokenize and /detokenize, as vLLM has them. */
import type { FastifyInstance } from 'fastify';
import { backendFor, prepareBody } from '../answer.ts';
import type { ServerContext } from '../context.ts';

export function registerTokenize(app: FastifyInstance, context: ServerContext): void {
  for (const kind of ['tokenize', 'detokenize'] as const)
    app.post(`/${kind}`, async (request, reply) => {
      const backend = backendFor(context);
      const answer = await prepareBody(context, backend, kind, request);
      return reply.type('application/json; charset=utf-8').send(answer);
    });
}
