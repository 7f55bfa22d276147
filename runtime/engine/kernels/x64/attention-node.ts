/** Machine code of a whole attention node: rows are prepared, then attended. Addresses enter, code leaves. */
import type { Pointer } from '../../../ort/library.ts';
import { Assembler } from './assembler.ts';
import { attentionArguments } from './attention-form.ts';
import { prepareArguments } from './attention-prepare.ts';
import { at, rax, rbx, rcx, rdi } from './general-assembler.ts';
import { word } from './row-gather.ts';

export interface AttentionNode {
  /** Of attention-prepare.ts and attention.ts. */
  readonly prepare: Pointer;
  readonly attend: Pointer;
  /** Addresses of their arguments, which have all but the node's own rows. */
  readonly prepareWords: Pointer;
  readonly attendWords: Pointer;
}

/**
 * The code's argument is the address of a node's words: inputs q, k and v, and the output. Prepared queries lie where the
 * outputs will: attention writes a tile's outputs when it has done with the tile's queries.
 */
export function attentionNodeCode(node: AttentionNode): Uint8Array {
  const code = new Assembler();
  const place = (to: number, index: number): void => code.loadQuad(to, at(rdi, word('places') + 8 * index));
  code.push(rbx);
  code.setQuad(rax, node.prepareWords);
  code.setQuad(rbx, node.attendWords);
  for (const [index, name] of (['q', 'k', 'v', 'queries'] as const).entries()) {
    place(rcx, index);
    code.storeQuadword(at(rax, 8 * prepareArguments[name]), rcx);
  }
  for (const name of ['q', 'out'] as const) code.storeQuadword(at(rbx, 8 * attentionArguments[name]), rcx);
  code.copy(rdi, rax);
  code.setQuad(rax, node.prepare);
  code.callAddress(rax);
  code.copy(rdi, rbx);
  code.setQuad(rax, node.attend);
  code.callAddress(rax);
  code.set(rax, 0);
  code.pop(rbx);
  code.return();
  return code.finish();
}
