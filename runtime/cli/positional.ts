/** Commands that take a model first: `sluice pull org/name --flag`. Pure. */
import { SluiceError } from '../errors.ts';

/** argv with the model as --model-path. Throws SluiceError `config_invalid` when there is none. */
export function modelFirst(
  command: string,
  argv: readonly string[],
  form: string,
  example: string,
): string[] {
  const [model, ...rest] = argv;
  if (model === undefined || model.startsWith('-')) {
    throw new SluiceError(
      'config_invalid',
      `sluice ${command}: the model is missing; the form is ${form}, for example sluice ${command} ${example}`,
    );
  }
  return [`--model-path=${model}`, ...rest];
}
