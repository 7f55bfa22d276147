/**
 * Asks for groups of outputs that follow the one which is multiplied, a part in each block of a tile: by itself the
 * processor looks ahead within a page, and steps of few rows would wait for weights longer than they compute. A form enters,
 * instructions leave, which keep what is asked for next in rdi.
 */
import { type GroupForm, groupBytesOf } from '../../../weights/column-groups.ts';
import type { Assembler } from './assembler.ts';
import { at, rdi } from './general-assembler.ts';

/** One would be too near where rows are few, three give no more. */
const groupsAhead = 2;

export class GroupPrefetch {
  readonly #code: Assembler;
  readonly #lines: number;
  /** The register with the address of the stored group that is multiplied; how far the one asked for is from it. */
  readonly #group: number;
  readonly #distance: number;

  constructor(code: Assembler, stored: GroupForm, blocks: number, group: number) {
    this.#code = code;
    this.#lines = Math.ceil(groupBytesOf(stored) / blocks / 64);
    this.#group = group;
    this.#distance = groupsAhead * groupBytesOf(stored);
  }

  begin(): void {
    this.#code.address(rdi, at(this.#group, this.#distance));
  }

  /** The step of `steps` of a block. */
  step(step: number, steps: number): void {
    const lines = (step: number): number => Math.floor((step * this.#lines) / steps);
    for (let line = lines(step); line < lines(step + 1); line++) this.#code.prefetch(at(rdi, 64 * line));
  }

  endBlock(): void {
    this.#code.add(rdi, 64 * this.#lines);
  }
}
