/**
 * Ops whose kernels are TypeScript functions, run by ORT on the thread that called Run. An op's description enters,
 * a domain that sessions can be created with leaves. Must not know what the ops compute.
 *
 * One set of C callbacks serves all ops of a thread: ORT hands each callback the op's or the kernel's address, and
 * that finds the description. An error that a kernel throws becomes the status, and so the error, of the run; it
 * never crosses native frames.
 */
import assert from 'node:assert';
import type { DType } from '../dtype.ts';
import { addressOf, check, copyMemory, create, native, type Pointer, registerCallback } from './library.ts';
import { type RowGather, type RowKernel, type RowOp, RowPlaces, rowWords } from './row-op.ts';
import { elementTypeCode } from './value.ts';

export interface CustomOpPort {
  /** `any`: each tensor of a variadic port has a type of its own. */
  readonly dtype: DType | 'any';
  /** May be left out (an empty name in the graph). */
  readonly optional?: boolean;
  /** Stands for any number, at least one, of tensors; only as the last port. */
  readonly variadic?: boolean;
}

export type AttributeKind = 'int' | 'float' | 'string';

type AttributeValue<K extends AttributeKind> = K extends 'string' ? string : number;

export type AttributeValues<A extends Readonly<Record<string, AttributeKind>>> = {
  readonly [K in keyof A]: AttributeValue<A[K]>;
};

export interface CustomOp<
  A extends Readonly<Record<string, AttributeKind>> = Readonly<Record<string, AttributeKind>>,
> {
  readonly name: string;
  readonly inputs: readonly CustomOpPort[];
  readonly outputs: readonly CustomOpPort[];
  /** Attributes that every node of the op has. */
  readonly attributes: A;
  /** Called once for each node when a session is created; the function it returns runs the node. */
  // biome-ignore lint/suspicious/noExplicitAny: method bivariance would hide wrong attribute types in defineCustomOp.
  kernel(attributes: any): CustomKernel;
  readonly rows?: undefined;
}

/** Runs a node; `close` is called when its session is. */
export type CustomKernel = ((context: KernelContext) => void) & { readonly close?: () => void };

type AnyOp = CustomOp | RowOp;

/** Gives an op's kernel the types of its attributes. */
export function defineCustomOp<const A extends Readonly<Record<string, AttributeKind>>>(
  op: Omit<CustomOp<A>, 'kernel'> & {
    kernel(attributes: AttributeValues<A>): CustomKernel;
  },
): CustomOp<A> {
  return op;
}

/** A node's inputs and outputs during one call of its kernel; addresses are valid during the call only. */
export class KernelContext {
  #context: Pointer = 0n;
  readonly #out = new BigUint64Array(1);
  readonly #outAddress = addressOf(this.#out);
  readonly #dimensions = new BigInt64Array(8);
  readonly #dimensionsAddress = addressOf(this.#dimensions);

  /** @internal */
  enter(context: Pointer): void {
    this.#context = context;
  }

  /** Includes optional inputs that are absent in the middle. */
  inputCount(): number {
    check(native.KernelContext_GetInputCount(this.#context, this.#outAddress));
    return Number(this.#out[0]);
  }

  outputCount(): number {
    check(native.KernelContext_GetOutputCount(this.#context, this.#outAddress));
    return Number(this.#out[0]);
  }

  /** Address of an input's elements; 0n for an optional input that is absent. */
  input(index: number): Pointer {
    const value = this.#inputValue(index);
    return value === 0n ? 0n : this.#data(value);
  }

  /** Dimensions of an input; the engine's hot kernels know them and need not ask. */
  inputShape(index: number): number[] {
    const value = this.#inputValue(index);
    assert(value !== 0n, `input ${index} is absent`);
    check(native.GetTensorTypeAndShape(value, this.#outAddress));
    const info = this.#out[0]!;
    check(native.GetDimensionsCount(info, this.#outAddress));
    const rank = Number(this.#out[0]);
    assert(rank <= this.#dimensions.length, `an input of rank ${rank}`);
    if (rank > 0) check(native.GetDimensions(info, this.#dimensionsAddress, rank));
    native.ReleaseTensorTypeAndShapeInfo(info);
    return Array.from(this.#dimensions.subarray(0, rank), Number);
  }

  /** Makes an output of shape [rows, columns] and returns the address of its elements. */
  output2d(index: number, rows: number, columns: number): Pointer {
    this.#dimensions[0] = BigInt(rows);
    this.#dimensions[1] = BigInt(columns);
    return this.#output(index, 2);
  }

  /** Makes an output of any shape and returns the address of its elements. */
  output(index: number, shape: readonly number[]): Pointer {
    assert(shape.length <= this.#dimensions.length, `an output of rank ${shape.length}`);
    for (let axis = 0; axis < shape.length; axis++) this.#dimensions[axis] = BigInt(shape[axis]!);
    return this.#output(index, shape.length);
  }

  #inputValue(index: number): Pointer {
    check(native.KernelContext_GetInput(this.#context, index, this.#outAddress));
    return this.#out[0]!;
  }

  #output(index: number, rank: number): Pointer {
    check(
      native.KernelContext_GetOutput(this.#context, index, this.#dimensionsAddress, rank, this.#outAddress),
    );
    const value = this.#out[0]!;
    return value === 0n ? 0n : this.#data(value);
  }

  #data(value: Pointer): Pointer {
    check(native.GetTensorMutableData(value, this.#outAddress));
    return this.#out[0]!;
  }
}

interface Kernel {
  readonly compute: CustomKernel;
  readonly context: KernelContext;
}

/** Position in `opCallbacks` of each field of OrtCustomOp, version 16; the first is the version itself. */
const opFields = [
  'version',
  'CreateKernel',
  'GetName',
  'GetExecutionProviderType',
  'GetInputType',
  'GetInputTypeCount',
  'GetOutputType',
  'GetOutputTypeCount',
  'KernelCompute',
  'KernelDestroy',
  'GetInputCharacteristic',
  'GetOutputCharacteristic',
  'GetInputMemoryType',
  'GetVariadicInputMinArity',
  'GetVariadicInputHomogeneity',
  'GetVariadicOutputMinArity',
  'GetVariadicOutputHomogeneity',
  'CreateKernelV2',
  'KernelComputeV2',
  'InferOutputShapeFn',
  'GetStartVersion',
  'GetEndVersion',
  'GetMayInplace',
  'ReleaseMayInplace',
  'GetAliasMap',
  'ReleaseAliasMap',
] as const;

const opStructVersion = 16n;

interface RegisteredOp {
  readonly op: AnyOp;
  readonly rows: BigInt64Array | undefined;
  readonly name: Uint8Array;
}

// Everything below belongs to the thread: addresses of callbacks are registered with the thread's engine.
const registeredOps = new Map<Pointer, RegisteredOp>();
const kernels = new Map<Pointer, Kernel>();
/** By the address of their words. */
const rowKernels = new Map<Pointer, () => void>();
let nextKernel = 1n;
let callbacks: Readonly<Record<string, Pointer>> | undefined;

function opAt(pointer: Pointer): RegisteredOp {
  const registered = registeredOps.get(pointer);
  assert(registered !== undefined, 'a custom op that was not registered, or was released');
  return registered;
}

/** The status of a failed callback. 1 is ORT_FAIL. */
function failure(error: unknown): Pointer {
  const message = error instanceof Error ? error.message : String(error);
  return native.CreateStatus(1, message) as Pointer;
}

/** 0 is ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED. */
function portTypeCode({ dtype }: CustomOpPort): number {
  return dtype === 'any' ? 0 : elementTypeCode(dtype);
}

function characteristic(port: CustomOpPort | undefined): number {
  if (port?.variadic === true) return 2;
  return port?.optional === true ? 1 : 0;
}

function createKernel({ op, rows }: RegisteredOp, info: Pointer): Pointer {
  const attributes: Record<string, number | string> = {};
  for (const [name, kind] of Object.entries(op.attributes)) {
    attributes[name] = readAttribute(info, name, kind);
  }
  if (op.rows === true) return createRowKernel(op, op.kernel(attributes), rows);
  const pointer = nextKernel++;
  kernels.set(pointer, { compute: op.kernel(attributes), context: new KernelContext() });
  return pointer;
}

function createRowKernel(op: RowOp, kernel: RowKernel, rows: BigInt64Array | undefined): Pointer {
  assert(rows !== undefined, 'a domain with row ops is told where the number of rows is');
  const { columns, run } = kernel;
  const inputs = op.inputs.length;
  const words = placeRowKernel(inputs, kernel);
  words[rowWords.rowsAddress] = addressOf(rows);
  const places = new RowPlaces(words, inputs);
  // Where nothing gathers for the node.
  const compute = (context: KernelContext): void => {
    assert(typeof run === 'function', 'machine code is run by what gathers for it');
    words[rowWords.rows] = BigInt(rows[0]!);
    for (let i = 0; i < inputs; i++) words[rowWords.places + i] = context.input(i);
    for (const [i, count] of columns.entries()) {
      words[rowWords.places + inputs + i] = context.output2d(i, Number(rows[0]), count);
    }
    run(places);
  };
  const close = (): void => releaseRowKernel(words);
  const pointer = addressOf(words);
  kernels.set(pointer, { compute: Object.assign(compute, { close }), context: new KernelContext() });
  return pointer;
}

/**
 * The words of a row op's node (rowWords): who calls what runs it, with their address, has set rows and places before.
 * They are to be released.
 */
export function placeRowKernel(inputs: number, { columns, run, assist }: RowKernel): BigUint64Array {
  callbacks ??= registerCallbacks();
  const words = new BigUint64Array(rowWords.places + inputs + 2 * columns.length);
  words[rowWords.run] = typeof run === 'function' ? callbacks.RunRows! : run;
  words[rowWords.assist] = callbacks.RunRows!;
  words[rowWords.inputs] = BigInt(inputs);
  words[rowWords.outputs] = BigInt(columns.length);
  for (const [i, count] of columns.entries())
    words[rowWords.places + inputs + columns.length + i] = BigInt(count);
  const places = new RowPlaces(words, inputs);
  rowKernels.set(addressOf(words), () => {
    if (typeof run === 'function') run(places);
    else assist!();
  });
  return words;
}

export function releaseRowKernel(words: BigUint64Array): void {
  rowKernels.delete(addressOf(words));
}

function readAttribute(info: Pointer, name: string, kind: AttributeKind): number | string {
  if (kind === 'int') {
    const out = new BigInt64Array(1);
    check(native.KernelInfoGetAttribute_int64(info, name, out));
    return Number(out[0]);
  }
  if (kind === 'float') {
    const out = new Float32Array(1);
    check(native.KernelInfoGetAttribute_float(info, name, out));
    return out[0]!;
  }
  const size = new BigUint64Array([0n]);
  check(native.KernelInfoGetAttribute_string(info, name, null, size));
  const bytes = new Uint8Array(Number(size[0]));
  check(native.KernelInfoGetAttribute_string(info, name, bytes, size));
  // The size counts the terminating NUL.
  return new TextDecoder().decode(bytes.subarray(0, bytes.length - 1));
}

function registerCallbacks(): Readonly<Record<string, Pointer>> {
  const result = new BigUint64Array(1);
  const count = (of: (op: AnyOp) => number): Pointer =>
    registerCallback('size_t', ['void *'], (op: Pointer) => of(opAt(op).op));
  const indexed = (of: (op: AnyOp, index: number) => number): Pointer =>
    registerCallback('int', ['void *', 'size_t'], (op: Pointer, index: number) => of(opAt(op).op, index));
  const flag = (value: number): Pointer => registerCallback('int', ['void *'], () => value);
  return {
    GetName: registerCallback('void *', ['void *'], (op: Pointer) => addressOf(opAt(op).name)),
    // Null is the CPU provider.
    GetExecutionProviderType: registerCallback('void *', ['void *'], () => null),
    GetInputType: indexed((op, index) => portTypeCode(op.inputs[index]!)),
    GetInputTypeCount: count((op) => op.inputs.length),
    GetOutputType: indexed((op, index) => portTypeCode(op.outputs[index]!)),
    GetOutputTypeCount: count((op) => op.outputs.length),
    KernelDestroy: registerCallback('void', ['void *'], (kernel: Pointer) => {
      kernels.get(kernel)?.compute.close?.();
      kernels.delete(kernel);
    }),
    GetInputCharacteristic: indexed((op, index) => characteristic(op.inputs[index])),
    GetOutputCharacteristic: indexed((op, index) => characteristic(op.outputs[index])),
    GetInputMemoryType: indexed(() => 0),
    GetVariadicInputMinArity: flag(1),
    GetVariadicInputHomogeneity: count((op) => (op.inputs.at(-1)?.dtype === 'any' ? 0 : 1)),
    GetVariadicOutputMinArity: flag(1),
    GetVariadicOutputHomogeneity: flag(1),
    CreateKernelV2: registerCallback(
      'void *',
      ['void *', 'void *', 'void *', 'void *'],
      (op: Pointer, _api: Pointer, info: Pointer, out: Pointer) => {
        try {
          result[0] = createKernel(opAt(op), info);
          copyMemory(out, result, 8);
          return null;
        } catch (error) {
          return failure(error);
        }
      },
    ),
    RunRows: registerCallback('void *', ['void *'], (kernel: Pointer) => {
      try {
        rowKernels.get(kernel)!();
        return null;
      } catch (error) {
        return failure(error);
      }
    }),
    KernelComputeV2: registerCallback('void *', ['void *', 'void *'], (kernel: Pointer, context: Pointer) => {
      try {
        const { compute, context: reused } = kernels.get(kernel)!;
        reused.enter(context);
        compute(reused);
        return null;
      } catch (error) {
        return failure(error);
      }
    }),
  };
}

/** Ops under one domain name. Must outlive the sessions that are created with it. */
export class CustomOpDomain implements Disposable {
  pointer: Pointer;
  readonly #structs: BigUint64Array[] = [];

  /** Row ops need `gather`. */
  constructor(name: string, ops: readonly AnyOp[], gather?: RowGather) {
    callbacks ??= registerCallbacks();
    this.pointer = create('CreateCustomOpDomain', name);
    for (const op of ops) {
      const fields = opFields.map((field) => {
        if (field === 'version') return opStructVersion;
        if (field === 'KernelComputeV2' && op.rows === true && gather?.code !== undefined) return gather.code;
        return callbacks![field] ?? 0n;
      });
      const struct = BigUint64Array.from(fields);
      this.#structs.push(struct);
      registeredOps.set(addressOf(struct), {
        op,
        rows: gather?.rows,
        name: new TextEncoder().encode(`${op.name}\0`),
      });
      check(native.CustomOpDomain_Add(this.pointer, struct));
    }
  }

  close(): void {
    if (this.pointer === 0n) return;
    native.ReleaseCustomOpDomain(this.pointer);
    this.pointer = 0n;
    for (const struct of this.#structs) registeredOps.delete(addressOf(struct));
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
