/**
 * One rank's KV pool and the attention over it. Enters: shapes of the layers, block tables, packed rows of q, k and v.
 * Leaves: packed rows of outputs. Must not know graphs, ranks or who owns which block.
 *
 * A 32-bit memory ends at 4 GiB, so the layers are dealt to as many memories as needed, each with a kernel instance
 * and scratch buffers of its own.
 */
import assert from 'node:assert';
import { addressOf, copyMemory, type Pointer } from '../../ort/library.ts';
import type { AttentionNodes } from './attention-nodes.ts';
import { type AttentionShape, elementBytes, headsOfKv, type KvDType } from './attention-reference.ts';
import { createMemory, instantiateKernel, maximumMemoryBytes, reservedBytes } from './kernel-module.ts';

export interface PagedAttentionOptions {
  /** What this rank holds of each layer; a layer without heads on this rank has heads 0. */
  readonly layers: readonly AttentionShape[];
  /** A power of two, at least 8. */
  readonly blockTokens: number;
  readonly blockCount: number;
  readonly dtype: KvDType;
  readonly maxStepTokens: number;
  /** Words of the longest plan (step-message.ts). */
  readonly planWords: number;
  /** Of these layers: what has a kernel there is not attended to here. */
  readonly nodes?: AttentionNodes;
}

/** Addresses of a step's packed rows: q and out [rows, heads * headDim], k and v [rows, kvHeads * headDim]. */
export interface AttentionRows {
  readonly rows: number;
  readonly q: Pointer;
  readonly k: Pointer;
  readonly v: Pointer;
  readonly out: Pointer;
}

interface AttentionExports {
  attendFloat32: Attend;
  attendBfloat16: Attend;
  attendInt8: Attend;
  copyBlock(
    elementBytes: number,
    fours: number,
    layer: number,
    from: number,
    to: number,
    rows: number,
    kvHeads: number,
    headDim: number,
    blockTokens: number,
  ): void;
}

type Attend = (
  plan: number,
  shape: number,
  layer: number,
  q: number,
  k: number,
  v: number,
  angles: number,
  out: number,
  work: number,
) => void;

const kernelNames = {
  float32: 'attendFloat32',
  bfloat16: 'attendBfloat16',
  int8: 'attendInt8',
} as const satisfies Record<KvDType, keyof AttentionExports>;

interface Group {
  readonly exports: AttentionExports;
  readonly attend: Attend;
  /** Of the memory's address 0. */
  readonly base: Pointer;
  readonly plan: Int32Array;
  readonly angles: Float32Array;
  /** Where rows are that the kernel here attends. */
  readonly rows: Readonly<Record<'q' | 'k' | 'v' | 'out', number>>;
  readonly work: number;
}

interface Layer {
  readonly group: Group;
  readonly shape: AttentionShape;
  /** Where the kernel finds the shape. */
  readonly shapeAddress: number;
  /** Where the layer's pages start. */
  readonly pages: number;
}

/** Bytes of one block of one layer: K [headDim][blockTokens] and V [blockTokens][headDim up to 8] for each KV head. */
export function pageBytes(
  shape: Pick<AttentionShape, 'kvHeads' | 'headDim'>,
  blockTokens: number,
  dtype: KvDType,
): number {
  const padded = Math.ceil(shape.headDim / 8) * 8;
  const scales = dtype === 'int8' ? 8 * blockTokens : 0;
  return shape.kvHeads * ((shape.headDim + padded) * blockTokens * elementBytes[dtype] + scales);
}

const shapeWords = 16;
const aligned = (bytes: number): number => Math.ceil(bytes / 64) * 64;

export class PagedAttention {
  readonly kvBytes: number;
  readonly #options: PagedAttentionOptions;
  readonly #layers: readonly Layer[];
  readonly #groups: readonly Group[];

  constructor(options: PagedAttentionOptions) {
    const { blockTokens } = options;
    assert(blockTokens >= 8 && (blockTokens & (blockTokens - 1)) === 0, `blocks of ${blockTokens} tokens`);
    for (const shape of options.layers) {
      assert(shape.rotaryDim % 2 === 0 && shape.rotaryDim <= shape.headDim, `rotary ${shape.rotaryDim}`);
      for (let kv = 0; kv < shape.kvHeads; kv++) {
        const { start, end } = headsOfKv(shape, kv);
        assert(Number.isInteger(start) && Number.isInteger(end) && end > start, 'query heads of a KV head');
      }
    }
    this.#options = options;
    const layers: Layer[] = [];
    const groups: Group[] = [];
    const scratch = scratchBytes(options);
    const sizes = options.layers.map(
      (shape) => aligned(pageBytes(shape, blockTokens, options.dtype)) * options.blockCount,
    );
    for (let first = 0; first < sizes.length; ) {
      let bytes = scratch;
      let end = first;
      while (end < sizes.length && (end === first || bytes + sizes[end]! <= maximumMemoryBytes)) {
        bytes += sizes[end]!;
        end++;
      }
      assert(bytes <= maximumMemoryBytes, `a layer's pages take ${sizes[first]} bytes`);
      this.#addGroup(options.layers.slice(first, end), sizes.slice(first, end), layers, groups);
      first = end;
    }
    this.#layers = layers;
    this.#groups = groups;
    this.kvBytes = sizes.reduce((sum, size) => sum + size, 0);
  }

  #addGroup(
    shapes: readonly AttentionShape[],
    sizes: readonly number[],
    layers: Layer[],
    groups: Group[],
  ): void {
    const { maxStepTokens, planWords, dtype, blockTokens, nodes } = this.#options;
    const widths = scratchWidths(this.#options);
    const scratch = scratchBytes(this.#options);
    const memory = createMemory(scratch + sizes.reduce((sum, size) => sum + size, 0));
    const exports = instantiateKernel<AttentionExports>('attention', memory);
    let at = reservedBytes;
    const take = (words: number): number => {
      const start = at;
      at += aligned(words * 4);
      return start;
    };
    const shapesAt = take(this.#options.layers.length * shapeWords);
    const base = addressOf(new Uint8Array(memory.buffer));
    const group: Group = {
      exports,
      attend: exports[kernelNames[dtype]],
      base,
      plan: new Int32Array(memory.buffer, take(planWords), planWords),
      angles: new Float32Array(
        memory.buffer,
        take(maxStepTokens * widths.rotary),
        maxStepTokens * widths.rotary,
      ),
      rows: {
        q: take(maxStepTokens * widths.query),
        k: take(maxStepTokens * widths.key),
        v: take(maxStepTokens * widths.key),
        out: take(maxStepTokens * widths.query),
      },
      work: at,
    };
    groups.push(group);
    let pages = scratch;
    for (const [index, shape] of shapes.entries()) {
      const shapeAddress = shapesAt + index * shapeWords * 4;
      writeShape(memory, shapeAddress, shape, blockTokens);
      const layer = layers.push({ group, shape, shapeAddress, pages }) - 1;
      if (nodes?.kernel(layer) !== undefined) {
        const place = (offset: number): Pointer => base + BigInt(offset);
        nodes.place(layer, {
          plan: place(group.plan.byteOffset),
          angles: place(group.angles.byteOffset),
          pages: place(pages),
        });
      }
      pages += sizes[index]!;
    }
  }

  /**
   * Starts a step. `plan` as step-message.ts writes it; `angles` is [tokens, rotaryDim]: for each packed row the cosines,
   * then the sines, of its position.
   */
  begin(plan: Int32Array, angles: Float32Array): void {
    for (const group of this.#groups) {
      group.plan.set(plan);
      group.angles.set(angles);
    }
  }

  /** Stores the step's k and v of a layer and attends, by WebAssembly: copies rows to its memory and from it. */
  attend(layer: number, { rows, q, k, v, out }: AttentionRows): void {
    const { group, shape, shapeAddress, pages } = this.#layers[layer]!;
    assert(this.#options.nodes?.kernel(layer) === undefined, 'machine code attends');
    const { heads, kvHeads, headDim } = shape;
    if (heads === 0) return;
    const { plan, angles, work, base, rows: places } = group;
    const queryBytes = rows * heads * headDim * 4;
    const keyBytes = rows * kvHeads * headDim * 4;
    copyMemory(base + BigInt(places.q), q, queryBytes);
    copyMemory(base + BigInt(places.k), k, keyBytes);
    copyMemory(base + BigInt(places.v), v, keyBytes);
    group.attend(
      plan.byteOffset,
      shapeAddress,
      pages,
      places.q,
      places.k,
      places.v,
      angles.byteOffset,
      places.out,
      work,
    );
    copyMemory(out, base + BigInt(places.out), queryBytes);
  }

  /** Copies the first `rows` tokens of a block to another, in every layer. */
  copyBlock(from: number, to: number, rows: number): void {
    const { dtype, blockTokens, nodes } = this.#options;
    for (const [layer, { group, shape, pages }] of this.#layers.entries()) {
      if (shape.kvHeads === 0) continue;
      const { kvHeads, headDim } = shape;
      group.exports.copyBlock(
        elementBytes[dtype],
        nodes?.inFours(layer) ? 1 : 0,
        pages,
        from,
        to,
        rows,
        kvHeads,
        headDim,
        blockTokens,
      );
    }
  }
}

function writeShape(
  memory: WebAssembly.Memory,
  at: number,
  shape: AttentionShape,
  blockTokens: number,
): void {
  const queryWidth = shape.heads * shape.headDim;
  const keyWidth = shape.kvHeads * shape.headDim;
  new Int32Array(memory.buffer, at, shapeWords).set([
    shape.heads,
    shape.kvHeads,
    shape.headDim,
    shape.rotaryDim,
    blockTokens,
    shape.window,
    0,
    0,
    queryWidth,
    keyWidth,
    keyWidth,
    queryWidth,
    shape.group ?? shape.heads / Math.max(1, shape.kvHeads),
    shape.firstInGroup ?? 0,
  ]);
  new Float32Array(memory.buffer, at + 24, 2).set([shape.scale, shape.softcap]);
}

/** Floats of a row of queries and of keys, where layers are attended here, and of angles. */
function scratchWidths({ layers, nodes }: PagedAttentionOptions): {
  query: number;
  key: number;
  rotary: number;
} {
  const here = layers.filter((_, layer) => nodes?.kernel(layer) === undefined);
  return {
    query: Math.max(0, ...here.map((shape) => shape.heads * shape.headDim)),
    key: Math.max(0, ...here.map((shape) => shape.kvHeads * shape.headDim)),
    rotary: Math.max(0, ...layers.map((shape) => shape.rotaryDim)),
  };
}

/** Bytes before the pages in each memory. */
function scratchBytes(options: PagedAttentionOptions): number {
  const { query, key, rotary } = scratchWidths(options);
  const headDim = Math.max(0, ...options.layers.map((shape) => shape.headDim));
  const padded = Math.ceil(headDim / 8) * 8;
  // What wasm/attention.ts works in: 32 rows of queries and outputs, their states, four rows of scores.
  const work = 32 * padded * 8 + 32 * 16 + 1024;
  return (
    reservedBytes +
    aligned(options.layers.length * shapeWords * 4) +
    aligned(options.planWords * 4) +
    aligned(options.maxStepTokens * rotary * 4) +
    2 * aligned(options.maxStepTokens * query * 4) +
    2 * aligned(options.maxStepTokens * key * 4) +
    aligned(work)
  );
}
