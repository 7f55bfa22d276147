/**
 * Machine code that stands before the kernels of row ops (ort/custom-op.ts): asks ONNX Runtime where a node's inputs and
 * outputs are, writes that into the node's words, and calls what runs the node. Addresses of the API's functions enter.
 * A node then costs tens of nanoseconds instead of microseconds of FFI.
 */

import type { Pointer } from '../../../ort/library.ts';
import { rowWords } from '../../../ort/row-op.ts';
import { Assembler } from './assembler.ts';
import { at, Label, r8, r12, r13, r14, rax, rbp, rbx, rcx, rdi, rdx, rsi } from './general-assembler.ts';

export interface GatherFunctions {
  readonly KernelContext_GetInput: Pointer;
  readonly KernelContext_GetOutput: Pointer;
  readonly GetTensorMutableData: Pointer;
}

export const word = (name: keyof typeof rowWords): number => 8 * rowWords[name];

/** KernelComputeV2 of OrtCustomOp: the node's words and the context to a status, null for success. */
export function rowGatherCode(functions: GatherFunctions): Uint8Array {
  const code = new Assembler();
  // An odd number of registers keeps the stack aligned for calls.
  const saved = [rbx, rbp, r12, r13, r14];
  code.save(saved);
  const end = new Label();
  code.copy(rbx, rdi);
  code.copy(r12, rsi);
  const call = (name: keyof GatherFunctions): void => {
    code.setQuad(rax, functions[name]);
    code.callAddress(rax);
    code.compare(rax, 0);
    code.jumpIf('notEqual', end);
  };
  /** The value at `value` is a tensor: its elements' address goes to the place at r14, which moves on. */
  const place = (): void => {
    code.loadQuad(rdi, at(rbx, word('value')));
    code.copy(rsi, r14);
    call('GetTensorMutableData');
    code.add(r14, 8);
    code.add(r13, 1);
  };
  const [input, inputsDone, output, outputsDone] = [new Label(), new Label(), new Label(), new Label()];
  code.set(r13, 0);
  code.address(r14, at(rbx, word('places')));
  code.bind(input);
  code.compareMemory(r13, at(rbx, word('inputs')));
  code.jumpIf('equal', inputsDone);
  code.copy(rdi, r12);
  code.copy(rsi, r13);
  code.address(rdx, at(rbx, word('value')));
  call('KernelContext_GetInput');
  place();
  code.jump(input);
  code.bind(inputsDone);
  code.loadQuad(rax, at(rbx, word('rowsAddress')));
  code.loadQuad(rax, at(rax));
  code.storeQuadword(at(rbx, word('rows')), rax);
  code.set(r13, 0);
  code.loadQuad(rbp, at(rbx, word('outputs')));
  code.shiftLeft(rbp, 3);
  code.addRegister(rbp, r14);
  code.bind(output);
  code.compareMemory(r13, at(rbx, word('outputs')));
  code.jumpIf('equal', outputsDone);
  code.loadQuad(rax, at(rbp));
  code.storeQuadword(at(rbx, word('columns')), rax);
  code.copy(rdi, r12);
  code.copy(rsi, r13);
  code.address(rdx, at(rbx, word('rows')));
  code.set(rcx, 2);
  code.address(r8, at(rbx, word('value')));
  call('KernelContext_GetOutput');
  place();
  code.add(rbp, 8);
  code.jump(output);
  code.bind(outputsDone);
  code.copy(rdi, rbx);
  code.loadQuad(rax, at(rbx, word('run')));
  code.callAddress(rax);
  code.bind(end);
  code.restore(saved);
  code.return();
  return code.finish();
}
