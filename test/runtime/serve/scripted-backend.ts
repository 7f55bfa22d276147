/** A backend whose answers a test writes: for what a real model shows only by chance, such as failures and waits. */
import path from 'node:path';
import { pino } from 'pino';
import { loadConfig } from '../../../runtime/config.ts';
import type { GenerationEvent, GenerationRequest } from '../../../runtime/generation.ts';
import type { Backend } from '../../../runtime/serve/backend.ts';
import { Intake } from '../../../runtime/serve/prepare/intake.ts';
import { Server } from '../../../runtime/serve/server.ts';
import { loadWords } from '../../../runtime/tokenizer/words.ts';

export const tiny = path.resolve(import.meta.dirname, '../../../examples/models/tiny');

export type Script = (request: GenerationRequest, signal: AbortSignal) => AsyncIterable<GenerationEvent>;

export class ScriptedBackend implements Backend {
  readonly words = loadWords(tiny);
  readonly intake = new Intake(this.words);
  readonly maxLength = 64;
  readonly longestTokenBytes = 16;
  readonly vocabulary = 2048;
  readonly samplingDefaults = {};
  readonly details = { architecture: 'scripted' };
  readonly requests: GenerationRequest[] = [];
  running = 0;
  waiting = 0;
  broken: Error | undefined;
  silence = 0;
  script: Script;

  constructor(script: Script = saying('Hello')) {
    this.script = script;
  }

  async *generate(request: GenerationRequest, signal: AbortSignal) {
    this.requests.push(request);
    this.running++;
    try {
      yield* this.script(request, signal);
    } finally {
      this.running--;
    }
  }

  load() {
    return {
      requestsRunning: this.running,
      requestsWaiting: this.waiting + this.intake.pending,
      kvBlocksUsed: this.running,
      kvBlocksTotal: 64,
      kvBlockTokens: 8,
      kvBytes: 65_536,
      weightBytes: 1000,
      prefillWeightBytes: 0,
      prefixHitTokens: 0,
      preemptions: 0,
      steps: 0,
      stepSequences: 0,
      stepSeconds: 0,
      batchSize: 0,
    };
  }

  failure() {
    return this.broken;
  }

  silentMs() {
    return this.silence;
  }

  close() {
    return this.intake.close();
  }
}

/** One token for each part of the text, the same for every choice. */
export function saying(...parts: string[]): Script {
  return async function* ({ sampling }) {
    yield { type: 'prompt', cachedTokens: 0, queuedMs: 0 };
    for (let choice = 0; choice < sampling.n; choice++) {
      for (const text of parts)
        yield { type: 'delta', choice, text, tokenIds: [942], ...withLogprobs(sampling.logprobs) };
      yield { type: 'finish', choice, reason: 'stop', stopReason: null, completionTokens: parts.length };
    }
  };
}

const withLogprobs = (count: number | undefined) =>
  count === undefined
    ? {}
    : { logprobs: [{ id: 942, logprob: -0.5, top: [{ id: 942, logprob: -0.5 }].slice(0, count) }] };

/** Says one part and then waits until it is told to go on, or until the signal. */
export function pausing(goOn: Promise<void>): Script {
  return async function* (_request, signal) {
    yield { type: 'prompt', cachedTokens: 0 };
    yield { type: 'delta', choice: 0, text: 'Hel', tokenIds: [942] };
    const aborted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
    await Promise.race([goOn, aborted]);
    if (signal.aborted) {
      yield { type: 'finish', choice: 0, reason: 'abort', stopReason: null, completionTokens: 1 };
      return;
    }
    yield { type: 'delta', choice: 0, text: 'lo', tokenIds: [942] };
    yield { type: 'finish', choice: 0, reason: 'stop', stopReason: null, completionTokens: 2 };
  };
}

export interface Running {
  readonly server: Server;
  readonly url: string;
  post(
    route: string,
    body: unknown,
    headers?: Record<string, string>,
    signal?: AbortSignal,
  ): Promise<Response>;
  get(route: string, headers?: Record<string, string>): Promise<Response>;
}

/** A listening server on a free port, named `tiny`; not ready until the test says so. */
export async function startServer(...argv: string[]): Promise<Running> {
  const config = loadConfig({ argv: ['--host=127.0.0.1', '--devices=cpu:0', ...withPort(argv)], env: {} });
  const server = new Server({
    config,
    servedNames: ['tiny', 'org/alias'],
    modelPath: tiny,
    version: '0.0.0',
    log: pino({ level: 'silent' }),
  });
  await server.listen();
  const { url } = server;
  return {
    server,
    url,
    get: (route, headers = {}) => fetch(url + route, { headers }),
    post: (route, body, headers = {}, signal) =>
      fetch(url + route, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
        signal: signal ?? null,
      }),
  };
}

const withPort = (argv: string[]) =>
  argv.some((each) => each.startsWith('--port')) ? argv : ['--port=0', ...argv];

/** The data of each event of a stream. */
export async function events(response: Response): Promise<string[]> {
  const lines = (await response.text()).split('\n\n').filter((line) => line !== '');
  return lines.map((line) => line.replace(/^data: /, ''));
}
