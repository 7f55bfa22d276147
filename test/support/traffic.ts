/**
 * A client that asks a model server again and again at a fixed pace, whatever becomes of earlier requests, and looks at every
 * answer whole: chat and completions, streamed and not, over kept connections and fresh ones. Enters: an address. Leaves:
 * for each request its text, or in words what was wrong with the answer.
 */
import assert from 'node:assert/strict';
import { Agent, request } from 'node:http';
import { text as readAll } from 'node:stream/consumers';
import { setTimeout as sleep } from 'node:timers/promises';

export type Route = 'chat' | 'completion';

export interface Outcome {
  readonly route: Route;
  readonly stream: boolean;
  /** The whole text; absent where there is a problem. */
  readonly text?: string;
  readonly problem?: string;
  /** Nobody took the connection, and it was said at once. */
  readonly refused: boolean;
}

/** The text of each route's question, as one revision answers it. */
export type Answers = Readonly<Record<Route, string>>;

const questions: Readonly<Record<Route, { path: string; body: object }>> = {
  chat: {
    path: '/v1/chat/completions',
    body: { messages: [{ role: 'user', content: 'Hello!' }], max_tokens: 40 },
  },
  completion: {
    path: '/v1/completions',
    body: { prompt: 'When the cache is full the scheduler must wait', max_tokens: 24 },
  },
};

/** Nothing may hang, and on a loaded machine an answer may take its time. */
const hangMs = 60_000;

/** One request with everything checked that an answer has to be; never rejects. */
export async function ask(
  url: string,
  route: Route,
  { stream = false, agent }: { stream?: boolean; agent?: Agent } = {},
): Promise<Outcome> {
  const about = { route, stream };
  try {
    const { path, body } = questions[route];
    const answer = await post(url + path, { model: 'chat', temperature: 0, ...body, stream }, agent);
    if (answer.status !== 200)
      return { ...about, refused: false, problem: `status ${answer.status}: ${answer.body}` };
    return { ...about, refused: false, text: stream ? streamed(answer.body) : whole(answer.body) };
  } catch (error) {
    const { message, code } = error as NodeJS.ErrnoException;
    return { ...about, refused: code === 'ECONNREFUSED', problem: code ?? message };
  }
}

function post(
  url: string,
  body: object,
  agent: Agent | undefined,
): Promise<{ status: number; body: string }> {
  return new Promise((resolve, reject) => {
    const sent = request(
      url,
      {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        agent: agent ?? false,
        signal: AbortSignal.timeout(hangMs),
      },
      (response) => {
        // An answer that is cut off rejects here.
        readAll(response).then((text) => resolve({ status: response.statusCode ?? 0, body: text }), reject);
      },
    );
    sent.on('error', reject);
    sent.end(JSON.stringify(body));
  });
}

interface Choice {
  readonly text?: string;
  readonly message?: { readonly content: string };
  readonly delta?: { readonly content?: string };
  readonly finish_reason: string | null;
}

function textOf({ text, message, delta }: Choice): string {
  return text ?? message?.content ?? delta?.content ?? '';
}

function whole(body: string): string {
  const { choices } = JSON.parse(body) as { choices: Choice[] };
  assert.match(choices[0]!.finish_reason ?? '', /^(stop|length)$/);
  return textOf(choices[0]!);
}

function streamed(body: string): string {
  const events = body.split('\n\n').filter((event) => event.startsWith('data: '));
  assert.equal(events.pop(), 'data: [DONE]', `the stream ends with [DONE]: ${body}`);
  const choices = events.flatMap(
    (event) => (JSON.parse(event.slice('data: '.length)) as { choices: Choice[] }).choices,
  );
  assert.match(
    choices.findLast((each) => each.finish_reason !== null)?.finish_reason ?? '',
    /^(stop|length)$/,
  );
  return choices.map(textOf).join('');
}

/** What a server says to each question; it has to be there. */
export async function answersOf(url: string): Promise<Answers> {
  const answer = async (route: Route) => {
    const { text, problem } = await ask(url, route);
    assert.ok(text, `${url} ${route}: ${problem ?? 'no text'}`);
    return text;
  };
  return { chat: await answer('chat'), completion: await answer('completion') };
}

export class Traffic {
  readonly outcomes: Outcome[] = [];
  readonly #url: string;
  readonly #agent = new Agent({ keepAlive: true });
  readonly #pending = new Set<Promise<void>>();
  readonly #sending: Promise<void>;
  #over = false;

  /** Begins at once. */
  constructor(url: string, requestsPerSecond = 10) {
    this.#url = url;
    this.#sending = this.#send(1000 / requestsPerSecond);
  }

  /** Ends the sending, and resolves when every request has come to its end. */
  async stop(): Promise<readonly Outcome[]> {
    this.#over = true;
    await this.#sending;
    await Promise.all(this.#pending);
    this.#agent.destroy();
    return this.outcomes;
  }

  async #send(everyMs: number): Promise<void> {
    const startedMs = performance.now();
    for (let turn = 0; !this.#over; turn++) {
      const asked = ask(this.#url, turn % 2 === 0 ? 'chat' : 'completion', {
        stream: turn % 4 < 2,
        ...(turn % 3 === 0 ? {} : { agent: this.#agent }),
      }).then((outcome) => {
        this.outcomes.push(outcome);
        this.#pending.delete(asked);
      });
      this.#pending.add(asked);
      await sleep(Math.max(0, startedMs + (turn + 1) * everyMs - performance.now()));
    }
  }
}

/** How many requests got each revision's text; fails with every answer that is none of them. */
export function countAnswers(outcomes: readonly Outcome[], revisions: readonly Answers[]): number[] {
  const counts = revisions.map(() => 0);
  const wrong: string[] = [];
  for (const { route, stream, text, problem } of outcomes) {
    const revision = revisions.findIndex((answers) => answers[route] === text);
    if (problem === undefined && revision >= 0) counts[revision]!++;
    else wrong.push(`${route}${stream ? ' stream' : ''}: ${problem ?? JSON.stringify(text)}`);
  }
  assert.deepEqual(
    wrong,
    [],
    `${wrong.length} of ${outcomes.length} requests were not answered as they should`,
  );
  return counts;
}
