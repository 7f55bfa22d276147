/** How the program ends: one clear line and the error's exit code for users, the stack for bugs of ours. */
import { SluiceError } from '../errors.ts';

export function exitWith(error: unknown): never {
  if (error instanceof SluiceError) {
    process.stderr.write(`sluice: ${error.message.replaceAll(/\s*\n\s*/g, ' ')}\n`);
    process.exit(error.exitCode);
  }
  process.stderr.write(
    `sluice: internal error, please report it: ${error instanceof Error ? error.stack : String(error)}\n`,
  );
  process.exit(70);
}
