/**
 * The command line of what people ask for by hand: `sluice-operator plan -f chat.yaml -o json`. Enters: argv without the
 * program. Leaves: the command, its names and its options, or SluiceError `config_invalid` in one line.
 */
import { z } from 'zod';
import { nearest, type Option, type OptionValues, readOptions } from '../../runtime/config/options.ts';
import { SluiceError } from '../../runtime/errors.ts';

/** These are for one call: none has a variable. */
function option<const O extends Omit<Option, 'env' | 'group'>>(
  fields: O,
): O & { env: null; group: 'Options' } {
  return { ...fields, env: null, group: 'Options' };
}

export const commandOptions = {
  file: option({
    flag: 'file',
    kind: 'texts',
    schema: z.array(z.string().min(1)).min(1),
    description: 'A manifest with InferenceServices; - is standard input. Repeatable. Short: -f.',
    form: 'a path to a YAML file, or -',
    example: 'chat.yaml',
    defaultText: 'none',
  }),
  namespace: option({
    flag: 'namespace',
    kind: 'string',
    schema: z
      .string()
      .max(63)
      .regex(/^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/),
    description: 'Where the object is, and where a manifest that names none belongs. Short: -n.',
    form: 'the name of a namespace',
    example: 'prod',
    defaultText: "the kubeconfig's, or else default",
  }),
  output: option({
    flag: 'output',
    kind: 'string',
    schema: z.enum(['text', 'json']),
    description: 'Words for people, or JSON for programs. Short: -o.',
    form: 'text or json',
    example: 'json',
    default: 'text',
  }),
  offline: option({
    flag: 'offline',
    kind: 'boolean',
    schema: z.boolean(),
    description: 'Asks no cluster: what a cluster without this object would get.',
    form: 'true or false',
    example: 'true',
    default: false,
  }),
  to: option({
    flag: 'to',
    kind: 'string',
    schema: z.string().min(1).max(63),
    description: 'The revision to return to; `history` lists them.',
    form: 'the name of a revision',
    example: 'chat-6f9c2b4d5z',
    defaultText: 'the one that served before',
  }),
  off: option({
    flag: 'off',
    kind: 'boolean',
    schema: z.boolean(),
    description: 'Ends an undo: the spec is followed again.',
    form: 'true or false',
    example: 'true',
    default: false,
  }),
  runtimeImage: option({
    flag: 'runtime-image',
    kind: 'string',
    schema: z.string().min(1).max(1024).regex(/^\S+$/),
    description: "The operator's own --runtime-image, for revisions whose author names no image.",
    form: 'an image reference',
    example: 'registry.example/sluice-runtime:0.1.0',
    default: 'sluice-runtime:0.1.0',
  }),
  kubeconfig: option({
    flag: 'kubeconfig',
    kind: 'string',
    schema: z.string().min(1).max(4096),
    description: 'The kubeconfig file that says where the API server is.',
    form: 'a path to a kubeconfig file',
    example: '~/.kube/config',
    defaultText: '$KUBECONFIG or ~/.kube/config',
  }),
  context: option({
    flag: 'context',
    kind: 'string',
    schema: z.string().min(1).max(253),
    description: 'A context of the kubeconfig other than its current one.',
    form: 'the name of a context',
    example: 'production',
    defaultText: 'the current one',
  }),
};

export type CommandOptions = OptionValues<typeof commandOptions>;
type OptionName = keyof typeof commandOptions;

export interface Command {
  /** `NAME` is an InferenceService; absent: the command takes none. */
  readonly takesName: boolean;
  readonly summary: string;
  readonly options: readonly OptionName[];
}

const cluster = ['kubeconfig', 'context', 'namespace'] as const;

export const commands = {
  plan: {
    takesName: false,
    summary:
      'What a manifest would change: objects, pods that restart, GPUs needed and free. Changes nothing.',
    options: ['file', 'output', 'offline', 'runtimeImage', ...cluster],
  },
  explain: {
    takesName: true,
    summary: 'Why it is not Ready, in one paragraph.',
    options: ['output', ...cluster],
  },
  history: {
    takesName: true,
    summary: 'Its revisions, the newest first, and what changed with each.',
    options: ['output', ...cluster],
  },
  undo: {
    takesName: true,
    summary: 'Returns to an earlier revision (spec.rollout.rollbackTo).',
    options: ['to', 'off', ...cluster],
  },
  pause: { takesName: true, summary: 'Leaves the rollout where it is.', options: cluster },
  resume: { takesName: true, summary: 'Ends a pause.', options: cluster },
  promote: {
    takesName: true,
    summary: 'Lets a rollout that waits for a person (promotion: Manual) go on.',
    options: cluster,
  },
  abort: {
    takesName: true,
    summary: 'Ends the rollout and returns to what served before.',
    options: cluster,
  },
  retry: { takesName: true, summary: 'Tries a revision that failed once more.', options: cluster },
} as const satisfies Record<string, Command>;

export type CommandName = keyof typeof commands;

export interface CommandLine {
  readonly command: CommandName;
  /** '' for a command that takes none. */
  readonly name: string;
  readonly options: CommandOptions;
}

const shortFlags: Readonly<Record<string, string>> = {
  '-f': '--file',
  '-n': '--namespace',
  '-o': '--output',
};

/** Undefined where argv begins with a flag, or with nothing: then it is about the operator itself. */
export function readCommandLine(argv: readonly string[]): CommandLine | undefined {
  const [first] = argv;
  if (first === undefined || first.startsWith('-')) return undefined;
  if (!Object.hasOwn(commands, first)) {
    const hint = nearest(first, Object.keys(commands));
    throw invalid(
      `"${first}": unexpected argument; ${hint === undefined ? `the commands are ${Object.keys(commands).join(', ')}` : `did you mean ${hint}?`} (--help lists all)`,
    );
  }
  const command = first as CommandName;
  const { options: names, takesName } = commands[command] as Command;
  const table = Object.fromEntries(names.map((name) => [name, commandOptions[name]]));
  const { flags, words } = separate(argv.slice(1), table);
  const given = readOptions(table, { argv: flags, env: {} });
  if (words.length > (takesName ? 1 : 0))
    throw invalid(`${command}: "${words.at(-1)}": unexpected argument; the form is ${usage(command)}`);
  const [name = ''] = words;
  if (takesName && name === '')
    throw invalid(`${command}: the name is missing; the form is ${usage(command)}`);
  if (command === 'plan' && given.file === undefined)
    throw invalid('plan: no manifest; the form is plan -f FILE, for example plan -f chat.yaml');
  const defaults = Object.fromEntries(
    Object.entries(commandOptions).map(([key, each]) => [key, 'default' in each ? each.default : undefined]),
  );
  return { command, name, options: { ...defaults, ...given } as CommandOptions };
}

export function usage(command: CommandName): string {
  return command === 'plan' ? 'plan -f FILE' : `${command} NAME`;
}

/** Bare words from flags and their values; -f is --file, -fx --file=x. */
function separate(
  argv: readonly string[],
  table: Readonly<Record<string, Option>>,
): { flags: string[]; words: string[] } {
  const booleans = new Set(
    Object.values(table).flatMap(({ kind, flag }) =>
      kind === 'boolean' ? [`--${flag}`, `--no-${flag}`] : [],
    ),
  );
  const flags: string[] = [];
  const words: string[] = [];
  for (let index = 0; index < argv.length; index++) {
    const argument = argv[index]!;
    const short = argument.startsWith('--') ? undefined : shortFlags[argument.slice(0, 2)];
    if (short !== undefined && argument.length > 2)
      flags.push(`${short}=${argument.slice(2).replace(/^=/, '')}`);
    else if (short !== undefined || (argument.startsWith('--') && !argument.includes('='))) {
      const flag = short ?? argument;
      const value = argv[index + 1];
      if (booleans.has(flag) || value === undefined || value.startsWith('--')) flags.push(flag);
      else {
        flags.push(`${flag}=${value}`);
        index++;
      }
    } else if (argument.startsWith('-') && argument !== '-') flags.push(argument);
    else words.push(argument);
  }
  return { flags, words };
}

function invalid(message: string): SluiceError {
  return new SluiceError('config_invalid', message);
}
