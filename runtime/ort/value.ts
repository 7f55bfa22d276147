/**
 * A tensor as ORT sees it: memory of the caller (a typed array, shared WebAssembly memory included, or an address)
 * with a type and a shape, or memory that ORT allocated for an output. Must not know sessions.
 */
import assert from 'node:assert';
import { type DType, dtypeBytes } from '../dtype.ts';
import { addressOf, check, copyMemory, cpuMemoryInfo, create, native, type Pointer } from './library.ts';

/** ONNXTensorElementDataType. */
const elementTypes: Readonly<Record<DType, number>> = {
  float32: 1,
  uint8: 2,
  int8: 3,
  int16: 5,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  bfloat16: 16,
};

const dtypeOf = new Map<number, DType>(
  Object.entries(elementTypes).map(([dtype, code]) => [code, dtype as DType]),
);

/** The code of an element type in the C API; custom ops declare their inputs with it. */
export function elementTypeCode(dtype: DType): number {
  return elementTypes[dtype];
}

export class OrtValue implements Disposable {
  readonly dtype: DType;
  readonly shape: readonly number[];
  /** Where the elements lie. */
  readonly data: Pointer;
  readonly bytes: number;
  /** The OrtValue itself; 0n once closed. */
  pointer: Pointer;
  /** Keeps the caller's memory alive while ORT may use it. */
  readonly #memory: ArrayBufferView | undefined;

  private constructor(
    pointer: Pointer,
    dtype: DType,
    shape: readonly number[],
    data: Pointer,
    memory?: ArrayBufferView,
  ) {
    this.pointer = pointer;
    this.dtype = dtype;
    this.shape = shape;
    this.data = data;
    this.bytes = shape.reduce((product, dimension) => product * dimension, 1) * dtypeBytes[dtype];
    this.#memory = memory;
  }

  /** A tensor over memory that stays the caller's; ORT reads and writes it in place. */
  static over(memory: ArrayBufferView | Pointer, dtype: DType, shape: readonly number[]): OrtValue {
    const bytes = shape.reduce((product, dimension) => product * dimension, 1) * dtypeBytes[dtype];
    const view = typeof memory === 'bigint' ? undefined : memory;
    assert(
      view === undefined || view.byteLength >= bytes,
      `a ${dtype} tensor of shape [${shape}] needs ${bytes} bytes, the memory has ${view?.byteLength}`,
    );
    const data = view === undefined ? (memory as Pointer) : addressOf(view);
    const pointer = create(
      'CreateTensorWithDataAsOrtValue',
      cpuMemoryInfo(),
      data,
      bytes,
      BigInt64Array.from(shape, BigInt),
      shape.length,
      elementTypes[dtype],
    );
    return new OrtValue(pointer, dtype, [...shape], data, view);
  }

  /** Takes over a value that ORT allocated. */
  static adopt(pointer: Pointer): OrtValue {
    const info = create('GetTensorTypeAndShape', pointer);
    const { dtype, shape } = readTypeAndShape(info);
    native.ReleaseTensorTypeAndShapeInfo(info);
    return new OrtValue(pointer, dtype, shape, create('GetTensorMutableData', pointer));
  }

  /** A copy of the elements' bytes. */
  toBytes(): Uint8Array {
    assert(this.pointer !== 0n, 'the value is closed');
    const bytes = new Uint8Array(this.bytes);
    if (this.bytes > 0) copyMemory(bytes, this.data, this.bytes);
    return bytes;
  }

  /** A copy of the elements of a float32 tensor. */
  toFloat32(): Float32Array {
    assert(this.dtype === 'float32', `the tensor is ${this.dtype}`);
    return new Float32Array(this.toBytes().buffer);
  }

  close(): void {
    if (this.pointer === 0n) return;
    native.ReleaseValue(this.pointer);
    this.pointer = 0n;
  }

  /** Closes the value and gives its memory back at once, not when the collector finds it: the array is then empty. */
  discard(): void {
    this.close();
    const buffer = this.#memory?.buffer;
    if (buffer instanceof ArrayBuffer && !buffer.detached) buffer.transfer(0);
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

function readTypeAndShape(info: Pointer): { dtype: DType; shape: number[] } {
  const code = new Int32Array(1);
  check(native.GetTensorElementType(info, code));
  const dtype = dtypeOf.get(code[0]!);
  assert(dtype !== undefined, `an element type that we do not know: ${code[0]}`);
  const rank = Number(create('GetDimensionsCount', info));
  const dimensions = new BigInt64Array(rank);
  if (rank > 0) check(native.GetDimensions(info, dimensions, rank));
  return { dtype, shape: Array.from(dimensions, Number) };
}
