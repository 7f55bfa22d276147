/**
 * A graph as an ONNX model. The graph enters; the ModelProto's bytes leave, with small constants inside and the other
 * initializers declared as external data, to be given to the session by name. Field numbers: onnx/onnx.proto.
 */
import assert from 'node:assert';
import type { DType } from '../dtype.ts';
import { dtypeBytes } from '../dtype.ts';
import type { Attributes, AttributeValue, Graph, Initializer, TensorType, Value } from './graph.ts';
import { ProtobufWriter } from './protobuf.ts';

/** TensorProto.DataType. */
const dataTypes: Readonly<Record<DType, number>> = {
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

const irVersion = 10;
const opsets: readonly (readonly [string, number])[] = [
  ['', 21],
  ['com.microsoft', 1],
  ['sluice', 1],
];

/** Constants up to this size travel inside the model: optimizers may then fold them. */
const inlineBytes = 1024;

export interface OnnxModel {
  readonly bytes: Uint8Array;
  /** Initializers that the model declares and whose values the session must be given. */
  readonly external: readonly Initializer[];
}

/** What an op emits into. Attributes of value undefined are left out; a name of '' is an absent input or output. */
export interface OnnxNodes {
  node(
    type: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes?: Attributes,
    domain?: string,
  ): void;
  /** A small int64 vector, shared by all nodes that ask for the same one. */
  ints(values: readonly number[]): string;
  /** A float scalar, shared likewise. */
  float(value: number): string;
  /** A uint8 scalar, shared likewise. */
  byte(value: number): string;
}

export function toOnnx(graph: Graph): OnnxModel {
  const nodes: Uint8Array[] = [];
  const constants = new Map<string, Uint8Array>();
  let count = 0;
  const onnx: OnnxNodes = {
    node(type, inputs, outputs, attributes = {}, domain = '') {
      nodes.push(encodeNode(type, inputs, outputs, attributes, domain, `${type}.${count++}`));
    },
    ints(values) {
      const name = `ints.${values.join('.')}`;
      const data = BigInt64Array.from(values, BigInt);
      if (!constants.has(name)) constants.set(name, encodeInline(name, 'int64', [values.length], data));
      return name;
    },
    float(value) {
      const name = `float.${value}`;
      if (!constants.has(name)) {
        constants.set(name, encodeInline(name, 'float32', [], Float32Array.of(value)));
      }
      return name;
    },
    byte(value) {
      const name = `byte.${value}`;
      if (!constants.has(name)) constants.set(name, encodeInline(name, 'uint8', [], Uint8Array.of(value)));
      return name;
    },
  };
  for (const node of graph.nodes) node.op.emit(node, onnx);

  const external = graph.initializers.filter((initializer) => byteCount(initializer) > inlineBytes);
  const declared = new Set(external);
  const model = new ProtobufWriter()
    .int(1, irVersion)
    .string(2, 'sluice')
    .message(7, (proto) => {
      for (const node of nodes) proto.bytes(1, node);
      proto.string(2, graph.name);
      for (const constant of constants.values()) proto.bytes(5, constant);
      for (const initializer of graph.initializers) {
        proto.bytes(5, encodeInitializer(initializer, declared.has(initializer)));
      }
      for (const input of graph.inputs) proto.message(11, (info) => encodeValue(info, input));
      for (const output of graph.outputs) proto.message(12, (info) => encodeValue(info, output));
    });
  for (const [domain, version] of opsets) {
    model.message(8, (opset) => opset.string(1, domain).int(2, version));
  }
  return { bytes: model.finish().slice(), external };
}

function byteCount(initializer: Initializer): number {
  const { dtype, shape } = initializer.type;
  return (shape as readonly number[]).reduce((product, size) => product * size, 1) * dtypeBytes[dtype];
}

function encodeNode(
  type: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Attributes,
  domain: string,
  name: string,
): Uint8Array {
  const proto = new ProtobufWriter();
  for (const input of inputs) proto.string(1, input);
  for (const output of outputs) proto.string(2, output);
  proto.string(3, name).string(4, type);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) proto.message(5, (attribute) => encodeAttribute(attribute, key, value));
  }
  if (domain !== '') proto.string(7, domain);
  return proto.finish();
}

function encodeAttribute(
  proto: ProtobufWriter,
  name: string,
  value: Exclude<AttributeValue, undefined>,
): void {
  proto.string(1, name);
  if (typeof value === 'string') {
    proto.string(4, value).int(20, 3);
  } else if (typeof value === 'boolean') {
    proto.int(3, value ? 1 : 0).int(20, 2);
  } else if (typeof value === 'number') {
    assert(Number.isInteger(value), `the attribute ${name}, ${value}, is a float and must say so`);
    proto.int(3, value).int(20, 2);
  } else if ('float' in value) {
    proto.float(2, value.float).int(20, 1);
  } else {
    for (const item of value) proto.int(8, item);
    proto.int(20, 7);
  }
}

function encodeInline(
  name: string,
  dtype: DType,
  shape: readonly number[],
  data: ArrayBufferView,
): Uint8Array {
  const proto = new ProtobufWriter();
  for (const size of shape) proto.int(1, size);
  return proto
    .int(2, dataTypes[dtype])
    .string(8, name)
    .bytes(9, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .finish();
}

function encodeInitializer(initializer: Initializer, external: boolean): Uint8Array {
  const { name, type, source } = initializer;
  if (!external) return encodeInline(name, type.dtype, type.shape, source.read());
  const proto = new ProtobufWriter();
  for (const size of type.shape) proto.int(1, size);
  return proto
    .int(2, dataTypes[type.dtype])
    .string(8, name)
    .message(13, (entry) => entry.string(1, 'location').string(2, 'given-to-the-session'))
    .int(14, 1)
    .finish();
}

function encodeValue(proto: ProtobufWriter, value: Value): void {
  proto.string(1, value.name).message(2, (type) => {
    type.message(1, (tensor) => encodeTensorType(tensor, value.type));
  });
}

function encodeTensorType(proto: ProtobufWriter, type: TensorType): void {
  proto.int(1, dataTypes[type.dtype]).message(2, (shape) => {
    for (const size of type.shape) {
      shape.message(1, (dimension) =>
        typeof size === 'number' ? dimension.int(1, size) : dimension.string(2, size),
      );
    }
  });
}
