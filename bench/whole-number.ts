/** Numbers among a benchmark's arguments. */

/** A mistake of whoever called: one line, no stack. */
export class UsageError extends Error {}

/** Throws UsageError for anything but an integer of at least 1. */
export function wholeNumber(name: string, text: string): number {
  if (/^[1-9]\d*$/.test(text)) return Number(text);
  throw new UsageError(
    `${name} ${JSON.stringify(text)}: the form is an integer from 1, for example ${name} 10`,
  );
}
