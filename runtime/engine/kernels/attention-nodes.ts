/**
 * Attention by machine code: shapes of layers enter, addresses of nodes' kernels leave. Nodes are made before there is a
 * pool, which then says where its pages are. Must not know graphs.
 */
import { addressOf, type Pointer } from '../../ort/library.ts';
import { PlacedCode, placeCode } from '../../ort/native-code.ts';
import type { AttentionShape } from './attention-reference.ts';
import { attendsInIntegers, attentionCode } from './x64/attention.ts';
import {
  type AttentionForm,
  attentionArguments,
  attentionArgumentWords,
  attentionWorkBytes,
  hasAttentionCode,
} from './x64/attention-form.ts';
import { attentionNodeCode } from './x64/attention-node.ts';
import {
  prepareArguments,
  prepareArgumentWords,
  prepareCode,
  prepareWorkBytes,
} from './x64/attention-prepare.ts';
import type { InstructionSet } from './x64/processor.ts';

export interface AttentionNodesOptions {
  readonly layers: readonly AttentionShape[];
  readonly blockTokens: number;
  readonly dtype: AttentionForm['dtype'];
  readonly instructions: InstructionSet;
  /** Float32 and bfloat16 pages are multiplied in bfloat16, for sequences of at most so many tokens. */
  readonly bfloat16Keys?: number;
}

/** Addresses of what a layer's step reads: the plan and the angles as `PagedAttention.begin` has them, the layer's pages. */
export interface AttentionPlaces {
  readonly plan: Pointer;
  readonly angles: Pointer;
  readonly pages: Pointer;
}

interface Node {
  readonly code: Pointer;
  readonly prepareWords: BigUint64Array;
  readonly attendWords: BigUint64Array;
  readonly inFours: boolean;
}

/** The nodes of one thread, which share the memory that they work in. */
export class AttentionNodes {
  readonly #nodes: readonly (Node | undefined)[];
  readonly #work: Uint8Array;

  constructor({ layers, blockTokens, dtype, instructions, bfloat16Keys }: AttentionNodesOptions) {
    const forms = layers.map(
      (shape): AttentionForm => ({
        shape,
        blockTokens,
        dtype,
        ...(bfloat16Keys === undefined || dtype === 'int8' ? {} : { bfloat16Keys }),
      }),
    );
    const bytes = forms.map((form) => Math.max(attentionWorkBytes(form), prepareWorkBytes(form)));
    this.#work = new Uint8Array(new SharedArrayBuffer(Math.max(0, ...bytes) + 64));
    const work = (addressOf(this.#work) + 63n) & ~63n;
    const placed = new PlacedCode();
    this.#nodes = forms.map((form): Node | undefined => {
      if (!hasAttentionCode(form)) return undefined;
      const prepareWords = new BigUint64Array(prepareArgumentWords);
      const attendWords = new BigUint64Array(attentionArgumentWords);
      prepareWords[prepareArguments.work] = work;
      attendWords[attentionArguments.work] = work;
      const code = placeCode(
        attentionNodeCode({
          prepare: placed.once('prepare', form, () => prepareCode(form, instructions)),
          attend: placed.once('attend', form, () => attentionCode(form, instructions)),
          prepareWords: addressOf(prepareWords),
          attendWords: addressOf(attendWords),
        }),
      );
      return { code, prepareWords, attendWords, inFours: attendsInIntegers(form, instructions) };
    });
  }

  /**
   * The kernel of a layer's nodes (ort/row-op.ts), whose inputs are float32 q [rows, heads * headDim], k and v
   * [rows, kvHeads * headDim], and whose output is as q; undefined: there is no code for the layer's shape.
   */
  kernel(layer: number): Pointer | undefined {
    return this.#nodes[layer]?.code;
  }

  /** Whether the layer's pages hold int8 in fours (wasm/lib/pages.ts). */
  inFours(layer: number): boolean {
    return this.#nodes[layer]?.inFours ?? false;
  }

  /** Before a layer's kernel is first called. */
  place(layer: number, { plan, angles, pages }: AttentionPlaces): void {
    const { prepareWords, attendWords } = this.#nodes[layer]!;
    prepareWords[prepareArguments.plan] = plan;
    prepareWords[prepareArguments.angles] = angles;
    prepareWords[prepareArguments.pages] = pages;
    attendWords[attentionArguments.plan] = plan;
    attendWords[attentionArguments.layer] = pages;
  }
}
