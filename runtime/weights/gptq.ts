/**
 * GPTQ's four tensors of a layer (qweight, qzeros, scales, g_idx) as one QuantizedTensor. 4 and 8 bits, checkpoint formats
 * v1 (zero points stored minus one) and v2, symmetric or not, act-order, any group size.
 * Source: the layouts of AutoGPTQ and GPTQModel. Reads bytes through the tensors given; must not know models.
 */
import type { DType } from '../dtype.ts';
import { SluiceError } from '../errors.ts';
import type { DenseTensor, QuantizedBytes, QuantizedTensor } from './checkpoint.ts';
import { readRows } from './dense.ts';
import { blocksOf, quantizedAt, rowBytes, setQuantized, zeroRowBytes } from './quantized.ts';

/** A matrix in the quantizer's own terms: rows of inputs fall into groups with a scale and a zero. */
export interface GroupedFacts {
  readonly inputs: number;
  readonly outputs: number;
  readonly bits: 4 | 8;
  readonly groupSize: number;
  readonly groups: number;
  /** [inputs]: the group of each input. */
  readonly groupOf: Int32Array;
  /** float16: every scale is one. */
  readonly scaleType: DType;
  /** Reads the zero points, of which there are few. */
  zeros(): (group: number, output: number) => number;
  /** Reads the rest. */
  values(): GroupedValues;
}

export interface GroupedValues {
  quantized(input: number, output: number): number;
  /** [outputs, inputs * bits / 8]: the values packed along the inputs in their own order, where that is cheap. */
  packedRows?(): Uint8Array;
  /** [groups, outputs]. */
  readonly scales: Float32Array;
}

/** The kernel's blocks: a power of two, 16 to 256, that divides the group, so that a block has one scale. */
function blockSizeFor(groupSize: number, inputs: number): number {
  const span = Math.min(groupSize, inputs);
  for (const size of [128, 64, 32]) if (span % size === 0) return size;
  return 16;
}

/**
 * Columns are laid out group by group; a group that is no whole number of blocks is padded with columns that read no
 * input (permutation -1), which keeps every block within one group for any group size and any act-order.
 */
function columnsOf(matrix: GroupedFacts, blockSize: number): Int32Array | undefined {
  const members: number[][] = Array.from({ length: matrix.groups }, () => []);
  for (let input = 0; input < matrix.inputs; input++) members[matrix.groupOf[input]!]!.push(input);
  const used = members.filter((group) => group.length > 0);
  const columns: number[] = [];
  for (const [index, group] of used.entries()) {
    columns.push(...group);
    const last = index === used.length - 1;
    while (!last && columns.length % blockSize !== 0) columns.push(-1);
  }
  return columns.every((input, column) => input === column) ? undefined : Int32Array.from(columns);
}

function allZerosAre({ groups, outputs, zeros }: GroupedFacts, value: number): boolean {
  const zero = zeros();
  for (let group = 0; group < groups; group++)
    for (let n = 0; n < outputs; n++) if (zero(group, n) !== value) return false;
  return true;
}

export function fromGroups(facts: GroupedFacts): QuantizedTensor {
  const { inputs, outputs, bits, groupOf } = facts;
  const blockSize = blockSizeFor(facts.groupSize, inputs);
  const middle = 1 << (bits - 1);
  /** Found once: every zero point is looked at. */
  let known: boolean | undefined;
  const symmetric = (): boolean => {
    known ??= allZerosAre(facts, middle);
    return known;
  };
  return {
    kind: 'quantized',
    shape: [outputs, inputs],
    bits,
    blockSize,
    layout() {
      const permutation = columnsOf(facts, blockSize);
      return {
        zeros: !symmetric(),
        minima: false,
        ...(facts.scaleType === 'float16' ? { factors: 'float16' as const } : {}),
        ...(permutation === undefined ? {} : { permutation }),
      };
    },
    read(): QuantizedBytes {
      const source = facts.values();
      const zero = facts.zeros();
      const columns = columnsOf(facts, blockSize);
      const shape = { outputs, inputs: columns?.length ?? inputs, bits, blockSize };
      const blocks = blocksOf(shape);
      const packed = new Uint8Array(outputs * rowBytes(shape));
      const scales = new Float32Array(outputs * blocks);
      const zeros = symmetric() ? undefined : new Uint8Array(outputs * zeroRowBytes(shape));
      for (let block = 0; block < blocks; block++) {
        const first = columns ? columns[block * blockSize]! : block * blockSize;
        const group = groupOf[first]!;
        for (let n = 0; n < outputs; n++) {
          scales[n * blocks + block] = source.scales[group * outputs + n]!;
          if (zeros) setQuantized(zeros, n * zeroRowBytes(shape), block, bits, zero(group, n));
        }
      }
      const rows = columns ? undefined : source.packedRows?.();
      const row = (inputs * bits) / 8;
      if (rows) {
        for (let n = 0; n < outputs; n++)
          packed.set(rows.subarray(n * row, (n + 1) * row), n * rowBytes(shape));
      }
      for (let column = rows ? shape.inputs : 0; column < shape.inputs; column++) {
        const input = columns ? columns[column]! : column;
        for (let n = 0; n < outputs; n++) {
          setQuantized(
            packed,
            n * rowBytes(shape),
            column,
            bits,
            input < 0 ? middle : source.quantized(input, n),
          );
        }
      }
      return {
        packed,
        scales,
        ...(zeros ? { zeros } : {}),
        ...(columns ? { permutation: columns } : {}),
      };
    },
  };
}

/** [rows, columns] of 32-bit words to [columns, rows], in tiles that stay in the cache. */
function transposeWords(from: Uint32Array, rows: number, columns: number): Uint8Array {
  const to = new Uint32Array(rows * columns);
  const tile = 64;
  for (let top = 0; top < rows; top += tile) {
    for (let left = 0; left < columns; left += tile) {
      const bottom = Math.min(top + tile, rows);
      const right = Math.min(left + tile, columns);
      for (let column = left; column < right; column++) {
        for (let row = top; row < bottom; row++) to[column * rows + row] = from[row * columns + column]!;
      }
    }
  }
  return new Uint8Array(to.buffer);
}

export interface GptqTensors {
  readonly qweight: DenseTensor;
  readonly qzeros: DenseTensor;
  readonly scales: DenseTensor;
  readonly gIdx?: DenseTensor;
}

export interface GptqOptions {
  readonly bits: 4 | 8;
  /** -1: one group a column. */
  readonly groupSize: number;
  /** True for `checkpoint_format: gptq_v2`: the zero points are stored as they are. */
  readonly trueZeros: boolean;
}

/** `name` is the layer's, for messages. Throws `checkpoint_invalid` when the shapes do not fit together. */
export function gptqTensor(name: string, tensors: GptqTensors, options: GptqOptions): QuantizedTensor {
  const { bits, trueZeros } = options;
  const perWord = 32 / bits;
  const inputs = (tensors.qweight.shape[0] ?? 0) * perWord;
  const outputs = tensors.qweight.shape[1] ?? 0;
  const groups = tensors.scales.shape[0] ?? 0;
  const groupSize = options.groupSize > 0 ? options.groupSize : inputs;
  const expect = (part: string, actual: readonly number[], expected: readonly number[]): void => {
    if (actual.length === expected.length && actual.every((size, i) => size === expected[i])) return;
    throw new SluiceError(
      'checkpoint_invalid',
      `${name}.${part} has shape [${actual.join(', ')}], [${expected.join(', ')}] is expected for ${bits} bits in groups of ${options.groupSize}`,
    );
  };
  expect('scales', tensors.scales.shape, [Math.ceil(inputs / groupSize), outputs]);
  expect('qzeros', tensors.qzeros.shape, [groups, Math.ceil(outputs / perWord)]);
  if (tensors.gIdx) expect('g_idx', tensors.gIdx.shape, [inputs]);

  const groupOf = new Int32Array(inputs);
  if (tensors.gIdx) {
    groupOf.set(new Int32Array(tensors.gIdx.read().slice().buffer));
    const wrong = groupOf.find((group) => group < 0 || group >= groups);
    if (wrong !== undefined) {
      throw new SluiceError('checkpoint_invalid', `${name}.g_idx holds group ${wrong}, there are ${groups}`);
    }
  } else {
    for (let input = 0; input < inputs; input++) groupOf[input] = Math.floor(input / groupSize);
  }

  const mask = (1 << bits) - 1;
  // Words are int32, low bits first: as bytes, a little-endian stream of values along the packed dimension.
  return fromGroups({
    inputs,
    outputs,
    bits,
    groupSize,
    groups,
    groupOf,
    scaleType: tensors.scales.dtype,
    zeros() {
      const zeros = tensors.qzeros.read();
      const zeroRow = tensors.qzeros.shape[1]! * 4;
      return (group, output) => {
        const stored = quantizedAt(zeros, group * zeroRow, output, bits);
        return trueZeros ? stored : (stored + 1) & mask;
      };
    },
    values() {
      const weight = tensors.qweight.read();
      return {
        scales: readRows(tensors.scales, 0, groups),
        quantized(input, output) {
          const word = Math.floor(input / perWord);
          return quantizedAt(weight, (word * outputs + output) * 4, input % perWord, bits);
        },
        // A word holds neighbouring inputs, low bits first, which is how a packed row holds them: transposing is all.
        packedRows: () => transposeWords(new Uint32Array(weight.slice().buffer), inputs / perWord, outputs),
      };
    },
  });
}
