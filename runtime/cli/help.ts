/** --help of each command, from the same tables that parse the flags. Pure. */

import type { Option, OptionTable } from '../config/options.ts';
import { defaultText } from '../config.ts';

const width = 96;
const indent = '      ';

export interface Command {
  help(): string;
  /** Resolves when the command has done its work; a server goes on after that. */
  run(argv: readonly string[]): Promise<void>;
}

export interface CommandHelp {
  readonly usage: string;
  readonly about: readonly string[];
  readonly options: OptionTable;
  readonly examples: readonly string[];
}

export const programHelp = `sluice: serves language models behind OpenAI's HTTP API

Usage: sluice <command> [options]

Commands
  serve      load a model and answer requests over HTTP
  generate   load a model, write one answer to the terminal and end
  pull       download a model from the hub
  inspect    say what a checkpoint is and what it needs
  resolve    say which commit a branch stands for, and what it holds, as JSON
  models     list the architectures and encodings that can be served
  version    print the version

Without --model-path a small demo model that comes with Sluice is used.
sluice <command> --help tells a command's options.

Examples
  sluice serve --model-path /models/llama --port 8000
  sluice generate --prompt "What is Kubernetes?"
  sluice inspect Qwen/Qwen3-0.6B
`;

export function commandHelp({ usage, about, options, examples }: CommandHelp): string {
  const groups = Map.groupBy(Object.values(options), (option) => option.group);
  const lines = [`Usage: ${usage}`, '', ...about.flatMap((text) => wrap(text, ''))];
  for (const [group, members] of groups) {
    lines.push('', group);
    for (const option of members) lines.push(...describe(option));
  }
  lines.push(
    '',
    'Each option with a variable can be given by flag, by that variable, or in the YAML file of --config',
  );
  lines.push('(keys are the flags without the dashes); flags win over variables, variables over the file.');
  lines.push('', 'Examples', ...examples.map((example) => `  ${example}`), '');
  return lines.join('\n');
}

function describe(option: Option): string[] {
  const negation = option.kind === 'boolean' ? `, --no-${option.flag}` : ` <${valueName(option)}>`;
  const flag = `  --${option.flag}${negation}`;
  const variable = option.env === null ? '' : `[${option.env}]`;
  const fits = flag.length + variable.length < width;
  return [
    ...(fits ? [`${flag} ${variable}`.trimEnd()] : [flag, `${indent}${variable}`]),
    ...wrap(`${option.description}${choicesText(option)} Default: ${defaultText(option)}.`, indent),
  ];
}

/** Choices of more characters than this are listed below the flag. */
const mostChoices = 60;

function choicesText({ form }: Option): string {
  return form.startsWith('one of ') && form.length > mostChoices ? ` O${form.slice(1)}.` : '';
}

function valueName({ kind, form }: Option): string {
  if (form.startsWith('one of '))
    return form.length > mostChoices ? 'name' : form.slice('one of '.length).replaceAll(', ', '|');
  if (kind === 'integer') return 'n';
  return {
    string: 'text',
    texts: 'text',
    list: 'text,...',
    number: 'x',
    bytes: 'size',
    seconds: 'seconds',
    boolean: '',
  }[kind];
}

function wrap(text: string, prefix: string): string[] {
  const lines: string[] = [];
  let line = prefix;
  for (const word of text.split(' ')) {
    if (line.length > prefix.length && line.length + word.length + 1 > width) {
      lines.push(line);
      line = prefix;
    }
    line += line.length > prefix.length ? ` ${word}` : word;
  }
  return [...lines, line];
}
