/** Which code attends: picks it by the instructions there are and how keys and values are stored. */

import { Bfloat16Attention } from './attention-bfloat16.ts';
import { FloatAttention } from './attention-float.ts';
import { type AttentionForm, hasAttentionCode } from './attention-form.ts';
import { Int8Attention } from './attention-int8.ts';
import type { InstructionSet } from './processor.ts';

/** Whether the pages of the form hold keys and values in fours (attention-int8.ts). */
export function attendsInIntegers(form: AttentionForm, instructions: InstructionSet): boolean {
  return (
    form.dtype === 'int8' && instructions === 'avx512' && form.shape.headDim <= 256 && hasAttentionCode(form)
  );
}

export function attentionCode(form: AttentionForm, instructions: InstructionSet): Uint8Array {
  if (attendsInIntegers(form, instructions)) return new Int8Attention(form, instructions).finish();
  if (form.bfloat16Keys !== undefined) return new Bfloat16Attention(form, instructions).finish();
  return new FloatAttention(form, instructions).finish();
}
