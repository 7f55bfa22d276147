/** Machine code that runs nodes of row ops one after the other: their words' addresses enter, a status leaves. */
import { Assembler } from './assembler.ts';
import { at, Label, r12, r13, r14, rax, rbx, rdi } from './general-assembler.ts';
import { word } from './row-gather.ts';

/** Places in the array of 64-bit values whose address is the code's argument. */
export const rowChainWords = {
  /** 0, or the status of the member that failed: none runs after it. */
  status: 0,
  rows: 1,
  /** At least 1. */
  count: 2,
  /** Addresses of the members' words. */
  members: 3,
} as const;

export function rowChainCode(): Uint8Array {
  const code = new Assembler();
  const place = (name: keyof typeof rowChainWords) => at(rbx, 8 * rowChainWords[name]);
  // With the return address and one more than is saved the stack is aligned for calls.
  const saved = [rbx, r12, r13, r14, r14];
  code.save(saved);
  code.copy(rbx, rdi);
  code.loadQuad(r13, place('rows'));
  code.loadQuad(r14, place('count'));
  code.address(r12, place('members'));
  const [next, end] = [new Label(), new Label()];
  code.bind(next);
  code.loadQuad(rdi, at(r12));
  code.storeQuadword(at(rdi, word('rows')), r13);
  code.loadQuad(rax, at(rdi, word('run')));
  code.callAddress(rax);
  code.compare(rax, 0);
  code.jumpIf('notEqual', end);
  code.add(r12, 8);
  code.subtract(r14, 1);
  code.jumpIf('notEqual', next);
  code.bind(end);
  code.storeQuadword(place('status'), rax);
  code.restore(saved);
  code.return();
  return code.finish();
}
