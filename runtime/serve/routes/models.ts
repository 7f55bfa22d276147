/** GET /v1/models and /v1/models/{name}; names may hold slashes. */
import type { FastifyInstance } from 'fastify';
import type { ServerContext } from '../context.ts';
import { checkModel } from '../prepare/model-facts.ts';

export function registerModels(app: FastifyInstance, context: ServerContext): void {
  const describe = (id: string) => ({
    id,
    object: 'model',
    created: context.startedAt,
    owned_by: 'sluice',
    root: context.modelPath,
    max_model_len: context.lifecycle.backend().maxLength,
  });
  app.get('/v1/models', async () => ({ object: 'list', data: context.servedNames.map(describe) }));
  app.get<{ Params: { '*': string } }>('/v1/models/*', async (request) => {
    checkModel(context, request.params['*']);
    return describe(request.params['*']);
  });
}
