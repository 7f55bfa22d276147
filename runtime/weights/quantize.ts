/**
 * Quantization of plain weights: a dense matrix enters, one in blocks leaves, each block rounded to the nearest of the
 * steps that its largest value spans, symmetric about zero. Values are made when they are read. Must not know models.
 */
import { SluiceError } from '../errors.ts';
import {
  type Checkpoint,
  type DenseTensor,
  isQuantized,
  type QuantizedBytes,
  type QuantizedTensor,
  type StoredTensor,
} from './checkpoint.ts';
import { readRows } from './dense.ts';

export interface WeightQuantization {
  readonly bits: 4 | 8;
  /** A power of two, 16 to 256. */
  readonly blockSize: number;
}

/** Values read at a time. */
const pieceValues = 2 ** 21;

/** The matrix [outputs, inputs] in blocks of its rows; the last block of a row may be short. */
export function quantizeTensor(
  tensor: DenseTensor,
  { bits, blockSize }: WeightQuantization,
): QuantizedTensor {
  const [outputs, inputs] = tensor.shape as readonly [number, number];
  return {
    kind: 'quantized',
    shape: [outputs, inputs],
    bits,
    blockSize,
    layout: () => ({ zeros: false, minima: false }),
    read(): QuantizedBytes {
      const blocks = Math.ceil(inputs / blockSize);
      const rowBytes = (blocks * blockSize * bits) / 8;
      const packed = new Uint8Array(outputs * rowBytes).fill(bits === 4 ? 0x88 : 0x80);
      const scales = new Float32Array(outputs * blocks);
      const quantize = bits === 4 ? quantizeTo4 : quantizeTo8;
      // Without a place in a file every piece would read the whole tensor.
      const step = tensor.location === undefined ? outputs : Math.max(1, Math.floor(pieceValues / inputs));
      for (let first = 0; first < outputs; first += step) {
        const end = Math.min(outputs, first + step);
        const values = readRows(tensor, first, end);
        const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
        for (let row = first; row < end; row++) {
          for (let block = 0; block < blocks; block++) {
            const from = (row - first) * inputs + block * blockSize;
            const size = Math.min(blockSize, inputs - block * blockSize);
            const scale = Math.fround(largestOf(words, from, size) / (2 ** (bits - 1) - 1));
            scales[row * blocks + block] = scale;
            const at = row * rowBytes + (block * blockSize * bits) / 8;
            if (scale !== 0) quantize(values, from, size, scale, packed, at);
          }
        }
      }
      return { packed, scales };
    },
  };
}

const asWord = new Uint32Array(1);
const asFloat = new Float32Array(asWord.buffer);

/** The largest of float32 values' magnitudes. Without their signs their bits are in the same order. */
function largestOf(words: Uint32Array, from: number, size: number): number {
  let largest = 0;
  for (let i = from; i < from + size; i++) {
    const word = words[i]! & 0x7fffffff;
    if (word > largest) largest = word;
  }
  asWord[0] = largest;
  return asFloat[0]!;
}

type QuantizeBlock = (
  values: Float32Array,
  from: number,
  size: number,
  scale: number,
  packed: Uint8Array,
  at: number,
) => void;

// What is rounded is positive: cutting off what lies behind the point is much faster than Math.round.
const quantizeTo8: QuantizeBlock = (values, from, size, scale, packed, at) => {
  for (let i = 0; i < size; i++) packed[at + i] = (values[from + i]! / scale + 128.5) | 0;
};

/** The second value of the last byte, where there is none, stays in the middle. */
const quantizeTo4: QuantizeBlock = (values, from, size, scale, packed, at) => {
  for (let i = 0; i < size; i += 2) {
    const low = (values[from + i]! / scale + 8.5) | 0;
    const high = i + 1 < size ? (values[from + i + 1]! / scale + 8.5) | 0 : 8;
    packed[at + (i >> 1)] = low | (high << 4);
  }
};

/**
 * The checkpoint with its matrices in blocks. Embedding and head, which have a row for each token, keep 8 bits: they are
 * the most sensitive. Throws SluiceError `checkpoint_unsupported` for one that is quantized already.
 */
export function quantizeCheckpoint(checkpoint: Checkpoint, quantization: WeightQuantization): Checkpoint {
  const { bits, blockSize } = quantization;
  const encoding = `int${bits}`;
  if (isQuantized(checkpoint)) {
    throw new SluiceError(
      'checkpoint_unsupported',
      `${checkpoint.path}: --quantization-encoding ${encoding} quantizes plain weights, and these are stored as ${checkpoint.encoding} already: leave the option out to run them as they are`,
    );
  }
  const { vocab_size: vocabulary } = checkpoint.config;
  let weightBytes = checkpoint.weightBytes;
  const tensors = new Map<string, StoredTensor>();
  for (const [name, tensor] of checkpoint.tensors) {
    if (tensor.kind === 'quantized' || tensor.shape.length !== 2 || !isFloat(tensor)) {
      tensors.set(name, tensor);
      continue;
    }
    const [outputs, inputs] = tensor.shape as readonly [number, number];
    const own: WeightQuantization = { bits: outputs === vocabulary ? 8 : bits, blockSize };
    tensors.set(name, quantizeTensor(tensor, own));
    const blocks = outputs * Math.ceil(inputs / blockSize);
    weightBytes += blocks * ((blockSize * own.bits) / 8 + 4) - outputs * inputs * floatBytes[tensor.dtype]!;
  }
  return {
    ...checkpoint,
    tensors,
    encoding,
    weightBytes,
    ...(checkpoint.identity === undefined
      ? {}
      : { identity: `${checkpoint.identity} ${encoding} in blocks of ${blockSize}` }),
  };
}

const floatBytes: Readonly<Record<string, number>> = { float32: 4, float16: 2, bfloat16: 2 };

const isFloat = ({ dtype }: DenseTensor): boolean => Object.hasOwn(floatBytes, dtype);
