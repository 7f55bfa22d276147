/**
 * Runs a model's rank graphs in one thread, on whole sequences, with plain loops for attention: what the engine's
 * answers must equal, and the way to test models without it.
 *
 * All-reduce without threads: the ranks run one after another, several times. In pass p the sums before number p are
 * known; number p is collected; what follows is thrown away.
 */
import assert from 'node:assert/strict';
import { tableRowsOp } from '../../runtime/engine/table-rows-op.ts';
import type { ModelSpec } from '../../runtime/models/model.ts';
import { type PreparedGraph, type PreparedRank, prepareRank } from '../../runtime/models/prepare.ts';
import { parseModel } from '../../runtime/models/registry.ts';
import { CustomOpDomain, defineCustomOp } from '../../runtime/ort/custom-op.ts';
import { copyMemory, type Pointer } from '../../runtime/ort/library.ts';
import { MappedFile } from '../../runtime/ort/mapped-file.ts';
import { Session } from '../../runtime/ort/session.ts';
import { OrtValue } from '../../runtime/ort/value.ts';
import type { Checkpoint } from '../../runtime/weights/checkpoint.ts';

export interface ReferenceOptions {
  readonly ranks: number;
  readonly cacheDir?: string | null;
  readonly quantizedCompute?: 'int8' | 'float32';
}

export class ReferenceRanks implements Disposable {
  readonly spec: ModelSpec;
  readonly prepared: readonly PreparedRank[];
  readonly #ranks: { body: Session; head: Session }[];
  readonly #domain: CustomOpDomain;
  readonly #files = new Map<string, MappedFile>();
  readonly #step = { tokens: 0 };
  #sums: Float32Array[] = [];
  #collected: Float32Array | undefined;

  constructor(checkpoint: Checkpoint, options: ReferenceOptions) {
    const model = parseModel(checkpoint);
    this.spec = model.spec;
    const warnings: string[] = [];
    this.prepared = Array.from({ length: options.ranks }, (_, rank) =>
      prepareRank(model, checkpoint, {
        rank,
        ranks: options.ranks,
        cacheDir: options.cacheDir ?? null,
        warn: (message) => warnings.push(message),
        ...(options.quantizedCompute === undefined ? {} : { quantizedCompute: options.quantizedCompute }),
      }),
    );
    this.#domain = new CustomOpDomain('sluice', [
      this.#pagedAttention(),
      this.#allReduce(),
      tableRowsOp(this.#step),
    ]);
    this.#ranks = this.prepared.map(({ body, head }) => ({
      body: this.#session(body),
      head: this.#session(head),
    }));
  }

  /** Logits of every position: [tokens][vocabulary]. */
  logits(tokens: readonly number[]): Float32Array[] {
    this.#step.tokens = tokens.length;
    this.#sums = [];
    const input = OrtValue.over(Int32Array.from(tokens), 'int32', [tokens.length]);
    let hidden: OrtValue[] = [];
    do {
      this.#collected = undefined;
      for (const value of hidden) value.close();
      hidden = this.#ranks.map(({ body }) => body.run({ tokens: input })[0]!);
      if (this.#collected !== undefined) this.#sums.push(this.#collected);
    } while (this.#collected !== undefined);
    for (const value of hidden) assert.deepEqual(value.toBytes(), hidden[0]!.toBytes());
    const slices = this.#ranks.map(({ head }) => {
      const [value] = head.run({ hidden: hidden[0]! });
      return { width: value!.shape[1]!, values: value!.toFloat32() };
    });
    return tokens.map((_, row) =>
      Float32Array.from(
        slices.flatMap(({ width, values }) => [...values.subarray(row * width, (row + 1) * width)]),
      ),
    );
  }

  [Symbol.dispose](): void {
    for (const { body, head } of this.#ranks) {
      body.close();
      head.close();
    }
    this.#domain.close();
    for (const file of this.#files.values()) file.close();
  }

  #session(graph: PreparedGraph): Session {
    const shared = new Map<string, OrtValue>();
    const copied = new Map<string, OrtValue>();
    for (const { name, dtype, shape, location, bytes } of graph.weights) {
      if (location === undefined) {
        copied.set(name, OrtValue.over(bytes!(), dtype, shape));
      } else {
        const file = this.#files.get(location.file) ?? MappedFile.open(location.file);
        this.#files.set(location.file, file);
        shared.set(name, OrtValue.over(file.pointer + BigInt(location.offset), dtype, shape));
      }
    }
    const session = Session.fromBytes(graph.onnx, {
      customOps: [this.#domain],
      sharedInitializers: shared,
      copiedInitializers: copied,
    });
    for (const value of copied.values()) value.close();
    for (const file of this.#files.values()) file.dropPages();
    return session;
  }

  #allReduce() {
    return defineCustomOp({
      name: 'AllReduce',
      inputs: [{ dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }],
      attributes: { index: 'int', contributes: 'int' },
      kernel:
        ({ index, contributes }) =>
        (context) => {
          const shape = context.inputShape(0);
          const size = shape[0]! * shape[1]!;
          const known = this.#sums[index];
          if (known !== undefined) {
            copyMemory(context.output(0, shape), known, size * 4);
            return;
          }
          const partial = readFloats(context.input(0), size);
          if (index === this.#sums.length) {
            this.#collected ??= new Float32Array(size);
            if (contributes) for (let i = 0; i < size; i++) this.#collected[i]! += partial[i]!;
          }
          copyMemory(context.output(0, shape), new Float32Array(size), size * 4);
        },
    });
  }

  #pagedAttention() {
    return defineCustomOp({
      name: 'PagedAttention',
      inputs: [{ dtype: 'float32' }, { dtype: 'float32' }, { dtype: 'float32' }],
      outputs: [{ dtype: 'float32' }],
      attributes: { layer: 'int' },
      kernel:
        ({ layer }) =>
        (context) => {
          const { headDim } = this.spec;
          const length = this.#step.tokens;
          const [q, k, v] = [0, 1, 2].map((index) => {
            const [rows, width] = context.inputShape(index);
            assert.equal(rows, length);
            return { heads: width! / headDim, values: readFloats(context.input(index), rows! * width!) };
          });
          this.#rotate(q!.values, q!.heads);
          this.#rotate(k!.values, k!.heads);
          const out = attend(this.spec, layer, length, q!, k!, v!);
          copyMemory(context.output(0, [length, q!.heads * headDim]), out, out.byteLength);
        },
    });
  }

  #rotate(values: Float32Array, heads: number): void {
    const { rope, headDim } = this.spec;
    const { inverseFrequencies, attentionFactor } = rope.table(rope.variant(this.#step.tokens));
    const half = rope.rotaryDim / 2;
    for (let row = 0; row < this.#step.tokens; row++) {
      for (let head = 0; head < heads; head++) {
        const at = (row * heads + head) * headDim;
        for (let pair = 0; pair < half; pair++) {
          const angle = row * inverseFrequencies[pair]!;
          const [cos, sin] = [Math.cos(angle) * attentionFactor, Math.sin(angle) * attentionFactor];
          const [x, y] = [values[at + pair]!, values[at + pair + half]!];
          values[at + pair] = x * cos - y * sin;
          values[at + pair + half] = y * cos + x * sin;
        }
      }
    }
  }
}

interface Heads {
  readonly heads: number;
  readonly values: Float32Array;
}

function attend(spec: ModelSpec, layer: number, length: number, q: Heads, k: Heads, v: Heads): Float32Array {
  const { headDim, attentionScale, attentionSoftcap } = spec;
  const window = spec.windows[layer] ?? Number.POSITIVE_INFINITY;
  const group = q.heads / k.heads;
  const out = new Float32Array(q.values.length);
  for (let row = 0; row < length; row++) {
    for (let head = 0; head < q.heads; head++) {
      const queryAt = (row * q.heads + head) * headDim;
      const first = Math.max(0, row - window + 1);
      const scores: number[] = [];
      for (let past = first; past <= row; past++) {
        const keyAt = (past * k.heads + Math.floor(head / group)) * headDim;
        let dot = 0;
        for (let d = 0; d < headDim; d++) dot += q.values[queryAt + d]! * k.values[keyAt + d]!;
        dot *= attentionScale;
        scores.push(attentionSoftcap === null ? dot : attentionSoftcap * Math.tanh(dot / attentionSoftcap));
      }
      const peak = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - peak));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      weights.forEach((weight, index) => {
        const valueAt = ((first + index) * v.heads + Math.floor(head / group)) * headDim;
        for (let d = 0; d < headDim; d++) out[queryAt + d]! += (weight / total) * v.values[valueAt + d]!;
      });
    }
  }
  return out;
}

function readFloats(from: Pointer, size: number): Float32Array {
  const values = new Float32Array(size);
  copyMemory(values, from, size * 4);
  return values;
}
