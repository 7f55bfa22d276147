/**
 * The hub's HTTP protocol: a revision to a commit and its files, a file to its size, checksum and (signed) address.
 * The token goes to the endpoint's own origin and nowhere else. Must not know the cache on disk.
 * Source: the Hub API documentation and huggingface_hub's `file_download.py`.
 */
import { SluiceError } from '../../errors.ts';

export interface HubOptions {
  /** For example https://huggingface.co, without a slash at the end. */
  readonly endpoint: string;
  readonly token?: string;
  readonly signal?: AbortSignal;
  /** Tries of one request that may be repeated (connection errors, 5xx, 429). */
  readonly attempts?: number;
  /** Waits between tries; passed in for tests. */
  readonly sleep?: (ms: number) => Promise<void>;
}

export interface HubRevision {
  /** The 40 hexadecimal digits of the commit. */
  readonly commit: string;
  /** Paths within the repository. */
  readonly files: readonly string[];
}

export interface HubFile {
  readonly path: string;
  readonly bytes: number;
  /** The blob's name in the cache: the linked etag (sha256 of the bytes) or the git blob id (sha1). */
  readonly etag: string;
  /** Where the bytes are: the hub itself or a CDN's link that expires. */
  readonly url: string;
}

/** `org/name`, as the hub writes repositories. */
export const repositoryPattern = /^[\w][\w.-]{0,95}\/[\w][\w.-]{0,95}$/;

const maxRedirects = 5;

export class HubClient {
  readonly endpoint: string;
  readonly #options: HubOptions;

  constructor(options: HubOptions) {
    this.endpoint = options.endpoint.replace(/\/+$/, '');
    this.#options = options;
  }

  /** Throws `hub_refused` with the reason (401, 403 gated, 404), or `hub_failed` when there is no usable answer. */
  async revision(repository: string, revision: string): Promise<HubRevision> {
    const url = `${this.endpoint}/api/models/${repository}/revision/${encodeURIComponent(revision)}`;
    const response = await this.request(url, { method: 'GET' }, `${repository}@${revision}`);
    if (!response.ok) throw refusal(response, repository, revision);
    const body = (await response.json().catch(() => undefined)) as
      | { sha?: unknown; siblings?: { rfilename?: unknown }[] }
      | undefined;
    if (typeof body?.sha !== 'string' || !/^[0-9a-f]{40}$/.test(body.sha) || !Array.isArray(body.siblings)) {
      throw new SluiceError(
        'hub_failed',
        `${this.endpoint}: the answer for ${repository}@${revision} is no model's revision`,
      );
    }
    const files = body.siblings.flatMap((sibling) =>
      typeof sibling.rfilename === 'string' ? [sibling.rfilename] : [],
    );
    return { commit: body.sha, files: files.filter(isPlainPath) };
  }

  async file(repository: string, commit: string, path: string): Promise<HubFile> {
    let url = `${this.endpoint}/${repository}/resolve/${commit}/${path.split('/').map(encodeURIComponent).join('/')}`;
    const headers = { 'accept-encoding': 'identity' };
    for (let hop = 0; hop < maxRedirects; hop++) {
      const response = await this.request(url, { method: 'HEAD', headers }, `${repository}/${path}`);
      const location = response.headers.get('location');
      const redirected = response.status >= 300 && response.status < 400 && location !== null;
      const target = redirected ? new URL(location, url) : undefined;
      const etag = response.headers.get('x-linked-etag') ?? response.headers.get('etag');
      const size = response.headers.get('x-linked-size') ?? response.headers.get('content-length');
      // A renamed repository redirects within the hub, without the file's own headers: follow; a CDN link ends the search.
      if (target && this.#isOwn(target) && !response.headers.has('x-linked-etag')) {
        url = target.href;
        continue;
      }
      if (!redirected && !response.ok) throw refusal(response, repository, commit, path);
      const name = etag?.replace(/^W\//, '').replaceAll('"', '');
      if (!name || !/^[\w.-]{1,128}$/.test(name) || size === null || !/^\d+$/.test(size)) {
        throw new SluiceError('hub_failed', `${url}: the answer has no usable ETag and length`);
      }
      return { path, bytes: Number(size), etag: name, url: target?.href ?? url };
    }
    throw new SluiceError('hub_failed', `${repository}/${path}: more than ${maxRedirects} redirects`);
  }

  /** The body of bytes [start, end); `expired` when a CDN's link is not valid any more. */
  async range(file: HubFile, start: number, end: number, signal: AbortSignal): Promise<Response | 'expired'> {
    const response = await this.#fetch(file.url, {
      headers: { range: `bytes=${start}-${end - 1}`, 'accept-encoding': 'identity' },
      signal,
    });
    if (response.status === 206 || (response.status === 200 && start === 0 && end === file.bytes))
      return response;
    await response.body?.cancel();
    if ([401, 403, 404, 410].includes(response.status) && !this.#isOwn(new URL(file.url))) return 'expired';
    if (response.status === 200) throw new SluiceError('hub_failed', `${file.url}: the server ignores Range`);
    throw new SluiceError('hub_failed', `${file.path}: the server answered ${response.status} to a range`, {
      cause: response.headers.get('retry-after'),
    });
  }

  /** One request with redirects left to the caller; repeats it after connection errors, 429 and 5xx. */
  async request(url: string, init: RequestInit, what: string): Promise<Response> {
    const attempts = this.#options.attempts ?? 5;
    const sleep = this.#options.sleep ?? ((ms) => new Promise((resolve) => setTimeout(resolve, ms)));
    for (let attempt = 1; ; attempt++) {
      let failure: unknown;
      try {
        const response = await this.#fetch(url, init);
        if (response.status !== 429 && response.status < 500) return response;
        if (attempt === attempts) {
          if (response.status === 429) {
            const wait = response.headers.get('retry-after');
            throw new SluiceError(
              'hub_failed',
              `${what}: the hub limits the rate of requests (429)${wait ? `; it asks to wait ${wait} s` : ''}; a token raises the limit: set HF_TOKEN`,
            );
          }
          throw new SluiceError(
            'hub_failed',
            `${what}: the hub at ${this.endpoint} answered ${response.status}`,
          );
        }
        const asked = Number(response.headers.get('retry-after'));
        await response.body?.cancel();
        await sleep(Number.isFinite(asked) && asked > 0 ? Math.min(asked, 60) * 1000 : backoffMs(attempt));
        continue;
      } catch (error) {
        if (error instanceof SluiceError || this.#options.signal?.aborted) throw error;
        failure = error;
      }
      if (attempt === attempts) {
        throw new SluiceError(
          'hub_failed',
          `${what}: no connection to ${new URL(url).host} (${reasonOf(failure)}) after ${attempts} tries`,
          { cause: failure },
        );
      }
      await sleep(backoffMs(attempt));
    }
  }

  #isOwn(url: URL): boolean {
    return url.origin === new URL(this.endpoint).origin;
  }

  #fetch(url: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    headers.set('user-agent', 'sluice');
    if (this.#options.token && this.#isOwn(new URL(url)))
      headers.set('authorization', `Bearer ${this.#options.token}`);
    const signals = [init.signal, this.#options.signal].filter(
      (signal) => signal !== undefined && signal !== null,
    );
    return fetch(url, {
      ...init,
      headers,
      redirect: 'manual',
      ...(signals.length > 0 ? { signal: AbortSignal.any(signals) } : {}),
    });
  }
}

export const backoffMs = (attempt: number): number => Math.min(500 * 2 ** (attempt - 1), 15_000);

/** The innermost code or message: fetch says only "fetch failed". */
export function reasonOf(error: unknown): string {
  let last = error;
  while (last instanceof Error && last.cause instanceof Error) last = last.cause;
  const code = (last as NodeJS.ErrnoException | undefined)?.code;
  return code ?? (last instanceof Error ? last.message : String(last));
}

/** A path in a repository that stays inside a folder. */
export function isPlainPath(path: string): boolean {
  return (
    path.length > 0 &&
    path.length < 1024 &&
    !path.includes('\\') &&
    !path.includes('\0') &&
    path.split('/').every((part) => part !== '' && part !== '.' && part !== '..')
  );
}

function refusal(response: Response, repository: string, revision: string, path?: string): SluiceError {
  const code = response.headers.get('x-error-code');
  const file = path ? `/${path}` : '';
  const refused = (message: string): SluiceError => new SluiceError('hub_refused', message);
  if (code === 'GatedRepo' || (response.status === 403 && code !== 'DisabledRepo')) {
    return refused(
      `${repository}${file}: access to this repository is gated (403): accept its terms on the hub with the account whose token is in HF_TOKEN`,
    );
  }
  if (response.status === 404 && code === 'RevisionNotFound') {
    return refused(
      `${repository}: there is no revision "${revision}" (404); a branch, a tag or a commit is expected, for example main`,
    );
  }
  if (response.status === 404 && (path !== undefined || code === 'EntryNotFound')) {
    return refused(`${repository}@${revision}: there is no file "${path}" (404)`);
  }
  if (response.status === 401 || code === 'RepoNotFound' || response.status === 404) {
    return refused(
      `${repository}: no such repository, or it is private and HF_TOKEN gives no access (${response.status}); the form is org/name, for example Qwen/Qwen3-0.6B`,
    );
  }
  return refused(`${repository}${file}: the hub answered ${response.status}${code ? ` (${code})` : ''}`);
}
