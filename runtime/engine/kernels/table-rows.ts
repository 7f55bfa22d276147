/**
 * Rows of a table: plain, or quantized in groups of outputs (weights/column-groups.ts, whose `unpackGroups` is the plain
 * reference). Enters: ids, and the addresses of the table and of a place for rows. Leaves: rows as float32.
 */
import assert from 'node:assert';
import { addressOf, copyMemory, type Pointer } from '../../ort/library.ts';
import { type MemoryReader, memoryReader } from '../../ort/mapped-file.ts';
import {
  type FactorType,
  factorBytesOf,
  type GroupForm,
  groupBytesOf,
  groupOutputs,
  valueBytesOf,
} from '../../weights/column-groups.ts';

export interface PlainForm {
  readonly dtype: 'float32' | 'float16' | 'bfloat16';
}

export interface Table {
  readonly form: GroupForm | PlainForm;
  readonly outputs: number;
  /** Of each row; the last block of a quantized one may be longer. */
  readonly inputs: number;
}

export class TableRows {
  readonly #table: Table;
  readonly #unit: Unit;
  readonly #row: Float32Array;
  readonly #rowAddress: Pointer;
  #ids = new Int32Array(1);
  #reader: { readonly table: Pointer; readonly read: MemoryReader } | undefined;

  constructor(table: Table) {
    const { form, inputs } = table;
    this.#table = table;
    this.#unit = 'dtype' in form ? new PlainRow(form, inputs) : new Group(form);
    this.#row = new Float32Array(this.#unit.rowFloats);
    this.#rowAddress = addressOf(this.#row);
  }

  /** `count` int32 at `ids`; writes [count, inputs] to `out`. */
  read(ids: Pointer, count: number, table: Pointer, out: Pointer): void {
    const { outputs, inputs } = this.#table;
    const { bytes, rows } = this.#unit;
    if (this.#ids.length < count) this.#ids = new Int32Array(count);
    copyMemory(addressOf(this.#ids), ids, 4 * count);
    if (this.#reader?.table !== table) this.#reader = { table, read: memoryReader(table) };
    for (let i = 0; i < count; i++) {
      const id = this.#ids[i]!;
      assert(id >= 0 && id < outputs, `row ${id} of ${outputs}`);
      const within = id % rows;
      this.#reader.read(((id - within) / rows) * bytes.length, bytes);
      this.#unit.unpack(within, this.#row);
      copyMemory(out + BigInt(4 * i * inputs), this.#rowAddress, 4 * inputs);
    }
  }
}

/** What is read at once of a table: a row, or a group of them, whose values lie apart. */
interface Unit {
  readonly bytes: Uint8Array;
  readonly rows: number;
  readonly rowFloats: number;
  unpack(row: number, to: Float32Array): void;
}

class PlainRow implements Unit {
  readonly bytes: Uint8Array;
  readonly rows = 1;
  readonly rowFloats: number;
  readonly #values: Float32Array | Float16Array | Uint16Array;
  readonly #dtype: PlainForm['dtype'];

  constructor({ dtype }: PlainForm, inputs: number) {
    this.rowFloats = inputs;
    this.bytes = new Uint8Array(inputs * (dtype === 'float32' ? 4 : 2));
    const { buffer } = this.bytes;
    this.#dtype = dtype;
    this.#values =
      dtype === 'float32'
        ? new Float32Array(buffer)
        : dtype === 'float16'
          ? new Float16Array(buffer)
          : new Uint16Array(buffer);
  }

  unpack(_row: number, to: Float32Array): void {
    if (this.#dtype !== 'bfloat16') {
      to.set(this.#values);
      return;
    }
    const words = new Uint32Array(to.buffer, to.byteOffset, to.length);
    const values = this.#values as Uint16Array;
    for (let i = 0; i < words.length; i++) words[i] = values[i]! << 16;
  }
}

class Group implements Unit {
  readonly bytes: Uint8Array;
  readonly rows = groupOutputs;
  readonly rowFloats: number;
  readonly #form: GroupForm;
  readonly #scales: Factors;
  readonly #minima: Factors | null;

  constructor(form: GroupForm) {
    this.#form = form;
    this.rowFloats = form.blocks * form.blockSize;
    this.bytes = new Uint8Array(groupBytesOf(form));
    const [start, stride] = [valueBytesOf(form), factorBytesOf(form)];
    const scaleBytes = form.scales === 'float16' ? 2 : 4;
    this.#scales = factors(form.scales, this.bytes, start, stride);
    this.#minima =
      form.minima === 'none'
        ? null
        : factors(form.minima, this.bytes, start + groupOutputs * scaleBytes, stride);
  }

  unpack(column: number, row: Float32Array): void {
    const { bits, blockSize, blocks, minima: minimumType } = this.#form;
    const { bytes } = this;
    const [scales, minima] = [this.#scales, this.#minima];
    const centre = 2 ** (bits - 1);
    let at = column * 4;
    for (let block = 0; block < blocks; block++) {
      const scale = scales.values[scales.start + block * scales.stride + column]!;
      let minimum = minima === null ? 0 : minima.values[minima.start + block * minima.stride + column]!;
      if (minimumType === 'float16') minimum = Math.fround(minimum + centre * scale);
      const end = (block + 1) * blockSize;
      for (let input = block * blockSize; input < end; input += 32 / bits, at += 4 * groupOutputs) {
        for (let i = 0; i < 4; i++) {
          const byte = bytes[at + i]!;
          if (bits === 8) row[input + i] = (byte - centre) * scale + minimum;
          else {
            row[input + i] = ((byte & 15) - centre) * scale + minimum;
            row[input + 4 + i] = ((byte >> 4) - centre) * scale + minimum;
          }
        }
      }
    }
  }
}

/** One kind of factors in a group, in elements. */
interface Factors {
  readonly values: Float16Array | Float32Array;
  readonly start: number;
  /** From block to block. */
  readonly stride: number;
}

function factors(type: FactorType, group: Uint8Array, start: number, stride: number): Factors {
  return type === 'float16'
    ? { values: new Float16Array(group.buffer), start: start / 2, stride: stride / 2 }
    : { values: new Float32Array(group.buffer), start: start / 4, stride: stride / 4 };
}
