/**
 * One rank's KV pool and the attention over it. Enters: shapes of the layers, block tables, packed rows of q, k and v.
 * Leaves: packed rows of outputs. Must not know graphs, ranks or who owns which block.
 *
 * A 32-bit memory ends at 4 GiB, so the layers are dealt to as many memories as needed, each with a kernel instance
 * and scratch buffers of its own.
 */
import assert from 'node:assert';
import { addressOf, type Pointer } from '../../ort/library.ts';
import { type NativeFunction, nativeFunction } from '../../ort/native-code.ts';
import { type AttentionShape, headsOfKv } from './attention-reference.ts';
import { createMemory, instantiateKernel, maximumMemoryBytes, reservedBytes } from './kernel-module.ts';
import { attendsInIntegers, attentionCode } from './x64/attention.ts';
import {
  attentionArguments,
  attentionArgumentWords,
  attentionWorkBytes,
  hasAttentionCode,
} from './x64/attention-form.ts';
import type { InstructionSet } from './x64/processor.ts';

export type KvDType = 'float32' | 'bfloat16' | 'int8';

const elementBytes: Readonly<Record<KvDType, number>> = { float32: 4, bfloat16: 2, int8: 1 };

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
  /** Attend by machine code for the shapes that there is some for; absent: by WebAssembly. */
  readonly instructions?: InstructionSet;
}

/** The packed rows of a step, in the kernel's memory: [tokens, heads * headDim] and the like. */
export interface AttentionBuffers {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly out: Float32Array;
}

interface AttentionExports {
  attendFloat32: Attend;
  attendBfloat16: Attend;
  attendInt8: Attend;
  prepareFloat32: Prepare;
  prepareBfloat16: Prepare;
  prepareInt8: Prepare;
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

type Addresses = [
  plan: number,
  shape: number,
  layer: number,
  q: number,
  k: number,
  v: number,
  angles: number,
];
type Prepare = (...addresses: Addresses) => void;
type Attend = (...addresses: [...Addresses, out: number, work: number]) => void;

const kernelNames = {
  float32: ['attendFloat32', 'prepareFloat32'],
  bfloat16: ['attendBfloat16', 'prepareBfloat16'],
  int8: ['attendInt8', 'prepareInt8'],
} as const satisfies Record<KvDType, readonly [keyof AttentionExports, keyof AttentionExports]>;

interface Group {
  readonly exports: AttentionExports;
  readonly attend: Attend;
  readonly prepare: Prepare;
  /** Of the memory's address 0. */
  readonly base: Pointer;
  readonly plan: Int32Array;
  readonly angles: Float32Array;
  readonly buffers: AttentionBuffers;
  readonly work: number;
}

interface Layer {
  readonly group: Group;
  readonly shape: AttentionShape;
  /** Where the kernel finds the shape. */
  readonly shapeAddress: number;
  /** Where the layer's pages start. */
  readonly pages: number;
  /** Attends by machine code once queries, keys and values are prepared. */
  readonly native: ((out: Pointer) => void) | undefined;
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
  readonly #functions = new Map<string, NativeFunction>();
  #work = new Uint8Array(new SharedArrayBuffer(0));

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
    const { maxStepTokens, planWords, dtype } = this.#options;
    const widths = scratchWidths(this.#options.layers);
    const scratch = scratchBytes(this.#options);
    const memory = createMemory(scratch + sizes.reduce((sum, size) => sum + size, 0));
    const exports = instantiateKernel<AttentionExports>('attention', memory);
    let at = reservedBytes;
    const floats = (count: number): Float32Array => {
      const view = new Float32Array(memory.buffer, at, count);
      at += aligned(count * 4);
      return view;
    };
    const shapesAt = at;
    at += aligned(this.#options.layers.length * shapeWords * 4);
    const plan = new Int32Array(memory.buffer, at, planWords);
    at += aligned(planWords * 4);
    const [attend, prepare] = kernelNames[dtype];
    const group: Group = {
      exports,
      attend: exports[attend],
      prepare: exports[prepare],
      base: addressOf(new Uint8Array(memory.buffer)),
      plan,
      angles: floats(maxStepTokens * widths.rotary),
      buffers: {
        q: floats(maxStepTokens * widths.query),
        k: floats(maxStepTokens * widths.key),
        v: floats(maxStepTokens * widths.key),
        out: floats(maxStepTokens * widths.query),
      },
      work: at,
    };
    groups.push(group);
    let pages = scratch;
    for (const [index, shape] of shapes.entries()) {
      const shapeAddress = shapesAt + index * shapeWords * 4;
      writeShape(memory, shapeAddress, this.#prepared(shape), this.#options.blockTokens, this.#fours(shape));
      layers.push({ group, shape, shapeAddress, pages, native: this.#nativeAttention(group, shape, pages) });
      pages += sizes[index]!;
    }
  }

  /** Where to put the rows of `layer` before `attend`, and find them after. */
  buffers(layer: number): AttentionBuffers {
    return this.#layers[layer]!.group.buffers;
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

  /**
   * Stores the step's k and v of a layer and attends; `q` and `k` in the buffers are overwritten. The outputs go to `place`
   * where machine code attends, which is the answer, else to the buffer.
   */
  attend(layer: number, place?: Pointer): boolean {
    const { group, shape, shapeAddress, pages, native } = this.#layers[layer]!;
    if (shape.heads === 0) return false;
    const { q, k, v, out } = group.buffers;
    const { plan, angles, work } = group;
    const rows = [q.byteOffset, k.byteOffset, v.byteOffset] as const;
    if (native === undefined) {
      group.attend(plan.byteOffset, shapeAddress, pages, ...rows, angles.byteOffset, out.byteOffset, work);
      return false;
    }
    group.prepare(plan.byteOffset, shapeAddress, pages, ...rows, angles.byteOffset);
    native(place ?? group.base + BigInt(out.byteOffset));
    return place !== undefined;
  }

  /** Machine code takes powers of two of scores, not of e. */
  #prepared(shape: AttentionShape): AttentionShape {
    const { instructions, blockTokens, dtype } = this.#options;
    const native = instructions !== undefined && hasAttentionCode({ shape, blockTokens, dtype });
    return native ? { ...shape, scale: shape.scale * Math.LOG2E } : shape;
  }

  /** 1 where int8 keys and values lie in fours. */
  #fours(shape: AttentionShape): number {
    const { instructions, blockTokens, dtype } = this.#options;
    return instructions !== undefined && attendsInIntegers({ shape, blockTokens, dtype }, instructions)
      ? 1
      : 0;
  }

  #nativeAttention(group: Group, shape: AttentionShape, pages: number): ((out: Pointer) => void) | undefined {
    const { instructions, blockTokens, dtype } = this.#options;
    const form = { shape, blockTokens, dtype };
    if (instructions === undefined || !hasAttentionCode(form)) return undefined;
    const key = JSON.stringify(form);
    let code = this.#functions.get(key);
    if (code === undefined) {
      code = nativeFunction(attentionCode(form, instructions), 1);
      this.#functions.set(key, code);
    }
    const words = new BigUint64Array(attentionArgumentWords);
    const bytes = attentionWorkBytes(form);
    if (bytes > this.#work.length) this.#work = new Uint8Array(new SharedArrayBuffer(bytes + 64));
    const place = (offset: number): bigint => group.base + BigInt(offset);
    words[attentionArguments.plan] = place(group.plan.byteOffset);
    words[attentionArguments.layer] = place(pages);
    words[attentionArguments.q] = place(group.buffers.q.byteOffset);
    words[attentionArguments.work] = (addressOf(this.#work) + 63n) & ~63n;
    const address = addressOf(words);
    const run = code;
    const work = this.#work;
    return (out) => {
      words[attentionArguments.out] = out;
      // Used by its address only.
      void work;
      run(address);
    };
  }

  /** Copies the first `rows` tokens of a block to another, in every layer. */
  copyBlock(from: number, to: number, rows: number): void {
    for (const { group, shape, pages } of this.#layers) {
      if (shape.kvHeads === 0) continue;
      const { kvHeads, headDim } = shape;
      const { dtype, blockTokens } = this.#options;
      group.exports.copyBlock(
        elementBytes[dtype],
        this.#fours(shape),
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
  fours: number,
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
    fours,
    shape.group ?? shape.heads / Math.max(1, shape.kvHeads),
    shape.firstInGroup ?? 0,
  ]);
  new Float32Array(memory.buffer, at + 24, 2).set([shape.scale, shape.softcap]);
}

function scratchWidths(layers: readonly AttentionShape[]): { query: number; key: number; rotary: number } {
  return {
    query: Math.max(0, ...layers.map((shape) => shape.heads * shape.headDim)),
    key: Math.max(0, ...layers.map((shape) => shape.kvHeads * shape.headDim)),
    rotary: Math.max(0, ...layers.map((shape) => shape.rotaryDim)),
  };
}

/** Bytes before the pages in each memory. */
function scratchBytes(options: PagedAttentionOptions): number {
  const { query, key, rotary } = scratchWidths(options.layers);
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
