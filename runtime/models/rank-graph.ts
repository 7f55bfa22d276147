/**
 * Building blocks from which an architecture builds one rank's graph: projections, vectors and embeddings, each cut
 * to the rank's part and stored however the checkpoint stores it. Names of tensors enter, values of the graph leave.
 * Must not know any one architecture.
 */
import assert from 'node:assert';
import { dtypeBytes } from '../dtype.ts';
import { SluiceError } from '../errors.ts';
import { GraphBuilder } from '../graph/builder.ts';
import type { Value } from '../graph/graph.ts';
import { allReduce, tableRows } from '../graph/ops/custom.ts';
import { add } from '../graph/ops/elementwise.ts';
import { linear } from '../graph/ops/linear.ts';
import { type QuantizedRows, quantizeRows } from '../graph/ops/row-int8.ts';
import { split } from '../graph/ops/shape.ts';
import type { Checkpoint, DenseTensor, QuantizedTensor, StoredTensor } from '../weights/checkpoint.ts';
import { quantizeTensor } from '../weights/quantize.ts';
import { type BlockProjection, blockProjections, blockRows } from './block-weight.ts';
import { cutSource, vectorSource, wholeSource } from './dense-weight.ts';
import type { ModelSpec } from './model.ts';
import { hasQuantizedRows, quantizedProjection, quantizedRows } from './quantized-weight.ts';
import { rowInt8Projection } from './row-int8-weight.ts';
import type { Range, Shard } from './shard.ts';
import { rangeSize } from './shard.ts';

/** A rank's part of a matrix [outputs, inputs] of the checkpoint. */
export interface MatrixCut {
  readonly tensor: string;
  /** The whole matrix, as config.json makes us expect it. */
  readonly shape: readonly [number, number];
  readonly rows?: Range;
  readonly columns?: Range;
}

/** A rank's part of a vector of the checkpoint. */
export interface VectorCut {
  readonly tensor: string;
  readonly size: number;
  readonly rows?: Range;
  /** Added to every element. */
  readonly plus?: number;
}

export interface NamedProjection {
  readonly name: string;
  readonly cut: MatrixCut;
  readonly bias: VectorCut | null;
}

export interface RankGraphOptions {
  readonly spec: ModelSpec;
  readonly shard: Shard;
  readonly checkpoint: Pick<Checkpoint, 'path' | 'tensors'>;
  /** How products with quantized weights are computed: int8 activations per block, or float32. */
  readonly quantizedCompute: 'int8' | 'float32';
  /** Products in int8 by the engine's own kernels (block-weight.ts), not by ONNX Runtime's. */
  readonly blockProducts?: boolean;
  /** In how many bits plain matrices are multiplied, in blocks of 32; absent: as they are. */
  readonly plainBits?: 4 | 8;
  /** Every product in the form for many rows (row-int8-weight.ts), with this `pairLimit`; absent: as stored. */
  readonly rowInt8PairLimit?: number;
}

function wholeOf({ shape, rows, columns }: MatrixCut): { readonly rows: Range; readonly columns: Range } {
  return {
    rows: rows ?? { start: 0, end: shape[0] },
    columns: columns ?? { start: 0, end: shape[1] },
  };
}

/** Equal where the bytes are, also in two graphs of a rank. */
function cutName(tensor: string, rows: Range, columns: Range): string {
  return `${tensor}[${rows.start}:${rows.end},${columns.start}:${columns.end}]`;
}

type StoredProjection =
  | ({ readonly kind: 'quantized' } & BlockProjection)
  | { readonly kind: 'dense'; readonly name: string; readonly value: Value; readonly bias: Value | null };

export class RankGraph {
  readonly builder: GraphBuilder;
  readonly spec: ModelSpec;
  readonly shard: Shard;
  readonly #options: RankGraphOptions;
  readonly #quantizedRows = new Map<Value, QuantizedRows>();
  #reductions = 0;

  constructor(name: string, options: RankGraphOptions) {
    this.builder = new GraphBuilder(name);
    this.spec = options.spec;
    this.shard = options.shard;
    this.#options = options;
  }

  has(tensor: string): boolean {
    return this.#options.checkpoint.tensors.has(tensor);
  }

  /** Rows of the embedding for token ids [tokens] int32: [tokens, hidden] float32. Every rank has them all. */
  embed(name: string, tensor: string, tokens: Value): Value {
    const { vocabulary, hidden } = this.spec;
    const stored = this.#tensor(tensor, [vocabulary, hidden]);
    if (stored.kind === 'quantized' && hasQuantizedRows(stored)) {
      if (this.#blockProducts) {
        const weight = (rows: Range, columns: Range): string => cutName(tensor, rows, columns);
        return blockRows(this.builder, name, tokens, { tensor: stored, weight });
      }
      const weight = cutName(tensor, { start: 0, end: vocabulary }, { start: 0, end: hidden });
      return quantizedRows(this.builder, name, tokens, { tensor: stored, weight });
    }
    const { dtype, source } = wholeSource(stored);
    const bytes = this.builder.initializer(
      `${tensor}.rows`,
      'uint8',
      [vocabulary, hidden * dtypeBytes[dtype]],
      source,
    );
    return tableRows(this.builder, name, tokens, bytes, {
      form: { dtype },
      outputs: vocabulary,
      inputs: hidden,
    });
  }

  /** A norm's weight or a bias, float32. */
  vector(cut: VectorCut): Value {
    const stored = this.#tensor(cut.tensor, [cut.size]);
    const rows = cut.rows ?? { start: 0, end: cut.size };
    const plus = cut.plus ?? 0;
    const name = `${cut.tensor}[${rows.start}:${rows.end}]${plus === 0 ? '' : `+${plus}`}`;
    return this.builder.initializer(
      name,
      'float32',
      [rangeSize(rows)],
      vectorSource(this.#dense(cut.tensor, stored), rows, plus),
    );
  }

  /** x [rows, inputs] times the transpose of the cut, plus the bias: [rows, outputs of the cut]. */
  project(name: string, x: Value, cut: MatrixCut, bias: VectorCut | null = null): Value {
    return this.projectAll(name, x, [{ name, cut, bias }])[0]!;
  }

  /** Several products with the same x: one for all where the form of the weights allows it. */
  projectAll(name: string, x: Value, projections: readonly NamedProjection[]): readonly Value[] {
    if (this.#options.rowInt8PairLimit !== undefined) return this.#projectRowInt8(name, x, projections);
    const { quantizedCompute } = this.#options;
    const stored = projections.map((projection) => this.#storedProjection(projection));
    const quantized = stored.filter((each) => each.kind === 'quantized');
    const made = new Map(
      this.#blockProducts
        ? blockProjections(this.builder, x, quantized).map((value, i) => [quantized[i] as object, value])
        : [],
    );
    return stored.map((each) => {
      if (each.kind === 'dense') return linear(this.builder, each.name, x, each.value, each.bias);
      return (
        made.get(each) ??
        quantizedProjection(this.builder, each.name, x, {
          ...each,
          weight: each.weight(each.rows, each.columns),
          accuracyLevel: quantizedCompute === 'int8' ? 4 : 0,
        })
      );
    });
  }

  /** Whether quantized weights are for the engine's own kernels, in the form that those read. */
  get #blockProducts(): boolean {
    return this.#options.blockProducts === true && this.#options.quantizedCompute === 'int8';
  }

  /** A projection's weight as it is stored, or in the bits that are wanted of plain ones. */
  #storedProjection({ name, cut, bias: biasCut }: NamedProjection): StoredProjection {
    const stored = this.#tensor(cut.tensor, cut.shape);
    const { rows, columns } = wholeOf(cut);
    const bias = biasCut === null ? null : this.vector(biasCut);
    const { plainBits } = this.#options;
    const quantized = (tensor: QuantizedTensor, form: string): StoredProjection => {
      const weight = (rows: Range, columns: Range): string => `${cutName(cut.tensor, rows, columns)}${form}`;
      return { kind: 'quantized', name, tensor, weight, rows, columns, bias };
    };
    if (stored.kind === 'quantized') return quantized(stored, '');
    if (plainBits !== undefined) {
      return quantized(quantizeTensor(stored, { bits: plainBits, blockSize: 32 }), `.int${plainBits}`);
    }
    const shape = [rangeSize(rows), rangeSize(columns)];
    const weight = cutName(cut.tensor, rows, columns);
    const value = this.builder.initializer(weight, 'float32', shape, cutSource(stored, rows, columns));
    return { kind: 'dense', name, value, bias };
  }

  #projectRowInt8(name: string, x: Value, projections: readonly NamedProjection[]): readonly Value[] {
    const cuts = projections.map(({ cut }) => cut);
    if (cuts.length === 1) return [this.#rowInt8(name, x, cuts, projections[0]!.bias)];
    const sizes = cuts.map((cut) => rangeSize(wholeOf(cut).rows));
    return split(this.builder, `${name}.parts`, this.#rowInt8(name, x, cuts, null), sizes).map((part, i) => {
      const { name, bias } = projections[i]!;
      return bias === null ? part : add(this.builder, name, part, this.vector(bias));
    });
  }

  #rowInt8(name: string, x: Value, cuts: readonly MatrixCut[], bias: VectorCut | null): Value {
    const parts = cuts.map((cut) => ({ tensor: this.#tensor(cut.tensor, cut.shape), ...wholeOf(cut) }));
    return rowInt8Projection(this.builder, name, this.#quantized(x), {
      parts,
      weight: cuts.map((cut, i) => cutName(cut.tensor, parts[i]!.rows, parts[i]!.columns)).join('+'),
      bias: bias === null ? null : this.vector(bias),
      pairLimit: this.#options.rowInt8PairLimit!,
    });
  }

  /** The rows of a value, quantized once for all products with it. */
  #quantized(x: Value): QuantizedRows {
    let rows = this.#quantizedRows.get(x);
    if (rows === undefined) {
      rows = quantizeRows(this.builder, `${x.name}.bytes`, x);
      this.#quantizedRows.set(x, rows);
    }
    return rows;
  }

  /** The sum over ranks; `partial` is null on a rank that has no part, and `like` gives the shape there. */
  reduce(name: string, partial: Value | null, like: Value): Value {
    if (this.shard.ranks === 1) {
      assert(partial !== null, 'the only rank holds everything');
      return partial;
    }
    const index = this.#reductions++;
    return allReduce(this.builder, name, partial ?? like, { index, contributes: partial !== null });
  }

  #tensor(name: string, shape: readonly number[]): StoredTensor {
    const { path, tensors } = this.#options.checkpoint;
    const tensor = tensors.get(name);
    if (tensor === undefined) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${path} lacks the tensor "${name}", which ${this.spec.architecture} has with the shape [${shape.join(', ')}]`,
      );
    }
    if (tensor.shape.length !== shape.length || tensor.shape.some((size, axis) => size !== shape[axis])) {
      throw new SluiceError(
        'checkpoint_invalid',
        `${path}: the tensor "${name}" has the shape [${tensor.shape.join(', ')}]; config.json makes it [${shape.join(', ')}]`,
      );
    }
    if (tensor.kind === 'dense' && !['float32', 'float16', 'bfloat16'].includes(tensor.dtype)) {
      throw new SluiceError(
        'checkpoint_unsupported',
        `${path}: the tensor "${name}" is ${tensor.dtype}; float32, float16 or bfloat16 is expected`,
      );
    }
    return tensor;
  }

  #dense(name: string, tensor: StoredTensor): DenseTensor {
    if (tensor.kind === 'dense') return tensor;
    throw new SluiceError(
      'checkpoint_unsupported',
      `${this.#options.checkpoint.path}: the tensor "${name}" is quantized; a plain one is expected there`,
    );
  }
}
