/**
 * The engine's side of the two threads: takes messages, turns the loop while there is work, reports what becomes of it.
 * Enters: a port, shared statistics and a way to make an engine. Must not know which engine.
 *
 * A message wakes the other thread, which takes a core from a rank: new tokens of short steps are held until some have
 * come together, but not for longer than `holdMs` and only while nothing but tokens is expected.
 *
 * The loop yields to the event loop between turns, so requests and cancellations arrive as they come and events of the
 * engine's own threads are seen; without work nothing is scheduled and the thread sleeps.
 */
import type { MessagePort } from 'node:worker_threads';
import type { Engine, LoadProgress } from '../engine/engine.ts';
import { SluiceError } from '../errors.ts';
import { GenerationLoop, type LoopOptions } from './loop.ts';
import type { FromEngine, LoopReport, ToEngine } from './messages.ts';
import { monotonicMs, type SharedStatistics } from './statistics.ts';

export interface LoadedEngine {
  readonly engine: Engine;
  readonly eosTokenIds: readonly number[];
}

export interface LoadHooks {
  onProgress(progress: LoadProgress): void;
  onWarning(message: string): void;
  /** The engine has failed while no step ran. */
  onFailure(error: SluiceError): void;
}

/** Runs until told to close or until the engine fails; the failure is the last message. */
export async function runEngineThread(
  port: MessagePort,
  statistics: SharedStatistics,
  options: LoopOptions,
  load: (hooks: LoadHooks) => Promise<LoadedEngine>,
): Promise<void> {
  const send = (message: FromEngine) => port.postMessage(message);
  let thread: EngineThread | undefined;
  try {
    const { engine, eosTokenIds } = await load({
      onProgress: (progress) => send({ type: 'progress', progress }),
      onWarning: (message) => send({ type: 'warning', message }),
      onFailure: (error) => thread?.fail(error),
    });
    thread = new EngineThread(
      port,
      statistics,
      engine,
      new GenerationLoop(engine, eosTokenIds, options, monotonicMs),
    );
    send({ type: 'ready', info: engine.info, eosTokenIds });
    thread.listen();
  } catch (error) {
    sendFailure(port, error);
  }
}

/** How old a token may become before it is reported, in milliseconds. */
const holdMs = 10;

class EngineThread {
  readonly #port: MessagePort;
  readonly #statistics: SharedStatistics;
  readonly #engine: Engine;
  readonly #loop: GenerationLoop;
  #turning = false;
  #held: LoopReport | undefined;
  #heldSinceMs = 0;

  constructor(port: MessagePort, statistics: SharedStatistics, engine: Engine, loop: GenerationLoop) {
    this.#port = port;
    this.#statistics = statistics;
    this.#engine = engine;
    this.#loop = loop;
    this.#publish();
  }

  listen(): void {
    this.#port.on('message', (message: ToEngine) => this.#receive(message));
  }

  /** Says why and ends. */
  fail(error: unknown): void {
    this.#release();
    sendFailure(this.#port, error);
    this.#close();
  }

  #receive(message: ToEngine): void {
    this.#release();
    if (message.type === 'close') {
      this.#close();
      return;
    }
    if (message.type === 'abort') this.#loop.abort(message.handle, message.choice);
    else this.#submit(message);
    this.#publish();
    this.#wake();
  }

  #submit({ request }: Extract<ToEngine, { type: 'submit' }>): void {
    try {
      this.#loop.submit(request);
    } catch (error) {
      if (!(error instanceof SluiceError)) throw error;
      const { code, message, param } = error;
      const failure = { handle: request.handle, code, message, param };
      this.#send({ type: 'report', prompts: [], tokens: [], failures: [failure] });
    }
  }

  #wake(): void {
    if (this.#turning || this.#loop.idle) return;
    this.#turning = true;
    setImmediate(() => this.#turn());
  }

  #turn(): void {
    this.#turning = false;
    this.#statistics.beat();
    const startMs = monotonicMs();
    try {
      const report = this.#loop.turn();
      this.#publish();
      if (report !== undefined) this.#report(report, startMs);
    } catch (error) {
      this.fail(error);
      return;
    }
    this.#wake();
  }

  #report(report: LoopReport, startMs: number): void {
    if (this.#held === undefined) {
      this.#held = report;
      this.#heldSinceMs = monotonicMs();
    } else {
      this.#held.prompts.push(...report.prompts);
      this.#held.tokens.push(...report.tokens);
      this.#held.failures.push(...report.failures);
    }
    const { prompts, tokens, failures } = report;
    const expected =
      prompts.length === 0 && failures.length === 0 && tokens.every(({ ending }) => ending === undefined);
    // The next turn may take as long as this one has.
    const nowMs = monotonicMs();
    const later = nowMs - this.#heldSinceMs + (nowMs - startMs);
    if (!expected || !this.#loop.steady || later > holdMs) this.#release();
  }

  #release(): void {
    if (this.#held !== undefined) this.#send({ type: 'report', ...this.#held });
    this.#held = undefined;
  }

  #publish(): void {
    this.#statistics.write(this.#loop.statistics());
    this.#statistics.beat();
  }

  #send(message: FromEngine): void {
    this.#port.postMessage(message);
  }

  /** The port is what keeps the thread alive. */
  #close(): void {
    this.#turning = true;
    this.#engine.close();
    this.#port.close();
  }
}

function sendFailure(port: MessagePort, error: unknown): void {
  const known = error instanceof SluiceError;
  const message = error instanceof Error ? error.message : String(error);
  const stack = known || !(error instanceof Error) ? undefined : error.stack;
  const failure: FromEngine = { type: 'failed', code: known ? error.code : 'engine_failed', message };
  port.postMessage(stack === undefined ? failure : { ...failure, stack });
}
