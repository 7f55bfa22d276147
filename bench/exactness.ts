/**
 * `npm run bench -- exactness [model.gguf] [--write]`: where greedy answers depend on batches, caches, chunks and ranks, and by
 * how much the model preferred what it chose there. SmolLM2-135M-Instruct unless another GGUF with a chat template is given.
 */
import { cpus, homedir } from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { tokenizerFromGguf } from '../runtime/tokenizer/gguf.ts';
import { loadTokenizer } from '../runtime/tokenizer/hugging-face.ts';
import { openCheckpoint } from '../runtime/weights/open.ts';
import { boundOf, type Compared, compareSettings, smolLm2Bounds } from '../test/support/exactness.ts';
import { chatPrompts } from '../test/support/exactness-prompts.ts';
import { writeSection } from './docs-section.ts';
import { installModel } from './peers/install.ts';

type Decode = (id: number) => string;

export async function benchExactness(argv: readonly string[]): Promise<void> {
  const { positionals, values } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: { write: { type: 'boolean', default: false } },
  });
  const model = positionals[0] ?? installModel(path.join(homedir(), '.cache/sluice/bench'));
  const prompts = chatPrompts(model);
  const compared = await compareSettings({
    checkpoint: { path: model },
    prompts,
    answerTokens: 48,
    goesOn: true,
    maxLength: 512,
  });
  const { path: file, metadata } = openCheckpoint(model);
  const tokenizer = loadTokenizer(tokenizerFromGguf(file, metadata!));
  const decode = (id: number) => tokenizer.decode([id], { skipSpecialTokens: false });
  const lengths = prompts.map(({ length }) => length);
  const lines = [
    `${cpus()[0]?.model ?? 'unknown processor'}. ${path.basename(model, '.gguf')}, ${prompts.length} prompts of ${Math.min(...lengths)} to ${Math.max(...lengths)} tokens.`,
    '',
    ...settingsTable(compared),
    '',
    'The choices that differ, by margin:',
    '',
    ...differencesTable(compared, decode),
  ];
  console.log(lines.join('\n'));
  if (values.write) writeSection('exactness', lines, 'exactness.md');
}

const letterOf = (index: number): string => String.fromCharCode(65 + index);

function settingsTable(compared: readonly Compared[]): string[] {
  return [
    '| | setting | positions | equal | largest margin where they differ | bound |',
    '| --- | --- | --- | --- | --- | --- |',
    ...compared.map(({ setting, positions, differences }, index) => {
      const largest = Math.max(...differences.map(({ margin }) => margin));
      const equal = positions - differences.length;
      return `| ${letterOf(index)} | ${setting.name} | ${positions} | ${equal} | ${differences.length === 0 ? '-' : largest.toFixed(2)} | ${boundOf(setting, smolLm2Bounds)} |`;
    }),
  ];
}

/** A row for each token that some setting chose instead of the base's. */
function differencesTable(compared: readonly Compared[], decode: Decode): string[] {
  const rows = new Map<string, { margin: number; row: string; settings: string }>();
  for (const [index, { differences }] of compared.entries())
    for (const { prompt, position, tokens, margin } of differences) {
      const [mine, other] = tokens.map((id) => `\`${JSON.stringify(decode(id)).replaceAll('|', '\\|')}\``);
      const row = `${margin.toFixed(3)} | ${prompt} | ${position} | ${mine} | ${other}`;
      const settings = (rows.get(row)?.settings ?? '') + letterOf(index);
      rows.set(row, { margin, row, settings });
    }
  return [
    '| margin | prompt | position | base | instead | in |',
    '| --- | --- | --- | --- | --- | --- |',
    ...[...rows.values()]
      .toSorted((a, b) => b.margin - a.margin)
      .map(({ row, settings }) => `| ${row} | ${settings} |`),
  ];
}
