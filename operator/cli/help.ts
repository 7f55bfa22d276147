/** The text of `sluice-operator --help`, from the table of options. Pure. */
import type { Option } from '../../runtime/config/options.ts';
import { operatorOptions } from '../config.ts';
import { type Command, type CommandName, commandOptions, commands, usage } from './command-line.ts';

const width = 100;
const indent = '      ';

export function helpText(): string {
  const groups = Map.groupBy(Object.values(operatorOptions) as Option[], (option) => option.group);
  const sections = [...groups].map(([group, options]) => `${group}:\n${options.map(describe).join('\n')}`);
  return `sluice-operator keeps InferenceServices (sluice.dev) as their authors want them.

Usage: sluice-operator [options]
       sluice-operator COMMAND [options], or kubectl sluice COMMAND [options]

Try it on the cluster of your kubeconfig (the CRD must be there: kubectl apply -f crds/):
  sluice-operator --runtime-image registry.example/sluice-runtime:0.1.0 --no-leader-elect

${sections.join('\n\n')}

Commands for people; NAME is an InferenceService:
${(Object.keys(commands) as CommandName[]).map(describeCommand).join('\n')}

Options of commands:
${Object.values(commandOptions).map(describe).join('\n')}

General:
  --config <a path to a YAML file>
      A file of options; its keys are the flags without the dashes.
  --help, --version

Each option of the operator is also a variable: --log-level is SLUICE_OPERATOR_LOG_LEVEL. A flag
wins over a variable, a variable over the file. Booleans are --leader-elect and --no-leader-elect.
Exit codes: 0 stopped by a signal or done, 1 failed, 2 wrong options, manifest or name.
`;
}

function describe(option: Option): string {
  const value = option.kind === 'boolean' ? '' : ` <${option.form}>`;
  const fallback = option.defaultText ?? String(option.default);
  return `  --${option.flag}${value}\n${wrap(`${option.description} Default: ${fallback}.`)}`;
}

function describeCommand(name: CommandName): string {
  const { summary, options } = commands[name] as Command;
  const flags = options.map((each) => `--${commandOptions[each].flag}`).join(', ');
  return `  ${usage(name)}\n${wrap(`${summary} Takes ${flags}.`)}`;
}

function wrap(text: string): string {
  const lines = [''];
  for (const word of text.split(' ')) {
    const last = lines.at(-1)!;
    if (last !== '' && indent.length + last.length + 1 + word.length > width) lines.push(word);
    else lines[lines.length - 1] = last === '' ? word : `${last} ${word}`;
  }
  return lines.map((line) => indent + line).join('\n');
}
