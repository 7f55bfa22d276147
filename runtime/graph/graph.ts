/**
 * What a graph is: typed values, nodes that name an op, and initializers whose bytes are fetched when they are
 * needed. Plain readonly data. Must not know models, devices or files' formats.
 */
import assert from 'node:assert';
import type { DType } from '../dtype.ts';
import type { OnnxNodes } from './onnx.ts';

/** A number, or the name of a dimension known at run time only. */
export type Dimension = number | string;

export interface TensorType {
  readonly dtype: DType;
  readonly shape: readonly Dimension[];
}

/** The result of a node, a graph input or an initializer. Names are unique in a graph. */
export interface Value {
  readonly name: string;
  readonly type: TensorType;
}

/** Where an initializer's bytes (row-major, little-endian) come from. */
export interface InitializerSource {
  /** Where they lie as they are in a file, when they do: they can then be mapped without a copy. */
  readonly location?: { readonly file: string; readonly offset: number; readonly bytes: number };
  /** Makes the bytes anew at each call; the caller owns them. */
  read(): Uint8Array;
  /** Read from one end to the other whenever the graph runs. */
  readonly streamed?: boolean;
  /** Reading takes much more than the bytes: they are worth keeping however few they are. */
  readonly costly?: boolean;
  /** The same bytes in pieces, for those who need not have them all at once. */
  chunks?(): Iterable<Uint8Array>;
  /** The bytes are those of the initializer `of` from `offset` on, where any graph has one of that name. */
  readonly part?: { readonly of: string; readonly offset: number };
  /** Every rank has the same: one file for all. */
  readonly shared?: boolean;
}

export interface Initializer extends Value {
  readonly type: TensorType & { readonly shape: readonly number[] };
  readonly source: InitializerSource;
}

/** A number is an int; a float says so, since ONNX types them apart. Undefined: left out. */
export type AttributeValue =
  | number
  | { readonly float: number }
  | string
  | boolean
  | readonly number[]
  | undefined;
export type Attributes = Readonly<Record<string, AttributeValue>>;

/** One kind of node: the types of its outputs, and the ONNX nodes it becomes. */
// biome-ignore lint/suspicious/noExplicitAny: a node holds an op of any attribute type.
export interface Op<A = any> {
  readonly name: string;
  /** Throws (assert) on inputs that do not fit: graphs are made by our own code. */
  infer(inputs: readonly (TensorType | null)[], attributes: A): readonly TensorType[];
  emit(node: Node<A>, onnx: OnnxNodes): void;
}

// biome-ignore lint/suspicious/noExplicitAny: see Op.
export interface Node<A = any> {
  readonly op: Op<A>;
  /** Null: an optional input that is absent. */
  readonly inputs: readonly (Value | null)[];
  readonly outputs: readonly Value[];
  readonly attributes: A;
}

export interface Graph {
  readonly name: string;
  readonly inputs: readonly Value[];
  readonly outputs: readonly Value[];
  readonly initializers: readonly Initializer[];
  /** In an order in which every input precedes its use. */
  readonly nodes: readonly Node[];
}

export function tensorType(dtype: DType, shape: readonly Dimension[]): TensorType {
  return { dtype, shape: [...shape] };
}

/** The last dimension, which graphs here always know. */
export function columns(type: TensorType): number {
  const last = type.shape.at(-1);
  assert(typeof last === 'number', `the last dimension of [${type.shape}] must be known`);
  return last;
}

export function sameShape(left: TensorType, right: TensorType): boolean {
  return (
    left.shape.length === right.shape.length && left.shape.every((size, axis) => size === right.shape[axis])
  );
}
