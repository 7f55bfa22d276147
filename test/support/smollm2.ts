/** SmolLM2-135M-Instruct from its published Q4_1 GGUF. It is 98 MB: it is looked for, never downloaded. */
import { globSync } from 'node:fs';
import { homedir } from 'node:os';
import path from 'node:path';

const cache = path.join(process.env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'sluice');

export const smolLm2: string | undefined =
  process.env.SLUICE_TEST_SMOLLM2 ||
  globSync('**/SmolLM2-135M-Instruct.Q4_1.gguf', { cwd: cache }).map((name) => path.join(cache, name))[0];

/** The option of tests that need it. */
export const skipWithoutSmolLm2: string | false =
  smolLm2 === undefined &&
  `the GGUF is not here: npm run bench peers fetches it into ${cache}, or SLUICE_TEST_SMOLLM2 names it`;
