/** What no engine could run is refused before it is sent to one. Pure. */
import { SluiceError } from '../errors.ts';
import type { GenerationRequest } from '../generation.ts';

/** Throws `request_invalid`, naming the field. */
export function checkRequest({ prompt, sampling }: GenerationRequest, vocabulary: number): void {
  const known = (id: number) => Number.isInteger(id) && id >= 0 && id < vocabulary;
  const refuse = (param: string, message: string): never => {
    throw new SluiceError('request_invalid', message, { param });
  };
  const range = `the model's token ids are 0 to ${vocabulary - 1}`;
  if (prompt.length === 0) refuse('prompt', 'the prompt has no tokens: at least one is needed');
  for (let i = 0; i < prompt.length; i++) {
    if (!known(prompt[i]!)) refuse('prompt', `token ${i} of the prompt is ${prompt[i]}: ${range}`);
  }
  for (const [id] of sampling.logitBias)
    if (!known(id)) refuse('logit_bias', `logit_bias has ${id}: ${range}`);
  for (const id of sampling.stopTokenIds)
    if (!known(id)) refuse('stop_token_ids', `stop_token_ids has ${id}: ${range}`);
  if (sampling.bestOf < sampling.n)
    refuse('best_of', `best_of is ${sampling.bestOf}: at least n, which is ${sampling.n}`);
}
