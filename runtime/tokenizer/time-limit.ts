/**
 * Runs foreign work (templates and patterns of a checkpoint) for so long at most: synchronous code that goes on is stopped
 * from outside. Costs a tenth of a millisecond. Must not know what runs.
 */
import vm from 'node:vm';
import { SluiceError } from '../errors.ts';

const script = new vm.Script('work()');
const context: { work?: (() => unknown) | undefined } = vm.createContext({});

/** What texts of so many characters in all may take: a hundred times what the slowest sound tokenizer needs. */
const limitMs = (characters: number): number => 800 + Math.ceil(characters / 100);

/** `work`'s result, or its error. Throws SluiceError `request_invalid` when it takes too long. Not to be nested. */
export function withTimeLimit<T>(characters: number, work: () => T): T {
  const timeout = limitMs(characters);
  context.work = work;
  try {
    return script.runInContext(context, { timeout }) as T;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
    throw new SluiceError(
      'request_invalid',
      `the model's chat template or tokenizer has not come to an end with ${characters} characters within ${timeout} ms`,
      { cause: error },
    );
  } finally {
    context.work = undefined;
  }
}
