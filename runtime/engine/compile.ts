/**
 * A prepared graph as a session of the calling thread. Enters: an ONNX model and where its weights are. Weights that
 * lie in files are mapped and used in place; ORT packs what it uses often, so the mapped pages are let go afterwards.
 */
import type { PreparedGraph } from '../models/prepare.ts';
import type { CustomOpDomain } from '../ort/custom-op.ts';
import { MappedFile } from '../ort/mapped-file.ts';
import { Session } from '../ort/session.ts';
import { OrtValue } from '../ort/value.ts';

export interface CompileOptions {
  readonly customOps: readonly CustomOpDomain[];
  readonly threads: number;
  /** Where the session writes a trace of its nodes. */
  readonly profilePrefix?: string;
}

/** Owns the session and the files that its weights lie in. */
export class CompiledGraph implements Disposable {
  readonly session: Session;
  readonly #files: readonly MappedFile[];

  constructor(graph: PreparedGraph, { customOps, threads, profilePrefix }: CompileOptions) {
    const files = new Map<string, MappedFile>();
    const shared = new Map<string, OrtValue>();
    const copied = new Map<string, OrtValue>();
    try {
      for (const { name, dtype, shape, location, bytes } of graph.weights) {
        if (location === undefined) {
          copied.set(name, OrtValue.over(bytes!(), dtype, shape));
          continue;
        }
        let file = files.get(location.file);
        if (file === undefined) {
          file = MappedFile.open(location.file);
          files.set(location.file, file);
        }
        shared.set(name, OrtValue.over(file.pointer + BigInt(location.offset), dtype, shape));
      }
      this.session = Session.fromBytes(graph.onnx, {
        intraOpThreads: threads,
        // What fails is thrown; ORT need not print it too.
        logSeverity: 4,
        customOps,
        ...(profilePrefix === undefined ? {} : { profilePrefix }),
        sharedInitializers: shared,
        copiedInitializers: copied,
      });
    } catch (error) {
      for (const file of files.values()) file.close();
      throw error;
    } finally {
      for (const value of copied.values()) value.close();
    }
    this.#files = [...files.values()];
    for (const file of this.#files) file.dropPages();
  }

  close(): void {
    this.session.close();
    for (const file of this.#files) file.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
