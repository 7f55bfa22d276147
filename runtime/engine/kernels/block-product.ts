/**
 * Products of rows with quantized matrices by machine code that is made for their sizes. A matrix's description enters, the
 * address of a node's kernel leaves. Must not know graphs.
 */
import { addressOf, type Pointer } from '../../ort/library.ts';
import { PlacedCode, placeCode } from '../../ort/native-code.ts';
import { type GroupForm, groupBytesOf, groupOutputs, groupsOf } from '../../weights/column-groups.ts';
import { blockProductCode, type ProductForm, productArguments } from './x64/block-product.ts';
import { wideFormOf } from './x64/group-expansion.ts';
import type { InstructionSet } from './x64/processor.ts';
import { type ProductPart, type ProductWay, productNodeCode } from './x64/product-node.ts';
import { factBytes, quantizeRowsCode, type RowForm } from './x64/row-blocks.ts';

/** Values of the rows that one pass multiplies: what the processor keeps near while weights stream by. */
const passBytes = 256 * 2 ** 10;
/** More where each pass expands all groups. */
const widePassBytes = 512 * 2 ** 10;
const leastPassRows = 16;

/**
 * From so many rows on, groups are expanded: that costs about as much as it saves with 24 to 48 rows, and steps that only
 * decode stay exact.
 */
export const leastWideRows = 64;

export interface BlockMatrix {
  readonly inputs: number;
  readonly form: GroupForm;
  /** Outputs of each part, whose groups are whole and follow each other. */
  readonly outputs: readonly number[];
}

/** The products of one thread: functions by their form, and room for quantized rows, are shared. */
export class BlockProducts {
  readonly #instructions: InstructionSet;
  readonly #placed = new PlacedCode();
  readonly #room = { values: new Room(), facts: new Room(), expanded: new Room() };
  /** Arguments of the parts, read by their address. */
  readonly #arguments: BigUint64Array[] = [];

  constructor(instructions: InstructionSet) {
    this.#instructions = instructions;
  }

  /**
   * The kernel of a node (ort/custom-op.ts, RowKernel) with inputs float32 x [rows, inputs] and groups, and float32
   * [rows, outputs] of each part.
   */
  kernel({ inputs, form, outputs }: BlockMatrix): Pointer {
    const wide = this.#instructions === 'avx512' ? wideFormOf(form) : undefined;
    if (wide !== undefined) this.#room.expanded.grow(groupBytesOf(wide));
    let groups = 0;
    const parts = outputs.map((count): ProductPart => {
      const offset = groups * groupBytesOf(form);
      groups += groupsOf(count);
      return { outputs: count, weightsOffset: offset, words: this.#partWords(count) };
    });
    return placeCode(
      productNodeCode({
        inputs,
        parts,
        cells: {
          values: this.#room.values.cell,
          facts: this.#room.facts.cell,
          expanded: this.#room.expanded.cell,
        },
        way: this.#way(inputs, { stored: form, wide: null }),
        wide:
          wide === undefined
            ? null
            : { ...this.#way(inputs, { stored: form, wide }), leastRows: leastWideRows },
      }),
    );
  }

  #way(inputs: number, form: ProductForm): ProductWay {
    const [placed, instructions] = [this.#placed, this.#instructions];
    const { blocks, blockSize, bits, twice = false } = form.wide ?? form.stored;
    const rowForm: RowForm = { inputs, blockSize, centre: 2 ** (bits - 1), twice };
    const rowBytes = blocks * blockSize;
    const passRows = Math.max(
      leastPassRows,
      Math.floor((form.wide === null ? passBytes : widePassBytes) / rowBytes),
    );
    this.#room.values.grow(passRows * rowBytes);
    this.#room.facts.grow(passRows * blocks * factBytes);
    return {
      passRows,
      quantize: placed.once('quantize', rowForm, () => quantizeRowsCode(rowForm, instructions)),
      product: placed.once('product', form, () => blockProductCode(form, instructions)),
    };
  }

  /** What of a part's arguments is the same at each call. */
  #partWords(outputs: number): Pointer {
    const words = new BigUint64Array(Object.keys(productArguments).length);
    const groups = groupsOf(outputs);
    words[productArguments.outBytes] = BigInt(4 * outputs);
    words[productArguments.groups] = BigInt(groups);
    words[productArguments.lastOutputs] = BigInt(2 ** (outputs - (groups - 1) * groupOutputs) - 1);
    this.#arguments.push(words);
    return addressOf(words);
  }
}

/** Memory that grows with the largest wish, and the cell where its address can be read. */
class Room {
  #bytes = new Uint8Array(new SharedArrayBuffer(0));
  readonly #cell = new BigUint64Array(1);
  readonly cell = addressOf(this.#cell);

  grow(bytes: number): void {
    if (bytes <= this.#bytes.length) return;
    this.#bytes = new Uint8Array(new SharedArrayBuffer(bytes));
    this.#cell[0] = addressOf(this.#bytes);
  }
}
