/**
 * The fastify applications of one server: the API, and /metrics on its own port when one is given. Routes are added here
 * and nowhere else; keys, refusal while shutting down, measuring and error bodies are the same for all of them.
 */
import Fastify, {
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify';
import type { Logger } from 'pino';
import { backendFor } from './answer.ts';
import { ApiKeys } from './api-keys.ts';
import { BodyBudget } from './body-budget.ts';
import type { ServerContext } from './context.ts';
import { discardBody } from './discard-body.ts';
import { errorBody, userError } from './error-body.ts';
import { openAccount } from './request-account.ts';
import { registerChatCompletions } from './routes/chat-completions.ts';
import { registerCompletions } from './routes/completions.ts';
import { registerHealth } from './routes/health.ts';
import { registerModels } from './routes/models.ts';
import { registerTokenize } from './routes/tokenize.ts';
import { traceContext } from './trace-context.ts';

/** Retry-After of a 503, in seconds. */
const retrySeconds = 2;

/** So many of the longest bodies may be received and read at once; of shorter ones more. */
const bodiesAtOnce = 16;

/** What a body will take; those too long are refused, and those that do not say may become the longest. */
function bodyBytes({ headers }: FastifyRequest, most: number): number {
  if (headers['transfer-encoding'] !== undefined) return most;
  return Math.min(Number(headers['content-length'] ?? 0), most);
}

/** Paths that need a key when there are keys, and that are refused while the server ends. */
const isApi = (route: string) => route.startsWith('/v1/') || route === '/tokenize' || route === '/detokenize';

/** Throws SluiceError `config_invalid` for a bad key file. */
export function createApi(context: ServerContext, log: Logger): FastifyInstance {
  const { config, lifecycle } = context;
  const keys = config.apiKeyFile === undefined ? undefined : new ApiKeys(config.apiKeyFile);
  const bodies = new BodyBudget(bodiesAtOnce * config.maxBodyBytes);
  const app = createBase(context, log);
  app.decorateRequest('account');
  app.addHook('onRequest', async (request, reply) => {
    // The route and not the URL: the router decodes %-escapes before it matches.
    if (!isApi(request.routeOptions.url ?? '')) return;
    keys?.check(request.headers.authorization);
    lifecycle.admit();
    // Whoever is refused anyway need not be listened to.
    if (request.method === 'POST') backendFor(context);
    request.account = openAccount(context, reply, bodies.take(bodyBytes(request, config.maxBodyBytes)));
  });
  app.addHook('onSend', async (_request, reply) => {
    // Answers to requests that came before the end began; server.ts says so of those that come later, and of streams.
    if (lifecycle.phase === 'draining' || lifecycle.phase === 'refusing') reply.header('connection', 'close');
  });
  registerHealth(app, context);
  registerModels(app, context);
  registerCompletions(app, context);
  registerChatCompletions(app, context);
  registerTokenize(app, context);
  if (config.metricsPort === undefined) registerMetrics(app, context);
  return app;
}

export function createMetricsApp(context: ServerContext, log: Logger): FastifyInstance {
  const app = createBase(context, log);
  registerMetrics(app, context);
  return app;
}

function registerMetrics(app: FastifyInstance, { metrics }: ServerContext): void {
  app.get('/metrics', async (_request, reply) => reply.type(metrics.contentType).send(await metrics.text()));
}

function createBase(context: ServerContext, log: Logger): FastifyInstance {
  const { config, metrics } = context;
  const app = Fastify({
    // The framework's own news are no news; requests get children of the program's log.
    loggerInstance: log.child({}, { level: 'warn' }),
    childLoggerFactory: (_logger, bindings, options, request) => {
      const trace = traceContext(request.headers.traceparent);
      return log.child(trace === undefined ? bindings : { ...bindings, traceId: trace.traceId }, options);
    },
    // Requests are logged once, when they end, by the hook below.
    logController: new LogController({ disableRequestLogging: true }),
    bodyLimit: config.maxBodyBytes,
    requestIdHeader: false,
    genReqId: () => crypto.randomUUID(),
    forceCloseConnections: true,
    return503OnClosing: false,
    routerOptions: { maxParamLength: 4096 },
    // Clients keep connections for long; a proxy in front must not be the one that keeps them longer.
    keepAliveTimeout: 75_000,
  }) as unknown as FastifyInstance;
  // Whatever the type says: curl -d calls JSON a form.
  app.removeAllContentTypeParsers();
  // The routes say by which thread a body is parsed.
  app.addContentTypeParser('*', { parseAs: 'buffer' }, (_request, body, done) => done(null, body));
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id);
    const trace = traceContext(request.headers.traceparent);
    if (trace !== undefined) reply.header('traceparent', trace.traceparent);
    // Comes also when the client has gone, unlike the framework's own hook.
    reply.raw.once('close', () => measure(request, reply));
  });
  app.setErrorHandler(async (error, request, reply) => {
    if (closes(reply)) await discardBody(request.raw);
    return sendError(request, reply, error);
  });
  app.setNotFoundHandler((request) => {
    throw new NotFound(`${request.method} ${request.url.split('?', 1)[0]}: no such path`);
  });
  const measure = (request: FastifyRequest, reply: FastifyReply) => {
    const route = request.routeOptions.url ?? 'unknown';
    // 499: nobody was left to read the answer.
    const status = reply.raw.writableFinished ? reply.statusCode : 499;
    metrics.httpRequests.inc({ route, status: String(status) });
    metrics.httpSeconds.observe({ route }, reply.elapsedTime / 1000);
    const level = isApi(route) ? 'info' : 'debug';
    request.log[level](
      { method: request.method, route, status, durationMs: Math.round(reply.elapsedTime), ...used(request) },
      'request',
    );
  };
  return app;
}

/** What a generating request used, for its line in the log. */
function used({ account }: FastifyRequest): object {
  if (account === undefined || account.usage.promptTokens === 0) return {};
  const { promptTokens, cachedTokens, completionTokens, firstTokenMs, finishReasons } = account.usage;
  return {
    promptTokens,
    cachedTokens,
    completionTokens,
    ...(firstTokenMs === undefined ? {} : { ttftMs: Math.round(firstTokenMs) }),
    finishReason: finishReasons.length === 1 ? finishReasons[0] : finishReasons,
  };
}

class NotFound extends Error {}

/** Whether the connection ends with this answer, as far as is known. */
const closes = (reply: FastifyReply) =>
  [reply.getHeader('connection'), reply.raw.getHeader('connection')].includes('close');

function sendError(request: FastifyRequest, reply: FastifyReply, error: unknown): FastifyReply {
  if (error instanceof NotFound)
    return reply.code(404).send({
      error: { message: error.message, type: 'invalid_request_error', param: null, code: 'not_found' },
    });
  const known = userError(error);
  if (known === undefined) request.log.error({ err: error }, 'request failed');
  else request.log.debug({ code: known.code, reason: known.message }, 'request refused');
  if (known?.code === 'unavailable' || known?.code === 'overloaded')
    reply.header('retry-after', String(retrySeconds));
  if (known?.code === 'unauthorized') reply.header('www-authenticate', 'Bearer');
  return reply.code(known?.httpStatus ?? 500).send(errorBody(known));
}
