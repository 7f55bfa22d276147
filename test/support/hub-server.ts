/**
 * A model hub on loopback: the part of the real one's HTTP protocol that clients use, over repositories kept in memory.
 * Large files redirect to a second server that plays the CDN, with links that expire. Faults are injected by rules.
 */
import { createHash, randomUUID } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export interface HubRepository {
  /** Branch or tag -> commit. */
  readonly refs: Map<string, string>;
  /** Commit -> path -> bytes. */
  readonly commits: Map<string, Map<string, Uint8Array>>;
  gated?: boolean;
  /** Visible only with this token. */
  token?: string;
}

export interface HubRequest {
  readonly server: 'hub' | 'cdn';
  readonly method: string;
  readonly url: string;
  readonly authorization: string | undefined;
  readonly range: string | undefined;
  readonly status: number;
}

export interface HubFaults {
  /** Answer the next requests so: each entry is used once. */
  readonly statuses: { status: number; headers?: Record<string, string>; server?: 'hub' | 'cdn' }[];
  /** Break the connection of a CDN answer after so many bytes, so often. */
  breakAfterBytes?: { bytes: number; times: number };
  /** Flip a byte in so many CDN answers. */
  corrupt: number;
  /** Links made before this moment are refused. */
  linksExpireAfterUses?: number;
  /** Bytes a second of each CDN answer. */
  bytesPerSecond?: number;
}

export interface HubServer {
  readonly endpoint: string;
  readonly requests: HubRequest[];
  readonly faults: HubFaults;
  readonly repositories: Map<string, HubRepository>;
  /** Adds a commit to a branch; returns the commit. */
  commit(repository: string, files: Record<string, Uint8Array | string>, branch?: string): string;
  close(): Promise<void>;
}

/** Files above this size are "large file storage": named by sha256 and served by the CDN. */
const largeBytes = 64 << 10;

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const gitBlob = (bytes: Uint8Array): string =>
  createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');

async function listen(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
}

export async function startHub(): Promise<HubServer> {
  const repositories = new Map<string, HubRepository>();
  const requests: HubRequest[] = [];
  const faults: HubFaults = { statuses: [], corrupt: 0 };
  const links = new Map<string, { bytes: Uint8Array; uses: number }>();

  const answer = (
    server: 'hub' | 'cdn',
    request: IncomingMessage,
    response: ServerResponse,
    status: number,
    headers: Record<string, string> = {},
    body?: string,
  ): void => {
    requests.push({
      server,
      method: request.method!,
      url: request.url!,
      authorization: request.headers.authorization,
      range: request.headers.range,
      status,
    });
    response.writeHead(status, headers);
    response.end(body);
  };
  const fault = (server: 'hub' | 'cdn') => {
    const next = faults.statuses[0];
    return next && (next.server ?? 'hub') === server ? faults.statuses.shift() : undefined;
  };

  const sendBytes = async (
    request: IncomingMessage,
    response: ServerResponse,
    bytes: Uint8Array,
  ): Promise<void> => {
    const match = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    const start = match ? Number(match[1]) : 0;
    const end = match ? Math.min(Number(match[2]) + 1, bytes.length) : bytes.length;
    let part = bytes.subarray(start, end);
    if (faults.corrupt > 0 && part.length > 0) {
      faults.corrupt--;
      part = new Uint8Array(part);
      part[0]! ^= 0xff;
    }
    response.writeHead(match ? 206 : 200, {
      'content-length': String(part.length),
      'accept-ranges': 'bytes',
    });
    const cut = faults.breakAfterBytes;
    const limit = cut && cut.times > 0 && part.length > cut.bytes ? cut.bytes : part.length;
    if (cut && limit < part.length) cut.times--;
    const step = 64 << 10;
    for (let at = 0; at < limit; at += step) {
      if (response.destroyed) return;
      const chunk = part.subarray(at, Math.min(at + step, limit));
      if (!response.write(chunk))
        await new Promise<void>((resolve) => {
          const goOn = () => {
            response.off('drain', goOn).off('close', goOn);
            resolve();
          };
          response.on('drain', goOn).on('close', goOn);
        });
      if (faults.bytesPerSecond)
        await new Promise((resolve) => setTimeout(resolve, (chunk.length / faults.bytesPerSecond!) * 1000));
    }
    if (limit < part.length) response.destroy();
    else response.end();
  };

  const cdn = createServer((request, response) => {
    const injected = fault('cdn');
    if (injected) return answer('cdn', request, response, injected.status, injected.headers);
    const link = links.get(request.url!);
    if (!link || (faults.linksExpireAfterUses !== undefined && ++link.uses > faults.linksExpireAfterUses)) {
      return answer('cdn', request, response, 403, {}, 'expired');
    }
    requests.push({
      server: 'cdn',
      method: request.method!,
      url: request.url!,
      authorization: request.headers.authorization,
      range: request.headers.range,
      status: 206,
    });
    void sendBytes(request, response, link.bytes);
  });
  const cdnAddress = await listen(cdn);

  const hub = createServer((request, response) => {
    const injected = fault('hub');
    if (injected) return answer('hub', request, response, injected.status, injected.headers);
    const url = new URL(request.url!, 'http://hub');
    const api = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/(.+)$/.exec(url.pathname);
    const resolve = /^\/([^/]+\/[^/]+)\/resolve\/([^/]+)\/(.+)$/.exec(url.pathname);
    const name = (api ?? resolve)?.[1];
    const repository = name ? repositories.get(name) : undefined;
    if (!repository || (repository.token && request.headers.authorization !== `Bearer ${repository.token}`)) {
      return answer(
        'hub',
        request,
        response,
        401,
        { 'x-error-code': 'RepoNotFound' },
        '{"error":"Repository not found"}',
      );
    }
    if (repository.gated) return answer('hub', request, response, 403, { 'x-error-code': 'GatedRepo' }, '{}');
    const revision = decodeURIComponent((api ?? resolve)![2]!);
    const commit = repository.refs.get(revision) ?? revision;
    const files = repository.commits.get(commit);
    if (!files) return answer('hub', request, response, 404, { 'x-error-code': 'RevisionNotFound' }, '{}');
    if (api) {
      const body = { id: name, sha: commit, siblings: [...files.keys()].map((rfilename) => ({ rfilename })) };
      return answer(
        'hub',
        request,
        response,
        200,
        { 'content-type': 'application/json' },
        JSON.stringify(body),
      );
    }
    const bytes = files.get(decodeURIComponent(resolve![3]!));
    if (!bytes) return answer('hub', request, response, 404, { 'x-error-code': 'EntryNotFound' }, '');
    if (bytes.length > largeBytes) {
      const link = `/${randomUUID()}`;
      links.set(link, { bytes, uses: 0 });
      return answer('hub', request, response, 302, {
        location: `${cdnAddress}${link}`,
        'x-repo-commit': commit,
        'x-linked-etag': `"${sha256(bytes)}"`,
        'x-linked-size': String(bytes.length),
      });
    }
    if (request.method === 'HEAD') {
      return answer('hub', request, response, 200, {
        'x-repo-commit': commit,
        etag: `"${gitBlob(bytes)}"`,
        'content-length': String(bytes.length),
      });
    }
    requests.push({
      server: 'hub',
      method: 'GET',
      url: request.url!,
      authorization: request.headers.authorization,
      range: request.headers.range,
      status: 206,
    });
    void sendBytes(request, response, bytes);
    return undefined;
  });
  const endpoint = await listen(hub);

  return {
    endpoint,
    requests,
    faults,
    repositories,
    commit(name, files, branch = 'main') {
      const repository = repositories.get(name) ?? { refs: new Map(), commits: new Map() };
      repositories.set(name, repository);
      const contents = new Map(Object.entries(files).map(([path, data]) => [path, Buffer.from(data)]));
      const digest = createHash('sha1').update(`${repository.commits.size}`);
      for (const [path, data] of contents) digest.update(path).update(data);
      const commit = digest.digest('hex');
      repository.commits.set(commit, contents);
      repository.refs.set(branch, commit);
      return commit;
    },
    async close() {
      for (const server of [hub, cdn]) {
        server.closeAllConnections();
        await new Promise((resolve) => server.close(resolve));
      }
    },
  };
}
