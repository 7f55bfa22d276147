/**
 * The API server's audit log as it grows: who asked what, without bodies. Enters: the file, which the server renames when it
 * is large. Leaves: completed requests of the users that are asked about, in the order of the log.
 */
import { closeSync, fstatSync, openSync, readSync, statSync } from 'node:fs';
import { StringDecoder } from 'node:string_decoder';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Request {
  readonly user: string;
  readonly verb: string;
  readonly uri: string;
  /** Plural; with `subresource` as in `deployments/status`. */
  readonly resource: string;
  readonly name: string;
  /** When it was answered, by the server's clock. */
  readonly atMs: number;
}

export class AuditLog {
  readonly #file: string;
  readonly #users: readonly string[];
  readonly #requests: Request[] = [];
  #descriptor: number;
  #decoder = new StringDecoder('utf8');
  #rest = '';

  constructor(file: string, users: readonly string[]) {
    this.#file = file;
    this.#users = users;
    this.#descriptor = openSync(file, 'r');
  }

  /** All up to now, to be read on from there: a mark is their number. */
  get requests(): readonly Request[] {
    this.#follow();
    return this.#requests;
  }

  close(): void {
    closeSync(this.#descriptor);
  }

  /** The log is written behind the answers: waits until it holds a request that was answered just now. */
  async settled(ask: (name: string) => Promise<unknown>): Promise<readonly Request[]> {
    const name = `marker-${this.#requests.length}-${Math.round(performance.now())}`;
    await ask(name);
    for (;;) {
      const found = this.requests.findLastIndex((each) => each.name === name);
      if (found >= 0) {
        this.#requests.splice(found, 1);
        return this.#requests;
      }
      await sleep(50);
    }
  }

  #follow(): void {
    this.#readOn();
    if (statSync(this.#file).ino === fstatSync(this.#descriptor).ino) return;
    // What was written between the last look and the new name.
    this.#readOn();
    closeSync(this.#descriptor);
    this.#descriptor = openSync(this.#file, 'r');
    this.#readOn();
  }

  #readOn(): void {
    const buffer = Buffer.alloc(1 << 20);
    for (;;) {
      const length = readSync(this.#descriptor, buffer);
      if (length === 0) return;
      const lines = (this.#rest + this.#decoder.write(buffer.subarray(0, length))).split('\n');
      this.#rest = lines.pop()!;
      for (const line of lines) this.#take(line);
    }
  }

  #take(line: string): void {
    // Most lines are others', and long.
    if (!this.#users.some((user) => line.includes(`"username":"${user}"`))) return;
    const event = JSON.parse(line);
    const user = event.user.username;
    if (event.stage !== 'ResponseComplete' || !this.#users.includes(user)) return;
    const { resource = '', subresource, name = '' } = event.objectRef ?? {};
    this.#requests.push({
      user,
      verb: event.verb,
      uri: event.requestURI,
      resource: subresource === undefined ? resource : `${resource}/${subresource}`,
      name,
      atMs: microseconds(event.stageTimestamp),
    });
  }
}

/** Date knows milliseconds only. */
function microseconds(timestamp: string): number {
  const [, fraction = '0'] = /\.(\d+)Z$/.exec(timestamp) ?? [];
  return Date.parse(timestamp.replace(/\.\d+Z$/, 'Z')) + Number(`0.${fraction}`) * 1000;
}
