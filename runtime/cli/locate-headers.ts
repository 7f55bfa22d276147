/**
 * Like locate-model, for who wants to know and not to run: of a model on the hub only configuration and the weights'
 * headers are downloaded, into files of the right length that hold nothing else (sparse, so that they take no room).
 */
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import type { RuntimeConfig } from '../config.ts';
import { SluiceError } from '../errors.ts';
import { readGgufHeader } from '../weights/gguf/reader.ts';
import { HubClient, type HubFile } from '../weights/hub/client.ts';
import { checkpointFiles } from '../weights/hub/selection.ts';
import { isGguf } from '../weights/open.ts';
import { isRepository, type LocatedModel, type LocateHooks, locateModel } from './locate-model.ts';
import { useNetworkSettings } from './network.ts';

type Located = LocatedModel & { dispose(): void };

/** Throws SluiceError. `dispose` removes what was downloaded. */
export async function locateHeaders(config: RuntimeConfig, hooks: LocateHooks): Promise<Located> {
  const { modelPath, hub } = config;
  if (modelPath === undefined || !isRepository(modelPath) || hub.offline || config.weightPath !== undefined) {
    return { ...(await locateModel(config, hooks)), dispose() {} };
  }
  useNetworkSettings(hub.network);
  const folder = mkdtempSync(path.join(tmpdir(), 'sluice-inspect-'));
  const dispose = (): void => rmSync(folder, { recursive: true, force: true });
  try {
    await fetchHeaders(new HubClient(hub), modelPath, config.huggingfaceRevision ?? 'main', folder);
    return { path: folder, weightPaths: [], dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

const maxTextBytes = 32 << 20;

async function fetchHeaders(
  client: HubClient,
  repository: string,
  revision: string,
  folder: string,
): Promise<void> {
  const { commit, files } = await client.revision(repository, revision);
  const read = async (file: HubFile, end: number): Promise<Uint8Array> => {
    if (end === 0) return new Uint8Array(0);
    const response = await client.range(file, 0, Math.min(end, file.bytes), AbortSignal.timeout(60_000));
    if (response === 'expired')
      throw new SluiceError('hub_failed', `${repository}/${file.path}: the download link expired at once`);
    return response.bytes();
  };
  const readText = async (name: string): Promise<string> => {
    const file = await client.file(repository, commit, name);
    return new TextDecoder().decode(await read(file, Math.min(file.bytes, maxTextBytes)));
  };
  for (const name of await checkpointFiles(files, readText)) {
    const target = path.join(folder, name);
    mkdirSync(path.dirname(target), { recursive: true });
    if (name.endsWith('.safetensors'))
      await writeHeader(target, await client.file(repository, commit, name), read);
    else if (isGguf(name)) await writeGgufHeader(target, await client.file(repository, commit, name), read);
    else if (/^(config|generation_config|quantize_config|model\.safetensors\.index)\.json$/.test(name))
      writeFileSync(target, await readText(name));
  }
}

type Read = (file: HubFile, end: number) => Promise<Uint8Array>;

async function writeHeader(target: string, file: HubFile, read: Read): Promise<void> {
  const start = await read(file, 8);
  const length = start.length < 8 ? 0n : new DataView(start.buffer, start.byteOffset).getBigUint64(0, true);
  writeSparse(target, await read(file, 8 + Number(length > BigInt(maxTextBytes) ? 0n : length)), file.bytes);
}

/** A GGUF does not say how long its header is: it is read in longer and longer pieces. */
async function writeGgufHeader(target: string, file: HubFile, read: Read): Promise<void> {
  for (let end = 8 << 20; ; end *= 4) {
    const bytes = await read(file, end);
    writeSparse(target, bytes, bytes.length);
    try {
      readGgufHeader(target);
      break;
    } catch (error) {
      if (bytes.length >= file.bytes) throw error;
    }
  }
  const fd = openSync(target, 'r+');
  ftruncateSync(fd, file.bytes);
  closeSync(fd);
}

function writeSparse(target: string, bytes: Uint8Array, size: number): void {
  const fd = openSync(target, 'w');
  writeSync(fd, bytes);
  ftruncateSync(fd, size);
  closeSync(fd);
}
