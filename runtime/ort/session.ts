/**
 * A compiled graph. An ONNX model (bytes or a file), options and the values of its external initializers enter;
 * runs on named inputs and outputs leave. Must not know what the graph computes.
 *
 * A session belongs to the thread that made it: its custom ops are that thread's functions.
 */
import assert from 'node:assert';
import type { CustomOpDomain } from './custom-op.ts';
import {
  addressOf,
  check,
  create,
  NameTable,
  native,
  ortEnvironment,
  type Pointer,
  readString,
} from './library.ts';
import { trimMemory } from './trim-memory.ts';
import { OrtValue } from './value.ts';

export interface SessionOptions {
  /** Threads of ORT's own that share one op's work; 1: only the calling thread. Default 1. */
  readonly intraOpThreads?: number;
  /** ORT's arena for intermediate tensors; without it each is allocated anew. Default true. */
  readonly arena?: boolean;
  readonly customOps?: readonly CustomOpDomain[];
  /** ORT's session configuration entries, such as `session.disable_prepacking`: `1`. */
  readonly config?: Readonly<Record<string, string>>;
  /**
   * Values of initializers that the model declares as external data, by name. ORT packs or copies them while the
   * session is made; they and their memory are then freed.
   */
  readonly copiedInitializers?: ReadonlyMap<string, OrtValue>;
  /**
   * As `copiedInitializers`, but ORT uses the memory in place (and may pack a copy beside it). The session keeps the
   * values alive and closes them; their memory must stay as it is until the session is closed.
   */
  readonly sharedInitializers?: ReadonlyMap<string, OrtValue>;
  /** 0 verbose, 1 information, 2 warning, 3 error, 4 fatal. Default 4: a failure is an error here anyway. */
  readonly logSeverity?: 0 | 1 | 2 | 3 | 4;
  /** 0 off, 1 basic, 2 extended, 99 all. Default 99. */
  readonly optimization?: 0 | 1 | 2 | 99;
  /** Where to write a trace of every run; see `endProfiling`. */
  readonly profilePrefix?: string;
}

/** Lets another thread, or a callback, stop a run. */
export class RunOptions implements Disposable {
  pointer: Pointer = create('CreateRunOptions');

  /** Runs with these options fail as soon as the node in progress has ended, until `clearTerminate`. */
  terminate(): void {
    check(native.RunOptionsSetTerminate(this.pointer));
  }

  clearTerminate(): void {
    check(native.RunOptionsUnsetTerminate(this.pointer));
  }

  close(): void {
    if (this.pointer === 0n) return;
    native.ReleaseRunOptions(this.pointer);
    this.pointer = 0n;
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

export class Session implements Disposable {
  readonly inputNames: readonly string[];
  readonly outputNames: readonly string[];
  /** 0n once closed. */
  pointer: Pointer;
  /** What the session uses and ORT does not own: kept alive with it. */
  #held: { readonly values: readonly OrtValue[]; readonly ops: readonly CustomOpDomain[] };

  private constructor(pointer: Pointer, options: SessionOptions) {
    this.pointer = pointer;
    this.#held = {
      values: [...(options.sharedInitializers?.values() ?? [])],
      ops: options.customOps ?? [],
    };
    this.inputNames = readNames(pointer, 'SessionGetInputCount', 'SessionGetInputName');
    this.outputNames = readNames(pointer, 'SessionGetOutputCount', 'SessionGetOutputName');
  }

  /** Compiles a model held in memory. Throws SluiceError `engine_failed`. */
  static fromBytes(model: Uint8Array, options: SessionOptions = {}): Session {
    return Session.#create(options, (sessionOptions) =>
      create('CreateSessionFromArray', ortEnvironment(), model, model.byteLength, sessionOptions),
    );
  }

  /** Compiles a model file; its external data lies relative to it. Throws SluiceError `engine_failed`. */
  static fromFile(file: string, options: SessionOptions = {}): Session {
    return Session.#create(options, (sessionOptions) =>
      create('CreateSession', ortEnvironment(), file, sessionOptions),
    );
  }

  static #create(options: SessionOptions, compile: (sessionOptions: Pointer) => Pointer): Session {
    const sessionOptions = makeSessionOptions(options);
    try {
      return new Session(compile(sessionOptions), options);
    } catch (error) {
      for (const value of options.sharedInitializers?.values() ?? []) value.close();
      throw error;
    } finally {
      native.ReleaseSessionOptions(sessionOptions);
      for (const value of options.copiedInitializers?.values() ?? []) value.discard();
      trimMemory();
    }
  }

  /** Fixes which inputs and outputs a run has, and their order. */
  prepare(inputs: readonly string[], outputs: readonly string[]): Runner {
    assert(this.pointer !== 0n, 'the session is closed');
    return new Runner(this, inputs, outputs);
  }

  /** One run, for tests and tools: outputs are allocated by ORT and belong to the caller. */
  run(inputs: Readonly<Record<string, OrtValue>>, outputs: readonly string[] = this.outputNames): OrtValue[] {
    return this.prepare(Object.keys(inputs), outputs).runAllocating(Object.values(inputs));
  }

  /** Ends profiling and returns the trace's file name. */
  endProfiling(): string {
    return takeString(create('SessionEndProfiling', this.pointer, defaultAllocator()));
  }

  close(): void {
    if (this.pointer === 0n) return;
    native.ReleaseSession(this.pointer);
    this.pointer = 0n;
    for (const value of this.#held.values) value.close();
    this.#held = { values: [], ops: [] };
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** Runs a session on fixed names. A run allocates nothing that grows with the tensors. */
export class Runner {
  readonly #session: Session;
  readonly #inputNames: NameTable;
  readonly #outputNames: NameTable;
  readonly #inputs: BigUint64Array;
  readonly #outputs: BigUint64Array;
  readonly #addresses: { inputNames: Pointer; outputNames: Pointer; inputs: Pointer; outputs: Pointer };

  constructor(session: Session, inputs: readonly string[], outputs: readonly string[]) {
    this.#session = session;
    this.#inputNames = new NameTable(inputs);
    this.#outputNames = new NameTable(outputs);
    // Never empty: the address of an empty array is not defined.
    this.#inputs = new BigUint64Array(Math.max(1, inputs.length));
    this.#outputs = new BigUint64Array(Math.max(1, outputs.length));
    this.#addresses = {
      inputNames: inputs.length === 0 ? 0n : addressOf(this.#inputNames.addresses),
      outputNames: addressOf(this.#outputNames.addresses),
      inputs: addressOf(this.#inputs),
      outputs: addressOf(this.#outputs),
    };
  }

  /** Runs on the calling thread and writes into the outputs' memory, whose shapes must be exact. */
  run(inputs: readonly OrtValue[], outputs: readonly OrtValue[], options?: RunOptions): void {
    assert(outputs.length === this.#outputNames.names.length, 'as many outputs as names');
    for (let index = 0; index < outputs.length; index++) this.#outputs[index] = outputs[index]!.pointer;
    this.#run(inputs, options);
  }

  /** Runs on the calling thread; ORT allocates the outputs, which belong to the caller. */
  runAllocating(inputs: readonly OrtValue[], options?: RunOptions): OrtValue[] {
    this.#outputs.fill(0n);
    this.#run(inputs, options);
    return Array.from(this.#outputs.subarray(0, this.#outputNames.names.length), (pointer) =>
      OrtValue.adopt(pointer),
    );
  }

  #run(inputs: readonly OrtValue[], options: RunOptions | undefined): void {
    assert(this.#session.pointer !== 0n, 'the session is closed');
    assert(inputs.length === this.#inputNames.names.length, 'as many inputs as names');
    for (let index = 0; index < inputs.length; index++) this.#inputs[index] = inputs[index]!.pointer;
    const status = native.Run(
      this.#session.pointer,
      options === undefined ? null : options.pointer,
      this.#addresses.inputNames,
      this.#addresses.inputs,
      this.#inputNames.names.length,
      this.#addresses.outputNames,
      this.#outputNames.names.length,
      this.#addresses.outputs,
    );
    if (status !== null) check(status);
  }
}

/** Inputs and outputs bound once and used by every run: how device memory stays on the device. */
export class IoBinding implements Disposable {
  pointer: Pointer;
  readonly #session: Session;
  /** Bound values, by direction and name: ORT keeps them too, their memory is ours to keep. */
  readonly #bound = new Map<string, OrtValue>();

  constructor(session: Session) {
    this.#session = session;
    this.pointer = create('CreateIoBinding', session.pointer);
  }

  bindInput(name: string, value: OrtValue): void {
    check(native.BindInput(this.pointer, name, value.pointer));
    this.#bound.set(`in ${name}`, value);
  }

  bindOutput(name: string, value: OrtValue): void {
    check(native.BindOutput(this.pointer, name, value.pointer));
    this.#bound.set(`out ${name}`, value);
  }

  run(options?: RunOptions): void {
    const status = native.RunWithBinding(
      this.#session.pointer,
      options === undefined ? null : options.pointer,
      this.pointer,
    );
    if (status !== null) check(status);
  }

  clear(): void {
    native.ClearBoundInputs(this.pointer);
    native.ClearBoundOutputs(this.pointer);
    this.#bound.clear();
  }

  close(): void {
    if (this.pointer === 0n) return;
    native.ReleaseIoBinding(this.pointer);
    this.pointer = 0n;
    this.#bound.clear();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function makeSessionOptions(options: SessionOptions): Pointer {
  const pointer = create('CreateSessionOptions');
  try {
    check(native.SetIntraOpNumThreads(pointer, options.intraOpThreads ?? 1));
    check(native.SetInterOpNumThreads(pointer, 1));
    // Patterns are remembered for each input shape, without bound.
    check(native.DisableMemPattern(pointer));
    if (options.arena === false) check(native.DisableCpuMemArena(pointer));
    check(native.SetSessionLogSeverityLevel(pointer, options.logSeverity ?? 4));
    check(native.SetSessionGraphOptimizationLevel(pointer, options.optimization ?? 99));
    if (options.profilePrefix !== undefined) check(native.EnableProfiling(pointer, options.profilePrefix));
    for (const domain of options.customOps ?? []) {
      check(native.AddCustomOpDomain(pointer, domain.pointer));
    }
    for (const [key, value] of Object.entries(options.config ?? {})) {
      check(native.AddSessionConfigEntry(pointer, key, value));
    }
    addInitializers(pointer, options);
    return pointer;
  } catch (error) {
    native.ReleaseSessionOptions(pointer);
    throw error;
  }
}

function addInitializers(pointer: Pointer, options: SessionOptions): void {
  const shared = options.sharedInitializers ?? new Map<string, OrtValue>();
  for (const [name, value] of shared) check(native.AddInitializer(pointer, name, value.pointer));
  // Shared ones are named here too: otherwise ORT looks for the file that the model names.
  const all = new Map([...shared, ...(options.copiedInitializers ?? [])]);
  if (all.size === 0) return;
  const names = new NameTable([...all.keys()]);
  const values = BigUint64Array.from(all.values(), (value) => value.pointer);
  check(native.AddExternalInitializers(pointer, names.addresses, values, all.size));
}

function readNames(
  session: Pointer,
  count: 'SessionGetInputCount' | 'SessionGetOutputCount',
  name: 'SessionGetInputName' | 'SessionGetOutputName',
): string[] {
  return Array.from({ length: Number(create(count, session)) }, (_, index) =>
    takeString(create(name, session, index, defaultAllocator())),
  );
}

function defaultAllocator(): Pointer {
  return create('GetAllocatorWithDefaultOptions');
}

/** Reads and frees a string that ORT allocated. */
function takeString(pointer: Pointer): string {
  const text = readString(pointer);
  check(native.AllocatorFree(defaultAllocator(), pointer));
  return text;
}
