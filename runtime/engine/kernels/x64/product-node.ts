/**
 * Machine code of a whole product node: rows are quantized and multiplied with the groups of each part, as many rows at a
 * time as stay near. Addresses and sizes enter, code leaves.
 */
import type { Pointer } from '../../../ort/library.ts';
import { Assembler } from './assembler.ts';
import { productArguments } from './block-product.ts';
import { at, Label, r8, r12, r13, r14, rax, rbx, rcx, rdi, rdx, rsi } from './general-assembler.ts';
import { word } from './row-gather.ts';

export interface ProductPart {
  readonly outputs: number;
  /** Where the part's groups start, in bytes. */
  readonly weightsOffset: number;
  /** Address of its arguments (productArguments). */
  readonly words: Pointer;
}

/** How rows are multiplied. */
export interface ProductWay {
  readonly passRows: number;
  /** Of row-blocks.ts and block-product.ts. */
  readonly quantize: Pointer;
  readonly product: Pointer;
}

export interface ProductNode {
  readonly inputs: number;
  readonly parts: readonly ProductPart[];
  /** Where the addresses of the room for a pass's values and facts are, and of that for an expanded group. */
  readonly cells: Readonly<Record<'values' | 'facts' | 'expanded', Pointer>>;
  readonly way: ProductWay;
  /** Of nodes with so many rows. */
  readonly wide: (ProductWay & { readonly leastRows: number }) | null;
}

/** The code's argument is the address of a node's words: inputs x and groups, an output for each part. */
export function productNodeCode(node: ProductNode): Uint8Array {
  const code = new Assembler();
  const saved = [rbx, r12, r13, r14];
  code.save(saved);
  code.copy(rbx, rdi);
  code.loadQuad(r12, at(rbx, word('rows')));
  code.loadQuad(r13, input(0));
  // Rows before this pass.
  code.set(r14, 0);
  const end = new Label();
  if (node.wide !== null) {
    const few = new Label();
    code.compare(r12, node.wide.leastRows);
    code.jumpIf('below', few);
    emitPasses(code, node, node.wide);
    code.jump(end);
    code.bind(few);
  }
  emitPasses(code, node, node.way);
  code.bind(end);
  code.set(rax, 0);
  code.restore(saved);
  code.return();
  return code.finish();
}

const input = (index: number) => at(rbx, word('places') + 8 * index);

/** The r12 rows from r13 on. */
function emitPasses(
  code: Assembler,
  { inputs, parts, cells }: ProductNode,
  { passRows, quantize, product }: ProductWay,
): void {
  const call = (address: Pointer): void => {
    code.setQuad(rax, address);
    code.callAddress(rax);
  };
  const cell = (to: number, address: Pointer): void => {
    code.setQuad(rax, address);
    code.loadQuad(to, at(rax));
  };
  const [pass, done] = [new Label(), new Label()];
  code.bind(pass);
  code.copy(rcx, r12);
  code.limit(rcx, passRows);
  code.copy(rdi, r13);
  cell(rsi, cells.values);
  cell(rdx, cells.facts);
  cell(r8, cells.expanded);
  for (const { words } of parts) {
    code.setQuad(rax, words);
    code.storeQuadword(at(rax, 8 * productArguments.rows), rcx);
    code.storeQuadword(at(rax, 8 * productArguments.values), rsi);
    code.storeQuadword(at(rax, 8 * productArguments.facts), rdx);
    code.storeQuadword(at(rax, 8 * productArguments.expanded), r8);
  }
  call(quantize);
  for (const [index, { outputs, weightsOffset, words }] of parts.entries()) {
    code.setQuad(rdi, words);
    code.loadQuad(rax, input(1));
    code.add(rax, weightsOffset);
    code.storeQuadword(at(rdi, 8 * productArguments.weights), rax);
    code.multiply(rax, r14, 4 * outputs);
    code.loadQuad(rcx, input(2 + index));
    code.addRegister(rax, rcx);
    code.storeQuadword(at(rdi, 8 * productArguments.out), rax);
    call(product);
  }
  code.compare(r12, passRows);
  code.jumpIf('belowOrEqual', done);
  code.subtract(r12, passRows);
  code.add(r13, passRows * inputs * 4);
  code.add(r14, passRows);
  code.jump(pass);
  code.bind(done);
}
