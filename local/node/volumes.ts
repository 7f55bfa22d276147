/**
 * A pod's volumes as folders of this machine, and the mounts that show them to a container. In: the pod's spec and the
 * objects it names; out: paths. Files from ConfigMaps, Secrets and the downward API follow their sources, tokens are
 * renewed before they expire. Must not know how mounts are made.
 */
import { chmod, mkdir, realpath, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { type KubeClient, resources } from '../../operator/kube/client.ts';
import { type FileContent, writeAtomically } from './atomic-files.ts';
import { type PodAddresses, readField, readResource } from './downward.ts';
import { expand } from './environment.ts';
import type { KeyedData, KeyedKind, KeyedObject, KeyedObjects } from './keyed-objects.ts';
import type {
  ContainerSpec,
  DownwardItem,
  KeyToPath,
  Pod,
  ProjectedSource,
  VolumeSpec,
} from './pod-types.ts';
import { serviceAccounts } from './resource-types.ts';
import type { Mount } from './sandbox.ts';

/** A volume that cannot be set up now, and perhaps later; the message is what a kubelet says. */
export class VolumeError extends Error {}

export interface VolumeContext {
  readonly client: KubeClient;
  readonly keyedObjects: KeyedObjects;
  readonly folder: string;
  readonly allocatable: Readonly<Record<string, string>>;
  readonly addresses: PodAddresses;
  /** As it is now: labels and annotations change. */
  readonly pod: () => Pod;
  readonly onFailure: (error: unknown) => void;
  /** An object that a volume shows has appeared or changed. */
  readonly onChange: () => void;
}

interface Token {
  readonly text: string;
  readonly renewAt: number;
}

const defaultFileMode = 0o644;
const defaultTokenSeconds = 3_600;
const tokenRetryMs = 30_000;

export class PodVolumes {
  readonly #context: VolumeContext;
  readonly #paths = new Map<string, string>();
  readonly #objects = new Map<string, KeyedObject>();
  /** By what was asked for. */
  readonly #tokens = new Map<string, Token>();
  #prepared = false;
  #closed = false;
  #updating: Promise<void> = Promise.resolve();
  #tokenTimer: NodeJS.Timeout | undefined;

  constructor(context: VolumeContext) {
    this.#context = context;
  }

  /** May be called again after it failed. Throws VolumeError. */
  async prepare(): Promise<void> {
    for (const volume of this.#context.pod().spec.volumes ?? []) {
      this.#paths.set(volume.name, await this.#prepareVolume(volume));
    }
    this.#prepared = true;
  }

  /** Brings files up to date with their sources, one update after the other. */
  refresh(): void {
    if (!this.#prepared || this.#closed) return;
    this.#updating = this.#updating.then(async () => {
      for (const volume of this.#context.pod().spec.volumes ?? []) {
        if (this.#closed) return;
        try {
          if (isFileVolume(volume)) await this.#writeFiles(volume);
        } catch (error) {
          // What is shown stays, as it does with a kubelet.
          this.#context.onFailure(error);
        }
      }
    });
  }

  /** `environment` for subPathExpr. Throws VolumeError. */
  async mounts(container: ContainerSpec, environment: Readonly<Record<string, string>>): Promise<Mount[]> {
    const mounts: Mount[] = [];
    for (const mount of container.volumeMounts ?? []) {
      const root = this.#paths.get(mount.name);
      if (root === undefined) throw new VolumeError(`volume "${mount.name}" is not defined`);
      const volume = this.#context.pod().spec.volumes?.find((candidate) => candidate.name === mount.name);
      const subPath = mount.subPathExpr ? expand(mount.subPathExpr, environment) : mount.subPath;
      mounts.push({
        source: subPath ? await resolveSubPath(root, subPath) : await realpath(root),
        target: mount.mountPath,
        readOnly:
          mount.readOnly === true ||
          volume?.persistentVolumeClaim?.readOnly === true ||
          (volume !== undefined && isFileVolume(volume)),
      });
    }
    // A mount below another comes after it.
    return mounts.sort((left, right) => left.target.split('/').length - right.target.split('/').length);
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#tokenTimer);
    for (const object of this.#objects.values()) object.release();
    this.#objects.clear();
    await this.#updating;
  }

  async #prepareVolume(volume: VolumeSpec): Promise<string> {
    if (volume.hostPath) return await prepareHostPath(volume.hostPath);
    if (volume.persistentVolumeClaim) return await this.#claimPath(volume.persistentVolumeClaim.claimName);
    if (isFileVolume(volume)) return await this.#writeFiles(volume);
    const folder = path.join(this.#context.folder, volume.name);
    await mkdir(folder, { recursive: true });
    await chmod(folder, 0o777);
    return folder;
  }

  async #claimPath(claimName: string): Promise<string> {
    const { client } = this.#context;
    const namespace = this.#context.pod().metadata.namespace!;
    const claim = await client.get(resources.persistentVolumeClaims, { namespace, name: claimName });
    if (!claim) throw new VolumeError(`persistentvolumeclaim "${claimName}" not found`);
    const volumeName: string | undefined = claim.spec?.volumeName;
    if (claim.status?.phase !== 'Bound' || !volumeName) {
      throw new VolumeError(`PersistentVolumeClaim "${claimName}" is not bound to a volume`);
    }
    const volume = await client.get(resources.persistentVolumes, { name: volumeName });
    if (!volume) throw new VolumeError(`PersistentVolume "${volumeName}" not found`);
    if (volume.spec?.hostPath) return await prepareHostPath(volume.spec.hostPath);
    if (volume.spec?.local) return await prepareHostPath({ path: volume.spec.local.path, type: 'Directory' });
    throw new VolumeError(
      `PersistentVolume "${volumeName}" is neither of type hostPath nor local, the only ones that a process node mounts`,
    );
  }

  async #writeFiles(volume: VolumeSpec): Promise<string> {
    const folder = path.join(this.#context.folder, volume.name);
    const files = new Map<string, FileContent>();
    const { configMap, secret, downwardAPI, projected } = volume;
    const mode = (configMap ?? secret ?? downwardAPI ?? projected)?.defaultMode ?? defaultFileMode;
    const sources: readonly ProjectedSource[] = projected
      ? (projected.sources ?? [])
      : [
          {
            ...(configMap ? { configMap } : {}),
            ...(secret ? { secret: { ...secret, name: secret.secretName } } : {}),
            ...(downwardAPI ? { downwardAPI } : {}),
          },
        ];
    for (const source of sources) {
      if (source.configMap) await this.#addKeyed(files, 'ConfigMap', source.configMap, mode);
      if (source.secret) await this.#addKeyed(files, 'Secret', source.secret, mode);
      for (const item of source.downwardAPI?.items ?? []) {
        const content = Buffer.from(this.#downward(item), 'utf8');
        files.set(item.path, { content, mode: item.mode ?? mode });
      }
      if (source.serviceAccountToken) {
        const content = Buffer.from(await this.#token(source), 'utf8');
        files.set(source.serviceAccountToken.path, { content, mode });
      }
    }
    await writeAtomically(folder, files);
    return folder;
  }

  async #addKeyed(
    files: Map<string, FileContent>,
    kind: KeyedKind,
    source: { readonly name: string; readonly items?: readonly KeyToPath[]; readonly optional?: boolean },
    mode: number,
  ): Promise<void> {
    const data = await this.#read(kind, source.name);
    if (!data) {
      if (source.optional) return;
      throw new VolumeError(`${kind.toLowerCase()} "${source.name}" not found`);
    }
    if (!source.items || source.items.length === 0) {
      for (const [key, content] of Object.entries(data)) files.set(key, { content, mode });
      return;
    }
    for (const item of source.items) {
      const content = data[item.key];
      if (content) files.set(item.path, { content, mode: item.mode ?? mode });
      else if (!source.optional) {
        throw new VolumeError(`${kind.toLowerCase()} "${source.name}" has no key "${item.key}"`);
      }
    }
  }

  async #read(kind: KeyedKind, name: string): Promise<KeyedData | undefined> {
    const key = `${kind}/${name}`;
    let object = this.#objects.get(key);
    if (!object) {
      const { keyedObjects, onChange } = this.#context;
      object = keyedObjects.acquire(kind, this.#context.pod().metadata.namespace!, name, () => {
        this.refresh();
        onChange();
      });
      this.#objects.set(key, object);
    }
    return await object.read();
  }

  #downward(item: DownwardItem): string {
    const pod = this.#context.pod();
    const value = item.fieldRef
      ? readField(pod, item.fieldRef.fieldPath, this.#context.addresses)
      : item.resourceFieldRef && readResource(pod, item.resourceFieldRef, '', this.#context.allocatable);
    if (value === undefined) throw new VolumeError(`downwardAPI: no value for the file "${item.path}"`);
    return value;
  }

  async #token(source: ProjectedSource): Promise<string> {
    const key = JSON.stringify(source.serviceAccountToken);
    const known = this.#tokens.get(key);
    if (known && known.renewAt > Date.now()) return known.text;
    const { audience, expirationSeconds } = source.serviceAccountToken!;
    const { metadata, spec } = this.#context.pod();
    const request = await this.#context.client.create(
      serviceAccounts,
      {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        metadata: { name: spec.serviceAccountName || 'default', namespace: metadata.namespace! },
        spec: {
          audiences: audience ? [audience] : [],
          expirationSeconds: expirationSeconds ?? defaultTokenSeconds,
          boundObjectRef: { apiVersion: 'v1', kind: 'Pod', name: metadata.name, uid: metadata.uid },
        },
      },
      { subresource: 'token' },
    );
    const lifeMs = Date.parse(request.status.expirationTimestamp) - Date.now();
    const token = { text: request.status.token as string, renewAt: Date.now() + lifeMs * 0.8 };
    this.#tokens.set(key, token);
    this.#scheduleRenewal();
    return token.text;
  }

  #scheduleRenewal(): void {
    clearTimeout(this.#tokenTimer);
    if (this.#closed) return;
    const next = Math.min(...[...this.#tokens.values()].map((token) => token.renewAt));
    const delayMs = Math.max(next - Date.now(), tokenRetryMs);
    this.#tokenTimer = setTimeout(
      () => {
        this.refresh();
        this.#scheduleRenewal();
      },
      Math.min(delayMs, 2 ** 31 - 1),
    );
    this.#tokenTimer.unref();
  }
}

function isFileVolume(volume: VolumeSpec): boolean {
  return Boolean(volume.configMap || volume.secret || volume.downwardAPI || volume.projected);
}

async function prepareHostPath(volume: { readonly path: string; readonly type?: string }): Promise<string> {
  const { path: file, type = '' } = volume;
  if (type === 'DirectoryOrCreate') await mkdir(file, { recursive: true, mode: 0o755 });
  if (type === 'FileOrCreate') await writeFile(file, '', { flag: 'a', mode: 0o644 });
  const found = await stat(file).catch(() => undefined);
  if (!found) throw new VolumeError(`hostPath "${file}" does not exist on this node`);
  const wanted: Record<string, boolean> = {
    Directory: found.isDirectory(),
    File: found.isFile(),
    Socket: found.isSocket(),
    CharDevice: found.isCharacterDevice(),
    BlockDevice: found.isBlockDevice(),
  };
  if (wanted[type] === false) throw new VolumeError(`hostPath "${file}" is not of type ${type}`);
  return await realpath(file);
}

/** Never outside the volume, whatever links it holds. A folder that is missing is made. */
async function resolveSubPath(root: string, subPath: string): Promise<string> {
  const base = await realpath(root);
  const wanted = path.join(base, subPath);
  const inside = (file: string) => file === base || file.startsWith(`${base}/`);
  if (!inside(wanted)) throw new VolumeError(`subPath "${subPath}" leaves its volume`);
  await mkdir(wanted, { recursive: true }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw new VolumeError(`subPath "${subPath}": ${error.message}`);
  });
  const resolved = await realpath(wanted);
  if (!inside(resolved)) throw new VolumeError(`subPath "${subPath}" leaves its volume`);
  return resolved;
}
