/**
 * Quantization of plain weights: a dense matrix enters, one in blocks leaves, each block rounded to the nearest of the
 * steps that its largest value spans, symmetric about zero. Values are made when they are read. Must not know models.
 */
import { SluiceError } from '../errors.ts';
import type { Checkpoint, DenseTensor, QuantizedBytes, QuantizedTensor, StoredTensor } from './checkpoint.ts';
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
      const middle = 2 ** (bits - 1);
      const packed = new Uint8Array(outputs * rowBytes).fill(bits === 4 ? 0x88 : 0x80);
      const scales = new Float32Array(outputs * blocks);
      // Without a place in a file every piece would read the whole tensor.
      const step = tensor.location === undefined ? outputs : Math.max(1, Math.floor(pieceValues / inputs));
      for (let first = 0; first < outputs; first += step) {
        const end = Math.min(outputs, first + step);
        const values = readRows(tensor, first, end);
        for (let row = first; row < end; row++) {
          for (let block = 0; block < blocks; block++) {
            const from = (row - first) * inputs + block * blockSize;
            const size = Math.min(blockSize, inputs - block * blockSize);
            let largest = 0;
            for (let i = from; i < from + size; i++) largest = Math.max(largest, Math.abs(values[i]!));
            const scale = Math.fround(largest / (middle - 1));
            scales[row * blocks + block] = scale;
            if (scale === 0) continue;
            const at = row * rowBytes + (block * blockSize * bits) / 8;
            for (let i = 0; i < size; i++) {
              const q = Math.round(values[from + i]! / scale) + middle;
              if (bits === 8) packed[at + i] = q;
              else if (i & 1) packed[at + (i >> 1)] = (packed[at + (i >> 1)]! & 15) | (q << 4);
              else packed[at + (i >> 1)] = (packed[at + (i >> 1)]! & 0xf0) | q;
            }
          }
        }
      }
      return { packed, scales };
    },
  };
}

/**
 * The checkpoint with its matrices in blocks. Embedding and head, which have a row for each token, keep 8 bits: they are
 * the most sensitive. Throws SluiceError `checkpoint_unsupported` for one that is quantized already.
 */
export function quantizeCheckpoint(checkpoint: Checkpoint, quantization: WeightQuantization): Checkpoint {
  const { bits, blockSize } = quantization;
  const encoding = `int${bits}`;
  if ([...checkpoint.tensors.values()].some(({ kind }) => kind === 'quantized')) {
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
