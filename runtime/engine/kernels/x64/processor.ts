/**
 * Which instructions the kernels here may use: asked of the processor, and of the system, which must keep wide registers
 * when it switches threads. Nothing enters. Source: Intel's Software Developer's Manual, volume 2, CPUID and XGETBV.
 */
import { SluiceError } from '../../../errors.ts';
import { nativeFunction } from '../../../ort/native-code.ts';
import { Assembler } from './assembler.ts';
import { at, r8, rax, rbx, rcx, rdi, rdx, rsi } from './general-assembler.ts';

/** Sets of instructions that kernels are written for, the best first. */
export const instructionSets = ['avx512', 'avx2'] as const;
export type InstructionSet = (typeof instructionSets)[number];

/** `portable`: none of them. */
export type CpuKernels = 'auto' | InstructionSet | 'portable';

let available: readonly InstructionSet[] | undefined;

/** None where the system forbids a process to make code. */
export function availableInstructionSets(): readonly InstructionSet[] {
  if (available !== undefined) return available;
  try {
    available = process.platform === 'linux' && process.arch === 'x64' ? ask() : [];
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error;
    available = [];
  }
  return available;
}

/** Bytes of its vectors. */
export const widthOf = (instructions: InstructionSet): 32 | 64 => (instructions === 'avx512' ? 64 : 32);

/** Undefined: portable kernels. Throws SluiceError `device_unavailable` for a set that the processor lacks. */
export function chooseInstructionSet(wish: CpuKernels): InstructionSet | undefined {
  const sets = availableInstructionSets();
  if (wish === 'portable') return undefined;
  if (wish === 'auto') return sets[0];
  if (sets.includes(wish)) return wish;
  throw new SluiceError(
    'device_unavailable',
    `--cpu-kernels ${wish}: there are not all instructions for it, or the system forbids to make code; possible here: ${[...sets, 'portable'].join(', ')}`,
    { param: 'cpu-kernels' },
  );
}

/**
 * Whether models whose other products round their inputs to int8 attend in products of bfloat16: the processor has them,
 * beside the set avx512.
 */
export function attendsInBfloat16(compute: 'int8' | 'float32', instructions: InstructionSet | null): boolean {
  return compute === 'int8' && instructions === 'avx512' && bit(cpuidFunction()(7, 1).eax, 5);
}

const bit = (word: number, index: number): boolean => ((word >>> index) & 1) === 1;

function ask(): InstructionSet[] {
  const ask = cpuidFunction();
  const [basic, extended] = [ask(1, 0), ask(7, 0)];
  // OSXSAVE: without it the system's word cannot be read.
  if (!bit(basic.ecx, 27)) return [];
  const kept = readExtendedControl();
  const avx2 =
    (kept & 0x6) === 0x6 &&
    bit(basic.ecx, 12) &&
    bit(basic.ecx, 28) &&
    bit(basic.ecx, 29) &&
    bit(extended.ebx, 5);
  const avx512 =
    avx2 && (kept & 0xe6) === 0xe6 && bit(extended.ebx, 16) && bit(extended.ebx, 30) && bit(extended.ecx, 11);
  return instructionSets.filter((set) => (set === 'avx512' ? avx512 : avx2));
}

interface Answer {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
}

function cpuidFunction(): (leaf: number, part: number) => Answer {
  const code = new Assembler();
  code.push(rbx);
  code.copy(rax, rdi);
  code.copy(rcx, rsi);
  code.copy(r8, rdx);
  code.cpuid();
  code.storeDword(at(r8, 0), rbx);
  code.storeDword(at(r8, 4), rcx);
  code.storeDword(at(r8, 8), rax);
  code.pop(rbx);
  code.return();
  const call = nativeFunction(code.finish(), 3);
  return (leaf, part) => {
    const words = new Int32Array(3);
    call(BigInt(leaf), BigInt(part), words);
    return { ebx: words[0]!, ecx: words[1]!, eax: words[2]! };
  };
}

function readExtendedControl(): number {
  const code = new Assembler();
  code.copy(r8, rdi);
  code.set(rcx, 0);
  code.readExtendedControl();
  code.storeDword(at(r8, 0), rax);
  code.return();
  const words = new Int32Array(1);
  nativeFunction(code.finish(), 1)(words);
  return words[0]!;
}
