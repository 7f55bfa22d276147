/**
 * The keys of --api-key-file: one a line, blank lines and lines that start with # left out. The file is read again when
 * it has changed (Secrets are replaced while pods run); a file that has become unreadable or empty lets nobody in.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { readFileSync, statSync } from 'node:fs';
import { SluiceError } from '../errors.ts';

const digest = (key: string) => createHash('sha256').update(key).digest();

/** A changed file is seen at most so much later. */
const recheckMs = 1000;

export class ApiKeys {
  readonly #file: string;
  readonly #now: () => number;
  #digests: readonly Buffer[] = [];
  #stamp = '';
  #checkedAt = Number.NEGATIVE_INFINITY;

  /** Throws SluiceError `config_invalid` when the file cannot be read or holds no key. */
  constructor(file: string, now: () => number = () => performance.now()) {
    this.#file = file;
    this.#now = now;
    try {
      this.#read();
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new SluiceError(
        'config_invalid',
        `--api-key-file ${JSON.stringify(file)}: cannot be read: ${reason}`,
        { cause },
      );
    }
    if (this.#digests.length === 0)
      throw new SluiceError(
        'config_invalid',
        `--api-key-file ${JSON.stringify(file)}: holds no key; the form is one key a line`,
      );
  }

  /** Throws SluiceError `unauthorized`. `authorization`: the request's header. */
  check(authorization: string | undefined): void {
    const [, key] = /^Bearer +(\S+) *$/i.exec(authorization ?? '') ?? [];
    if (key === undefined)
      throw new SluiceError(
        'unauthorized',
        'an API key is needed; the form is the header Authorization: Bearer <key>',
      );
    this.#refresh();
    const given = digest(key);
    // Every key is compared, so that the time tells nothing of which one was near.
    let known = false;
    for (const each of this.#digests) known = timingSafeEqual(each, given) || known;
    if (!known) throw new SluiceError('unauthorized', 'the API key is not known here');
  }

  #refresh(): void {
    const now = this.#now();
    if (now - this.#checkedAt < recheckMs) return;
    this.#checkedAt = now;
    try {
      this.#read();
    } catch {
      this.#digests = [];
      this.#stamp = '';
    }
  }

  #read(): void {
    const { mtimeMs, ino, size } = statSync(this.#file);
    const stamp = `${mtimeMs} ${ino} ${size}`;
    if (stamp === this.#stamp) return;
    const lines = readFileSync(this.#file, 'utf8').split('\n');
    const keys = lines.map((line) => line.trim()).filter((line) => line !== '' && !line.startsWith('#'));
    this.#digests = keys.map(digest);
    this.#stamp = stamp;
  }
}
