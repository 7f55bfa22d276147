/**
 * What --model-path and --weight-path name -> files on this machine, downloaded first where they are on the hub.
 * Must not know what is in the files.
 */
import { existsSync } from 'node:fs';
import path from 'node:path';
import type { RuntimeConfig } from '../config.ts';
import { SluiceError } from '../errors.ts';
import type { LoadingProgress } from '../serve/backend.ts';
import { repositoryPattern } from '../weights/hub/client.ts';
import {
  checkpointFiles,
  configurationFiles,
  type FileSelection,
  weightFile,
} from '../weights/hub/selection.ts';
import { pullSnapshot } from '../weights/hub/snapshot.ts';
import { isGguf } from '../weights/open.ts';
import { useNetworkSettings } from './network.ts';
import { embeddedModel } from './package-root.ts';

export interface LocatedModel {
  /** A checkpoint's folder or a GGUF file. */
  readonly path: string;
  readonly weightPaths: readonly string[];
}

export interface LocateHooks {
  onProgress(progress: LoadingProgress): void;
  onWarning(message: string): void;
}

type ModelChoice = Pick<RuntimeConfig, 'modelPath' | 'weightPath' | 'huggingfaceRevision' | 'hub'>;

const defaultRevision = 'main';

/** What the user asked for, as it was written: a GGUF alone is a whole model, nothing means the demo model. */
export function chosenModel({ modelPath, weightPath = [] }: ModelChoice): string {
  if (modelPath !== undefined) return modelPath;
  if (weightPath.length === 0) return embeddedModel;
  const gguf = weightPath.find(isGguf);
  if (gguf !== undefined) return gguf;
  throw new SluiceError(
    'config_invalid',
    `--weight-path ${JSON.stringify(weightPath[0])}: safetensors hold no configuration and no tokenizer; say where they are, for example --model-path /models/llama`,
  );
}

/** `org/name`, unless there is a local path of that name. */
export function isRepository(text: string): boolean {
  return repositoryPattern.test(text) && !existsSync(text) && !/^\.{1,2}\//.test(text) && !isGguf(text);
}

/** `org/name/file` of the hub, unless there is such a local file. */
function repositoryFile(text: string): { repository: string; file: string } | undefined {
  if (existsSync(text)) return undefined;
  const [, repository, file] = /^([^/]+\/[^/]+)\/(.+\.(?:gguf|safetensors))$/.exec(text) ?? [];
  if (repository === undefined || file === undefined || !repositoryPattern.test(repository)) return undefined;
  return /^\.{1,2}\//.test(repository) ? undefined : { repository, file };
}

/** Throws SluiceError `config_invalid`, `hub_refused`, `hub_failed`, `storage_full`. */
export async function locateModel(config: ModelChoice, hooks: LocateHooks): Promise<LocatedModel> {
  const { modelPath, weightPath = [], huggingfaceRevision } = config;
  const chosen = chosenModel(config);
  const onHub = isRepository(chosen);
  if (huggingfaceRevision !== undefined && !onHub) {
    throw new SluiceError(
      'config_invalid',
      `--huggingface-revision ${JSON.stringify(huggingfaceRevision)}: only for a model of the hub; ${chosen} is ${existsSync(chosen) ? 'a local path' : 'no org/name'}`,
    );
  }
  const weightPaths: string[] = [];
  for (const text of weightPath) {
    const remote = repositoryFile(text);
    if (remote === undefined) weightPaths.push(text);
    else {
      const revision = remote.repository === modelPath ? huggingfaceRevision : undefined;
      const folder = await pull(remote.repository, revision, weightFile(remote.file), config, hooks);
      weightPaths.push(path.join(folder, remote.file));
    }
  }
  if (modelPath === undefined && weightPaths.length > 0) {
    return { path: weightPaths.find(isGguf)!, weightPaths };
  }
  const selection = weightPaths.length > 0 ? configurationFiles : checkpointFiles;
  const place = onHub ? await pull(chosen, huggingfaceRevision, selection, config, hooks) : chosen;
  return { path: place, weightPaths };
}

/** The snapshot's folder. */
async function pull(
  repository: string,
  revision: string | undefined,
  selection: FileSelection,
  { hub }: ModelChoice,
  { onProgress, onWarning }: LocateHooks,
): Promise<string> {
  useNetworkSettings(hub.network);
  const { folder } = await pullSnapshot(repository, revision ?? defaultRevision, selection, {
    ...hub,
    onWarning,
    onProgress: ({ bytesDone, bytesTotal, bytesPerSecond, secondsLeft }) =>
      onProgress({
        phase: 'download',
        done: bytesDone,
        total: bytesTotal,
        bytesPerSecond: Math.round(bytesPerSecond),
        ...(secondsLeft === undefined ? {} : { secondsLeft: Math.ceil(secondsLeft) }),
      }),
  });
  return folder;
}
