/**
 * Products of rows with quantized matrices by machine code that is made for their sizes. Enters: addresses of rows and of
 * groups of outputs. Leaves: rows of products where they belong. Must not know graphs.
 */
import { addressOf, type Pointer } from '../../ort/library.ts';
import { type NativeFunction, nativeFunction } from '../../ort/native-code.ts';
import { type GroupForm, groupBytesOf, groupOutputs, groupsOf } from '../../weights/column-groups.ts';
import { blockProductCode, productArguments } from './x64/block-product.ts';
import type { InstructionSet } from './x64/processor.ts';
import { blocksOfRow, factBytes, quantizeRowsCode, type RowForm } from './x64/row-blocks.ts';

/** Values of the rows that one pass multiplies: what the processor keeps near while weights stream by. */
const passBytes = 256 * 2 ** 10;

/** What the products of one thread share: functions by their form, and room for quantized rows. */
export class BlockProducts {
  readonly #instructions: InstructionSet;
  readonly #functions = new Map<string, NativeFunction>();
  readonly #arguments = new BigUint64Array(Object.keys(productArguments).length);
  readonly #argumentsAddress = addressOf(this.#arguments);
  readonly #room = { values: new Room(), facts: new Room() };

  constructor(instructions: InstructionSet) {
    this.#instructions = instructions;
  }

  quantizer(form: RowForm): NativeFunction {
    return this.#function(form, 4, quantizeRowsCode);
  }

  product(form: GroupForm): NativeFunction {
    return this.#function(form, 1, blockProductCode);
  }

  /** Room for a pass's rows of that form. */
  rows(form: RowForm): QuantizedRows {
    const blocks = blocksOfRow(form);
    const rowBytes = blocks * form.blockSize;
    const count = Math.max(16, Math.floor(passBytes / rowBytes));
    return {
      count,
      values: this.#room.values.address(count * rowBytes),
      facts: this.#room.facts.address(count * blocks * factBytes),
    };
  }

  /** Multiplies `rows` quantized rows with a part's groups. */
  multiply(
    product: NativeFunction,
    { values, facts }: QuantizedRows,
    rows: number,
    part: { readonly weights: Pointer; readonly outputs: number; readonly out: Pointer },
  ): void {
    const words = this.#arguments;
    const groups = groupsOf(part.outputs);
    words[productArguments.values] = values;
    words[productArguments.facts] = facts;
    words[productArguments.weights] = part.weights;
    words[productArguments.out] = part.out;
    words[productArguments.outBytes] = BigInt(4 * part.outputs);
    words[productArguments.rows] = BigInt(rows);
    words[productArguments.groups] = BigInt(groups);
    words[productArguments.lastOutputs] = BigInt(2 ** (part.outputs - (groups - 1) * groupOutputs) - 1);
    product(this.#argumentsAddress);
  }

  #function<F extends object>(
    form: F,
    parameters: number,
    make: (form: F, instructions: InstructionSet) => Uint8Array,
  ): NativeFunction {
    const key = `${make.name} ${JSON.stringify(form)}`;
    let known = this.#functions.get(key);
    if (known === undefined) {
      known = nativeFunction(make(form, this.#instructions), parameters);
      this.#functions.set(key, known);
    }
    return known;
  }
}

/** Places for rows of one form. */
export interface QuantizedRows {
  /** How many rows there is room for. */
  readonly count: number;
  readonly values: Pointer;
  readonly facts: Pointer;
}

/** Memory that grows with the largest wish. */
class Room {
  #bytes = new Uint8Array(new SharedArrayBuffer(0));
  #address: Pointer = 0n;

  address(bytes: number): Pointer {
    if (bytes > this.#bytes.length) {
      this.#bytes = new Uint8Array(new SharedArrayBuffer(bytes));
      this.#address = addressOf(this.#bytes);
    }
    return this.#address;
  }
}

export interface BlockMatrix {
  readonly inputs: number;
  readonly form: GroupForm;
  /** Outputs of each part. */
  readonly outputs: readonly number[];
}

/** One node's products: float32 x [rows, inputs] in, float32 [rows, outputs] of each part out. */
export class BlockProduct {
  readonly #products: BlockProducts;
  readonly #rowForm: RowForm;
  readonly #outputs: readonly number[];
  readonly #groupBytes: number;
  readonly #quantize: NativeFunction;
  readonly #multiply: NativeFunction;

  constructor(products: BlockProducts, { inputs, form, outputs }: BlockMatrix) {
    this.#products = products;
    this.#rowForm = { inputs, blockSize: form.blockSize, centre: 2 ** (form.bits - 1) };
    this.#outputs = outputs;
    this.#groupBytes = groupBytesOf(form);
    this.#quantize = products.quantizer(this.#rowForm);
    this.#multiply = products.product(form);
  }

  run(rows: number, x: Pointer, weights: Pointer, out: readonly Pointer[]): void {
    // Asked for each time: another node may have made the room larger.
    const room = this.#products.rows(this.#rowForm);
    for (let first = 0; first < rows; first += room.count) {
      const count = Math.min(rows - first, room.count);
      const from = x + BigInt(4 * first * this.#rowForm.inputs);
      this.#quantize(from, room.values, room.facts, BigInt(count));
      let groups = 0;
      for (const [i, outputs] of this.#outputs.entries()) {
        this.#products.multiply(this.#multiply, room, count, {
          weights: weights + BigInt(groups * this.#groupBytes),
          outputs,
          out: out[i]! + BigInt(4 * first * outputs),
        });
        groups += groupsOf(outputs);
      }
    }
  }
}
