/**
 * Rows of a quantized table that lies in groups of outputs (weights/column-groups.ts). Enters: ids, and the addresses of
 * groups and of a place for rows. Leaves: rows as float32. The plain reference is `unpackGroups`.
 */
import assert from 'node:assert';
import { addressOf, copyMemory, type Pointer } from '../../ort/library.ts';
import {
  type FactorType,
  factorBytesOf,
  type GroupForm,
  groupBytesOf,
  groupOutputs,
  valueBytesOf,
} from '../../weights/column-groups.ts';

export interface GroupTable {
  readonly form: GroupForm;
  readonly outputs: number;
  /** Of each row; the last block may be longer. */
  readonly inputs: number;
}

export class GroupRows {
  readonly #table: GroupTable;
  readonly #groupBytes: number;
  /** The group that a row is read from: a row's values lie apart, and few calls are faster than few bytes. */
  readonly #group: Uint8Array;
  readonly #groupAddress: Pointer;
  readonly #scales: Factors;
  readonly #minima: Factors | null;
  readonly #row: Float32Array;
  readonly #rowAddress: Pointer;
  #ids = new Int32Array(1);

  constructor(table: GroupTable) {
    const { form } = table;
    this.#table = table;
    this.#groupBytes = groupBytesOf(form);
    this.#group = new Uint8Array(this.#groupBytes);
    this.#groupAddress = addressOf(this.#group);
    const [start, stride] = [valueBytesOf(form), factorBytesOf(form)];
    const scaleBytes = form.scales === 'float16' ? 2 : 4;
    this.#scales = factors(form.scales, this.#group, start, stride);
    this.#minima =
      form.minima === 'none'
        ? null
        : factors(form.minima, this.#group, start + groupOutputs * scaleBytes, stride);
    this.#row = new Float32Array(form.blocks * form.blockSize);
    this.#rowAddress = addressOf(this.#row);
  }

  /** `count` int32 at `ids`; writes [count, inputs] to `out`. */
  read(ids: Pointer, count: number, groups: Pointer, out: Pointer): void {
    const { outputs, inputs } = this.#table;
    if (this.#ids.length < count) this.#ids = new Int32Array(count);
    copyMemory(addressOf(this.#ids), ids, 4 * count);
    for (let i = 0; i < count; i++) {
      const id = this.#ids[i]!;
      assert(id >= 0 && id < outputs, `row ${id} of ${outputs}`);
      const column = id % groupOutputs;
      const group = (id - column) / groupOutputs;
      copyMemory(this.#groupAddress, groups + BigInt(group * this.#groupBytes), this.#groupBytes);
      this.#unpack(column);
      copyMemory(out + BigInt(4 * i * inputs), this.#rowAddress, 4 * inputs);
    }
  }

  #unpack(column: number): void {
    const { bits, blockSize, blocks, minima: minimumType } = this.#table.form;
    const [bytes, row] = [this.#group, this.#row];
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
