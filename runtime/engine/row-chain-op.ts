/**
 * A chain of row ops (graph/row-chain.ts) as one custom op of a rank's session. What its nodes make for each other lies in
 * memory of the chain's own, which values that are not needed at the same time share; machine code calls one after the other.
 */
import type { RowChain } from '../graph/row-chain.ts';
import {
  type CustomKernel,
  type CustomOp,
  defineCustomOp,
  placeRowKernel,
  releaseRowKernel,
} from '../ort/custom-op.ts';
import { LargePages } from '../ort/large-pages.ts';
import { addressOf, check, type Pointer } from '../ort/library.ts';
import { functionAt, placeCode } from '../ort/native-code.ts';
import { type RowOp, rowWords } from '../ort/row-op.ts';
import { rowChainCode, rowChainWords } from './kernels/x64/row-chain.ts';
import type { StepState } from './ops.ts';

/** `ops`: what members can be; `maxRows`: of a run. */
export function rowChainOp(ops: readonly RowOp[], step: StepState, maxRows: number): CustomOp {
  const byName = new Map(ops.map((op) => [op.name, op]));
  const run = functionAt(placeCode(rowChainCode()), 1);
  return defineCustomOp({
    name: 'RowChain',
    inputs: [{ dtype: 'any', variadic: true }],
    outputs: [{ dtype: 'float32', variadic: true }],
    attributes: { chain: 'string', columns: 'string' },
    kernel({ chain: json, columns }): CustomKernel {
      const chain = JSON.parse(json) as RowChain;
      const widths = columns.split(',').map(Number);
      const members = chain.nodes.map((node) => {
        const kernel = byName.get(node.type)!.kernel(node.attributes);
        return { ...node, columns: kernel.columns, words: placeRowKernel(node.inputs.length, kernel) };
      });
      const memory = new ChainMemory(members, chain, maxRows);
      const words = new BigUint64Array(rowChainWords.members + members.length);
      words[rowChainWords.count] = BigInt(members.length);
      for (const [i, member] of members.entries()) words[rowChainWords.members + i] = addressOf(member.words);
      /** Where the address of each value goes that is not the chain's own. */
      const uses = new Map<number, { readonly words: BigUint64Array; readonly at: number }[]>();
      for (const { words, inputs, outputs } of members) {
        for (const [i, value] of [...inputs, ...outputs].entries()) {
          const at = rowWords.places + i;
          const own = memory.places.get(value);
          if (own !== undefined) words[at] = own;
          else uses.set(value, [...(uses.get(value) ?? []), { words, at }]);
        }
      }
      const put = (value: number, address: Pointer): void => {
        for (const { words, at } of uses.get(value) ?? []) words[at] = address;
      };
      const changing = chain.inputs - chain.constants;
      let placed = false;
      const compute: CustomKernel = (context) => {
        // Initializers stay where they are as long as the session.
        for (let i = 0; i < (placed ? changing : chain.inputs); i++) put(i, context.input(i));
        placed = true;
        for (const [i, value] of chain.outputs.entries()) {
          put(value, context.output2d(i, step.tokens, widths[i]!));
        }
        words[rowChainWords.rows] = step.rows[0]!;
        run(words);
        const status = words[rowChainWords.status]!;
        check(status === 0n ? null : status);
      };
      const close = (): void => {
        for (const { words } of members) releaseRowKernel(words);
        memory.close();
      };
      return Object.assign(compute, { close });
    },
  });
}

const lineBytes = 64;

interface Member {
  readonly inputs: readonly number[];
  readonly outputs: readonly number[];
  readonly columns: readonly number[];
}

interface Placed {
  readonly value: number;
  readonly start: number;
  readonly end: number;
  /** The last member that uses it. */
  readonly until: number;
}

/** Memory for the values that do not leave a chain, each with room for as many rows as the longest run has. */
class ChainMemory {
  readonly places = new Map<number, Pointer>();
  readonly #pages: LargePages | undefined;
  #bytes: Uint8Array | undefined;

  constructor(members: readonly Member[], { outputs }: RowChain, maxRows: number) {
    const leaving = new Set(outputs);
    const lastUse = new Map<number, number>();
    for (const [index, { inputs, outputs }] of members.entries()) {
      for (const value of [...inputs, ...outputs]) lastUse.set(value, index);
    }
    const placed: Placed[] = [];
    for (const [index, { outputs, columns }] of members.entries()) {
      for (const [i, value] of outputs.entries()) {
        if (leaving.has(value)) continue;
        const bytes = Math.ceil((columns[i]! * maxRows * 4) / lineBytes) * lineBytes;
        // What the member reads is in use as well.
        const inUse = placed.filter(({ until }) => until >= index);
        const start = firstGap(inUse, bytes);
        placed.push({ value, start, end: start + bytes, until: lastUse.get(value)! });
      }
    }
    const bytes = Math.max(0, ...placed.map(({ end }) => end));
    this.#pages = LargePages.reserve([bytes]);
    // Of a buffer that is shared no byte is resident before it is used.
    this.#bytes = new Uint8Array(new SharedArrayBuffer(this.#pages === undefined ? bytes : 0));
    const start = this.#pages?.take(bytes) ?? addressOf(this.#bytes);
    for (const { value, start: offset } of placed) this.places.set(value, start + BigInt(offset));
  }

  /** Until then the memory is held. */
  close(): void {
    this.#bytes = undefined;
    this.#pages?.close();
  }
}

/** The lowest place where so many bytes overlap nothing. */
function firstGap(taken: readonly Placed[], bytes: number): number {
  let start = 0;
  for (const each of taken.toSorted((a, b) => a.start - b.start)) {
    if (each.start - start >= bytes) break;
    start = Math.max(start, each.end);
  }
  return start;
}
