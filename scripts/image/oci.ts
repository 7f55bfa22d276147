/**
 * An image as one file: an OCI layout in a tar archive, which `ctr images import`, `skopeo copy oci-archive:` and `podman
 * load` take. Enters: layers as entries, the configuration. Leaves: the archive and its digest. The same content gives the
 * same bytes. (OCI image specification 1.1, image-layout.)
 */
import { createHash } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { type Entry, tar } from './tar.ts';

export interface Image {
  /** `sluice-runtime:0.1.0`. */
  readonly name: string;
  readonly layers: readonly (readonly Entry[])[];
  readonly entrypoint: readonly string[];
  readonly user: string;
  readonly workingFolder: string;
  readonly environment: readonly string[];
  readonly ports: readonly string[];
  readonly labels: Readonly<Record<string, string>>;
  /** Time of everything in it, in seconds since 1970. */
  readonly seconds: number;
}

export interface Archive {
  readonly bytes: Buffer;
  /** Of the manifest: what a registry would call the image by. */
  readonly digest: string;
}

const prefix = 'application/vnd.oci.image';

export function ociArchive(image: Image): Archive {
  const blobs = new Map<string, Buffer>();
  const add = (mediaType: string, content: Buffer) => {
    const digest = sha256(content);
    blobs.set(digest, content);
    return { mediaType, digest, size: content.length };
  };
  const layers = image.layers.map((entries) => {
    const archive = Buffer.concat([...tar(entries, image.seconds)]);
    // Without a name or a time in gzip's header (RFC 1952) the bytes follow from the content.
    return { diffId: sha256(archive), descriptor: add(`${prefix}.layer.v1.tar+gzip`, gzipSync(archive)) };
  });
  const created = new Date(image.seconds * 1000).toISOString();
  const config = add(
    `${prefix}.config.v1+json`,
    json({
      created,
      architecture: 'amd64',
      os: 'linux',
      config: {
        User: image.user,
        Env: image.environment,
        Entrypoint: image.entrypoint,
        WorkingDir: image.workingFolder,
        ExposedPorts: Object.fromEntries(image.ports.map((port) => [`${port}/tcp`, {}])),
        Labels: image.labels,
      },
      rootfs: { type: 'layers', diff_ids: layers.map((each) => each.diffId) },
      history: layers.map(() => ({ created, created_by: 'scripts/build-image.ts' })),
    }),
  );
  const manifest = add(
    `${prefix}.manifest.v1+json`,
    json({
      schemaVersion: 2,
      mediaType: `${prefix}.manifest.v1+json`,
      config,
      layers: layers.map((each) => each.descriptor),
    }),
  );
  const annotations = {
    'io.containerd.image.name': image.name.includes('/') ? image.name : `docker.io/library/${image.name}`,
    'org.opencontainers.image.ref.name': image.name.split(':').at(-1)!,
  };
  const platform = { architecture: 'amd64', os: 'linux' };
  const index = json({ schemaVersion: 2, manifests: [{ ...manifest, platform, annotations }] });
  const file = (path: string, source: Buffer): Entry => ({ kind: 'file', path, source, executable: false });
  const entries = [
    file('oci-layout', json({ imageLayoutVersion: '1.0.0' })),
    file('index.json', index),
    ...[...blobs].map(([digest, content]) => file(`blobs/sha256/${digest.slice('sha256:'.length)}`, content)),
  ];
  return { bytes: Buffer.concat([...tar(entries, image.seconds)]), digest: manifest.digest };
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value));
}

function sha256(content: Buffer): string {
  return `sha256:${createHash('sha256').update(content).digest('hex')}`;
}
