/**
 * A prepared graph as a session of the calling thread. Enters: an ONNX model and where its weights are. Weights that
 * lie in files are mapped and used in place, but for those that are read whole at each step, which lie in
 * large pages; ORT packs what it uses often, so the mapped pages are let go afterwards.
 */
import type { PreparedGraph } from '../models/prepare.ts';
import type { CustomOpDomain } from '../ort/custom-op.ts';
import { LargePages } from '../ort/large-pages.ts';
import { copyMemory } from '../ort/library.ts';
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
  /** Weights that are read whole at each step. */
  readonly #pages: LargePages | undefined;

  constructor(graph: PreparedGraph, { customOps, threads, profilePrefix }: CompileOptions) {
    const files = new Map<string, MappedFile>();
    const shared = new Map<string, OrtValue>();
    const copied = new Map<string, OrtValue>();
    const streamed = graph.weights.filter(({ location, streamed }) => location !== undefined && streamed);
    this.#pages = LargePages.reserve(streamed.map(({ location }) => location!.bytes));
    try {
      for (const { name, dtype, shape, location, bytes, streamed } of graph.weights) {
        if (location === undefined) {
          copied.set(name, OrtValue.over(bytes!(), dtype, shape));
          continue;
        }
        let file = files.get(location.file);
        if (file === undefined) {
          file = MappedFile.open(location.file);
          files.set(location.file, file);
        }
        let place = file.pointer + BigInt(location.offset);
        if (streamed && this.#pages !== undefined) {
          const from = place;
          place = this.#pages.take(location.bytes);
          copyMemory(place, from, location.bytes);
        }
        shared.set(name, OrtValue.over(place, dtype, shape));
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
      this.#pages?.close();
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
    this.#pages?.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
