/** The names of a split GGUF's parts (`name-00001-of-00003.gguf`). Pure. */
import { SluiceError } from '../../errors.ts';

/** All parts, given any one of them, folders and all; a file that is not split is its own only part. */
export function ggufPartNames(file: string): string[] {
  const match = /^(.*)-(\d{5})-of-(\d{5})\.gguf$/s.exec(file);
  if (!match) return [file];
  const count = Number(match[3]);
  if (count < 1 || count > 9999)
    throw new SluiceError('checkpoint_invalid', `${file}: a split into ${count} parts is not possible`);
  return Array.from(
    { length: count },
    (_, part) => `${match[1]}-${String(part + 1).padStart(5, '0')}-of-${match[3]}.gguf`,
  );
}
